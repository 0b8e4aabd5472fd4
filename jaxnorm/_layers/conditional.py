"""What a layer makes of its condition: the parts of a projection, in the shapes that its function takes."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxnorm._layers import calls as layers


def width(parts: tuple[str, ...], features: int) -> int:
    """Into how many features a condition is projected."""
    return len(parts) * features


def split(projected: Array, parts: tuple[str, ...]) -> dict[str, Array]:
    """The parts of a projection, side by side on its last axis, by name."""
    return dict(zip(parts, jnp.split(projected, len(parts), -1), strict=True))


def one_more(scale: Array) -> Array:
    """1 + scale, in float32 or wider: in bfloat16 small scales would be lost."""
    return 1 + layers.widen(scale)


def beside(y: Array, gate: Array) -> Array:
    """The gate, one value a sample and feature, with y's axes and dtype."""
    return jnp.expand_dims(gate, tuple(range(1, 1 + y.ndim - gate.ndim))).astype(y.dtype)


def resized(segmentation: Array, x: Array) -> Array:
    """The segmentation at every place of x."""
    return jax.image.resize(segmentation, (*x.shape[:-1], segmentation.shape[-1]), "nearest")
