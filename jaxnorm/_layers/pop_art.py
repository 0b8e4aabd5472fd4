"""PopArt in any framework: a last layer and the statistics of its targets.

A `layer` has PopArt's fields; `values` are its kernel, bias, mean, var and weight, by name.
"""

from typing import Any

from jax import Array

from jaxnorm._base.messages import calling
from jaxnorm._core.moments import Moments
from jaxnorm._layers import calls as layers
from jaxnorm._layers import state as state
from jaxnorm._norms import inputs as _inputs
from jaxnorm._norms.batch import sound

# where its values are stored
PLACES = dict.fromkeys(("kernel", "bias"), "params") | dict.fromkeys(Moments._fields, "batch_stats")


def predicted(layer: Any, h: Array, kernel: Array, bias: Array) -> Array:
    """h @ kernel + bias, in Flax's dtype."""
    dtype = layers.result_dtype(layer, h, kernel, bias)
    y = h.astype(dtype) @ kernel.astype(dtype)
    return y + bias.astype(dtype).reshape((1,) * (y.ndim - 1) + bias.shape)


def updated(
    layer: Any, values: dict[str, Array], targets: Array, mask: Any, weights: Any
) -> dict[str, Array]:
    """The values after these targets."""
    with calling("PopArt", layers.words(layer, mask)):
        kernel, bias, stats = _inputs.pop_art(
            values["kernel"],
            values["bias"],
            moments(layer, values),
            targets,
            decay=layer.momentum,
            epsilon=layer.epsilon,
            where=layers.where(mask, weights),
            **layers.devices(layer),
        )
    return {"kernel": kernel, "bias": bias, **stats._asdict()}


def moments(layer: Any, values: dict[str, Array]) -> Moments:
    """The stored statistics, as the layers of batch norm have them."""
    return sound(Moments(*state.widened(layer, values, True)))
