"""What every nnx layer reads: its parameters, the dtype of y, and the devices."""

import functools
from typing import Any

import jax
from flax.nnx.nn.dtypes import promote_dtype
from jax import Array

from jaxnorm._layers import calls as layers


def own_parameters(
    layer: Any, x: Array, axes: layers.Axes, *stats: Array, **overrides: Array | None
) -> dict[str, Any]:
    """The layer's parameters, the dtype that they give y, and the devices that it meets."""
    own = layers.given(**overrides)
    layers.check_width(layer, x, axes)
    shape = layers.feature_shape(layer, x, axes)
    for name in ("scale", "bias"):
        stored = getattr(layer, name, None)
        if stored is not None and name not in own:
            value = stored[...]
            own[name] = value if value.shape == shape else layers.per_feature(layer, value, x, axes)
    first, *rest = promoted = x, *stats, *own.values()
    if layer.promote_dtype is not promote_dtype:  # Flax's own is what `result_dtype` does
        promote = functools.partial(layer.promote_dtype, dtype=layer.dtype)
        with layers.promotion():
            # dtypes are all that is wanted: x in a wider one would be a copy, in a narrower one a loss
            first, *rest = jax.eval_shape(promote, promoted)
    return {
        **own,
        "dtype": layers.result_dtype(layer, first, *rest),
        **layers.devices(layer),
    }
