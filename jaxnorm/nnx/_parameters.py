"""What every nnx layer reads: its parameters, the dtype of y, and the devices."""

import functools
from typing import Any

import jax
from flax.nnx.nn.dtypes import promote_dtype
from jax import Array

from jaxnorm import _layers as layers


def own_parameters(
    layer: Any, x: Array, axes: layers.Axes, *stats: Array, **overrides: Array | None
) -> dict[str, Any]:
    """The layer's parameters, the dtype that they give y, and the devices that it meets."""
    names = [name for name in ("scale", "bias") if hasattr(layer, name)]
    stored = {name: getattr(layer, name) for name in names}
    parameters = {name: None if v is None else v[...] for name, v in stored.items()}
    given = layers.given(**overrides)
    parameters = {**parameters, **given}
    first, *rest = promoted = x, *stats, *parameters.values()
    if layer.promote_dtype is not promote_dtype:  # Flax's own is what `result_dtype` does
        promote = functools.partial(layer.promote_dtype, dtype=layer.dtype)
        with layers.promotion():
            # dtypes are all that is wanted: x in a wider one would be a copy, in a narrower one a loss
            first, *rest = jax.eval_shape(promote, promoted)
    own = {
        name: value if name in given else layers.per_feature(layer, value, x, axes)
        for name, value in parameters.items()
        if value is not None
    }
    return {
        **own,
        "dtype": layers.result_dtype(layer, first, *rest),
        **layers.devices(layer),
    }
