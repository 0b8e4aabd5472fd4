"""The laws of Moments: they combine as samples do."""

from functools import reduce

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from variants import assert_close, types

from jaxnorm import Moments, combine, initial_stats, merge, moments

EMPTY = initial_stats((), weight=0.0)
NOTHING = Moments(*(jnp.float32(v) for v in (jnp.nan, jnp.inf, 0)))  # as empty, whatever it holds
few = settings(max_examples=40, deadline=None)


def finite(low, high):
    return st.floats(low, high, width=32, allow_subnormal=False)


# The laws hold up to rounding, which a wider range of numbers would hide.
some = st.builds(
    lambda mean, var, weight: Moments(*(jnp.float32(v) for v in (mean, var, weight))),
    finite(-1e3, 1e3),
    finite(0, 1e3),
    st.sampled_from([0.0, 0.25, 1.0, 3.0, 1000.0]),
)


def numbers(*shape):
    return hnp.arrays(np.float32, shape, elements=finite(-100, 100)).map(jnp.asarray)


def weights(*shape):
    return hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])).map(jnp.asarray)


def assert_same_sample(a, b, size=1.0):
    """Equal up to rounding; the mean and variance of nothing are no matter."""
    np.testing.assert_allclose(a.weight, b.weight, rtol=1e-6)
    seen = np.asarray(a.weight) > 0
    np.testing.assert_allclose(np.where(seen, a.mean, 0), np.where(seen, b.mean, 0), atol=3e-6 * size)
    np.testing.assert_allclose(np.where(seen, a.var, 0), np.where(seen, b.var, 0), atol=3e-6 * size**2)


@pytest.mark.parametrize("axis", [0, -1, (0, 2), (-1, 0, 1), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_moments_are_numpys(axis, keepdims):
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 5)).astype(np.float32)
    m = moments(x, axis, keepdims=keepdims)
    wide = x.astype(np.float64)
    count = np.ones_like(wide).sum(axis, keepdims=keepdims)
    assert_close(
        m,
        Moments(wide.mean(axis, keepdims=keepdims), wide.var(axis, keepdims=keepdims), count),
        1e-6,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "float32"])
def test_moments_are_float32_or_wider(dtype):
    m = moments(jnp.ones((3, 2), dtype), 0)
    assert types(m) == Moments(*[((2,), jnp.dtype("float32"))] * 3)
    with jax.enable_x64(True):
        m = moments(jnp.ones((3, 2), jnp.float64), 0)
        assert types(m) == Moments(*[((2,), jnp.dtype("float64"))] * 3)


def test_moments_of_complex_numbers():
    rng = np.random.default_rng(0)
    x = (rng.normal(1, 2, (64, 3)) + 1j * rng.normal(-3, 1, (64, 3))).astype(np.complex64)
    m = moments(x, 0)
    assert (
        types(m)
        == types(initial_stats(3, dtype=jnp.complex64))
        == types(initial_stats((3,), dtype=jnp.complex64))
    )
    assert_close(m, Moments(x.mean(0), x.var(0), np.full(3, 64.0)), 1e-6)


def test_moments_about_a_value():
    x = np.random.default_rng(0).normal(3, 2, (64, 3)).astype(np.float32)
    square = moments(x, 0, about=0)
    assert_close(square, Moments(np.zeros(3), (x.astype(float) ** 2).mean(0), np.full(3, 64.0)), 1e-6)
    origin = np.float32([[1, 2, 3]])
    m = moments(x, 0, about=origin)
    assert_close(m, Moments(origin[0], ((x - origin).astype(float) ** 2).mean(0), np.full(3, 64.0)), 1e-6)
    assert_close(moments(x, 0, about=x.mean(0, keepdims=True)).var, moments(x, 0).var, 1e-6)


def test_initial_stats_are_the_identity():
    m = initial_stats((2, 3))
    assert types(m) == Moments(*[((2, 3), jnp.dtype("float32"))] * 3)
    for actual, expected in zip(m, (0, 1, 1), strict=True):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(initial_stats((), weight=0.0).weight, 0)


@few
@given(some)
def test_the_empty_sample_is_the_unit_bitwise(m):
    for unit in (EMPTY, NOTHING):
        for merged in (merge(m, unit), merge(unit, m)):
            if m.weight > 0:
                jax.tree.map(np.testing.assert_array_equal, merged, m)
            else:
                assert merged.weight == 0


@few
@given(some, some)
def test_merge_is_commutative(a, b):
    assert_same_sample(merge(a, b), merge(b, a), 1e3)


