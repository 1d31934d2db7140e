#!/usr/bin/env bash
# On a GPU machine: run the tests marked gpu, then every benchmark, in at most PSF_GPU_SECONDS (default 480).
#
#     make gpu-check        or        benchmarks/gpu_check.sh [PYTHON]
#
# If Detectron2 is missing, it is unpacked from the folder of benchmarks/collect_wheels.sh (PSF_WHEELS, default .whl)
# into a temporary folder. PSF_GPU_DEVICE=cpu runs all steps without a GPU, with tiny sizes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3} wheels=${PSF_WHEELS:-.whl} device=${PSF_GPU_DEVICE:-cuda}
end=$((SECONDS + ${PSF_GPU_SECONDS:-480}))
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONWARNINGS=ignore PYTHONUNBUFFERED=1
left() { echo $((end > SECONDS ? end - SECONDS : 1)); }

baselines=""
if ! "$python" -c 'import detectron2' 2>/dev/null; then
    if [[ ! -d $wheels ]]; then
        echo "gpu-check: $python has no Detectron2, and $wheels does not exist: run benchmarks/collect_wheels.sh on a machine with a package index" >&2
        exit 2
    fi
    site=$(mktemp -d)
    trap 'kill "$(cat "$site/peers.pid" 2>/dev/null)" 2>/dev/null; rm -rf "$site"' EXIT
    bash benchmarks/install_wheels.sh "$wheels" "$site" "$python"
    export PYTHONPATH=$site:$site/peers:$PYTHONPATH
    baselines=$site
fi
"$python" -c "import torch, sys; sys.exit('$device' != 'cpu' and not torch.cuda.is_available())" || {
    echo "gpu-check: torch sees no GPU" >&2
    exit 2
}

failed=()
run() { # NAME SECONDS COMMAND...: the other commands run even if this one fails
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
    # Versions that differ from constraints.txt may warn more, which is no error here.
    run "tests marked gpu" 150 "$python" -m pytest -q -p no:cacheprovider -W default -m gpu "${tests[@]}"
fi
if [[ -n $baselines ]]; then
    # The official kernels build in a minute or two, mostly during the tests; without them a few rows are missing.
    wait_until=$((SECONDS + 90))
    while kill -0 "$(cat "$baselines/peers.pid")" 2>/dev/null && ((SECONDS < wait_until)); do sleep 2; done
    if kill -0 "$(cat "$baselines/peers.pid")" 2>/dev/null; then echo "gpu-check: the baselines are not built yet; continuing without them"; fi
    tail -5 "$baselines/peers.log"
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
echo "gpu-check: all passed, $(left) s left"
