# make demo, make test, make lint: each sets up $(VENV) first, which takes a minute once.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
AOT := $(VENV)-aot
PEERS := $(VENV)-peers

.PHONY: demo demo-short test smoke lint format aot peers

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

# What programs for GPU and TPU cost, compiled with neither at hand.
aot: $(AOT)/.ready
	@JAX_PLATFORMS=cpu $(AOT)/bin/python -m pytest -n 2 tests/test_compiled.py

$(AOT)/.ready: pyproject.toml
	@echo "Setting up $(AOT): compilers for H100 and TPU v5e, wheels of some 200 MB each"
	@$(PYTHON) -m venv $(AOT)
	@$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[aot,examples,test]'
	@touch $@

# That other people's code says the same.
peers: $(PEERS)/.ready
	@JAX_PLATFORMS=cpu $(PEERS)/bin/python -m pytest -n 2 $(wildcard tests/test_peers*.py)

$(PEERS)/.ready: pyproject.toml
	@echo "Setting up $(PEERS): PyTorch, Keras, Haiku and others, some 2 GB"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[peers,test]'
	@touch $@

$(READY): pyproject.toml
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): jaxnorm, its examples and its tests"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[examples,test]'
	@touch $@
