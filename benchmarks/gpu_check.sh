#!/usr/bin/env bash
# On a GPU machine: run the tests marked gpu, then every benchmark, in at most PSF_GPU_SECONDS (default 480). At this
# limit it stops, and names what it has not run.
#
#     make gpu-check        or        benchmarks/gpu_check.sh [PYTHON]
#
# If Detectron2 is missing, it is unpacked from the folder of benchmarks/collect_wheels.sh (PSF_WHEELS, default .whl)
# into a temporary folder. PSF_GPU_DEVICE=cpu rehearses all steps without a GPU, with tiny sizes: tests marked gpu are
# collected, and the Triton kernels run in Triton's interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3} wheels=${PSF_WHEELS:-.whl} device=${PSF_GPU_DEVICE:-cuda}
end=$((SECONDS + ${PSF_GPU_SECONDS:-480}))
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONWARNINGS=ignore PYTHONUNBUFFERED=1

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

failed=() not_run=()
run() { # NAME SECONDS COMMAND...: the other commands run even if this one fails
    local name=$1 limit=$2 start=$SECONDS rest=$((end - SECONDS)) code=0
    shift 2
    if ((rest < 10)); then
        not_run+=("$name")
        return
    fi
    echo "== $name"
    timeout --kill-after=5 $((limit < rest ? limit : rest)) "$@" || code=$?
    if ((code == 0)); then
        echo "== $name: $((SECONDS - start)) s"
    elif (((code == 124 || code == 137) && rest < limit)); then
        not_run+=("$name (stopped after $((SECONDS - start)) s)")
    else
        failed+=("$name")
        echo "== $name: FAILED after $((SECONDS - start)) s" >&2
    fi
}

mapfile -t gpu_tests < <(grep -rlE 'mark\.gpu' tests --include='*.py')
# Versions that differ from constraints.txt may warn more, which is no error here.
pytest=("$python" -m pytest -q -p no:cacheprovider -W default)
options=(--device "$device") longest=100
if [[ $device == cpu ]]; then
    options+=(--quick --rounds 1) longest=480  # a machine for rehearsals may have other work,
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # where busy loops of threads would multiply the time
    run "tests marked gpu, collected" $longest "${pytest[@]}" --collect-only -m gpu "${gpu_tests[@]}"
    export TRITON_INTERPRET=1
    run "Triton kernels in the interpreter" $longest "${pytest[@]}" -m "not gpu" tests/ops/test_triton_kernels.py
    unset TRITON_INTERPRET
else
    run "tests marked gpu" 150 "${pytest[@]}" -m gpu "${gpu_tests[@]}"
fi
if [[ -n $baselines ]]; then
    # The official kernels build in a minute or two, mostly during the tests; without them a few rows are missing.
    wait_until=$((SECONDS + 90))
    while kill -0 "$(cat "$baselines/peers.pid")" 2>/dev/null && ((SECONDS < wait_until)); do sleep 2; done
    if kill -0 "$(cat "$baselines/peers.pid")" 2>/dev/null; then echo "gpu-check: the baselines are not built yet; continuing without them"; fi
    tail -5 "$baselines/peers.log"
fi

# The most important ones first.
for name in ms_deform_attn whole_model training_step mask_decoder merging half_precision training_memory compiled; do
    run "$name" $longest "$python" "benchmarks/$name.py" "${options[@]}"
done
# Last, because compiling may take the rest of the time.
run "compiled --training" 480 "$python" benchmarks/compiled.py --training "${options[@]}"
if ((${#not_run[@]})); then
    printf 'gpu-check: not run in %s s (PSF_GPU_SECONDS): %s\n' "$SECONDS" "$(printf '%s; ' "${not_run[@]}")" >&2
fi
if ((${#failed[@]})); then
    printf 'gpu-check: failed: %s\n' "$(printf '%s; ' "${failed[@]}")" >&2
fi
((${#failed[@]} + ${#not_run[@]} == 0))
echo "gpu-check: all passed, $((end - SECONDS)) s left"
