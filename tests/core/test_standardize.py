"""standardize applies Moments, unstandardize takes them back; and the laws between normalizers."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from variants import assert_close, draw, kinds, over

import jaxnorm as jn

few = settings(max_examples=40, deadline=None)
there, back = jax.jit(jn.standardize), jax.jit(jn.unstandardize)


def arrays(shape, low, high):
    elements = st.floats(low, high, width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, shape, elements=elements).map(jnp.asarray)


def given_moments(mean, var):
    return jn.Moments(mean, var, jnp.ones_like(mean))


@few
@given(
    arrays((4, 3), -50, 50),
    arrays(3, -50, 50),
    arrays(3, 0, 100),
    arrays(3, 0.5, 4),
    arrays(3, -9, 9),
)
def test_unstandardize_is_the_inverse(x, mean, var, scale, bias):
    m = given_moments(mean, var)
    affine = {"scale": scale, "bias": bias, "epsilon": 1e-2}
    np.testing.assert_allclose(there(back(x, m, **affine), m, **affine), x, atol=1e-3)
    np.testing.assert_allclose(back(there(x, m, **affine), m, **affine), x, atol=5e-4)


def test_the_moments_of_what_is_standardized():
    x = jnp.asarray(np.random.default_rng(0).normal(5, 3, (64, 4)), jnp.float32)
    m = jn.moments(jn.standardize(x, jn.moments(x, 0), epsilon=0), 0)
    assert_close(m, jn.Moments(np.zeros(4), np.ones(4), np.full(4, 64.0)), 1e-6)


@pytest.mark.parametrize("epsilon", [0, 1e-5, 1.0])
def test_initial_stats_and_nothing_seen_are_the_identity(epsilon):
    x = jnp.asarray(np.random.default_rng(0).normal(5, 3, (64, 4)), jnp.float32)
    expected = np.asarray(x) / np.sqrt(1 + epsilon)
    for weight in (1.0, 0.0):
        m = jn.initial_stats((4,), weight=weight)
        np.testing.assert_allclose(jn.standardize(x, m, epsilon=epsilon), expected, rtol=1e-6)
        np.testing.assert_allclose(
            jn.unstandardize(expected.astype(np.float32), m, epsilon=epsilon), x, rtol=1e-6
        )


def test_moments_may_have_any_shape_that_meets_x():
    x = jnp.asarray(np.random.default_rng(0).normal(5, 3, (6, 5, 4)), jnp.float32)
    m = jn.moments(x, (1, 2), keepdims=True)
    assert_close(jn.standardize(x, m), jn.layer_norm(x, axis=(1, 2), epsilon=1e-5), 1e-6)
    whole = jn.moments(x, (0, 1, 2))
    assert_close(jn.standardize(x, whole), (x - whole.mean) / jnp.sqrt(whole.var + jnp.float32(1e-5)), 1e-6)


def test_stored_statistics_are_not_rounded_to_the_type_of_x():
    m = given_moments(jnp.float32([100.3]), jnp.float32([1.0]))
    y = jn.standardize(jnp.asarray([[100.5]], jnp.bfloat16), m)
    np.testing.assert_allclose(y.astype(jnp.float32), 0.2, rtol=4e-3)


@over([v for v in kinds("where") if v.name not in ("rms", "batch evaluation")])
def test_a_norm_does_not_see_an_affine_map(variant):
    x = np.asarray(draw(variant).x, np.float64)

    def norm(x):
        inputs = draw(variant)._replace(x=jnp.asarray(x, jnp.float32), scale=None, bias=None)
        return variant.function(*inputs, epsilon=0)[0]

    for a, b in ((3.0, 0.0), (0.25, -7.0), (-2.0, 40.0), (1e6, 1e6), (1e-6, 0.0)):
        assert_close(norm(a * x + b), np.sign(a) * norm(x), 2e-5)


@pytest.mark.parametrize("a", [3.0, -0.25, 1e6, 1e-6])
def test_rms_norm_does_not_see_a_factor(a):
    x = jnp.asarray(np.random.default_rng(0).normal(1, 1, (5, 4)), jnp.float32)
    expected = jnp.sign(jnp.float32(a)) * jn.rms_norm(x, epsilon=0)
    assert_close(jn.rms_norm(jnp.float32(a) * x, epsilon=0), expected, 2e-6)


@pytest.mark.parametrize("feature_axis", [-1, 1])
def test_group_norm_lies_between_instance_and_layer_norm(feature_axis):
    x = jnp.asarray(np.random.default_rng(0).normal(1, 1, (3, 4, 5, 4)), jnp.float32)
    w = jnp.asarray(np.random.default_rng(1).integers(0, 3, (3, 4, 5, 1)), jnp.float32)
    affine = {
        "scale": jnp.float32([1, 2, 3, 4]),
        "bias": jnp.float32([4, 3, 2, 1]),
        "feature_axis": feature_axis,
    }
    for where in (None, w):
        assert_close(
            jn.group_norm(x, 4, where=where, **affine),
            jn.instance_norm(x, where=where, **affine),
            1e-6,
        )
        one = jn.layer_norm(x, axis=(1, 2, 3), where=where, **affine)
        assert_close(jn.group_norm(x, 1, where=where, **affine), one, 1e-6)


def test_batch_norm_of_one_sample_is_instance_norm():
    x = jnp.asarray(np.random.default_rng(0).normal(1, 1, (1, 5, 4)), jnp.float32)
    y, _ = jn.batch_norm(x, jn.initial_stats((4,)), train=True, epsilon=1e-6)
    assert_close(y, jn.instance_norm(x), 1e-6)


def test_rms_norm_of_centred_numbers_is_layer_norm():
    x = np.random.default_rng(0).normal(1, 1, (5, 8))
    x = jnp.asarray(x - x.mean(-1, keepdims=True), jnp.float32)
    assert_close(jn.rms_norm(x), jn.layer_norm(x), 1e-6)


def test_the_states_of_training_evaluate_as_flax_and_torch_do():
    x = np.random.default_rng(0).normal(2, 3, (5, 32, 4)).astype(np.float32)
    mean, var, state = np.zeros(4), np.ones(4), jn.initial_stats((4,))
    for batch in x:
        _, state = jn.batch_norm(batch, state, train=True, decay=0.9, unbiased=True)
        mean = 0.9 * mean + 0.1 * batch.mean(0, dtype=np.float64)
        var = 0.9 * var + 0.1 * batch.var(0, ddof=1, dtype=np.float64)
    assert_close(state, jn.Moments(mean, var, np.ones(4)), 1e-6)
    y, _ = jn.batch_norm(x[0], state, train=False)
    assert_close(y, (x[0] - mean) / np.sqrt(var + 1e-5), 2e-6)


def test_the_cumulative_average_is_the_statistics_of_all_batches():
    x = np.random.default_rng(0).normal(2, 3, (5, 32, 4)).astype(np.float32)
    state = jn.initial_stats((4,), weight=0.0)
    for batch in x:
        _, state = jax.jit(lambda b, s: jn.batch_norm(b, s, train=True, decay=None))(batch, state)
    assert_close(state, jn.moments(x.reshape(-1, 4), 0), 2e-6)


def test_the_zero_vector_has_unit_norm_zero_and_finite_gradients():
    for order in (1, 2):
        y, grad = jax.value_and_grad(lambda v, order=order: jn.unit_norm(v, ord=order).sum())(jnp.zeros(3))
        assert y == 0 and jnp.isfinite(grad).all()
