# make demo    the whole way on a small model: convert, quantize, report, release
# make test    everything that needs no torch; sets itself up on a fresh machine
# make check   formatting, lint, types, then the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-torch test-ray check bench clean

$(BIN)/quantkit: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(BIN)/quantkit constraints-dev.txt
	$(PIP) --editable ".[dev]" --constraint constraints-dev.txt
	@touch $@

$(VENV)/.torch: $(VENV)/.dev
	$(PIP) --editable ".[dev,torch,test-torch]" --constraint constraints-dev.txt
	@touch $@

$(VENV)/.ray: $(VENV)/.dev
	$(PIP) --editable ".[dev,ray]" --constraint constraints-dev.txt
	@touch $@

demo: $(BIN)/quantkit
	@rm -rf demo && mkdir demo
	$(BIN)/python examples/demo_checkpoint.py demo/Demo-4x1M
	$(BIN)/quantkit convert demo/Demo-4x1M -o demo
	$(BIN)/quantkit quantize demo/Demo-4x1M --type Q4_K_M --type Q8_0 -o demo
	$(BIN)/quantkit report demo/*.gguf
	$(BIN)/quantkit release demo/Demo-4x1M -o demo/release --types Q4_K_M,Q8_0

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not torch and not ray and not slow"

test-torch: $(VENV)/.torch
	$(BIN)/python -m pytest -m torch

test-ray: $(VENV)/.ray
	$(BIN)/python -m pytest -m ray

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.formats --write docs/benchmarks.md

clean:
	rm -rf $(VENV) demo
