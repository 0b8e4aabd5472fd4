# make demo, make test, make lint: each sets up $(VENV) first, which takes a minute once.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo demo-short test smoke lint format aot

demo: $(READY)
	@$(RUN) examples/digits.py --norm batch

demo-short: $(READY)
	@$(RUN) examples/digits.py --norm batch --epochs 1

test: $(READY)
	@$(RUN) -m pytest -n 2

# What must run at the lowest versions: every example in a docstring, the laws, the layers.
smoke: $(READY)
	@$(RUN) -m pytest -n 2 jaxnorm tests/test_imports.py tests/test_moments.py tests/test_layers.py

lint: $(READY)
	@$(RUN) -m ruff format --check
	@$(RUN) -m ruff check
	@$(RUN) -m mypy

format: $(READY)
	@$(RUN) -m ruff format
	@$(RUN) -m ruff check --fix

# Compilers for H100 and TPU v5e, some 400 MB: benchmarks/passes.py and tests/test_compiled.py use them, and
# need no chip. Without dependencies: the CUDA libraries, which only a chip needs.
EXTRA := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["aot"])
aot:
	@echo "Setting up .venv-aot: jaxnorm, its tests, and compilers for H100 and TPU v5e"
	@$(PYTHON) -m venv .venv-aot
	@.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[examples,test]'
	@.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $$(.venv-aot/bin/python -c '$(EXTRA)')

$(READY): pyproject.toml
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): jaxnorm, its examples and its tests"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[examples,test]'
	@touch $@
