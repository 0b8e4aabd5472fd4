"""Checks of axes, groups and sizes: ints that are known while tracing."""

import operator
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnorm._base.messages import error, option
from jaxnorm._base.options import integer, shown


def axes(function: str, axis: Any, x: Array, name: str = "axis", of: str = "x") -> tuple[int, ...]:
    """`axis`, an int or several, as ascending indices from 0."""
    name = option(name)
    given = tuple(range(x.ndim)) if axis is None else axis
    given = tuple(given) if isinstance(given, Iterable) else (given,)
    found = []
    for a in given:
        try:
            index = operator.index(a)
        except TypeError:
            raise error(
                TypeError,
                function,
                f"{name} must be an int or several, got {shown(axis)}; name axes of {of} by number.",
            ) from None
        if not -x.ndim <= index < x.ndim:
            choices = f"choose from {-x.ndim} to {x.ndim - 1}" if x.ndim else "a scalar has no axes"
            raise error(
                ValueError, function, f"{name}={a} is out of range for {of}, shape {x.shape}; {choices}."
            )
        found.append(index % x.ndim)
    if len(set(found)) != len(found):
        raise error(
            ValueError,
            function,
            f"{name}={axis!r} names an axis of {of}, shape {x.shape}, twice; name each once.",
        )
    return tuple(sorted(found))


def not_batch(function: str, axis: Any, features: tuple[int, ...], x: Array) -> None:
    """The features are not on axis 0, the batch."""
    if 0 in features:
        raise error(
            ValueError,
            function,
            "The channel axes cannot include the leading dimension as this is assumed to be "
            f"the batch axis, got {option('feature_axis')}={axis!r} for x, shape {x.shape}; choose from 1 to "
            f"{x.ndim - 1}.",
        )


def groups(function: str, num_groups: Any, group_size: Any, axis: int, x: Array, *, pieces: int = 1) -> int:
    """The number of groups, from it or from their size; of `pieces` times as many channels as x has."""
    if (num_groups is None) == (group_size is None):
        raise error(
            ValueError,
            function,
            "Either `num_groups` or `group_size` should be specified, got "
            f"num_groups={num_groups} and group_size={group_size}; give exactly one.",
        )
    size = x.shape[axis] * pieces
    name, given = ("group_size", group_size) if num_groups is None else ("num_groups", num_groups)
    parts = integer(function, name, given, least=1, remedy=f"choose a divisor of {size}")
    if size % parts:
        raise error(
            ValueError,
            function,
            f"{name}={parts} does not divide axis {axis} of x, shape {x.shape}"
            + (f" on each of {pieces} devices" if pieces > 1 else "")
            + f"; choose a divisor of {size}.",
        )
    return size // parts if num_groups is None else parts


def sizes(function: str, name: str, value: Any, example: str) -> tuple[int, ...]:
    """A shape: an int or several, none negative."""
    ints = (
        isinstance(value, Array | np.ndarray) and jnp.issubdtype(value.dtype, jnp.integer) and value.ndim < 2
    )
    several = isinstance(value, list | tuple | range) or ints
    try:
        shape = tuple(np.atleast_1d(value).tolist()) if ints else tuple(value) if several else (value,)
        shape = tuple(map(operator.index, shape))
    except TypeError:
        raise error(
            TypeError,
            function,
            f"{name} must be an int or several, got {shown(value)}; give, for example, {example}.",
        ) from None
    if any(n < 0 for n in shape):
        raise error(ValueError, function, f"{name}={value!r} has a negative size; choose 0 or more.")
    return shape
