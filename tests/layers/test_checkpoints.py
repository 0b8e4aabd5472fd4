"""Flax's checkpoints in our models, and ours in Flax's: bytes and orbax, linen and nnx."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal
from flax import linen as nn
from flax import nnx, serialization
from layers import FLAX, OURS, draw

pytestmark = pytest.mark.flexible  # of Flax's layers

X = draw((6, 3, 8))
SIDES = {"flax": FLAX, "ours": OURS}
both_ways = pytest.mark.parametrize(("source", "target"), [("flax", "ours"), ("ours", "flax")])


class Linen(nn.Module):
    """All of Flax's norms, of `modules`."""

    modules: dict

    @nn.compact
    def __call__(self, x, train):
        jn = self.modules["linen"]
        x = jn.BatchNorm(use_running_average=not train)(x)
        x = jn.GroupNorm(num_groups=2)(jn.LayerNorm()(x))
        x = jn.InstanceNorm()(jn.RMSNorm()(x))
        x = jn.WeightNorm(nn.Dense(4))(x)
        return jn.SpectralNorm(nn.Dense(2))(x, update_stats=train)


class Nnx(nnx.Module):
    def __init__(self, modules, seed):
        jn, rngs = modules["nnx"], nnx.Rngs(seed)
        self.layers = nnx.List(
            [
                jn.BatchNorm(8, rngs=rngs),
                jn.LayerNorm(8, rngs=rngs),
                jn.GroupNorm(8, num_groups=2, rngs=rngs),
                jn.RMSNorm(8, rngs=rngs),
                jn.InstanceNorm(8, rngs=rngs),
                jn.WeightNorm(nnx.Linear(8, 4, rngs=rngs), rngs=rngs),
                jn.SpectralNorm(nnx.Linear(4, 2, rngs=rngs), rngs=rngs),
            ]
        )

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def through_bytes(tree, template, folder):
    return serialization.from_bytes(template, serialization.to_bytes(tree))


def through_orbax(tree, template, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "checkpoint", jax.eval_shape(lambda: template))


@functools.cache
def linen_model(side):
    """Its variables after a step, and its evaluation."""
    net = Linen(SIDES[side])
    variables = jax.jit(lambda key: net.init(key, X, False))(jax.random.key(0))
    _, updated = jax.jit(lambda v: net.apply(v, X, True, mutable="batch_stats"))(variables)
    return {**variables, **updated}, jax.jit(lambda v: net.apply(v, X, False))


@both_ways
@pytest.mark.parametrize("through", [through_bytes, through_orbax])
def test_linen(source, target, through, tmp_path):
    trained, evaluate = linen_model(source)
    own, load_and_evaluate = linen_model(target)
    template = jax.tree.map(jnp.zeros_like, own)
    loaded = through(trained, template, tmp_path)
    assert_trees_all_equal(loaded, trained)
    assert jax.tree.map(jax.typeof, jax.tree.map(jnp.asarray, loaded)) == jax.tree.map(jax.typeof, template)
    assert_trees_all_close(load_and_evaluate(loaded), evaluate(trained), atol=5e-6)


@both_ways
@pytest.mark.parametrize("through", [through_bytes, through_orbax])
def test_nnx(source, target, through, tmp_path):
    one, other = (Nnx(SIDES[side], seed) for seed, side in enumerate((source, target)))
    one(X)
    for model in (one, other):
        model.eval()
    trained, template = (by_name(nnx.state(model)) for model in (one, other))
    loaded = through(trained, template, tmp_path)
    assert_trees_all_equal(loaded, trained)
    for path, variable in nnx.to_flat_state(nnx.state(other)):
        value = loaded["/".join(map(str, path))]
        if isinstance(variable, nnx.Variable):
            variable.set_value(jnp.asarray(value))
        else:  # Flax's WeightNorm keeps bare arrays
            other.layers[path[1]].scales[path[-1]] = jnp.asarray(value)
    assert_trees_all_equal(by_name(nnx.state(other)), trained)
    assert_trees_all_close(other(X), one(X), atol=5e-6)


def by_name(state):
    """A state as a flat dict: orbax takes no path of integers and tuples."""
    return {"/".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(state)}
