# The project's own environment, or an existing one: `make test VENV=path`, `make test VENV=` (the active environment).
VENV ?= .venv
# The interpreter that creates a new environment.
BASE_PYTHON ?= python3

ifeq ($(strip $(VENV)),)
override VENV := $(shell $(BASE_PYTHON) -c 'import sys; print(sys.prefix)')
endif
PYTHON := $(VENV)/bin/python3
SETUP_DONE := $(VENV)/.psf-setup
DOCS_DONE := $(VENV)/.psf-docs
# One thread per test process, because the processes fill the cores.
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses auto --maxprocesses 4

# Scripts of `make bench`, with their numbers of rounds.
BENCHMARKS := ms_deform_attn:3 mask_decoder:2 merging:5 whole_model:2 training_step:1 panoptic_quality:3 loader:9 \
	half_precision:1 training_memory:1 compiled:2 evaluation:3 serving:1 start:3

.PHONY: help setup lock licenses quickstart test test-all test-faults check lint types docs bench bench-docs gpu-check clean

help:
	@echo "make setup       install everything into $(VENV) (VENV=path: into this environment; VENV=: into the active one)"
	@echo "make lock        renew constraints.txt after a change of requirements (LOCK=--upgrade: newest versions)"
	@echo "make licenses    check the licenses of all installed packages: licenses.md"
	@echo "make quickstart  train on generated scenes, evaluate, draw: output/quickstart"
	@echo "make test        all tests except slow ones (make test-all: including them)"
	@echo "make test-faults kill, damage, fill disks, give hostile files; print what is lost (at most 10 minutes)"
	@echo "make check       lint, types, test"
	@echo "make docs        build the documentation: site/index.html"
	@echo "make bench       run all benchmarks on the CPU, in minutes: benchmarks/results, docs/benchmarks.md"
	@echo "make bench-docs  write the table of docs/benchmarks.md from benchmarks/results"
	@echo "make gpu-check   on a GPU machine: run tests marked gpu, then the benchmarks (at most 8 minutes)"
	@echo "make clean       remove builds and caches"

setup: $(SETUP_DONE)

$(SETUP_DONE): constraints.txt pyproject.toml setup.py setup/install.sh setup/detectron2.txt | $(PYTHON)
	@bash setup/install.sh $(PYTHON)
	@touch $@

$(PYTHON):
	$(BASE_PYTHON) -m venv $(VENV)

# No `setup`, which refuses a requirement that is not locked. Versions stay, unless LOCK is --upgrade.
lock: | $(PYTHON)
	@$(PYTHON) -m pip install --quiet --require-hashes --constraint constraints.txt uv
	@$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.10 --all-extras --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file constraints.txt $(LOCK) pyproject.toml setup/constraints.in

# A table of all packages, then the check of [tool.pip-licenses] in pyproject.toml.
licenses: setup
	@$(PYTHON) -m piplicenses --allow-only= --ignore-packages= --with-urls --format=markdown --output-file=licenses.md
	@$(PYTHON) -m piplicenses >/dev/null

quickstart: setup
	$(PYTHON) -m psf quickstart

test: setup
	$(PYTEST) -m "not slow and not gpu"

test-all: setup
	$(PYTEST) -m "not gpu"

# In fewer tries on a busy machine. docs/reliability.md has the table of a longer run.
test-faults: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.faults --seconds 450

check: lint types test

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/lint-imports

types: setup
	$(PYTHON) -m mypy

docs: $(DOCS_DONE)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

$(DOCS_DONE): $(SETUP_DONE)
	@bash setup/install.sh $(PYTHON) docs
	@touch $@

bench: setup
	@for benchmark in $(BENCHMARKS); do \
		case $${benchmark%:*} in panoptic_quality|loader|evaluation|serving|start) device=;; *) device="--device cpu";; esac; \
		PYTHONWARNINGS=ignore $(PYTHON) benchmarks/$${benchmark%:*}.py $$device --rounds $${benchmark#*:} || exit 1; \
	done
	@$(MAKE) --no-print-directory bench-docs

bench-docs: setup
	@PYTHONWARNINGS=ignore $(PYTHON) benchmarks/summary.py

# No `setup`: a GPU machine may have no package index (benchmarks/collect_wheels.sh) and no .venv.
gpu-check:
	@bash benchmarks/gpu_check.sh $$(test -x $(PYTHON) && echo $(PYTHON) || echo $(BASE_PYTHON))

clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path '*/.venv/*' -prune -exec rm -rf {} +
