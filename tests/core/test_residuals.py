"""Between forward and backward one x-sized array is kept: x itself, in its own type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import draw, named, norms, over
from variants_family import FAMILY

import jaxnorm
import jaxnorm as jn

VECTORS = 5  # of statistics, at most
LAYERS = 3
over_types = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])


def enlarged(variant, dtype, where=None):
    """The row's arguments with 16 times the points a sample, so that nothing but x is x-sized."""
    sizes = [n * 16 if a == variant.sample else n for a, n in enumerate(variant.shape)]
    inputs = draw(variant._replace(shape=tuple(sizes)), jnp.dtype(dtype), where)
    if where is not None:  # for every point of the sample, whatever the other axes
        others = tuple(a for a in range(inputs.x.ndim) if a != variant.sample)
        inputs = inputs._replace(where=inputs.where.max(others, keepdims=True))
    return inputs


def kept(function, *args):
    """Shapes and types of what reverse mode holds between forward and backward."""
    return jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(function, *a)[1], *args))


def assert_x_alone(inputs, leaves, layers=1):
    """Of what is as large as x, x itself."""
    size = inputs.x.size * layers
    assert [(v.size, v.dtype) for v in leaves if v.size >= size // 2] == [(size, inputs.x.dtype)]


def assert_minimal(variant, inputs, leaves, layers=1):
    assert_x_alone(inputs, leaves, layers)
    size = inputs.x.size * layers
    small = [v for v in leaves if 1 < v.size < size // 2]
    held_by_the_caller = jax.tree.leaves((inputs.scale, inputs.where, inputs.stats))
    statistics = size // inputs.x.shape[variant.sample]
    assert len(small) <= VECTORS + len(held_by_the_caller)
    assert sum(v.size for v in small) <= VECTORS * statistics + layers * sum(
        v.size for v in held_by_the_caller
    )


def of_y(variant, inputs):
    """y as a function of what is trained."""
    return lambda x, scale, bias: variant.function(x, scale, bias, *inputs[3:])[0]


@over(named("batch", "layer", "group", "standardize", "local response"))
def test_eager_reverse_mode_keeps_x_itself(variant):
    inputs = enlarged(variant, "bfloat16")
    leaves = jax.tree.leaves(jax.vjp(of_y(variant, inputs), *inputs[:3])[1])
    assert_minimal(variant, inputs, leaves)
    (x,) = (v for v in leaves if v.size == inputs.x.size)
    np.testing.assert_array_equal(x.reshape(inputs.x.shape), inputs.x)


@over_types
@over(norms())
def test_only_x_is_kept_under_jit(variant, dtype):
    inputs = enlarged(variant, dtype)
    assert_minimal(variant, inputs, kept(jax.jit(of_y(variant, inputs)), *inputs[:3]))


@pytest.mark.parametrize("where", ["mask", "weights"])
@over(norms("where"))
def test_only_x_is_kept_of_a_weighted_sample(variant, where):
    inputs = enlarged(variant, "bfloat16", where)
    assert_minimal(variant, inputs, kept(of_y(variant, inputs), *inputs[:3]))


@over_types
@over(norms())
def test_a_scan_keeps_one_x_a_layer(variant, dtype):
    inputs = enlarged(variant, dtype)
    function = of_y(variant, inputs)

    def layers(x, scale, bias):
        return jax.lax.scan(lambda x, _: (function(x, scale, bias), None), x, None, LAYERS)[0]

    assert_minimal(variant, inputs, kept(layers, *inputs[:3]), LAYERS)


# ---------------------------------------------------------------- the family


@over_types
@over(FAMILY)
def test_the_family_keeps_x_alone(variant, dtype):
    inputs = enlarged(variant, dtype)
    assert_x_alone(inputs, kept(jax.jit(of_y(variant, inputs)), *inputs[:3]))


@pytest.mark.parametrize("where", ["mask", "weights"])
@over([v for v in FAMILY if "where" in v.takes])
def test_the_family_keeps_x_alone_of_a_weighted_sample(variant, where):
    inputs = enlarged(variant, "bfloat16", where)
    assert_x_alone(inputs, kept(of_y(variant, inputs), *inputs[:3]))


@over([v for v in FAMILY if "state" in v.takes])
def test_the_family_keeps_x_alone_in_evaluation(variant):
    inputs = enlarged(variant, "bfloat16")
    leaves = kept(lambda x, *affine: variant.function(x, *affine, *inputs[3:], train=False)[0], *inputs[:3])
    large = [(v.size, v.dtype) for v in leaves if v.size >= inputs.x.size // 2]
    assert large in ([], [(inputs.x.size, inputs.x.dtype)])


@over([v for v in FAMILY if v.name in ("filter response", "input", "gated", "conditional batch", "whitened")])
def test_a_scan_of_the_family_keeps_one_x_a_layer(variant):
    inputs = enlarged(variant, "bfloat16")
    function = of_y(variant, inputs)

    def layers(x, scale, bias):
        return jax.lax.scan(lambda x, _: (function(x, scale, bias), None), x, None, LAYERS)[0]

    assert_x_alone(inputs, kept(layers, *inputs[:3]), LAYERS)


SHAPE = (3, 64, 4)
STATS = jaxnorm.initial_stats(4)

# Functions of two arrays of x's size: each is kept once, in its own dtype.
OF_TWO = {
    "gated": lambda x, v: jaxnorm.gated_rms_norm(x, v),
    "gated before": lambda x, v: jaxnorm.gated_rms_norm(x, v, norm_before_gate=False),
    "film": lambda x, v: jaxnorm.film(x, v, v),
    "layer": lambda x, v: jaxnorm.layer_norm(x, scale=v, bias=v),
    "batch": lambda x, v: jaxnorm.batch_norm(x, STATS, train=True, scale=v, bias=v)[0],
    "instance of a style": lambda x, v: jaxnorm.adaptive_instance_norm(x, v),
    "queries and keys": lambda x, v: jaxnorm.qk_norm(x, v),
    "a threshold everywhere": lambda x, v: jaxnorm.filter_response_norm(x, threshold=v),
    "a slope everywhere": lambda x, v: jaxnorm.evonorm_s0(x, v, num_groups=2),
    "tanh": lambda x, v: jaxnorm.dynamic_tanh(x, v),
    "erf": lambda x, v: jaxnorm.dynamic_erf(x, v, 0.25),
}


@over_types
@pytest.mark.parametrize("name", OF_TWO)
def test_two_arrays_of_the_size_of_x_are_kept_once_each(name, dtype):
    arrays = [jnp.ones(SHAPE, dtype)] * 2
    leaves = kept(OF_TWO[name], *arrays)
    assert [(v.size, v.dtype) for v in leaves if v.size >= arrays[0].size // 2] == [
        (v.size, v.dtype) for v in arrays
    ]


# What adds 1 to a scale does so in float32 or wider, in the part that is recomputed.
ONE_PLUS = {
    "adaptive layer": lambda x, v: jaxnorm.adaptive_layer_norm(x, v, v),
    "rms": lambda x, v: jaxnorm.rms_norm(x, scale=v, zero_centered_scale=True),
}


@over_types
@pytest.mark.parametrize("name", ONE_PLUS)
def test_a_map_that_is_added_to_one_is_kept_in_its_own_dtype(name, dtype):
    arrays = [jnp.ones(SHAPE, dtype)] * 2
    leaves = kept(ONE_PLUS[name], *arrays)
    assert [(v.size, v.dtype) for v in leaves if v.size >= arrays[0].size // 2] == [
        (v.size, v.dtype) for v in arrays
    ]


@over_types
def test_spade_keeps_one_plus_its_map(dtype):
    """The one exception: 1 + scale is made before the norm, in float32 or wider."""
    arrays = [jnp.ones(SHAPE, dtype)] * 2
    leaves = kept(lambda x, v: jaxnorm.spade(x, STATS, v, v, train=True)[0], *arrays)
    assert [(v.size, v.dtype) for v in leaves if v.size >= arrays[0].size // 2] == [
        (arrays[0].size, jnp.dtype(dtype)),
        (arrays[0].size, jnp.dtype("float32")),
    ]


WEIGHTS = {
    "weight_norm": jaxnorm.weight_norm,
    "weight_lengths": jaxnorm.weight_lengths,
    "weight_standardize": jaxnorm.weight_standardize,
    "weight_standardize by_fan_in": lambda v: jaxnorm.weight_standardize(v, by_fan_in=True),
    "weight_demodulate": lambda v: jaxnorm.weight_demodulate(v, jnp.ones((2, v.shape[-2]), v.dtype)),
    "spectral_norm": lambda v: jaxnorm.spectral_norm(
        v, jaxnorm.SpectralStats(jnp.ones((1, v.shape[-1])), jnp.float32(1))
    )[0],
    "standardize": lambda v: jaxnorm.standardize(v, STATS),
    "unstandardize": lambda v: jaxnorm.unstandardize(v, STATS),
}


@over_types
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_kept_alone_in_their_own_dtype(name, dtype):
    v = jnp.ones(SHAPE, dtype)
    large = [(u.size, u.dtype) for u in kept(WEIGHTS[name], v) if u.size >= v.size // 2]
    assert large in ([], [(v.size, v.dtype)])


GROUPS = {
    "channels last": (jn.group_norm, (2, 64, 64), {"num_groups": 4}),
    "channels first": (jn.group_norm, (2, 64, 64), {"group_size": 16, "feature_axis": 1}),
    "rows": (jn.group_norm, (8, 256), {"num_groups": 4}),
    "masked": (jn.group_norm, (2, 64, 64), {"num_groups": 4, "where": np.arange(64).reshape(1, 64, 1) < 50}),
}


@pytest.mark.parametrize("case", GROUPS)
def test_a_group_keeps_vectors_of_groups(case):
    """Of the statistics at most five numbers a group, in float32, however many channels a group has."""
    norm, shape, options = GROUPS[case]
    where = options.get("where")
    sizes = shape[options.get("feature_axis", -1)]
    scale, bias = jnp.ones(sizes), jnp.zeros(sizes)

    def of_y(x, scale, bias):
        return norm(x, scale=scale, bias=bias, **options)

    small = [v for v in kept(of_y, jnp.ones(shape), scale, bias) if v.size < np.prod(shape) // 2]
    held_by_the_caller = scale.size * 4 + (0 if where is None else where.size)
    groups = shape[0] * 4
    assert (
        sum(v.size * v.dtype.itemsize for v in small if v.size > 1)
        <= VECTORS * groups * 4 + held_by_the_caller
    )
