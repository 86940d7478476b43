# Two commands do all set-up each on a fresh machine: `make demo` and `make test`.
# Nothing here needs an activated environment; everything is installed into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PYTEST_ARGS ?=

# pip without its hundred lines, but with the downloads that take time. Its errors go to stderr, unfiltered.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
PIP_SHOW := awk '/^ *(Downloading|Building) / && !/kB\)/ { print "  " $$1, $$2, $$3, $$4; fflush() } \
  /^Installing collected/ { print "  Installing", NF - 3, "packages"; fflush() }'

.PHONY: help demo test lint style kernels hooks clean

help:  ## this list
	@echo "dualscale_mamba: make <target>"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNTIME)  ## install, build the kernels, compare the scale modes on the embedded model
	@echo "== kernels"
	@$(BIN)/python -m dualscale_mamba.ops.build
	@echo "== python run.py -m sweeps=scale_modes"
	@$(BIN)/python run.py -m sweeps=scale_modes

test: $(DEV)  ## install with the development tools, build the kernels, run every test this machine can run
	@echo "== kernels"
	@$(BIN)/python -m dualscale_mamba.ops.build
	@echo "== tests"
	@# Two workers, whole files each. Threads wait passively, or the workers' threads would fight for the cores.
	@OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
	  $(BIN)/python -m pytest --verbosity=0 -ra -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(DEV)  ## ruff, mypy --strict and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

style: $(DEV)  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

kernels: $(RUNTIME)  ## compile every CUDA kernel for sm_80, sm_90a and sm_100a, fail on register spills (needs nvcc)
	@$(BIN)/python csrc/check_kernels.py

hooks: $(DEV)  ## run the linters at every commit
	@$(BIN)/pre-commit install

clean:  ## remove caches and build products; keeps outputs/ and .venv
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

# pip, not python, marks a usable environment: venv writes python before ensurepip can fail.
$(BIN)/pip:
	@echo "== environment in $(VENV)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v < (3, 14) or sys.exit(f"Python 3.10 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml | $(BIN)/pip
	@echo "== dependencies (about 2 GB, a minute or two)"
	@$(PIP_INSTALL) -e . | $(PIP_SHOW)
	@touch $@

$(DEV): pyproject.toml | $(BIN)/pip
	@echo "== dependencies with development tools (about 2 GB, a minute or two)"
	@$(PIP_INSTALL) -e '.[dev]' | $(PIP_SHOW)
	@touch $(RUNTIME) $@
