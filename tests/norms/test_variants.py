"""Every variant has every property: one test a property, over the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import (
    VARIANTS,
    assert_close,
    draw,
    exact,
    named,
    norms,
    over,
    over_weights,
    rows,
    types,
)

PRECISION = {"float32": 5e-6, "bfloat16": 2**-8, "float16": 2**-10}


def cast(inputs, dtype):
    """The same numbers in x, rounded to a type."""
    return inputs._replace(x=inputs.x.astype(dtype))


def assert_value(variant, inputs, tolerance):
    y, state = variant.function(*inputs)
    expected, remembered = exact(variant, inputs)
    assert y.dtype == inputs.x.dtype and y.shape == inputs.x.shape
    assert_close(y, expected, tolerance)
    assert types(state) == (types(inputs.stats) if "state" in variant.takes else None)
    assert_close(state, remembered, min(tolerance, PRECISION["float32"]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@over(VARIANTS)
def test_value(variant, dtype):
    assert_value(variant, draw(variant, jnp.dtype(dtype)), PRECISION[dtype])


@over(named("batch", "layer", "rms", "group", "local response"))
def test_value_in_float16(variant):
    assert_value(variant, draw(variant, jnp.float16), PRECISION["float16"])


@pytest.mark.parametrize("where", ["mask", "weights"])
@over(rows("where"))
def test_value_of_a_weighted_sample(variant, where):
    assert_value(variant, draw(variant, where=where), PRECISION["float32"])


@over(named("batch", "batch evaluation", "batch cumulative"))
def test_a_float32_state_stays_float32_under_float64(variant):
    with jax.enable_x64(True):
        inputs = draw(variant)
        assert_value(variant, cast(inputs, jnp.float64), PRECISION["float32"])


@over(VARIANTS)
def test_integers_become_float32(variant):
    inputs = cast(draw(variant), jnp.int32)
    y, state = variant.function(*inputs)
    assert y.dtype == jnp.float32
    assert_close((y, state), exact(variant, inputs), PRECISION["float32"])


@over(norms("scale"))
def test_dtype_overrides_the_type_of_y_alone(variant):
    inputs = draw(variant, jnp.bfloat16)
    y, state = variant.function(*inputs, dtype=jnp.float32)
    assert y.dtype == jnp.float32
    assert_close((y, state), exact(variant, inputs), PRECISION["float32"])


@over(norms("scale"))
def test_scale_and_bias_of_any_shape_broadcast(variant):
    rng = np.random.default_rng(1)
    sample = (variant.shape[0], *(1,) * (len(variant.shape) - 1))
    scale, bias = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (sample, ()))
    assert_value(variant, draw(variant)._replace(scale=scale, bias=bias), PRECISION["float32"])


@over_weights(VARIANTS, "mask")
def test_jit_of_vmap_is_a_loop(variant, where):
    several = [draw(variant, where=where, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *several)
    last = stacked._replace(x=jnp.moveaxis(stacked.x, 0, -1))
    axes = type(last)(*(None if v is None else 0 for v in last))._replace(x=-1)
    mapped = jax.jit(jax.vmap(variant.function, in_axes=tuple(axes)))(*last)
    looped = jax.tree.map(lambda *v: jnp.stack(v), *(variant.function(*i) for i in several))
    assert types(mapped) == types(looped)
    assert_close(mapped, looped, 1e-6)


@over(rows("state"))
def test_scan_carries_the_state(variant):
    several = [draw(variant, seed=seed) for seed in range(3)]
    _, scale, bias, _, state = several[0]

    def step(state, x):
        return variant.function(x, scale, bias, None, state)[::-1]

    last, ys = jax.lax.scan(step, state, jnp.stack([i.x for i in several]))
    assert types(last) == types(state)
    for i, y in zip(several, ys, strict=True):
        state, expected = step(state, i.x)
        assert_close(y, expected, 1e-6)
    assert_close(last, state, 1e-6)


@over(named("batch", "batch several feature axes", "batch cumulative"))
def test_train_may_be_traced(variant):
    inputs = draw(variant, where="mask")
    traced = jax.jit(lambda train, i: variant.function(*i, train=train))
    for train in (True, False, np.True_, np.False_):
        expected = variant.function(*inputs, train=bool(train))
        assert_close(traced(train, inputs), expected, 1e-6)
        assert_close(variant.function(*inputs, train=train), expected, 0)


@over(rows("state"))
def test_evaluation_returns_the_state_itself(variant):
    inputs = draw(variant)
    for train in (False, jnp.asarray(False)):
        _, state = variant.function(*inputs, train=train)
        assert types(state) == types(inputs.stats)
        jax.tree.map(np.testing.assert_array_equal, state, inputs.stats)


@over(rows("state"))
def test_the_returned_state_carries_no_gradient(variant):
    inputs = draw(variant)

    def total(x, scale, bias, stats):
        _, state = variant.function(x, scale, bias, None, stats, train=True)
        return sum(v.sum() for v in state)

    for v in jax.tree.leaves(
        jax.grad(total, argnums=(0, 1, 2))(inputs.x, inputs.scale, inputs.bias, inputs.stats)
    ):
        np.testing.assert_array_equal(v, 0)


def symbolic(inputs):
    """Shapes and types, with a batch of any size."""
    (b,) = jax.export.symbolic_shape("b")

    def batched(v):
        return jax.ShapeDtypeStruct((b, *v.shape[1:]), v.dtype)

    alike = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), inputs)
    return alike._replace(x=batched(inputs.x), where=jax.tree.map(batched, inputs.where))


@over_weights(VARIANTS, None, "mask")
def test_shapes_of_a_symbolic_batch(variant, where):
    inputs = draw(variant, where=where)
    specs = symbolic(inputs)
    y, state = jax.eval_shape(variant.function, *specs)
    assert types(y) == types(specs.x)
    assert types(state) == (types(inputs.stats) if "state" in variant.takes else None)


@pytest.mark.parametrize("bits", [32, 64])
@over(named("batch", "layer", "rms", "group", "standardize", "unit ord 2", "local response"))
def test_one_export_serves_every_batch(variant, bits):
    """In float32, also where a number, such as one over the size of a batch, is of 64 bits."""
    inputs = draw(variant)
    with jax.enable_x64(bits == 64):
        exported = jax.export.export(jax.jit(variant.function))(*symbolic(inputs))
        for n in (2, 3):
            part = inputs._replace(x=inputs.x[:n])
            assert_close(exported.call(*part), exact(variant, part), PRECISION["float32"])
