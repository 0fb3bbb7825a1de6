# Everything runs in .venv, which the first target that needs it sets up. PYTHON names the interpreter to start from.
#
#   make demo        train on handwritten digits from nothing and write demo/report.html (minutes)
#   make test        the test suite (minutes)
#
#   make demo-long   the demo with three times the time
#   make test-slow   convergence and installation tests;  make test-gpu: what needs a CUDA device
#   make lint types  style and type checks;               make check: lint, types and test, as continuous integration runs them

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)

# Threads that spin while they wait make a busy machine several times slower.
export OMP_WAIT_POLICY ?= PASSIVE
test test-slow test-gpu: export OMP_NUM_THREADS ?= 1
test test-slow test-gpu: export TOKENIZERS_PARALLELISM ?= false
# Nothing that runs here may ask a hub for anything.
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo demo-long test test-slow test-gpu lint types check clean

demo: $(READY)
	$(BIN)/emu demo $(ARGS)

demo-long: $(READY)
	$(BIN)/emu demo --long $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m "slow and not gpu" $(ARGS)

test-gpu: $(READY)
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

setup: $(READY)

# torch first, by its exact version: pip takes a CPU build of it from wherever it is configured to look (PIP_EXTRA_INDEX_URL), else the
# default build.
$(READY): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(GPU),yes)
	grep -v -i -E '^(torch|triton)==' constraints.txt > $(VENV)/constraints.txt
else
	cp constraints.txt $(VENV)/constraints.txt
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install -q torch==2.13.0 -c constraints.txt
endif
	$(BIN)/pip install -q -e '.[dev,video]' -c $(VENV)/constraints.txt
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
