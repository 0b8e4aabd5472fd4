"""The laws of the moving average, for Moments and for anything else that has a weight."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from variants import assert_close, types

from jaxnorm import Moments, ema, initial_stats

few = settings(max_examples=40, deadline=None)
values = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
decays = st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 0.999])


def stats(mean, var=1.0, weight=1.0):
    return Moments(*(jnp.float32(v) for v in (mean, var, weight)))


def averaged(new, decay, weight=0.0, mean=0.0):
    """The state after each of the new means."""
    state = stats(mean, weight=weight)
    states = []
    for v in new:
        state = ema(state, stats(v), decay=decay)
        states.append(state)
    return states


class Tracked(NamedTuple):
    """Something else to average, with a weight for each row."""

    gram: jax.Array  # [rows, 3, 3]
    total: jax.Array  # [rows, 3]
    weight: jax.Array  # [rows]


def tracked(seed, weight):
    rng = np.random.default_rng(seed)
    gram, total = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 3), (2, 3)))
    return Tracked(gram, total, jnp.asarray(weight, jnp.float32))


@few
@given(values, values, decays)
def test_the_formula(old, new, decay):
    after = ema(stats(old, abs(old)), stats(new, abs(new), 32.0), decay=decay)
    np.testing.assert_allclose(after.mean, decay * old + (1 - decay) * new, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(after.var, decay * abs(old) + (1 - decay) * abs(new), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(after.weight, 1, rtol=1e-6)


@few
@given(values, st.lists(values, min_size=1, max_size=6), st.sampled_from([0.1, 0.5, 0.9, 0.99]))
def test_a_debiased_average_weighs_what_it_saw(junk, new, decay):
    n = len(new)
    for i, state in enumerate(averaged(new, decay, mean=junk), 1):
        shares = decay ** np.arange(i - 1, -1, -1.0)
        np.testing.assert_allclose(state.mean, np.average(new[:i], weights=shares), atol=2e-2 if n > 1 else 0)
        np.testing.assert_allclose(state.weight, 1 - decay**i, rtol=1e-5)


def test_a_debiased_average_is_adams():
    new = np.random.default_rng(0).normal(3, 1, 20)
    for decay in (0.9, 0.99):
        biased = np.float64(0)
        for i, (v, state) in enumerate(zip(new, averaged(new, decay), strict=True), 1):
            biased = decay * biased + (1 - decay) * v
            np.testing.assert_allclose(state.mean, biased / (1 - decay**i), rtol=2e-5)


@few
@given(values, values, st.sampled_from([0, 0.5, 0.9, 0.999]))
def test_the_first_debiased_step_is_the_batch_bitwise(junk, new, decay):
    first = ema(stats(junk, jnp.nan, 0), stats(new, 2.5, 32.0), decay=decay)
    np.testing.assert_array_equal(first.mean, jnp.float32(new))
    np.testing.assert_array_equal(first.var, jnp.float32(2.5))


@few
@given(values, decays)
def test_the_average_of_a_constant_is_the_constant_bitwise(value, decay):
    for state in averaged([value] * 4, decay):
        np.testing.assert_array_equal(state.mean, jnp.float32(value))


@few
@given(values, values)
def test_decay_0_forgets_and_decay_1_remembers(old, new):
    forgetful = ema(stats(old), stats(new, 3.0), decay=0)
    np.testing.assert_allclose(forgetful.mean, new, atol=1e-3)
    np.testing.assert_allclose(forgetful.var, 3, rtol=1e-6)
    for weight in (1.0, 0.0, 0.5):
        before = stats(old, weight=weight)
        jax.tree.map(np.testing.assert_array_equal, ema(before, stats(new, 3.0), decay=1), before)


@few
@given(values, values, values, values, decays)
def test_the_average_is_linear(a, b, c, d, decay):
    both = ema(stats(a + c), stats(b + d), decay=decay).mean
    apart = ema(stats(a), stats(b), decay=decay).mean + ema(stats(c), stats(d), decay=decay).mean
    np.testing.assert_allclose(both, apart, atol=2e-3)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_an_empty_new_changes_nothing_bitwise(weight):
    old = stats(0.1, 0.3, weight)
    for new in (stats(7, 7, 0), stats(jnp.nan, jnp.inf, 0)):
        jax.tree.map(np.testing.assert_array_equal, ema(old, new, decay=0.9), old)


def test_only_whether_new_has_weight_counts():
    old, few_points, many = stats(1.0), stats(2.0, 3.0, 1e-3), stats(2.0, 3.0, 1e6)
    jax.tree.map(np.testing.assert_array_equal, ema(old, few_points, decay=0.9), ema(old, many, decay=0.9))


def test_channels_are_separate():
    old = Moments(*(jnp.float32(v) for v in ([1, 1, jnp.nan], [1, 1, jnp.nan], [1, 1, 0])))
    new = Moments(*(jnp.float32(v) for v in ([2, jnp.nan, 2], [3, jnp.nan, 3], [4, 0, 4])))
    expected = Moments(*(np.float32(v) for v in ([1.5, 1, 2], [2, 1, 3], [1, 1, 0.5])))
    jax.tree.map(np.testing.assert_array_equal, ema(old, new, decay=0.5), expected)


def test_any_tuple_with_a_weight_for_its_rows():
    old, new = tracked(0, [1, 0]), tracked(1, [5, 5])
    after = ema(old, new, decay=0.75)
    assert types(after) == types(old)
    np.testing.assert_array_equal(after.weight, np.float32([1, 0.25]))
    for before, seen, mixed in zip(old[:2], new[:2], after[:2], strict=True):
        np.testing.assert_allclose(mixed[0], 0.75 * before[0] + 0.25 * seen[0], atol=1e-6)
        np.testing.assert_array_equal(mixed[1], seen[1])


def test_a_scalar_weight_for_everything():
    old, new = tracked(0, 1), tracked(1, 5)
    after = ema(old, new, decay=0.75)
    assert types(after) == types(old)
    expected = jax.tree.map(lambda a, b: np.float32(0.75) * a + np.float32(0.25) * b, old[:2], new[:2])
    assert_close(after[:2], expected, 1e-6)
    jax.tree.map(np.testing.assert_array_equal, ema(old, tracked(1, 0), decay=0.75), old)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_state_keeps_its_type(dtype):
    old = initial_stats((3,))
    new = jax.tree.map(lambda v: v.astype(dtype), old)
    assert types(ema(old, new, decay=0.9)) == types(old)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: v.astype(jnp.float64), old)
        assert types(ema(old, wide, decay=0.9)) == types(old)
        assert types(ema(wide, old, decay=0.9)) == types(wide)


def test_a_traced_decay_in_a_scan():
    new = jnp.float32([3, 1, 4, 1, 5])
    decay = jnp.float32([0.5, 0.9, 0.99, 0, 1])
    last, _ = jax.lax.scan(lambda s, v: (ema(s, stats(v[0]), decay=v[1]), None), stats(0), (new, decay))
    state = stats(0)
    for v, d in zip(new, decay, strict=True):
        state = ema(state, stats(v), decay=float(d))
    assert_close(last, state, 1e-6)


def test_vmap_averages_each():
    old, new = tracked(0, [1, 0]), tracked(1, [5, 0])
    mapped = jax.vmap(lambda o, n: ema(o, n, decay=0.9))(old, new)
    assert_close(mapped, ema(old, new, decay=0.9), 1e-6)
