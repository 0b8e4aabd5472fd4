"""The parameters of a linen layer, and the bases of the layers without a state."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.errors import ScopeParamShapeError
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnorm._base.messages import Named
from jaxnorm._layers import calls as layers
from jaxnorm._layers.calls import Axes, Initializer, Shape


def parameters(layer: Any, x: Array) -> dict[str, Array]:
    """The layer's parameters, by name, which init creates."""
    features = layers.feature_shape(layer, x)
    found = {}
    for name, shape in layer.shapes(features).items():
        try:
            found[name] = _parameter(layer, name, layers.initializer(layer, name, features), shape)
        except ScopeParamShapeError as error:
            stored = meta.unbox(layer.get_variable("params", name))
            error.add_note(layers.misfit(layer, x, math.prod(stored.shape[-len(features) :])))
            raise
    return found


def _parameter(layer: Any, name: str, initializer: Initializer, shape: Shape) -> Array:
    """`layer.param`, which traces the initializer at every call for its shape, where that is not known."""
    if layer.has_variable("params", name):
        value = meta.unbox(layer.get_variable("params", name))
        if value.shape == shape:
            return value
    return layer.param(name, initializer, shape, layer.param_dtype)


def normalized(layer: Any, x: Array, **call: Any) -> Any:
    """The call of a layer without a state; `call` is that of `calls.normalize`."""
    return layers.normalize(layer, x, parameters(layer, x), initializing=layer.is_initializing(), **call)


class Layer(Named, nn.Module):
    """A layer with the parameters that `shapes` names, normalized by `normalize`."""

    def shapes(self, features: Shape) -> dict[str, Shape]:
        """The shapes of the parameters, by name, for features of this shape."""
        return layers.affine(self, features)


class Norm(Layer):
    """A layer without a state, which adds its fields, `normalize` and a call."""

    feature_axes: Axes = -1
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32


class Affine(Norm):
    """One that may have a scale and a bias."""

    use_scale: bool = True
    use_bias: bool = True
    scale_init: Initializer = initializers.ones
    bias_init: Initializer = initializers.zeros


class Measured(Norm):
    """One that takes moments: of what is not masked, and on several devices."""

    epsilon: float = 1e-6
    axis_name: Any = None
    axis_index_groups: Any = None
