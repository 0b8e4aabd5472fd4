"""`bake`: plain layers that do what those in weight norm and spectral norm did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze

from jaxnorm import linen as jnl
from jaxnorm import nnx as jnx

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.flexible


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))


class Linen(nn.Module):
    """With wrappers around layers that are made here, or without them."""

    wrapped: bool

    @nn.compact
    def __call__(self, x):
        def by_length(layer):
            return jnl.WeightNorm(layer, name=f"{layer.name}_norm") if self.wrapped else layer

        x = nn.relu(by_length(nn.Conv(4, (3,), name="conv"))(x))
        x = jnl.BatchNorm(use_running_average=True, name="norm")(x)
        dense = nn.Dense(3, name="dense")
        if self.wrapped:
            return jnl.SpectralNorm(dense, name="dense_norm")(x, update_stats=False)
        return dense(x)


def test_linen():
    x = draw(2, 7, 3)
    variables = Linen(True).init(jax.random.key(0), x)
    variables = jax.tree.map(lambda v: v + 0.1 * jnp.abs(draw(*v.shape)), variables)
    expected = Linen(True).apply(variables, x)
    for given in (variables, freeze(variables), jnl.freeze(variables, ...)):
        baked = jnl.bake(given)
        assert type(baked) is type(given)
        assert baked["params"].keys() == {"conv", "norm", "dense"} and baked["batch_stats"].keys() == {"norm"}
        near(Linen(False).apply(baked, x), expected)
    assert "frozen" in baked["batch_stats"]["norm"]


@pytest.mark.parametrize("wrapper", [jnl.WeightNorm, jnl.SpectralNorm])
def test_linen_a_layer_that_was_made_outside(wrapper):
    """Its variables are inside those of the wrapper, whose place they take."""
    call = {"update_stats": False} if wrapper is jnl.SpectralNorm else {}
    x, layer = draw(5, 4), wrapper(nn.Dense(3))
    variables = layer.init(jax.random.key(0), x, **call)
    near(nn.Dense(3).apply(jnl.bake(variables), x), layer.apply(variables, x, **call))


def test_linen_options_are_those_of_the_wrapper():
    x, layer = draw(5, 4), jnl.WeightNorm(nn.Dense(3), feature_axes=None, epsilon=0.5)
    variables = layer.init(jax.random.key(0), x)
    baked = jnl.bake(variables, feature_axes=None, epsilon=0.5)
    near(nn.Dense(3).apply(baked, x), layer.apply(variables, x))


class Net(nnx.Module):
    def __init__(self, weight_norm, spectral_norm):
        rngs = nnx.Rngs(0)
        once = weight_norm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
        self.layers = nnx.List([once, nnx.Linear(4, 4, rngs=rngs), once])
        self.inner = nnx.Dict(last=spectral_norm(nnx.Linear(4, 3, rngs=rngs), n_steps=2, rngs=rngs))

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.inner["last"](x)


@pytest.mark.parametrize("theirs", [True, False])
def test_nnx(theirs):
    module = nnx if theirs else jnx
    model, x = Net(module.WeightNorm, module.SpectralNorm), draw(5, 4)
    model.eval()
    for v in () if theirs else model.layers[0].scales.values():
        v.set_value(v[...] + 1)
    expected = nnx.clone(model)(x)
    assert jnx.bake(model) is model
    assert type(model.layers[0]) is type(model.inner["last"]) is nnx.Linear
    assert model.layers[0] is model.layers[2]
    near(model(x), expected)


def test_nnx_a_wrapper_of_a_wrapper():
    rngs, x = nnx.Rngs(0), draw(5, 4)
    layer = jnx.SpectralNorm(nnx.Linear(4, 3, rngs=rngs), rngs=rngs)
    layer.eval()
    layer = jnx.WeightNorm(layer, rngs=rngs)
    expected = layer(x)
    plain = jnx.bake(layer)
    assert type(plain) is nnx.Linear
    near(plain(x), expected)


def test_a_dtype_of_the_wrapper():
    rngs, x = nnx.Rngs(0), draw(5, 4)
    layer = jnx.WeightNorm(nnx.Linear(4, 3, rngs=rngs), dtype=jnp.bfloat16, rngs=rngs)
    expected = layer(x)
    plain = jnx.bake(layer)
    assert plain.kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(plain(x), expected)


def test_errors():
    nothing = "bake: the model has no WeightNorm and no SpectralNorm; "
    with pytest.raises(ValueError, match="bake") as raised:
        jnl.bake({"params": {"dense": {"kernel": draw(3, 4)}}})
    assert str(raised.value) == f"{nothing}pass variables with scales or vectors of one."
    with pytest.raises(ValueError, match="bake") as raised:
        jnx.bake(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    assert str(raised.value) == f"{nothing}pass a model with one."

    rngs = nnx.Rngs(0)
    linear = nnx.Linear(4, 3, rngs=rngs)
    model = nnx.Dict(wrapped=jnx.WeightNorm(linear, rngs=rngs), plain=linear)
    kernel = linear.kernel[...]
    with pytest.raises(ValueError, match="bake") as raised:
        jnx.bake(model)
    assert str(raised.value) == (
        "bake: a layer in a WeightNorm or SpectralNorm is elsewhere, too: plain, wrapped/layer_instance; the "
        "other uses would change: bake a model with copies."
    )
    assert model["wrapped"].layer_instance is linear and linear.kernel[...] is kernel
