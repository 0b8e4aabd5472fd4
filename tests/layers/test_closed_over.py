"""Statistics that a traced function has closed over: constants, of which no check asks a device the value."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from layers import OURS, draw
from test_family_layers import MOMENTS, REMEMBER, Row, drawn
from thin import slow_but

ROWS = (Row("BatchNorm", lambda: None, {}, {}, MOMENTS), *REMEMBER)
both = pytest.mark.parametrize("api", ["linen", "nnx"])


def evaluation(api: str, row: Row, frozen: bool) -> Any:
    """x -> y by statistics that are ready. A frozen layer is told to train."""
    make, x = getattr(OURS[api], row.name), draw(row.shape)
    if api == "linen":
        layer = make(**row.options)
        init = jax.jit(lambda x: layer.init(jax.random.key(0), x, *row.conditions, use_running_average=True))
        variables = drawn(init(x))
        if frozen:
            variables = OURS[api].freeze(variables, ...)
        variables = jax.block_until_ready(variables)
        return lambda x: layer.apply(variables, x, *row.conditions, use_running_average=not frozen)
    module = make(*row.sizes, rngs=nnx.Rngs(0), **row.options)
    module(x, *row.conditions)
    if frozen:
        OURS[api].freeze(module, ...)
    else:
        module.eval()
    jax.block_until_ready(nnx.state(module))
    return lambda x: module(x, *row.conditions)


def traces(f: Any, x: Any) -> dict[str, Any]:
    """y by every transformation, as thunks."""
    return {
        "jit": lambda: jax.jit(f)(x),
        "scan": lambda: jax.lax.scan(lambda c, x: (c, f(x)), 0, x[None])[1][0],
        "map": lambda: jax.lax.map(f, x[None])[0],
        "cond": lambda: jax.lax.cond(jnp.asarray(True), f, jnp.zeros_like, x),
        "remat": lambda: jax.jit(jax.checkpoint(f))(x),
        "vmap": lambda: jax.vmap(f)(x[None])[0],
        "pmap": lambda: jax.pmap(f)(x[None])[0],
        "grad": lambda: jax.grad(lambda x: f(x).sum(), allow_int=False)(x) * 0 + f(x),
        "make_jaxpr": lambda: jax.core.eval_jaxpr(*_closed(jax.make_jaxpr(f)(x)), x)[0],
        "export": lambda: jax.jit(jax.export.export(jax.jit(f))(x).call)(x),
        "eval_shape": lambda: jnp.zeros(jax.eval_shape(f, x).shape) + f(x),
    }


def _closed(jaxpr: Any) -> tuple[Any, Any]:
    return jaxpr.jaxpr, jaxpr.consts


@both
@pytest.mark.parametrize("row", slow_but(ROWS, "BatchNorm", "InputNorm", "IterNorm"), ids=str)
def test_evaluation_by_constants_of_a_trace(api, row):
    f, x = evaluation(api, row, frozen=False), draw(row.shape, seed=1)
    y = f(x)
    for name, traced in traces(f, x).items():
        chex.assert_trees_all_close(traced(), y, atol=2e-5, custom_message=name)


@both
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_frozen_layer_in_training_is_by_constants_too(api, row):
    f, x = evaluation(api, row, frozen=True), draw(row.shape, seed=1)
    y = f(x)
    for name in ("jit", "scan", "grad", "eval_shape"):
        chex.assert_trees_all_close(traces(f, x)[name](), y, atol=2e-5, custom_message=name)


@pytest.mark.parametrize("method", ["normalize", "denormalize"])
@both
def test_pop_art_by_constants(api, method):
    h = draw((6, 5))
    if api == "linen":
        head = OURS[api].PopArt(2)
        variables = jax.block_until_ready(head.init(jax.random.key(0), h))

        def f(x):
            return head.apply(variables, x, method=method)
    else:
        f = getattr(OURS[api].PopArt(5, 2, rngs=nnx.Rngs(0)), method)
    x = draw((6, 2))
    for name, traced in traces(f, x).items():
        chex.assert_trees_all_close(traced(), f(x), atol=1e-5, custom_message=name)


@pytest.mark.flexible  # of Flax's Dense
@both
def test_spectral_norm_by_constants(api):
    x = draw((6, 5))
    if api == "linen":
        layer = OURS[api].SpectralNorm(nn.Dense(5))
        variables = jax.block_until_ready(layer.init(jax.random.key(0), x, update_stats=False))

        def f(x):
            return layer.apply(variables, x, update_stats=False)
    else:
        layer = OURS[api].SpectralNorm(nnx.Linear(5, 5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        layer.eval()

        def f(x):
            return layer(x)

    for name, traced in traces(f, x).items():
        if api == "linen" or name not in ("vmap", "pmap"):
            chex.assert_trees_all_close(traced(), f(x), atol=1e-5, custom_message=name)


@both
def test_an_evaluation_asks_no_array_for_its_value(api, monkeypatch):
    f, x = evaluation(api, ROWS[0], frozen=False), draw(ROWS[0].shape)
    f(x)

    def asked(array):
        raise AssertionError("a value came to the host")

    with monkeypatch.context() as patch:
        patch.setattr(type(x), "_value", property(asked))
        with pytest.raises(AssertionError):
            bool(x[0, 0, 0] > 0)
        y = f(x)
    assert np.all(np.isfinite(y))


@both
def test_an_evaluation_before_training_is_the_identity_and_says_nothing(api, recwarn):
    if api == "linen":
        layer = OURS[api].BatchNorm(use_running_average=True)
        y, _ = layer.init_with_output(jax.random.key(0), draw((8, 4)))
    else:
        y = OURS[api].BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0))(draw((8, 4)))
    chex.assert_trees_all_close(y, draw((8, 4)), atol=1e-4)
    assert not recwarn.list
