"""Eight devices and strict arithmetic, for the tests and for the examples in the docstrings."""

from collections import Counter, defaultdict
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


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test's combinations of parameters, mark as slow all but the few that hold each value once."""
    tests = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and not item.get_closest_marker("slow"):
            tests[item.parent, item.originalname].append(item)
    for combinations in tests.values():
        values = {
            item: [(name, v if isinstance(v, str) else id(v)) for name, v in item.callspec.params.items()]
            for item in combinations
        }
        uses: Counter[tuple[str, str | int]] = Counter()

        def merit(item, values=values, uses=uses):
            """How many of its values no chosen combination has, and how rarely they have the others."""
            counts = [uses[v] for v in values[item]]
            return counts.count(0), -sum(counts)

        while combinations and merit(best := max(combinations, key=merit))[0]:
            uses.update(values[best])
            combinations.remove(best)
        for item in combinations:
            item.add_marker(pytest.mark.slow)


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
