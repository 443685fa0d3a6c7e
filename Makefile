# The commands of the README; CI runs the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per process, and threads that sleep while they wait: on a busy machine spinning costs 6-7x.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: play quick test unit check format bench evidence clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

play: $(VENV)/.installed  ## align a small model five ways, with proof (about 8 minutes on 2 cores)
	OMP_NUM_THREADS=2 $(BIN)/sail play

quick: $(VENV)/.installed  ## the same, smaller (about 3 minutes)
	OMP_NUM_THREADS=2 $(BIN)/sail play --quick

test: $(VENV)/.installed  ## all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

unit: $(VENV)/.installed  ## the fast ones
	$(BIN)/python -m pytest -n 2 -m "not slow" tests/unit

check: $(VENV)/.installed  ## format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed  ## seconds, tokens and bytes of each composition against TRL and the floor
	$(BIN)/python benchmarks/speed/measure.py

evidence: $(VENV)/.installed  ## the study behind docs/evidence.md: what is missing of it, hours on one thread
	$(BIN)/python benchmarks/evidence/run.py
	$(BIN)/python benchmarks/evidence/analyse.py

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
