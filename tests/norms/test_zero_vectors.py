"""Where a length or a deviation is 0: the value is right and the gradient finite, in every dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

TINY = 1e-12  # 1 / sqrt(TINY) is beyond float16
STATS = jn.initial_stats(4)
SLOPE = jnp.ones(4)
LOGITS = jnp.zeros(3)


def kernel_alone(v, epsilon):
    return jn.weight_demodulate(v, jnp.ones((3, v.shape[-2]), v.dtype), epsilon=epsilon)


def style_alone(v, epsilon):
    return jn.weight_demodulate(jnp.ones((v.shape[-1], 2), v.dtype), v[0], epsilon=epsilon)


def spectral(v, epsilon):
    stats = jn.SpectralStats(jnp.ones((1, v.shape[-1])), jnp.float32(1))
    return jn.spectral_norm(v, stats, epsilon=epsilon)[0]


# (x, epsilon) -> y of x's dtype, of x [2, 3, 4]; epsilon is TINY, the function's own, or 0.
DIVIDING = {
    "unit_norm": lambda x, e: jn.unit_norm(x, epsilon=e),
    "unit_norm of order 1": lambda x, e: jn.unit_norm(x, ord=1, epsilon=e),
    "local_response_norm": lambda x, e: jn.local_response_norm(x, size=2, k=e),
    "scale_norm": lambda x, e: jn.scale_norm(x, scale=2.0, epsilon=e),
    "pixel_norm": lambda x, e: jn.pixel_norm(x, epsilon=e),
    "rms_norm": lambda x, e: jn.rms_norm(x, epsilon=e),
    "partial_rms_norm": lambda x, e: jn.partial_rms_norm(x, num_features=2, epsilon=e),
    "qk_norm": lambda x, e: jn.qk_norm(x, x[:, 1:], epsilon=e)[0],
    "qk_norm by scale_norm": lambda x, e: jn.qk_norm(
        x, x[:, 1:], norm=jn.scale_norm, query_scale=2.0, key_scale=1.0, epsilon=e
    )[0],
    "gated_rms_norm": lambda x, e: jn.gated_rms_norm(x, jnp.ones_like(x), epsilon=e),
    "gated_rms_norm, gate first": lambda x, e: jn.gated_rms_norm(
        x, jnp.ones_like(x), norm_before_gate=False, epsilon=e
    ),
    "gated_rms_norm, of the gate": lambda x, e: jn.gated_rms_norm(
        jnp.ones_like(x), x, norm_before_gate=False, epsilon=e
    ),
    "layer_norm": lambda x, e: jn.layer_norm(x, epsilon=e),
    "group_norm": lambda x, e: jn.group_norm(x, 2, epsilon=e),
    "instance_norm": lambda x, e: jn.instance_norm(x, epsilon=e),
    "batch_norm": lambda x, e: jn.batch_norm(x, STATS, train=True, epsilon=e)[0],
    "batch_renorm": lambda x, e: jn.batch_renorm(x, STATS, train=True, epsilon=e)[0],
    "ghost_batch_norm": lambda x, e: jn.ghost_batch_norm(x, STATS, train=True, num_ghosts=2, epsilon=e)[0],
    "blended_batch_norm": lambda x, e: jn.blended_batch_norm(x, STATS, alpha=0.0, epsilon=e),
    "switchable_norm": lambda x, e: jn.switchable_norm(x, STATS, LOGITS, LOGITS, train=True, epsilon=e)[0],
    "reversible_norm": lambda x, e: jn.reversible_norm(x, axis=1, epsilon=e)[0],
    "input_norm": lambda x, e: jn.input_norm(
        x, jn.initial_stats(4, weight=0.0), train=True, epsilon=max(e, TINY)
    )[0],
    "adaptive_instance_norm": lambda x, e: jn.adaptive_instance_norm(x, jnp.ones_like(x), epsilon=e),
    "adaptive_instance_norm, of the style": lambda x, e: jn.adaptive_instance_norm(
        jnp.zeros_like(x), x, epsilon=e
    ),
    "filter_response_norm": lambda x, e: jn.filter_response_norm(x, epsilon=e),
    "global_response_norm": lambda x, e: jn.global_response_norm(x, epsilon=e),
    "evonorm_s0": lambda x, e: jn.evonorm_s0(x, SLOPE, num_groups=2, epsilon=e),
    "evonorm_b0": lambda x, e: jn.evonorm_b0(x, STATS, SLOPE, train=True, epsilon=e)[0],
    "decorrelated_batch_norm": lambda x, e: jn.decorrelated_batch_norm(
        x, jn.initial_covariance(4), train=True, epsilon=e
    )[0],
    "decorrelated_batch_norm by Newton": lambda x, e: jn.decorrelated_batch_norm(
        x, jn.initial_covariance(4), train=True, iterations=5, epsilon=e
    )[0],
    "weight_norm": lambda x, e: jn.weight_norm(x, epsilon=e),
    "weight_standardize": lambda x, e: jn.weight_standardize(x, epsilon=e),
    "weight_standardize by_fan_in": lambda x, e: jn.weight_standardize(x, by_fan_in=True, epsilon=e),
    "weight_demodulate": kernel_alone,
    "weight_demodulate, of the style": style_alone,
    "spectral_norm": spectral,
}

over_functions = pytest.mark.parametrize("name", DIVIDING)
over_narrow = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])


def finite(v):
    return bool(jnp.isfinite(v.astype(jnp.float32)).all())


@pytest.mark.parametrize("epsilon", [TINY, 0.0])
@over_narrow
@over_functions
def test_of_zeros_the_value_is_0_and_the_gradient_is_finite(name, dtype, epsilon):
    x = jnp.zeros((2, 3, 4), dtype)
    y, back = jax.vjp(lambda x: DIVIDING[name](x, epsilon), x)
    (dx,) = back(jnp.linspace(-2, 3, y.size, dtype=y.dtype).reshape(y.shape))
    assert y.dtype == dx.dtype == x.dtype
    expected = 1 if name == "adaptive_instance_norm" else 0  # a style of ones
    np.testing.assert_array_equal(y.astype(jnp.float32), expected)
    assert finite(dx)


@over_functions
def test_of_the_smallest_numbers_the_gradient_is_finite(name):
    """The subnormal numbers of float16, whose lengths it holds and whose inverses it does not."""
    x = jnp.full((2, 3, 4), jnp.finfo("float16").smallest_subnormal, "float16").at[:, 0, 0].set(0)
    y, back = jax.vjp(lambda x: DIVIDING[name](x, TINY), x)
    assert finite(y)
    assert finite(*back(jnp.linspace(-2, 3, y.size, dtype=y.dtype).reshape(y.shape)))


def test_float32_keeps_the_gradient_of_x_over_epsilon():
    g = jnp.array([[1.0, -3.0]])
    (dx,) = jax.vjp(jn.unit_norm, jnp.zeros((1, 2)))[1](g)
    np.testing.assert_allclose(dx, g / 1e-12, rtol=1e-6)


@pytest.mark.parametrize("transformed", ["jit", "vmap", "grad of grad", "scan of remat", "disable_jit"])
def test_float16_has_its_largest_number_in_place_of_inf(transformed):
    def gradient(x):
        return jax.grad(lambda x: (jn.unit_norm(x) @ jnp.array([2, -1], x.dtype)).sum())(x)

    x = jnp.zeros((3, 2), jnp.float16)
    most = float(jnp.finfo("float16").max)
    expected = np.array([[most, -most]] * 3)
    if transformed == "jit":
        dx = jax.jit(gradient)(x)
    elif transformed == "vmap":
        dx = jax.vmap(gradient)(x)
    elif transformed == "disable_jit":
        with jax.disable_jit():
            dx = gradient(x)
    elif transformed == "scan of remat":
        norm = jax.checkpoint(lambda x: jn.unit_norm(x))
        dx = jax.grad(lambda x: (jax.lax.scan(lambda c, _: (norm(c), None), x, None, 1)[0]).sum())(x)
        expected = np.full((3, 2), most)
    else:  # the gradient is constant there
        dx = jax.jvp(gradient, (x,), (jnp.ones_like(x),))[1]
        expected = np.zeros((3, 2))
    np.testing.assert_array_equal(dx, expected)


@pytest.mark.parametrize("function", [jn.unit_norm, jn.rms_norm, jn.filter_response_norm])
def test_a_gradient_that_float16_holds_is_not_changed(function):
    x = jax.random.normal(jax.random.key(0), (4, 3, 8))

    def gradient(x):
        return jax.grad(lambda x: (function(x) @ jnp.arange(8, dtype=x.dtype)).sum())(x)

    np.testing.assert_allclose(gradient(x.astype(jnp.float16)), gradient(x), rtol=0, atol=2e-2)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_the_gradient_of_the_length_of_a_zero_row_is_0(dtype, order):
    v = jnp.array([[3.0, 0.0], [4.0, 0.0]]).astype(dtype)

    def total(v):
        return jn.weight_lengths(v).sum()

    np.testing.assert_allclose(jn.weight_lengths(v), [5, 0], rtol=1e-6)
    if order == 1:
        dv = jax.grad(total)(v)
        np.testing.assert_allclose(dv.real.astype(jnp.float32), [[0.6, 0], [0.8, 0]], atol=2e-3)
    elif dtype != "complex64":
        second = jax.jvp(jax.grad(total), (v,), (jnp.ones_like(v),))[1]
        np.testing.assert_array_equal(second[:, 1].astype(jnp.float32), 0)
        assert finite(second)


def test_weights_at_their_own_lengths_have_a_finite_gradient_at_a_zero_row():
    """Weight norm as it is used: scale and direction from one tensor."""
    v = jnp.zeros((3, 2)).at[:, 0].set(jnp.array([1.0, 2.0, 2.0]))
    dv = jax.grad(lambda v: jn.weight_norm(v, scale=jn.weight_lengths(v)).sum())(v)
    np.testing.assert_allclose(dv[:, 0], 1, rtol=1e-5)
    np.testing.assert_array_equal(dv[:, 1], 0)


@pytest.mark.parametrize("epsilon", [1e-12, 0.0])
def test_spectral_norm_of_zeros_has_a_finite_state(epsilon):
    v = jnp.zeros((3, 2))
    stats = jn.initial_spectral_stats(v, jax.random.key(0))
    w, new = jn.spectral_norm(v, stats, epsilon=epsilon)
    np.testing.assert_array_equal(w, 0)
    assert finite(new.u) and float(new.sigma) == 0
    w, new = jn.spectral_norm(v.at[0, 0].set(2.0), new, epsilon=epsilon, n_steps=3)
    np.testing.assert_allclose(w, jnp.zeros((3, 2)).at[0, 0].set(1.0), atol=1e-6)
