"""The arguments that norms have in common: handed on in one piece, and checked in one place."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.collectives import with_groups
from jaxnorm._core.moments import Moments
from jaxnorm._core.normalize import normalize, normalize_by


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


def split(v: Array | None, axis: int, parts: int) -> Any:
    """`v` with an axis split in two: `parts`, and the elements of a part. Size 1 becomes 1 and 1."""
    if v is None:
        return None
    sizes = (1, 1) if v.shape[axis] == 1 else (parts, v.shape[axis] // parts)
    return v.reshape(v.shape[:axis] + sizes + v.shape[axis + 1 :])


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

    def parameter(self, name: str, value: ArrayLike | None) -> Array | None:
        """A further array of that name, of the feature axes' sizes or of any shape that broadcasts to x."""
        return check.affine(name, value, self.x, self.features)

    def normalize(self, **options: Any) -> tuple[Array, Moments]:
        """y by x's own moments, and these; `options` are those of `_core.normalize`."""
        shared = self.scale, self.bias, self.epsilon, self.where, self.axis_name, self.dtype
        return normalize(self.x, self.axes, *shared, **options)

    def split(self, axis: int, parts: int, axes: tuple[int, ...]) -> "Arguments":
        """The same of x with an axis split as by `split`, with moments over `axes` of that."""
        x, scale, bias, where = (split(v, axis, parts) for v in (self.x, self.scale, self.bias, self.where))
        return self._replace(x=x, axes=axes, scale=scale, bias=bias, where=where)

    def normalize_by(self, m: Moments) -> Array:
        """y by these moments."""
        return normalize_by(
            self.x, m, self.scale, self.bias, self.epsilon, dtype=self.dtype, where=self.where
        )


def arguments(
    x: ArrayLike,
    feature_axis: int | Iterable[int] | None,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    epsilon: float | Array,
    where: ArrayLike | None,
    axis_name: Any,
    dtype: DTypeLike | None,
    *,
    axis: int | Iterable[int] | None = None,
    per_sample: bool = False,
    axis_index_groups: Any = None,
) -> Arguments:
    """The arguments of a norm, checked.

    Args:
      x, feature_axis, scale, bias, epsilon, where, axis_name, dtype: as the user gave them.
      axis: the axes that the moments are taken over, which are then the features, too, if `feature_axis` is
        None. By default they are all axes but the features.
      per_sample: axis 0 of x is the batch, which is neither reduced nor a feature axis.
      axis_index_groups: Flax's groups of devices.
    """
    x = check.numbers("x", x)
    axes = None if axis is None else check.axes(axis, x)
    features = (
        axes if feature_axis is None and axes is not None else check.axes(feature_axis, x, "feature_axis")
    )
    if per_sample:
        check.not_batch(feature_axis, features, x)
    return Arguments(
        x,
        tuple(a for a in range(int(per_sample), x.ndim) if a not in features) if axes is None else axes,
        features,
        check.affine("scale", scale, x, features),
        check.affine("bias", bias, x, features),
        check.epsilon(epsilon),
        check.weights(where, x),
        with_groups(axis_name, axis_index_groups),
        jnp.dtype(dtype or x.dtype),
    )
