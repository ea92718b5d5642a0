# `make demo` runs a small campaign, `make test` the tests, `make check` the static checks.
# Each sets up .venv first if it has to: once, a few minutes, about 2 GB on a CPU machine.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-long quick check clean clean-all

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

demo: $(VENV)/.ready  ## run jobs/specs/demo.yaml: two models, compressed, measured, promoted
	$(BIN)/lowrank run jobs/specs/demo.yaml

# one thread each: two processes with two threads would be in each other's way on two cores
test: $(VENV)/.ready-test  ## every test that needs no GPU and not minutes by itself, in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not long" -n 2 --dist loadgroup --no-loadscope-reorder --durations=20

test-long: $(VENV)/.ready-test  ## the others: campaigns on a bucket, ladders, workers that come and go, MLflow away
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

quick: $(VENV)/.ready-test  ## the tests that take seconds and start no cluster
	$(BIN)/python -m pytest -m "not slow and not ray and not gpu"

check: $(VENV)/.ready-dev  ## style, types, import contracts, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

clean:  ## remove caches and build leftovers; results in runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-all: clean  ## also remove .venv
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) \
	  else f"Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@echo "== Making a virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)

# torch comes first and by itself, so that its CPU build is taken where the index offers one
$(VENV)/.ready: $(PINS) | $(BIN)/python
	@echo "== Installing torch"
	$(PIP) "torch==2.13.0"
	@echo "== Installing lowrank-orchestrator and what it runs on"
	$(PIP) -e .
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	@echo "== Installing what the tests need"
	$(PIP) -q -e ".[onnx,bench,postgres,test]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "== Installing the checkers"
	$(PIP) -q -e ".[dev]"
	@touch $@
