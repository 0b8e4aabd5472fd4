"""What a mask hides reaches nothing; what weights say is as if the points were repeated."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import assert_close, draw, kinds, named, norms, over, over_weights, rows, types

pytestmark = pytest.mark.usefixtures("form")

MASKED = [v for v in rows("where") if v.name != "batch evaluation"]  # it takes no sample
NUMBERLESS = [jnp.nan, jnp.inf, -jnp.inf]


def whole(variant, inputs):
    """Scale and bias at every element: they can be taken along any axis together with x."""
    rng = np.random.default_rng(2)
    scale, bias = (jnp.asarray(v, jnp.float32) for v in rng.uniform(0.5, 2.0, (2, *variant.shape)))
    return inputs._replace(scale=scale, bias=bias)


def taken(inputs, index, axis):
    x, scale, bias = (jnp.take(v, index, axis) for v in inputs[:3])
    return inputs._replace(x=x, scale=scale, bias=bias)


def line(variant, values):
    """A vector along the sample axis that meets x."""
    shape = [1] * len(variant.shape)
    shape[variant.sample] = len(values)
    return jnp.asarray(values).reshape(shape)


@over(norms("where"))
def test_a_mask_is_the_unmasked_subset(variant):
    inputs = whole(variant, draw(variant))
    keep = np.arange(variant.shape[variant.sample]) % 3 != 1
    y, state = variant.function(*inputs._replace(where=line(variant, keep)))
    index = np.flatnonzero(keep)
    expected = variant.function(*taken(inputs, index, variant.sample))
    assert_close((jnp.take(y, index, variant.sample), state), expected, 2e-6)


@over(kinds("where"))
def test_whole_weights_are_repeated_points(variant):
    inputs = whole(variant, draw(variant))
    counts = np.zeros(variant.shape[variant.sample], np.float32)
    counts[0], counts[-1] = 3, 1
    y, state = variant.function(*inputs._replace(where=line(variant, counts)))
    index = np.repeat(np.arange(counts.size), counts.astype(int))
    expected, remembered = variant.function(*taken(inputs, index, variant.sample))
    assert_close(jnp.take(y, index, variant.sample), expected, 2e-6)
    assert_close(state, remembered, 2e-6)


@over(kinds("where"))
def test_a_common_factor_of_the_weights_is_nothing(variant):
    inputs = draw(variant, where="weights")
    heavy, _ = variant.function(*inputs._replace(where=inputs.where * jnp.float32(1024)))
    assert_close(heavy, variant.function(*inputs)[0], 1e-6)


@cache
def compiled(variant):
    """y, the state, the tangent of y, and the gradients of what reaches the cotangent."""

    def everything(inputs, direction, cotangent):
        def y(x, scale, bias):
            return variant.function(x, scale, bias, *inputs[3:])

        def loss(*args):
            return jnp.sum(jnp.where(cotangent != 0, y(*args)[0] * cotangent, 0))

        grads = jax.grad(loss, argnums=(0, 1, 2))(*inputs[:3])
        tangent = jax.jvp(lambda x: y(x, *inputs[1:3])[0], inputs[:1], (direction,))[1]
        return *y(*inputs[:3]), tangent, grads

    return jax.jit(everything)


@pytest.mark.parametrize("where", ["mask", "weights"])
@over(kinds("where"))
def test_what_is_masked_reaches_nothing(variant, where):
    inputs = draw(variant, where=where)
    seen = inputs.where.astype(bool)
    direction, cotangent = jnp.sin(inputs.x), jnp.where(seen, jnp.cos(inputs.x), 0)

    def results(hidden):
        x = jnp.where(seen, inputs.x, jnp.float32(hidden))
        y, state, tangent, grads = compiled(variant)(inputs._replace(x=x), direction, cotangent)
        return y[seen], state, tangent[seen], grads

    expected = results(7)
    for value in NUMBERLESS:
        jax.tree.map(np.testing.assert_array_equal, results(value), expected)


@over_weights(MASKED, "mask")
def test_an_empty_sample_gives_bias_and_changes_nothing(variant, where):
    inputs = draw(variant, where=where)
    ones = jnp.ones_like(inputs.x)
    shape = [n if a in variant.features else 1 for a, n in enumerate(variant.shape)]
    for value in (1, *NUMBERLESS):
        empty = inputs._replace(x=ones * value, where=jnp.zeros_like(inputs.where))
        y, state, tangent, grads = compiled(variant)(empty, ones, ones)
        np.testing.assert_array_equal(y, jnp.broadcast_to(inputs.bias.reshape(shape), y.shape))
        jax.tree.map(np.testing.assert_array_equal, state, inputs.stats if state else None)
        assert all(jnp.isfinite(v).all() for v in (tangent, *grads))


@over(named("batch", "layer", "rms", "group"))
def test_an_empty_sample_without_bias_gives_0(variant):
    inputs = draw(variant, where="mask")._replace(bias=None)
    y, _ = variant.function(*inputs._replace(where=jnp.zeros_like(inputs.where)))
    np.testing.assert_array_equal(y, 0)


@over(MASKED)
def test_a_batch_of_no_element(variant):
    inputs = draw(variant)
    inputs = inputs._replace(x=inputs.x[:0])
    y, state, tangent, grads = compiled(variant)(inputs, inputs.x, inputs.x)
    assert types(y) == types(tangent) == types(inputs.x)
    jax.tree.map(np.testing.assert_array_equal, state, inputs.stats if state else None)
    for v in grads:
        np.testing.assert_array_equal(v, 0)


@over(named("batch", "batch cumulative"))
def test_a_state_of_weight_0_is_ignored_whatever_it_holds(variant):
    inputs = draw(variant)
    fresh = inputs.stats._replace(weight=jnp.zeros_like(inputs.stats.weight))
    junk = jax.tree.map(lambda v: jnp.full_like(v, jnp.nan), fresh)._replace(weight=fresh.weight)
    clean = fresh._replace(mean=jnp.zeros_like(fresh.mean), var=jnp.ones_like(fresh.var))
    for train in (True, False):
        y, state = variant.function(*inputs._replace(stats=junk), train=train)
        expected, remembered = variant.function(*inputs._replace(stats=clean), train=train)
        np.testing.assert_array_equal(y, expected)
        if train:
            jax.tree.map(np.testing.assert_array_equal, state, remembered)


@over([v for v in rows("state") if v in MASKED])
def test_an_infected_channel_keeps_its_state_and_infects_no_other(variant):
    inputs = draw(variant)
    sick = np.zeros(inputs.scale.shape, bool)
    sick.flat[1] = True
    shape = [n if a in variant.features else 1 for a, n in enumerate(variant.shape)]
    infected = np.broadcast_to(sick.reshape(shape), variant.shape)
    place = tuple(np.argwhere(infected)[0])
    expected, clean = variant.function(*inputs)
    for value in NUMBERLESS:
        y, state = variant.function(*inputs._replace(x=inputs.x.at[place].set(value)))
        assert not np.isfinite(y[infected]).any()
        assert_close(y[~infected], expected[~infected], 1e-6)
        for kept, new, old in zip(state, clean, inputs.stats, strict=True):
            np.testing.assert_array_equal(kept[sick], old[sick])
            assert_close(kept[~sick], new[~sick], 1e-6)
        assert types(state) == types(inputs.stats)
