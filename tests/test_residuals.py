"""Between forward and backward one x-sized array is kept: x itself, in its own type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import draw, named, norms, over

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


def assert_minimal(variant, inputs, leaves, layers=1):
    size = inputs.x.size * layers
    large = [v for v in leaves if v.size >= size // 2]
    assert [(v.size, v.dtype) for v in large] == [(size, inputs.x.dtype)]
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
