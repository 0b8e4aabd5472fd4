"""One trace serves every backend, and costs nothing for those that it is not lowered for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm import _alone, _backends
from jaxnorm._arithmetic import HEADROOM, divide
from jaxnorm._normalize import Spec
from jaxnorm._over import Over

LARGE = (64, 2048)  # more elements than are few


def draw(shape=(8, 6)):
    return jnp.asarray(np.random.default_rng(0).normal(3, 2, shape), jnp.float32)


def step(x):
    """y, dx and the new state of batch norm, and y and dx of rows."""

    def batch(x):
        return jn.batch_norm(x, jn.initial_stats(x.shape[-1]), train=True)

    y, pullback, stats = jax.vjp(batch, x, has_aux=True)
    rows, back = jax.vjp(jn.layer_norm, x)
    return y, pullback(jnp.sin(y)), stats, rows, back(jnp.sin(rows))


def test_one_export_serves_cpu_gpu_and_tpu():
    x = draw(LARGE)
    exported = jax.export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(x)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    chex.assert_trees_all_close(exported.call(x), step(x), rtol=1e-6, atol=1e-6)


def test_no_other_backend_s_form_is_traced(monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("the CPU is not what is lowered for here")

    def refused(*_):
        raise AssertionError("traced for a backend that the program does not run on")

    jax.clear_caches()
    for name in ("accurate", "on_tpu"):
        monkeypatch.setattr(_backends, name, refused)
    jax.jit(step).lower(draw(LARGE))
    jax.clear_caches()


def test_without_jit():
    x = draw()
    expected = step(x)
    with jax.disable_jit():
        chex.assert_trees_all_close(step(x), expected, rtol=1e-5, atol=1e-6)


def test_a_form_behind_one_more_axis_is_the_form_of_each():
    x, where = draw((3, 8, 6)), jnp.asarray(np.random.default_rng(1).random((8, 6)) < 0.7)

    def taken(x, where):
        return jn.moments(x, 0, where=where)

    for axes in ((0, None), (None, 0)):
        args = (x, where) if axes[1] is None else (x[0], jnp.stack([where, ~where, where]))
        each = [taken(*(v if a is None else v[i] for v, a in zip(args, axes, strict=True))) for i in range(3)]
        expected = jax.tree.map(lambda *v: jnp.stack(v), *each)
        chex.assert_trees_all_close(jax.vmap(taken, axes)(*args), expected, rtol=1e-6)


def test_a_pivot_is_one_number_in_every_kernel():
    """A GPU sums 24 numbers again where they are used, in another order: means were 2e-7 off."""
    text = (
        jax.jit(lambda x: jn.moments(x, -1)).trace(draw(LARGE)).lower(lowering_platforms=("cuda",)).as_text()
    )
    before, after = text.split("stablehlo.optimization_barrier")
    assert "stablehlo.reduce(" in before and "stablehlo.reduce(" in after


def test_an_average_that_is_finite_by_a_sum_that_is_not():
    """Op by op: newer compilers than the one that divided by the product of both do not mend it."""
    total, weight = jnp.float32(4096 * (3e38 * HEADROOM)), jnp.float32(4096)
    np.testing.assert_allclose(divide(total, weight, HEADROOM), 3e38, rtol=1e-6)


def test_rows_where_jax_differentiates_their_forms():
    """And not the op, whose rule it has otherwise."""
    spec = Spec(Over((1,)), jnp.dtype(jnp.float32))
    x, scale = draw(), draw((1, 6))
    at, along = (x, scale), (jnp.cos(x), jnp.sin(scale))

    def forms(x, scale):
        return _alone._of_rows.__wrapped__(spec, x, scale, None, jnp.float32(1e-6))

    expected = jax.jvp(lambda x, scale: jn.layer_norm(x, scale=scale), at, along)
    chex.assert_trees_all_close(jax.jvp(forms, at, along), expected, rtol=1e-6, atol=1e-6)
