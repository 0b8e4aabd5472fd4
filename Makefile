# make demo, make test, make lint, make docs: each sets up its environment first, which takes a minute once.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# A file's tests share what they compile, so one process runs them.
PARALLEL := -n 2 --dist loadfile
PYTEST := $(RUN) -m pytest $(PARALLEL)
READY := $(VENV)/.ready
AOT := $(VENV)-aot
PEERS := $(VENV)-peers
SITE := $(VENV)-docs
# The tests of what is differentiated, and of what is kept for it.
DERIVATIVES := tests/norms/test_derivatives.py tests/core/test_derivatives_of_statistics.py \
	tests/core/test_residuals.py tests/core/test_scale_beside_bias.py tests/layers/test_layers_transforms.py

.PHONY: demo demo-short evidence test test-all smoke newest lint format aot peers docs

demo: $(READY)
	@$(RUN) examples/digits.py --norm batch

demo-short: $(READY)
	@$(RUN) examples/digits.py --norm batch --epochs 1

# Nine figures of what batch normalization does, in runs/evidence.
evidence: $(READY)
	@$(RUN) examples/evidence.py

# Every property once, of programs that are compiled without optimizing: that takes two thirds of the time.
test: $(READY)
	@JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) -m "not slow"

# Every test there is, of programs as users run them; tests/compiled and tests/peers where what they need is.
test-all: $(READY)
	@$(PYTEST) --ignore tests/compiled --ignore tests/peers
	@$(MAKE) aot peers docs

# What must run at the lowest versions: every example in a docstring, the laws, the layers.
smoke: $(READY)
	@$(PYTEST) -m "not slow" jaxnorm tests/docs/test_imports.py tests/core/test_moments.py tests/layers/test_layers.py

# What must run on a newer jax, too: the core, its derivatives, the layers; and these with the remat to come.
newest: $(READY)
	@$(PYTEST) -m "not slow" tests/core tests/layers tests/norms/test_derivatives.py
	@JAX_REMAT3=1 $(PYTEST) -m "not slow" $(DERIVATIVES)

lint: $(READY)
	@$(RUN) -m ruff format --check
	@$(RUN) -m ruff check
	@$(RUN) -m mypy

format: $(READY)
	@$(RUN) -m ruff format
	@$(RUN) -m ruff check --fix

# What programs for GPU and TPU cost, compiled with neither at hand. In one process: what several log of missing
# drivers would follow pytest's summary.
aot: $(AOT)/.ready
	@JAX_PLATFORMS=cpu $(AOT)/bin/python -m pytest tests/compiled

$(AOT)/.ready: pyproject.toml
	@echo "Setting up $(AOT): compilers for H100 and TPU v5e, wheels of some 200 MB each"
	@$(PYTHON) -m venv $(AOT)
	@$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[aot,examples,test]'
	@touch $@

# That other people's code says the same.
peers: $(PEERS)/.ready
	@JAX_PLATFORMS=cpu $(PEERS)/bin/python -m pytest -n 2 tests/peers

$(PEERS)/.ready: pyproject.toml
	@echo "Setting up $(PEERS): PyTorch, Keras, Haiku and others, some 2 GB"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[peers,test]'
	@touch $@

# The site, in docs/_build/html. Every code cell is executed, and a warning is an error.
docs: $(SITE)/.ready
	@JAX_PLATFORMS=cpu $(SITE)/bin/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

$(SITE)/.ready: pyproject.toml
	@echo "Setting up $(SITE): jaxnorm and Sphinx"
	@$(PYTHON) -m venv $(SITE)
	@$(SITE)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs,examples]'
	@touch $@

$(READY): pyproject.toml
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): jaxnorm, its examples and its tests"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[examples,test]'
	@touch $@
