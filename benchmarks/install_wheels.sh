#!/usr/bin/env bash
# Unpack what benchmarks/collect_wheels.sh collected, without a package index:
#
#     benchmarks/install_wheels.sh FOLDER SITE [PYTHON]
#
# SITE is a folder for PYTHONPATH, so nothing that is installed is touched. The official kernels, which come as source,
# are built in the background and follow into SITE/peers; SITE/peers.log tells how that went, and SITE/peers.pid who
# does it.
set -euo pipefail
folder=$(realpath "$1") site=$2 python=${3:-python3}
mkdir -p "$site/peers"
site=$(realpath "$site")
into=("$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check)

"${into[@]}" --target "$site" "$folder"/*.whl
for wheel in "$folder"/unpack/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done

build_peers() {
    shopt -s nullglob
    for wheel in "$folder"/peers/*.whl; do "${into[@]}" --target "$site/peers" "$wheel" || true; done
    for source in "$folder"/peers/*.tar.gz; do
        "${into[@]}" --no-build-isolation --target "$site/peers" "$source" || true
    done
}
# For the GPU that is there alone: all architectures would take many times as long.
TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else "")')
export TORCH_CUDA_ARCH_LIST
build_peers >"$site/peers.log" 2>&1 &
echo $! >"$site/peers.pid"
