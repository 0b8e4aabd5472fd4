"""What every linen layer reads: its parameters, the dtype of y, and the devices."""

from typing import Any

from flax.core import meta
from flax.errors import ScopeParamShapeError
from jax import Array

from jaxnorm._layers import calls as layers


def own_parameters(layer: Any, x: Array, axes: layers.Axes, **overrides: Array | None) -> dict[str, Any]:
    """The layer's parameters, the dtype that they give y, and, but at init, the devices it meets."""
    shape = layers.feature_shape(layer, x, axes)
    # in Flax's order, so that random initializers draw what they draw there
    names = [name for name in ("scale", "bias") if getattr(layer, f"use_{name}", False)]
    try:
        parameters = {name: parameter(layer, name, layers.initializer(layer, name), shape) for name in names}
    except ScopeParamShapeError as error:
        stored = layer.get_variable("params", names[0])
        error.add_note(layers.misfit(layer, x, axes, stored.size))
        raise
    parameters = {**parameters, **layers.given(**overrides)}
    return {
        **parameters,
        "dtype": layers.result_dtype(layer, x, *parameters.values()),
        **({} if layer.is_initializing() else layers.devices(layer)),
    }


def parameter(layer: Any, name: str, initializer: Any, shape: tuple[int, ...]) -> Array:
    """`layer.param`, which traces the initializer at every call for its shape, where that is not known."""
    if layer.has_variable("params", name):
        value = meta.unbox(layer.get_variable("params", name))
        if value.shape == shape:
            return value
    return layer.param(name, initializer, shape, layer.param_dtype)
