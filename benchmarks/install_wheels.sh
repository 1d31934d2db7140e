#!/usr/bin/env bash
# Unpack the packages of benchmarks/collect_wheels.sh, without a package index:
#
#     benchmarks/install_wheels.sh FOLDER SITE [PYTHON]
#
# SITE is a folder for PYTHONPATH, so installed packages stay unchanged. The official kernels come as source and are built
# in the background, into SITE/peers; SITE/peers.log is the log, SITE/peers.pid the process id of the build.
set -euo pipefail
folder=$(realpath "$1") site=$2 python=${3:-python3}
mkdir -p "$site/peers"
site=$(realpath "$site")
into=("$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check)

"${into[@]}" --target "$site" "$folder"/*.whl
for wheel in "$folder"/unpack/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done

build_baselines() {
    shopt -s nullglob
    for wheel in "$folder"/peers/*.whl; do "${into[@]}" --target "$site/peers" "$wheel" || true; done
    for source in "$folder"/peers/*.tar.gz; do
        "${into[@]}" --no-build-isolation --target "$site/peers" "$source" || true
    done
}
# Only for the installed GPU: all architectures would take many times as long.
TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else "")')
export TORCH_CUDA_ARCH_LIST
build_baselines >"$site/peers.log" 2>&1 &
echo $! >"$site/peers.pid"
