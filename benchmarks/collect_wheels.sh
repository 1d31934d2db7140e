#!/usr/bin/env bash
# Collect the packages for a GPU machine without a package index; run this on a machine with an index:
#
#     benchmarks/collect_wheels.sh [FOLDER [PYTHON_VERSION]]       default: .whl 3.12, about 10 MB
#
# The GPU machine needs torch, torchvision, triton, numpy, scipy, opencv, pillow, matplotlib, tensorboard, pytest and
# hypothesis. It gets Detectron2's Python code, the other packages that Detectron2 and psf import, and two optional
# baselines of the benchmarks. Copy the folder with the checkout (git ignores it); benchmarks/gpu_check.sh installs from
# it.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.whl} version=${2:-3.12} python=${PYTHON:-python3}
mkdir -p "$folder/unpack" "$folder/peers"
echo '*' >"$folder/.gitignore"

platforms=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)
for_there=(--no-deps --only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]/#/--platform=}")
pip=("$python" -m pip --quiet --disable-pip-version-check)

names=(pycocotools yacs termcolor tabulate cloudpickle portalocker omegaconf hydra-core panopticapi-lite setuptools)
names+=(pyyaml tqdm)
hashed=(--require-hashes --requirement /dev/stdin)
bash setup/locked.sh "${names[@]}" | "${pip[@]}" download "${for_there[@]}" --dest "$folder" "${hashed[@]}"
# Source packages of pure Python: a wheel that is built here works there.
bash setup/locked.sh fvcore iopath antlr4-python3-runtime |
    "${pip[@]}" wheel --no-deps --wheel-dir "$folder" "${hashed[@]}"
# Detectron2's wheel is tagged for CPython 3.10 because of one compiled module, which is not used; it is unpacked there.
"${pip[@]}" download --no-deps --only-binary=:all: --python-version 3.10 --dest "$folder/unpack" \
    --requirement setup/detectron2.txt

"${pip[@]}" download "${for_there[@]}" --dest "$folder/peers" deformops==3.0.1 ||
    echo "collect_wheels: no deformops for Python $version"
"${pip[@]}" download --no-deps --no-build-isolation --no-binary=:all: --dest "$folder/peers" torch-ms-deform-attn==0.1.1 ||
    echo "collect_wheels: no torch-ms-deform-attn (building its source needs torch in $python)"
du -sh "$folder"
