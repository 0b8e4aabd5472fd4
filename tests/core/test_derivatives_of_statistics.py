"""Statistics are differentiable on their way out, and on their way in: in float64, every order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import pooled
from variants import assert_close

import jaxnorm as jn

pytestmark = [
    pytest.mark.usefixtures("form"),
    pytest.mark.parametrize("form", ["cpu form"], indirect=True, scope="module"),
]

EXACT = 1e-10


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("where", [None, "mask", "weights"])
@pytest.mark.parametrize("about", [None, 0])
def test_gradients_through_the_statistics(where, about):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1.5, 2, (7, 3)))
    w = jnp.asarray(rng.uniform(0.25, 2, (7, 3))) if where == "weights" else jnp.ones((7, 3))
    if where == "mask":
        w = jnp.asarray(rng.integers(0, 2, (7, 3)), jnp.float64)

    def loss(mean, var, weight):
        return jnp.sum(jnp.sin(mean) + jnp.cos(mean) * jnp.log(var) + jnp.sqrt(weight))

    def ours(x, w):
        given = {None: None, "mask": w > 0, "weights": w}[where]
        return loss(*jn.moments(x, 0, where=given, about=about))

    def formula(x, w):
        m, _ = pooled(jnp, x, (0,), w, centred=about is None)
        return loss(*m)

    which = (0, 1) if where == "weights" else (0,)
    u = (jnp.cos(x), jnp.sin(w))

    def second(f):
        return jax.jvp(
            lambda *a: jax.grad(f, argnums=which)(*a),
            (x, w),
            u if which == (0, 1) else (u[0], 0 * w),
        )

    assert_close(second(ours), second(formula), EXACT)


def test_gradients_through_merge_and_combine():
    x = jnp.asarray(np.random.default_rng(0).normal(1.5, 2, (3, 4, 2)))

    empty = jn.initial_stats((2,), weight=0.0, dtype=jnp.float64)

    def whole(x):
        return jn.moments(x, (0, 1))

    def gradient(statistics):
        def loss(x):
            m = statistics(x)
            return jnp.sum(jnp.sin(m.mean) * jnp.log(m.var))

        return jax.jit(jax.grad(loss))(x)

    expected = gradient(whole)
    assert_close(gradient(lambda x: jn.combine(jn.moments(x, 1))), expected, EXACT)
    assert_close(gradient(lambda x: jn.merge(whole(x[:1]), whole(x[1:]))), expected, EXACT)
    assert_close(gradient(lambda x: jn.merge(empty, whole(x))), expected, EXACT)


def test_gradients_through_unstandardize():
    rng = np.random.default_rng(0)
    y, mean, var, scale, bias = (jnp.asarray(rng.uniform(0.5, 2, s)) for s in ((5, 3), 3, 3, 3, 3))

    def ours(y, mean, var, scale, bias):
        m = jn.Moments(mean, var, jnp.ones(3))
        return jnp.sum(jnp.sin(jn.unstandardize(y, m, scale=scale, bias=bias)))

    def formula(y, mean, var, scale, bias):
        mean, var, scale, bias = (v[None] for v in (mean, var, scale, bias))
        return jnp.sum(jnp.sin((y - bias) / scale * jnp.sqrt(var + 1e-5) + mean))

    args = (y, mean, var, scale, bias)
    every = tuple(range(5))
    assert_close(jax.grad(ours, every)(*args), jax.grad(formula, every)(*args), EXACT)


def test_standardize_by_its_own_moments_differentiates_as_the_norm():
    x = jnp.asarray(np.random.default_rng(0).normal(1.5, 2, (5, 4)))

    def assembled(x):
        return jnp.sum(jnp.sin(jn.standardize(x, jn.moments(x, -1, keepdims=True), epsilon=1e-6)))

    def norm(x):
        return jnp.sum(jnp.sin(jn.layer_norm(x)))

    def derivatives(f):
        return jax.jit(lambda x: jax.jvp(jax.grad(f), (x,), (jnp.cos(x),)))(x)

    assert_close(derivatives(assembled), derivatives(norm), EXACT)
