# Everything runs in .venv, which the first target that needs it sets up. PYTHON names the interpreter to start from.
#
#   make demo        train on handwritten digits from nothing and write demo/report.html (minutes)
#   make test        the test suite (minutes)
#
#   make demo-long   the demo with three times the time
#   make test-slow   convergence and installation tests;  make test-gpu: what needs a CUDA device
#   make test-data   token shards under damage and kills, a million lines (minutes)
#   make test-triton random cases of the kernels, and all of them compiled for every GPU (tens of minutes, without a GPU)
#   make test-train  spikes, compiled blocks, averages and samples in training, processes that are killed (minutes)
#   make test-serve  schedules of a running batch, strangers' requests, a server that is stopped (minutes)
#   make test-ray    the recipe for Ray on two workers of this machine (installs the extra ray)
#   make docs        the site, in site/ (for its search: python -m http.server -d site);  make test-docs: it builds and fetches nothing
#   make test-install  dry runs of pip for each Python and system (needs the package index)
#   make lint types  style and type checks;               make check: lint, types and tests, as continuous integration runs them
#   make types-all   type checks for each Python that is supported

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DOCS_READY := $(VENV)/ready-docs
RAY_READY := $(VENV)/ready-ray
PYTHONS := 3.10 3.11 3.12 3.13

# Threads that spin while they wait make a busy machine several times slower.
export OMP_WAIT_POLICY ?= PASSIVE
test test-slow test-gpu test-train test-triton test-serve test-ray test-docs: export OMP_NUM_THREADS ?= 1
test test-slow test-gpu test-train test-triton test-serve test-ray test-docs: export TOKENIZERS_PARALLELISM ?= false
# Nothing that runs here may ask a hub for anything.
export HF_HUB_OFFLINE ?= 1
# The theme announces its successor at each build.
docs test-docs: export NO_MKDOCS_2_WARNING ?= 1

.PHONY: setup demo demo-long test test-slow test-gpu test-data test-train test-triton test-serve test-ray test-install docs test-docs lint types types-all check clean

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

test-install: $(READY)
	$(BIN)/python -m pytest -q -m slow tests/test_house_resolves.py $(ARGS)

docs: $(DOCS_READY)
	$(BIN)/mkdocs build --strict $(ARGS)

test-ray: $(RAY_READY)
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/test_recipes_ray.py $(ARGS)

test-data: $(READY)
	$(BIN)/python -m pytest -q -m slow tests/test_data_*.py $(ARGS)

test-triton: $(READY)
	$(BIN)/python -m pytest -q -m "slow and not gpu" tests/test_kernels_*.py $(ARGS)

test-train: $(READY)
	$(BIN)/python -m pytest -q -m slow tests/test_training_*.py $(ARGS)

test-serve: $(READY)
	$(BIN)/python -m pytest -q -m slow tests/test_generation_batcher.py tests/test_serving_*.py $(ARGS)

test-docs: $(DOCS_READY)
	$(BIN)/python -m pytest -q -m docs tests/test_docs_*.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

types-all: $(READY)
	for version in $(PYTHONS); do $(BIN)/mypy --python-version $$version || exit 1; done

check: lint types test test-docs

setup: $(READY)

# One list of versions for every Python and every machine. pip prefers a build of torch for the CPU, or for another CUDA, wherever one is
# among its sources (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS); README.md names PyTorch's.
$(READY): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[dev,video]' -c constraints.txt
	touch $(READY)

$(DOCS_READY): $(READY)
	$(BIN)/pip install -q -e '.[docs]' -c constraints.txt
	touch $(DOCS_READY)

$(RAY_READY): $(READY)
	$(BIN)/pip install -q -e '.[ray]' -c constraints.txt
	touch $(RAY_READY)

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
