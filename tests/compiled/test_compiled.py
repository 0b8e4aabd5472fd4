"""Cost is a property of the compiled program: passes over x on GPU and TPU, temporaries on the CPU."""

import re

import pytest

from benchmarks import _aot, _programs
from benchmarks.passes import DEVICES, SMALL, measure, passes_a_block, temp_a_layer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.flexible,  # Flax's layers convert mean and var by themselves
]
MEGABYTE = 2**20

# Each program, and what it cannot do without: x and dy are read, y and dx are written.
PROGRAMS = {"forward": 2, "forward, kept": 2, "backward": 3, "one jit": 5}
# x is read for its sums, read again and y is written; backward reads x and dy twice and writes dx.
# Passes to one place after the point: small vectors of rows add up to 0.01.
LIMITS = {"h100": (3.11, 3.11, 5.11, 7.21), "v5e": (3.2, 3.2, 5.1, 7.2)}
MASKED = (4.1, 4.1, 5.1, 8.1)  # the mask's sums about a shift cost one more pass forward
NORMS = ["batch", "layer", "rms", "group", "instance"]
COMPILED = [(norm, dtype) for norm in NORMS for dtype in ("bfloat16", "float32")]
COMPILED += [("batch, pivot", "bfloat16"), ("masked batch", "bfloat16")]
# Convolution, batch norm, relu: forward and backward. A TPU takes sums in the convolution's own pass.
BLOCK = {"h100": 14.1, "v5e": 9.1}


def skip_without_compiler(chip):
    if reason := _aot.missing(chip):
        pytest.skip(reason)


@pytest.mark.parametrize("chip", _aot.CHIPS)
@pytest.mark.parametrize(("norm", "dtype"), COMPILED)
def test_passes_over_the_activation(chip, norm, dtype):
    skip_without_compiler(chip)
    c = _programs.case("jaxnorm", norm, chip, dtype)
    limits = MASKED if norm == "masked batch" else LIMITS[chip]
    found = {name: measure(c, program, chip) for name, program in _programs.programs(c).items()}
    passes = {name: round(m.passes, 2) for name, m in found.items()}
    for (name, least), limit in zip(PROGRAMS.items(), limits, strict=True):
        assert least <= passes[name] <= limit, (name, passes)
        assert found[name].temp < 2 * MEGABYTE, name
        assert dtype == "float32" or found[name].float32 == 0, name


@pytest.mark.parametrize("chip", _aot.CHIPS)
def test_a_scan_over_layers_keeps_little_more_than_two_activations_a_layer(chip):
    skip_without_compiler(chip)
    c = _programs.case("jaxnorm", "batch", chip, "bfloat16", fraction=SMALL)
    assert 2 < temp_a_layer(c, chip) <= 3.2  # x and the convolution's output are needed


@pytest.mark.parametrize(("chip", "dtype"), [("h100", "bfloat16"), ("h100", "float32"), ("v5e", "bfloat16")])
def test_a_block(chip, dtype):
    skip_without_compiler(chip)
    c = _programs.case("jaxnorm", "batch", chip, dtype)
    assert 9 <= passes_a_block(c, chip) <= BLOCK[chip]


@pytest.mark.parametrize("chip", _aot.CHIPS)
@pytest.mark.parametrize(
    ("norm", "counts", "vectors"), [("batch", (2, 3), (4, 6)), ("batch, pivot", (1, 2), (4, 8))]
)
def test_collectives_of_eight_devices_and_no_count_travels(chip, norm, counts, vectors):
    skip_without_compiler(chip)
    c = _programs.case("jaxnorm", norm, chip, "bfloat16")
    programs = _programs.on_devices("jaxnorm", c, _aot.mesh(chip, DEVICES))["shard_map"]
    vector = 4 * c.x.shape[-1]
    for program, count, sent in zip(programs, counts, vectors, strict=True):
        found = measure(c, program, chip, DEVICES).collectives
        assert {name for name, _ in found} == {"all-reduce"} and len(found) <= count
        assert sum(size for _, size in found) <= sent * vector


# ------------------------------------------------------------------------------------ memory of the CPU

# A mask's dtype, and whether it is as large as x or has one value a row or place.
MASKS = {
    "no mask": (None, False),
    "mask": ("bool", False),
    "weights": ("float32", False),
    "mask as large as x": ("bool", True),
    "weights as large as x": ("float32", True),
}
# What a step allocates beside its results, in sizes of x.
TEMP = 0.05
TEMP_OF_LARGE_MASKS = {"float32": 2.1, "bfloat16": 5.1}
# Known limits: a mask that is divided into groups as x is has XLA:CPU write x out.
TEMP_OF = {
    ("group", "mask", "float32"): 1.1,
    ("group", "mask", "bfloat16"): 2.1,
    ("group", "weights", "bfloat16"): 2.1,
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_on_the_cpu_needs_little_memory_but_its_results(norm, mask, dtype):
    kind, large = MASKS[mask]
    c = _programs.case("jaxnorm", norm, "cpu", dtype, mask=kind)
    if large:
        c = c._replace(masks=(_programs.Struct(c.x.shape, c.masks[0].dtype),))
    limit = TEMP_OF_LARGE_MASKS[dtype] if large else TEMP_OF.get((norm, mask, dtype), TEMP)
    step = _aot.compiled(*_programs.programs(c)["one jit"], _aot.mesh("cpu"))
    assert step.memory_analysis().temp_size_in_bytes <= limit * c.nbytes


@pytest.mark.parametrize("norm", NORMS)
def test_no_library_of_xla_cpu_takes_the_pass_that_writes_y(norm):
    """It would take 1.3 times as long, for RMS norm."""
    c = _programs.case("jaxnorm", norm, "cpu", "float32")
    text = _aot.compiled(*_programs.programs(c)["forward"], _aot.mesh("cpu")).as_text()
    shape = ",".join(map(str, c.x.shape))
    assert set(re.findall(rf"= f32\[{shape}\]\S* fusion\(.*kind=(\w+)", text)) == {"kLoop"}
