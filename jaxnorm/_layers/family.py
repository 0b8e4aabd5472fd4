"""Arithmetic of the layers without a state, which linen's and nnx's files leave out."""

from collections.abc import Mapping
from typing import Any

from jax import Array

from jaxnorm._base import checks as check
from jaxnorm._base.messages import calling
from jaxnorm._core.moments import Moments
from jaxnorm._core.standardize import unstandardize
from jaxnorm._layers import calls as layers


def part_of_features(layer: Any, x: Array) -> int:
    """How many features PartialRMSNorm's `fraction` of them is."""
    if not 0 < layer.fraction <= 1:
        raise ValueError(
            f"PartialRMSNorm: fraction={layer.fraction} is outside (0, 1]; it is the part of the features "
            "whose mean square is taken: choose, for example, 0.0625."
        )
    (size,) = layers.feature_shape(layer, x)
    return max(1, round(layer.fraction * size))


def restore(layer: Any, y: Array, m: Moments, stored: Mapping[str, Array]) -> Array:
    """y in the units of x, from which RevIN made it and the moments m.

    Args:
      layer: the RevIN.
      y: of x's shape, but for the axes of time.
      m: of x.
      stored: its scale and bias, by name.
    """
    with calling(type(layer).__name__):
        axes = check.axes(layers.feature_axes(layer), y)
    shape = [n if a in axes else 1 for a, n in enumerate(y.shape)]
    affine = {name: value.reshape(shape) for name, value in stored.items()}
    return unstandardize(y, m, epsilon=layer.epsilon, **affine)
