"""Layers, of arrays that are sharded over a mesh whose axes are Explicit."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from layers import OURS, PLAIN, layer
from sharded import kinds, mesh, quickly
from test_family_layers import ROWS as FAMILY
from test_family_layers import drawn, side
from variants import assert_close

# A network of a layer's own slices what it projects, which JAX does of no axis that is sharded.
PROJECTED = ("FiLM", "AdaLayerNorm", "AdaLayerNormZero", "SPADE")


def made(api, which):
    """A layer as a call `(variables, x, *conditions) -> (y, variables)`, and such arguments."""
    if which in FAMILY:
        if which.name == "GhostBatchNorm":  # a ghost is on one device
            which = which._replace(options={"num_ghosts": 2})
        one, x, conditions = side(api, which), jnp.ones(which.shape), which.conditions
    else:
        one, x, conditions = layer(OURS, api, which), jnp.ones((4, *which.shape[1:])), ()
    return one.call, (drawn(one.init(x)), x, *conditions)


def place(v, features, here):
    """The last axis sharded, where it can be."""
    last = features if v.ndim and v.shape[-1] % 2 == 0 else None
    return jax.device_put(v, NamedSharding(here, P(*[None] * (v.ndim - 1), last) if v.ndim else P()))


@pytest.mark.parametrize("api", OURS)
@pytest.mark.parametrize("which", [*PLAIN, *FAMILY], ids=lambda w: w.name)
def test_layers(api, which):
    call, (variables, x, *conditions) = made(api, which)
    here = mesh((2, 2))

    def check(variables, x, *conditions):
        def loss(params):
            y, new = call(variables | {"params": params}, x, *conditions)
            assert kinds(new) == kinds(variables)
            return sum(jnp.sum(v) for v in jax.tree.leaves(y) if v.shape == x.shape)

        assert kinds(jax.grad(loss)(variables["params"])) == kinds(variables["params"])

    for spec, features in ((P(None, None, "model"), None), (P("data"), "model"), (P("data"), "data")):
        with jax.set_mesh(here):
            own = None if which.name in PROJECTED else features
            placed = jax.tree.map(partial(place, features=own, here=here), variables)
            jax.eval_shape(check, placed, jax.device_put(x, NamedSharding(here, spec)), *conditions)


@pytest.mark.parametrize("api", OURS)
@pytest.mark.parametrize("name", ["BatchNorm", "GroupNorm", "InputNorm"])
def test_values_of_layers(api, name):
    (which,) = (w for w in (*PLAIN, *FAMILY) if w.name == name)
    call, (variables, x, *conditions) = made(api, which)
    x = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    expected = jax.device_get(quickly(call)(variables, x, *conditions))
    here = mesh((2, 2))
    with jax.set_mesh(here):
        placed = jax.tree.map(partial(place, features="data", here=here), variables)
        x = jax.device_put(x, NamedSharding(here, P(None, None, "model")))
        assert_close(jax.device_get(quickly(call)(placed, x, *conditions)), expected, 5e-6)
