"""The arguments that norms have in common: handed on in one piece, and checked in one place."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._core.moments import Moments
from jaxnorm._core.normalize import given


def shared(
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    epsilon: float | Array,
    where: ArrayLike | None,
    axis_name: Any,
    dtype: DTypeLike | None,
) -> dict[str, Any]:
    """The six options that almost every norm has, as keywords for another function, which checks them."""
    return {
        "scale": scale,
        "bias": bias,
        "epsilon": epsilon,
        "where": where,
        "axis_name": axis_name,
        "dtype": dtype,
    }


def layer_axes(
    x: Array, axis: int | Iterable[int], feature_axis: int | Iterable[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes that layer and RMS norm reduce, and those of scale and bias: the same by default."""
    axes = check.axes(axis, x)
    return axes, axes if feature_axis is None else check.axes(feature_axis, x, "feature_axis")


class Arguments(NamedTuple):
    """The arguments of a norm, checked. Every array has as many axes as x."""

    x: Array
    axes: tuple[int, ...]  # that the moments are taken over: all but the features and, for some, the batch
    features: tuple[int, ...]  # the axes that scale, bias and a state belong to
    scale: Array | None
    bias: Array | None
    epsilon: Array
    where: Array | None
    axis_name: Any
    dtype: Any  # of y

    @property
    def options(self) -> dict[str, Any]:
        """The six that are shared, for another function."""
        return shared(self.scale, self.bias, self.epsilon, self.where, self.axis_name, self.dtype)

    def parameter(self, name: str, value: ArrayLike | None) -> Array | None:
        """A further array of that name, of the feature axes' sizes or of any shape that broadcasts to x."""
        return check.affine(name, value, self.x, self.features)

    def by(self, m: Moments) -> Array:
        """y by these moments."""
        return given(self.x, m, self.scale, self.bias, self.epsilon, dtype=self.dtype, where=self.where)


def arguments(
    x: ArrayLike,
    feature_axis: int | Iterable[int],
    *,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    epsilon: float | Array,
    where: ArrayLike | None,
    axis_name: Any,
    dtype: DTypeLike | None,
    per_sample: bool = False,
) -> Arguments:
    """The arguments of a norm, checked.

    `per_sample`: axis 0 of x is the batch, which is neither reduced nor a feature axis.
    """
    x = check.numbers("x", x)
    features = check.axes(feature_axis, x, "feature_axis")
    if per_sample:
        check.not_batch(feature_axis, features, x)
    return Arguments(
        x,
        tuple(a for a in range(int(per_sample), x.ndim) if a not in features),
        features,
        check.affine("scale", scale, x, features),
        check.affine("bias", bias, x, features),
        check.epsilon(epsilon),
        check.weights(where, x),
        axis_name,
        jnp.dtype(dtype or x.dtype),
    )
