# make demo, make test, make lint: each sets up $(VENV) first, which takes a minute once.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo demo-short test smoke lint format

demo: $(READY)
	@$(RUN) examples/digits.py --norm batch

demo-short: $(READY)
	@$(RUN) examples/digits.py --norm batch --epochs 1

test: $(READY)
	@$(RUN) -m pytest -n 2

# The examples of every public function, and the layers: what version floors must run.
smoke: $(READY)
	@$(RUN) -m pytest -n 2 jaxnorm tests/test_imports.py

lint: $(READY)
	@$(RUN) -m ruff format --check
	@$(RUN) -m ruff check
	@$(RUN) -m mypy

format: $(READY)
	@$(RUN) -m ruff format
	@$(RUN) -m ruff check --fix

$(READY): pyproject.toml
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): jaxnorm, its examples and its tests"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[examples,test]'
	@touch $@
