"""Moments of many batches, merged in pairs: accurate in float32, however many there are."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnorm import linen, merge, moments, population


def assert_moments(m, data, rtol=1e-6):
    """m against float64 numpy over the whole data, [rows, features]."""
    data = np.asarray(data, np.float64)
    np.testing.assert_allclose(m.mean, data.mean(0), rtol=rtol)
    np.testing.assert_allclose(m.var, data.var(0), rtol=rtol)
    assert (m.weight == len(data)).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_any_partition_gives_the_moments_of_the_whole(sizes):
    data = np.random.default_rng(0).normal(2.0, 3.0, (sum(sizes), 3)).astype(np.float32)
    # one shape of arrays, whatever the sizes
    parts = np.split(data, np.cumsum(sizes)[:-1])
    m = population.merge_batches(jax.tree.map(jnp.asarray, numpy_moments(part)) for part in parts)
    assert_moments(m, data, 2e-6)


def numpy_moments(data):
    m = data.mean(0, dtype=np.float64), data.var(0, dtype=np.float64), np.full(data.shape[1], len(data))
    return type(moments(jnp.ones(2), 0))(*(v.astype(np.float32) for v in m))


def test_one_part_is_returned_as_it_is():
    m = moments(jnp.arange(6.0).reshape(3, 2), 0)
    assert population.merge_batches([m]) is m


def test_parts_are_merged_in_pairs():
    """Of n parts no one passes through more than log2(n) merges, rounded up."""
    depths = [population.merge_batches([0] * n, by=lambda a, b: max(a, b) + 1) for n in (1, 2, 8, 9, 1000)]
    assert depths == [0, 1, 3, 4, 10]


def test_the_order_of_the_parts_is_kept():
    assert population.merge_batches("abcdefghijklm", by=lambda a, b: a + b) == "abcdefghijklm"


def test_no_part():
    text = "merge_batches: parts is empty; give the moments of one sample or more."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        population.merge_batches([])


def test_parts_of_different_shapes():
    parts = [moments(jnp.ones((2, n)), 0) for n in (2, 3)]
    with pytest.raises(ValueError, match=r"^merge_batches: "):
        population.merge_batches(parts)


def many_batches(number, size):
    """Rows of mean 1e4 and variance 1, which float32 holds to some 5e-4, whose batches differ."""
    rng = np.random.default_rng(0)
    for _ in range(number):
        yield (rng.normal(1e4 + rng.normal(), 1.0, (size, 2))).astype(np.float32)


@pytest.mark.parametrize("size", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_thousand_batches_far_from_zero(size):
    """Mean 1e4, variance 2, up to 1e7 rows: right to the last place. A running merge is 7 places off."""
    total, square = np.zeros(2), np.zeros(2)
    parts = []
    for batch in many_batches(1000, size):
        wide = batch.astype(np.float64) - 1e4
        total, square = total + wide.sum(0), square + (wide**2).sum(0)
        parts.append(moments(batch, 0))
    mean = total / (1000 * size)
    m = population.merge_batches(parts)
    np.testing.assert_allclose(m.mean, 1e4 + mean, rtol=0, atol=np.spacing(np.float32(1e4)))
    # float32 holds the means of the batches to 5e-4
    np.testing.assert_allclose(m.var, square / (1000 * size) - mean**2, rtol=1e-4)
    assert (m.weight == 1000 * size).all()


def test_more_rows_than_float32_counts_one_by_one():
    """Beyond 2^24 a running merge adds nothing to the weight; pairs still do."""
    part = moments(jnp.asarray([[1.0], [3.0]]), 0)
    part = part._replace(weight=jnp.full_like(part.weight, 2.0**14 + 1))
    whole = population.merge_batches([part] * 2**11)
    assert whole.weight == 2**11 * (2**14 + 1) and whole.var == 1


def test_a_layer_s_thousand_batches():
    """The same through a model: 1e6 rows."""
    norm = linen.BatchNorm(use_running_average=True, momentum=None)
    variables = norm.init(jax.random.key(0), np.zeros((1, 2), np.float32))
    found = linen.recalibrate(norm, variables, many_batches(250, 4000))["batch_stats"]
    data = np.concatenate(list(many_batches(250, 4000))).astype(np.float64)
    np.testing.assert_allclose(found["mean"], data.mean(0), rtol=0, atol=2 * np.spacing(np.float32(1e4)))
    np.testing.assert_allclose(found["var"], data.var(0), rtol=1e-4)
    assert (found["weight"] == 1e6).all()


def test_merging_is_traced_like_any_function():
    data = jnp.arange(24.0).reshape(4, 3, 2)
    m = jax.jit(lambda data: population.merge_batches(map(partial(moments, axis=0), data)))(data)
    assert_moments(m, data.reshape(-1, 2))
    assert jax.tree.map(jnp.shape, m) == jax.tree.map(jnp.shape, merge(m, m))
