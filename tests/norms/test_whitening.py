"""Whitening: what a covariance does that variances do not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm._norms.roots import inverse_root, newton_root

close = chex.assert_trees_all_close


def correlated(rows, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(rows, 4)) @ rng.normal(size=(4, 4)) + 3.0, jnp.float32)


def covariance(y):
    return np.cov(np.asarray(y, np.float64), rowvar=False, bias=True)


@pytest.mark.parametrize("size", [2, 4])
def test_features_of_a_group_are_uncorrelated(size):
    y, stats = jn.decorrelated_batch_norm(
        correlated(64), jn.initial_covariance(4, group_size=size), train=True, epsilon=0.0
    )
    cov = covariance(y)
    for start in range(0, 4, size):
        block = slice(start, start + size)
        close(cov[block, block], np.eye(size), atol=1e-4)
    assert (np.abs(cov[:2, 2:]).max() > 1e-2) == (size == 2)
    chex.assert_shape(stats.cov, (4 // size, size, size))


def test_groups_of_one_are_batch_norm():
    x = correlated(16)
    stats = jn.initial_covariance(4, group_size=1)
    y, new = jn.decorrelated_batch_norm(x, stats, train=True)
    expected, batch = jn.batch_norm(x, jn.initial_stats(4), train=True)
    close(y, expected, atol=1e-5)
    close((new.mean.ravel(), new.cov.ravel()), (batch.mean, batch.var), rtol=1e-5)


def test_a_cumulative_state_is_the_covariance_of_all_batches():
    x = correlated(30)
    state, junk = jn.initial_covariance(4, weight=0.0), jnp.full((1, 4), jnp.nan)
    state = state._replace(mean=junk, cov=jnp.full((1, 4, 4), jnp.nan))
    step = jax.jit(lambda x, state: jn.decorrelated_batch_norm(x, state, train=True, decay=None)[1])
    for part in (x[:10], x[10:20], x[20:20], x[20:]):
        state = step(part, state)
    close((state.cov[0], state.mean[0]), (covariance(x), np.mean(x, 0)), rtol=1e-5)
    assert state.weight.tolist() == [30]


def test_newton_comes_to_the_exact_root():
    x = correlated(64)
    stats = jn.initial_covariance(4)
    exact, _ = jn.decorrelated_batch_norm(x, stats, train=True)
    errors = [
        float(jnp.abs(jn.decorrelated_batch_norm(x, stats, train=True, iterations=n)[0] - exact).max())
        for n in (2, 5, 20)
    ]
    assert errors[0] > errors[1] > errors[2] < 1e-2


def test_what_is_masked_reaches_nothing_and_what_is_infected_is_not_remembered():
    x, where = correlated(8), jnp.arange(8)[:, None] < 6
    stats = jn.initial_covariance(4, group_size=2)

    @jax.jit
    def results(x, where):
        def loss(x):
            y, state = jn.decorrelated_batch_norm(x, stats, train=True, where=where)
            return jnp.sum(jnp.where(where, y * jnp.cos(x[:1]), 0)), (y, state)

        return jax.value_and_grad(loss, has_aux=True)(jnp.where(where, x, x))

    (value, (y, state)), grad = results(x, where)
    part, clean = jn.decorrelated_batch_norm(x[:6], stats, train=True)
    close((y[:6], state), (part, clean), atol=2e-6)
    for hidden in (jnp.nan, jnp.inf):
        (v, (y2, s)), g = results(jnp.where(where, x, hidden), where)
        chex.assert_trees_all_equal((v, y2[:6], s, g), (value, y[:6], state, grad))
    sick = x.at[0, 3].set(jnp.nan)
    y, new = jn.decorrelated_batch_norm(sick, stats, train=True)
    assert jnp.isnan(y[:, 2:]).all() and jnp.isfinite(y[:, :2]).all()
    for before, after in zip(stats, new, strict=True):
        chex.assert_trees_all_equal(after[1], before[1])
        chex.assert_tree_all_finite(after[0])


def test_a_state_of_weight_0_is_the_identity_and_then_the_batch():
    x, fresh = correlated(16), jn.initial_covariance(4, weight=0.0)
    junk = fresh._replace(mean=fresh.mean * jnp.nan, cov=fresh.cov * jnp.nan)
    close(jn.decorrelated_batch_norm(x, junk, train=False, epsilon=0.0)[0], x, rtol=1e-6)
    _, stats = jn.decorrelated_batch_norm(x, junk, train=True)
    close(stats.cov[0], covariance(x), rtol=1e-4)


def test_derivatives_of_the_root_where_eigenvalues_meet():
    """The root of a multiple of the identity has all derivatives; its eigenvectors have none."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        u, v = (jnp.asarray(w + w.T)[None] for w in rng.normal(size=(2, 3, 3)))
        cov, least = 4 * jnp.eye(3)[None], jnp.float64(0)

        def loss(root, s):
            return jnp.sum(jnp.sin(root(cov + s * u) * v))

        def derivatives(root):
            first = jax.grad(lambda s: loss(root, s))
            return first(0.0), jax.jvp(first, (0.0,), (1.0,))[1], jax.grad(first)(0.0)

        exact = derivatives(lambda c: inverse_root(c, least))
        close(exact, derivatives(lambda c: newton_root(c, jnp.eye(3)[None], 30)), rtol=1e-8)
