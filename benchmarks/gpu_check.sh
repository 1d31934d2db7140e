#!/usr/bin/env bash
# On a GPU machine: the tests marked gpu, then every benchmark; within PSF_GPU_SECONDS (default 480), whatever hangs.
#
#     make gpu-check        or        benchmarks/gpu_check.sh [PYTHON]
#
# Where Detectron2 is missing, it is unpacked from the folder that benchmarks/collect_wheels.sh made (PSF_WHEELS,
# default .whl) into a temporary place. PSF_GPU_DEVICE=cpu rehearses all of it, with tiny sizes, where no GPU is.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3} wheels=${PSF_WHEELS:-.whl} device=${PSF_GPU_DEVICE:-cuda}
end=$((SECONDS + ${PSF_GPU_SECONDS:-480}))
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONWARNINGS=ignore PYTHONUNBUFFERED=1
left() { echo $((end > SECONDS ? end - SECONDS : 1)); }

peers=""
if ! "$python" -c 'import detectron2' 2>/dev/null; then
    if [[ ! -d $wheels ]]; then
        echo "gpu-check: $python has no Detectron2, and there is no $wheels: run benchmarks/collect_wheels.sh where a package index is" >&2
        exit 2
    fi
    site=$(mktemp -d)
    trap 'kill "$(cat "$site/peers.pid" 2>/dev/null)" 2>/dev/null; rm -rf "$site"' EXIT
    bash benchmarks/install_wheels.sh "$wheels" "$site" "$python"
    export PYTHONPATH=$site:$site/peers:$PYTHONPATH
    peers=$site
fi
"$python" -c "import torch, sys; sys.exit('$device' != 'cpu' and not torch.cuda.is_available())" || {
    echo "gpu-check: torch sees no GPU" >&2
    exit 2
}

failed=()
run() { # NAME SECONDS COMMAND...: whatever happens, the others run too
    local name=$1 limit=$2 start=$SECONDS rest
    shift 2
    rest=$(left)
    echo "== $name"
    if timeout --kill-after=10 $((limit < rest ? limit : rest)) "$@"; then
        echo "== $name: $((SECONDS - start)) s"
    else
        failed+=("$name")
        echo "== $name: FAILED after $((SECONDS - start)) s" >&2
    fi
}

mapfile -t tests < <(grep -rlE 'mark\.gpu' tests --include='*.py')
if [[ $device != cpu ]]; then
    # Other versions than those of constraints.txt may warn of other things: that is no error here.
    run "tests marked gpu" 150 "$python" -m pytest -q -p no:cacheprovider -W default -m gpu "${tests[@]}"
fi
if [[ -n $peers ]]; then
    # The official kernels take a minute or two, most of it beside the tests; without them a few rows are missing.
    wait_until=$((SECONDS + 90))
    while kill -0 "$(cat "$peers/peers.pid")" 2>/dev/null && ((SECONDS < wait_until)); do sleep 2; done
    if kill -0 "$(cat "$peers/peers.pid")" 2>/dev/null; then echo "gpu-check: the peers are still being built; without them"; fi
    tail -5 "$peers/peers.log"
fi

options=(--device "$device")
if [[ $device == cpu ]]; then options+=(--quick --rounds 1); fi
for name in ms_deform_attn mask_decoder merging training_step whole_model; do
    run "$name" 100 "$python" "benchmarks/$name.py" "${options[@]}"
done
if ((${#failed[@]})); then
    echo "gpu-check: failed: ${failed[*]}" >&2
    exit 1
fi
echo "gpu-check: all passed, $(left) s to spare"