@few
@given(some, some, some)
def test_merge_is_associative(a, b, c):
    assert_same_sample(merge(merge(a, b), c), merge(a, merge(b, c)), 2e3)


@few
@given(numbers(5, 3), weights(5, 3), numbers(2, 3), weights(2, 3))
def test_moments_of_a_union_are_the_merged_moments(x, v, y, w):
    union = moments(jnp.concatenate([x, y]), 0, where=jnp.concatenate([v, w]))
    assert_same_sample(merge(moments(x, 0, where=v), moments(y, 0, where=w)), union, 200)


@few
@given(numbers(6, 3), weights(6, 3))
def test_combine_is_a_fold_of_merge(x, w):
    parts = jax.vmap(lambda x, w: moments(x, 0, where=w))(x.reshape(3, 2, 3), w.reshape(3, 2, 3))
    folded = reduce(merge, [Moments(*(v[i] for v in parts)) for i in range(3)])
    assert_same_sample(combine(parts), folded, 200)
    assert_same_sample(combine(parts), moments(x, 0, where=w), 200)


@few
@given(numbers(4, 3), st.permutations([0, 1, 2, 3]))
def test_whole_weights_are_repetitions(x, counts):
    repeated = moments(np.repeat(x, counts, 0), 0)
    counts = np.asarray(counts)[:, None]
    assert_same_sample(moments(x, 0, where=counts), repeated, 100)
    assert_same_sample(moments(x, 0, where=counts.astype(np.float32)), repeated, 100)


@few
@given(numbers(6, 3), weights(6, 1), finite(-8, 8), finite(-100, 100))
def test_an_affine_map_moves_the_moments(x, w, a, b):
    m = moments(x, 0, where=w)
    moved = Moments(jnp.float32(a) * m.mean + jnp.float32(b), jnp.float32(a) ** 2 * m.var, m.weight)
    assert_same_sample(moments(jnp.float32(a) * x + jnp.float32(b), 0, where=w), moved, 1000)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_combine_over_any_axis(axis):
    rng = np.random.default_rng(0)
    parts = Moments(*(jnp.asarray(rng.uniform(0.5, 2, (4, 3, 2)), jnp.float32) for _ in range(3)))
    mean, var, weight = (np.asarray(v, float) for v in parts)
    total = weight.sum(axis, keepdims=True)
    centre = (weight * mean).sum(axis, keepdims=True) / total
    spread = (weight * (var + (mean - centre) ** 2)).sum(axis, keepdims=True) / total
    expected = Moments(*(np.squeeze(v, axis) for v in (centre, spread, total)))
    assert_close(combine(parts, axis), expected, 1e-6)


def test_combining_nothing_is_the_empty_sample():
    np.testing.assert_array_equal(combine(initial_stats((0, 3))).weight, np.zeros(3))
    parts = Moments(*(jnp.full((2, 3), v, jnp.float32) for v in (jnp.nan, jnp.nan, 0)))
    np.testing.assert_array_equal(combine(parts).weight, np.zeros(3))


def test_merging_scans_to_the_moments_of_everything():
    x = np.random.default_rng(0).normal(1e4, 1, (8, 25, 3)).astype(np.float32)
    seen, _ = jax.lax.scan(
        lambda m, batch: (merge(m, moments(batch, 0)), None), initial_stats((3,), weight=0.0), x
    )
    everything = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(seen.mean, everything.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        seen.var, everything.var(0), rtol=2e-3
    )  # the rounding of a float32 mean of 1e4
    np.testing.assert_array_equal(seen.weight, 200)


def test_a_large_set_outweighs_one_point():
    many, one = (Moments(*(jnp.float32(v) for v in m)) for m in ((2, 3, 2**24), (1e4, 0, 1)))
    merged = merge(many, one)
    np.testing.assert_allclose(merged.mean, 2 + (1e4 - 2) / (2**24 + 1), rtol=1e-6)
    np.testing.assert_allclose(merged.var, 3 + 9998.0**2 / 2**24, rtol=1e-6)


def test_the_types_of_merge_and_combine_are_the_states():
    state = initial_stats((3,), dtype=jnp.complex64)
    assert types(merge(state, state)) == types(state)
    assert types(combine(jax.tree.map(lambda v: v[None], state))) == types(state)
    assert types(jax.vmap(merge, in_axes=(0, None))(initial_stats((5, 3)), initial_stats((3,)))) == types(
        initial_stats((5, 3))
    )
