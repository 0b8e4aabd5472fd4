"""Eight devices and strict arithmetic, for the tests and for the examples in the docstrings."""

from collections.abc import Iterator

import jax
import pytest
from hypothesis import settings

from jaxnorm import _passes

# The host's only: an accelerator keeps what it has, and its place as the default.
jax.config.update("jax_num_cpu_devices", 8)

# What takes long is the compilation of a first example.
settings.register_profile("jaxnorm", deadline=None, derandomize=True)
settings.load_profile("jaxnorm")


@pytest.fixture(autouse=True)
def strict_arithmetic(request: pytest.FixtureRequest) -> Iterator[None]:
    """No implicit promotion of ranks or dtypes, except in tests marked `flexible`."""
    if request.node.get_closest_marker("flexible"):
        yield
        return
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module", params=["cpu form", "default form"])
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small arrays as if they were large: as the CPU needs passes over them, and as other backends do."""
    before = _passes.SMALL, _passes.CPU_DIFFERS, _passes.LIKE_TPU
    forms = request.param == "cpu form", request.param == "tpu form"
    _passes.SMALL, _passes.CPU_DIFFERS, _passes.LIKE_TPU = 0, *forms
    jax.clear_caches()  # of what was traced in another form
    yield
    _passes.SMALL, _passes.CPU_DIFFERS, _passes.LIKE_TPU = before
    jax.clear_caches()
