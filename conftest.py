"""Eight devices and strict arithmetic, for the tests and for the examples in the docstrings."""

from collections.abc import Iterator

import jax
import pytest
from hypothesis import settings

from jaxnorm._xla import guess, reads

# The host's only: an accelerator keeps what it has, and its place as the default.
jax.config.update("jax_num_cpu_devices", 8)

# An accelerator's products of matrices are in float32, too, which they are not by default.
jax.config.update("jax_default_matmul_precision", "highest")

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
    """Programs as a CPU runs them, or as every other backend does, run on a CPU."""
    if request.param == "cpu form":
        yield
        return
    jax.clear_caches()  # of what was lowered in the other form
    reads.register_lowerings(on_cpu=False)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tpu form":
            patch.setattr(guess, "platform_dependent", lambda *args, tpu, default: tpu(*args))
        yield
    reads.register_lowerings(on_cpu=True)
    jax.clear_caches()
