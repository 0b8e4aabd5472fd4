"""The norms of weights: their formulas in float64, their trees, their states and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal
from jax.test_util import check_grads

import jaxnorm as jn

KERNEL = jax.random.normal(jax.random.key(0), (3, 3, 4, 5)) + 2  # one singular value is far above the others
TREE = {"conv": {"kernel": KERNEL, "bias": jnp.ones(5)}, "head": [KERNEL[0, 0]]}


def exact(v):
    return np.asarray(v, np.float64)


def close(actual, expected, rtol=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.max(np.abs(expected)))


# ------------------------------------------------------------------------------------ formulas


@pytest.mark.parametrize("feature_axis", [-1, (-2, -1), 0, None], ids=str)
def test_weight_norm_is_its_formula(feature_axis):
    v = exact(KERNEL)
    axes = {-1: (0, 1, 2), (-2, -1): (0, 1), 0: (1, 2, 3), None: (0, 1, 2, 3)}[feature_axis]
    length = np.sqrt((v**2).sum(axes, keepdims=True))
    lengths = jn.weight_lengths(KERNEL, feature_axis=feature_axis)
    close(lengths, length.squeeze(axes))
    scale = jnp.full(lengths.shape, 3.0)
    options = dict(feature_axis=feature_axis, epsilon=0.1)
    close(jn.weight_norm(KERNEL, scale=scale, **options), 3 * v / np.sqrt(length**2 + 0.1))


def test_weight_norm_by_its_lengths_changes_nothing():
    close(jn.weight_norm(KERNEL, scale=jn.weight_lengths(KERNEL)), KERNEL)


def test_weights_of_mean_0():
    v = exact(KERNEL)
    centered, var = v - v.mean((0, 1, 2)), v.var((0, 1, 2))
    scale = jnp.arange(1.0, 6.0)
    plain = jn.weight_standardize(KERNEL, scale=scale, epsilon=0.1)
    close(plain, centered / np.sqrt(var + 0.1) * exact(scale))
    scaled = jn.weight_standardize(KERNEL, scale=scale, by_fan_in=True, epsilon=1e-4)
    close(scaled, centered / np.sqrt(np.maximum(36 * var, 1e-4)) * exact(scale))
    close((exact(scaled) ** 2).sum((0, 1, 2)), exact(scale) ** 2)
    constant = jn.weight_standardize(jnp.ones((4, 2)), by_fan_in=True)
    assert_trees_all_equal(constant, jnp.zeros((4, 2)))


def test_spectral_norm_finds_the_largest_singular_value():
    matrix = KERNEL.reshape(36, 5)
    sigma = np.linalg.svd(exact(matrix), compute_uv=False)[0]
    stats = jn.initial_spectral_stats(KERNEL, jax.random.key(1))
    w, stats = jn.spectral_norm(KERNEL, stats, n_steps=9)
    close(stats.sigma, sigma)
    close(w, exact(KERNEL) / sigma)
    close(jnp.linalg.norm(stats.u), 1.0)


def test_spectral_norm_goes_on_where_it_stopped():
    stats = jn.initial_spectral_stats(KERNEL, jax.random.key(1))
    whole = jn.spectral_norm(KERNEL, stats, n_steps=3)
    for _ in range(3):
        w, stats = jn.spectral_norm(KERNEL, stats)
    assert_trees_all_close((w, stats), whole, rtol=1e-6)


def test_spectral_norm_of_complex_weights():
    v = jax.random.normal(jax.random.key(2), (6, 3), jnp.complex64) + (2 + 1j)
    stats = jn.initial_spectral_stats(v, jax.random.key(1))
    w, after = jn.spectral_norm(v, stats, n_steps=9)
    close(after.sigma, np.linalg.svd(v, compute_uv=False)[0], rtol=1e-5)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, stats)
    close(np.linalg.svd(w, compute_uv=False)[0], 1.0, rtol=1e-5)


def test_a_weight_of_zeros_stays():
    zeros = jnp.zeros((4, 2))
    stats = jn.initial_spectral_stats(zeros, jax.random.key(0))
    for w in (jn.weight_norm(zeros), jn.weight_standardize(zeros), jn.spectral_norm(zeros, stats)[0]):
        assert_trees_all_equal(w, zeros)


# ------------------------------------------------------------------------------------ trees


def test_kernels_are_normalized_and_biases_are_not():
    w = jn.weight_norm(TREE)
    assert w["conv"]["bias"] is TREE["conv"]["bias"]
    close(jn.weight_lengths(w)["conv"]["kernel"], np.ones(5))
    close(jn.weight_lengths(w)["head"][0], np.ones(5))
    assert jn.weight_lengths(TREE)["conv"]["bias"] is None


def test_leaves_are_selected_by_path_and_value():
    seen = []

    def select(path, value):
        seen.append((path, value.ndim))
        return path[0] == "head"

    w = jn.weight_norm(TREE, select=select)
    assert seen == [(("conv", "bias"), 1), (("conv", "kernel"), 4), (("head", "0"), 2)]
    assert w["conv"]["kernel"] is KERNEL
    close(jn.weight_lengths(w, select=select)["head"][0], np.ones(5))


def test_spectral_norm_leaves_what_has_no_state():
    stats = jn.initial_spectral_stats(TREE, jax.random.key(0))
    assert stats["conv"]["bias"] is None
    w, after = jn.spectral_norm(TREE, stats)
    assert w["conv"]["bias"] is TREE["conv"]["bias"] and after["conv"]["bias"] is None
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, stats)
    alone, _ = jn.spectral_norm(TREE["head"][0], stats["head"][0])
    assert_trees_all_equal(w["head"][0], alone)
    assert not np.array_equal(stats["conv"]["kernel"].u, stats["head"][0].u)


# ------------------------------------------------------------------------------------ dtypes, derivatives


def test_dtypes():
    half = KERNEL.astype(jnp.bfloat16)
    stats = jn.initial_spectral_stats(half, jax.random.key(0))
    assert stats.u.dtype == jn.weight_lengths(half).dtype == jnp.float32
    for w in (jn.weight_norm(half), jn.weight_standardize(half), jn.spectral_norm(half, stats)[0]):
        assert w.dtype == jnp.bfloat16
    wide = jn.weight_norm(half, dtype=jnp.float32)
    assert wide.dtype == jnp.float32
    close(jn.weight_lengths(wide), np.ones(5))


@pytest.mark.parametrize(
    "norm",
    [
        jn.weight_norm,
        jn.weight_standardize,
        lambda v: jn.weight_standardize(v, by_fan_in=True),
        jn.weight_lengths,
    ],
    ids=["norm", "standardize", "by fan-in", "lengths"],
)
def test_derivatives(norm):
    check_grads(jax.jit(norm), (KERNEL[0, 0],), order=1, atol=1e-2, rtol=1e-2, eps=1e-2)


def test_the_gradient_of_weight_norm_is_orthogonal_to_the_weight():
    @jax.jit
    @jax.grad
    def gradient(v):
        return jnp.sum(jnp.sin(jn.weight_norm(v)))

    close((gradient(KERNEL) * KERNEL).sum((0, 1, 2)) + 1.0, np.ones(5), rtol=1e-5)


def test_the_gradient_of_sigma_is_that_of_the_singular_value():
    matrix = KERNEL.reshape(36, 5)
    stats = jn.initial_spectral_stats(matrix, jax.random.key(1))
    _, stats = jn.spectral_norm(matrix, stats, n_steps=9)

    @jax.jit
    @jax.grad
    def gradient(v):
        w, new = jn.spectral_norm(v, stats)
        return jnp.sum(jnp.sin(w)) + 100 * new.sigma  # the state has no gradient

    left, sigma, right = np.linalg.svd(exact(matrix), full_matrices=False)
    cos = np.cos(exact(matrix) / sigma[0]) / sigma[0]
    outer = np.outer(left[:, 0], right[0])
    close(gradient(matrix), cos - (cos * exact(matrix)).sum() / sigma[0] * outer, rtol=2e-5)


# ------------------------------------------------------------------------------------ errors

V = jnp.ones((3, 2))
STATS = jn.SpectralStats(jnp.ones((1, 2)), jnp.ones(()))
ERRORS = {
    "negative epsilon": (
        lambda: jn.weight_norm(V, epsilon=-1.0),
        ValueError,
        "weight_norm: epsilon=-1.0 is not a number >= 0; it is added to the variance: choose, for example, "
        "1e-5.",
    ),
    "axis": (
        lambda: jn.weight_norm(V, feature_axis=2),
        ValueError,
        "weight_norm: feature_axis=2 is out of range for x, shape (3, 2); choose from -2 to 1.",
    ),
    "scale": (
        lambda: jn.weight_standardize(V, scale=jnp.ones(3), by_fan_in=True),
        ValueError,
        "weight_standardize: scale of shape (3,) is neither the sizes (2,) of the feature axes (1,) nor "
        "broadcastable to x, shape (3, 2); give it one of these shapes.",
    ),
    "not numeric": (
        lambda: jn.weight_norm({"mask": V > 0}),
        TypeError,
        "weight_norm: mask must hold numbers, got dtype bool; convert it first, for example with "
        "mask.astype(jnp.float32).",
    ),
    "scalar": (
        lambda: jn.initial_spectral_stats(jnp.ones(()), jax.random.key(0), select=lambda *_: True),
        ValueError,
        "initial_spectral_stats: axis=-1 is out of range for x, shape (); a scalar has no axes.",
    ),
    "no step": (
        lambda: jn.spectral_norm(V, STATS, n_steps=0),
        ValueError,
        "spectral_norm: n_steps=0 is too small; choose 1 or more.",
    ),
    "another size": (
        lambda: jn.spectral_norm(V.T, STATS),
        ValueError,
        "spectral_norm: u has shape (1, 2), but a weight of shape (2, 3) needs (1, 3); start from "
        "initial_spectral_stats(params, key).",
    ),
    "only one complex": (
        lambda: jn.spectral_norm(V.astype(jnp.complex64), STATS),
        TypeError,
        "spectral_norm: a weight is complex64 but its u is float32; start from "
        "initial_spectral_stats(params, key).",
    ),
}


@pytest.mark.parametrize("wrong", ERRORS)
def test_errors(wrong):
    call, kind, text = ERRORS[wrong]
    with pytest.raises(kind) as found:
        call()
    assert str(found.value) == text
