"""Nnx layers that no one compiled: one program a call, of a layer as it is at that call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import nnx as jn

X = jnp.asarray([[1.0, 2.0, 3.0, 4.0], [3.0, 6.0, 9.0, 12.0]])

LAYERS = {
    "BatchNorm": {},
    "BatchRenorm": {},
    "LayerNorm": {},
    "RMSNorm": {},
    "GroupNorm": {"num_groups": 2},
    "InstanceNorm": {},
    "DynamicTanh": {},
    "EvoNormS0": {"num_groups": 2},
}


def made(name, **options):
    return getattr(jn, name)(4, **LAYERS[name] | options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", LAYERS)
def test_a_call_is_one_program(name):
    layer = made(name)

    def call(layer, x):
        return layer(x), nnx.state(layer)

    assert len(jax.make_jaxpr(call)(layer, X).eqns) == 1


def test_an_option_that_changes_is_seen():
    norm = made("BatchNorm")
    norm(X)
    norm.momentum = 0.0
    norm(X)
    np.testing.assert_allclose(norm.mean[...], jnp.mean(X, 0))
    norm.epsilon = -1.0
    with pytest.raises(ValueError, match=r"BatchNorm: epsilon=-1\.0 is not a number >= 0"):
        norm(X)


def test_a_variable_is_read_in_its_own_way():
    class Doubled(nnx.Param):
        def get_value(self, **options):
            return 2.0 * super().get_value(**options)

    norm = made("LayerNorm")
    y = norm(X)
    norm.scale = Doubled(jnp.ones(4))
    np.testing.assert_allclose(norm(X), 2.0 * y, rtol=1e-6)


def test_references_are_updated():
    plain = made("BatchNorm")
    with nnx.var_defaults(ref=True):
        norm = made("BatchNorm")
    for step in norm, jax.jit(lambda x: norm(x)):
        np.testing.assert_allclose(step(X), plain(X), rtol=1e-6)
        np.testing.assert_allclose(norm.mean[...], plain.mean[...], rtol=1e-6)


class Unregistered(jn.BatchNorm, pytree=False):
    pass


class Holding(jn.BatchNorm):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.thing = nnx.data(object())


@pytest.mark.parametrize("kind", [Unregistered, Holding])
def test_a_layer_that_no_program_takes_is_called_as_it_is(kind):
    norm, plain = kind(4, rngs=nnx.Rngs(0)), made("BatchNorm")
    for _ in range(2):
        np.testing.assert_allclose(norm(X), plain(X), rtol=1e-6)
        np.testing.assert_allclose(norm.mean[...], plain.mean[...], rtol=1e-6)
        norm.momentum = plain.momentum = 0.0
