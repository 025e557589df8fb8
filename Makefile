# Two commands matter: make demo, make test. Both set everything up themselves.
# PYTHON picks the interpreter (3.11 or newer); PIP_ARGS goes to pip, for instance
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# where the default build of torch would bring GPU libraries that are not wanted. BENCH_ARGS goes to every benchmark:
#   make bench BENCH_ARGS=--fresh                          measure everything again
#   make bench BENCH_ARGS=--quick BENCH_OUT=runs/bench     tiny sizes, to see that it works

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)
PIP_ARGS ?=
BENCH_ARGS ?=
QUICK_OUT ?= runs/experiments-quick
BENCH_OUT ?= docs/results/performance
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench experiments-quick sanitize clang lint typecheck clean

help:
	@echo "make demo       train Basic LSTM and Phased LSTM on digits, with table and pictures (runs/demo)"
	@echo "make test       run the tests"
	@echo "make bench      time and memory against torch.nn.LSTM, with pictures; stopped, it goes on where it was"
	@echo "make experiments-quick   every experiment at a small size, to see its trend (runs/experiments-quick)"
	@echo "make sanitize   test the kernels under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make clang      compile the kernels with clang, for x86-64 and arm64"
	@echo "make lint       check style"
	@echo "make typecheck  check types"
	@echo "make setup      only the virtual environment in $(VENV)"
	@echo "make clean      remove $(VENV) and caches"

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard src/phased_lstm/csrc/*)
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt "setuptools>=77" torch
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/phased-lstm demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

bench: $(STAMP)
	for script in layers cells stream memory curves; do \
		$(BIN)/python benchmarks/$$script.py --out $(BENCH_OUT) $(BENCH_ARGS) || exit; \
	done
	$(BIN)/python benchmarks/report.py $(BENCH_OUT)

# Two at a time, a thread each: most are too small for two threads.
experiments-quick: $(STAMP)
	$(BIN)/phased-lstm experiment --list | sed -n 's/^\([a-z0-9-]*\): .*/\1/p' | OMP_NUM_THREADS=1 xargs -P 2 -I NAME \
		$(BIN)/phased-lstm experiment NAME --quick --quiet --threads 1 --out $(QUICK_OUT)/NAME

sanitize: $(STAMP)
	tests/sanitize $(BIN)/python

clang: $(STAMP)
	PIP_ARGS="$(PIP_ARGS)" tests/clang $(BIN)/python

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(STAMP)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build src/*.egg-info src/phased_lstm/_native*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
