# make demo, make test, make check: each sets itself up on a fresh machine (Python 3.11-3.13).

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 3
GPU_PYTHON ?= 3.12
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-slow test-slurm browser gpu-wheels gpu-rehearsal check fmt clean setup

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## the virtual environment, with everything pinned by constraints.txt

$(STAMP): setup.py constraints.txt data_shards/image/region.c
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), \
	  f"swin-moe needs Python 3.11 to 3.13, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.12 ..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,mpi]'
	@touch $@

demo: $(STAMP) ## pack Fashion-MNIST, train a small Swin-MoE on two processes, evaluate, summarise
	$(BIN)/swin-moe shards pack --source fashion-mnist --out data/fashion-mnist --workers 2
	$(BIN)/swin-moe train configs/demo_cpu.yaml --nproc 2 --resume auto

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
AT_ONCE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(STAMP) ## the default tests, ten minutes on two recent cores: three files at a time, or WORKERS=0 in one process
	PYTHONDONTWRITEBYTECODE= $(PYTEST) $(AT_ONCE)

test-long: $(STAMP) ## the longest tests, which CI runs too; five minutes
	PYTHONDONTWRITEBYTECODE= $(PYTEST) $(AT_ONCE) -m "long and not slow"

test-slow: $(STAMP) ## what the default tests leave out: every layout, kill and fault; half an hour
	$(PYTEST) -m slow

test-slurm: $(STAMP) ## the tests on a Slurm of their own: four nodes on this machine, up and down again
	-slurm/local_cluster.sh install # where root may; without Slurm the tests are skipped, and say so
	$(PYTEST) -m "slurm and not slow" tests/slurm

gpu-wheels: $(STAMP) ## the wheels that a bare GPU image with torch lacks, into gpu_wheels/ (see docs/gpu.md)
	PIP_PYTHON=$(BIN)/python benchmarks/gpu_wheels.sh gpu_wheels $(GPU_PYTHON)

gpu-rehearsal: $(STAMP) ## what the first minutes on a GPU run, on this CPU in its smallest sizes
	out=$$(mktemp -d) && OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gpu_run.py --device cpu --budget 1500 --jobs 2 \
	  --out $$out; status=$$?; rm -rf $$out; exit $$status

browser: ## Chromium for the test of a study's report, where root may install it
	-command -v chromium || command -v google-chrome || { apt-get update -q && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; }

check: $(STAMP) ## format, lint, types and import layers, as CI runs them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP) ## format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## everything that make made, runs and shards too
	rm -rf $(VENV) data runs build *.egg-info data_shards/image/_region*.so .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
