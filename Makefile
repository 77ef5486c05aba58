# make demo        the whole way on a small model: convert, quantize, report, release
# make test        everything that needs no torch; sets itself up on a fresh machine
# make fuzz        mutated files for every reader, for hours; FUZZ_SECONDS says how long
# make check       formatting, lint and types; make format mends what can be mended
# make docs        the docs as a site, in site/
# make test-all    make test with its slow tests; make test-torch and make test-ray are the others
# make test-lowest make test with the lowest versions of what quantkit needs, in .venv-lowest
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

FUZZ_SECONDS ?= 14400

.PHONY: fuzz demo test test-all test-torch test-ray test-lowest check format docs dist wheels \
  bench clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[compile]" $(LOWEST)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[dev]" --constraint constraints-dev.txt $(LOWEST)
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) --editable ".[dev,docs]" --constraint constraints-dev.txt
	@touch $@

$(VENV)/.torch: $(VENV)/.dev
	$(PIP) --editable ".[dev,torch,test-torch]" --constraint constraints-dev.txt
	@touch $@

$(VENV)/.ray: $(VENV)/.dev
	$(PIP) --editable ".[dev,ray]" --constraint constraints-dev.txt
	@touch $@

demo: $(VENV)/.installed
	@rm -rf demo && mkdir demo
	$(BIN)/python examples/demo_checkpoint.py demo/Demo-4x1M
	$(BIN)/quantkit convert demo/Demo-4x1M -o demo
	$(BIN)/quantkit quantize demo/Demo-4x1M --type Q4_K_M --type Q8_0 -o demo
	$(BIN)/quantkit report demo/*.gguf
	$(BIN)/quantkit release demo/Demo-4x1M -o demo/release --types Q4_K_M,Q8_0

test: $(VENV)/.dev
	$(PYTEST) -m "not torch and not ray and not slow"

test-all: $(VENV)/.dev
	$(PYTEST) -m "not torch and not ray"

test-torch: $(VENV)/.torch
	$(BIN)/python -m pytest -m torch

test-lowest:
	$(MAKE) test VENV=.venv-lowest LOWEST="--constraint constraints-lowest.txt"

test-ray: $(VENV)/.ray
	$(BIN)/python -m pytest -m ray

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.attacks.fuzz $(FUZZ_SECONDS)
	$(BIN)/python -m tests.attacks.small_files $(FUZZ_SECONDS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(VENV)/.dev
	rm -rf dist
	$(PIP) build
	$(BIN)/python -m build

# a wheel for each platform, with its kernels (PLATFORMS="linux-x86_64" for one): about 10 minutes
# each on two cores
PLATFORMS ?= linux-x86_64 musl-x86_64 linux-aarch64 musl-aarch64 macos-arm64 windows-x86_64
wheels: $(VENV)/.dev
	$(PIP) --editable ".[dev,wheels]" --constraint constraints-dev.txt
	for platform in $(PLATFORMS); do \
	  QUANTKIT_PLATFORM=$$platform $(BIN)/python -m build --wheel --no-isolation || exit 1; done

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.formats --write docs/benchmarks.md

clean:
	rm -rf $(VENV) .venv-lowest demo site dist
