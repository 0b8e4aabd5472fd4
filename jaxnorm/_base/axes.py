"""Checks of axes, groups and sizes: ints that are known while tracing."""

import operator
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnorm._base.messages import error, option
from jaxnorm._base.options import integer, shown


def axes(axis: object, x: Array, name: str = "axis", of: str = "x") -> tuple[int, ...]:
    """Ascending indices, from 0, of the axes that an option chooses.

    Args:
      axis: an int, several, or None for all axes.
      x: the array.
      name: the option.
      of: what x is called.
    """
    name = option(name)
    chosen = range(x.ndim) if axis is None else axis
    found = []
    for a in tuple(chosen) if isinstance(chosen, Iterable) else (chosen,):
        try:
            index = operator.index(a)
        except TypeError:
            problem = f"{name} must be an int or several, got {shown(axis)}"
            raise error(TypeError, problem, f"name axes of {of} by number") from None
        if not -x.ndim <= index < x.ndim:
            choices = f"choose from {-x.ndim} to {x.ndim - 1}" if x.ndim else "a scalar has no axes"
            raise error(ValueError, f"{name}={a} is out of range for {of}, shape {x.shape}", choices)
        found.append(index % x.ndim)
    if len(set(found)) != len(found):
        problem = f"{name}={axis!r} names an axis of {of}, shape {x.shape}, twice"
        raise error(ValueError, problem, "name each once")
    return tuple(sorted(found))


def not_batch(axis: object, features: tuple[int, ...], x: Array) -> None:
    """An error if axis 0 of x, the batch, is among `features`, which the user gave as `axis`."""
    if 0 in features:
        problem = (
            "The channel axes cannot include the leading dimension as this is assumed to be the batch axis, "
            f"got {option('feature_axis')}={axis!r} for x, shape {x.shape}"
        )
        raise error(ValueError, problem, f"choose from 1 to {x.ndim - 1}")


def groups(num_groups: object, group_size: object, axis: int, x: Array, *, devices: int = 1) -> int:
    """The number of groups of all channels.

    Args:
      num_groups, group_size: one of them; the other is None.
      axis: of the channels.
      x: the array, or what a device has of it.
      devices: how many devices the channels are spread over.
    """
    if (num_groups is None) == (group_size is None):
        problem = "Either `num_groups` or `group_size` should be specified, got "
        problem += f"num_groups={num_groups} and group_size={group_size}"
        raise error(ValueError, problem, "give exactly one")
    size = x.shape[axis] * devices
    name, value = ("group_size", group_size) if num_groups is None else ("num_groups", num_groups)
    remedy = f"choose a divisor of {size}"
    divisor = integer(name, value, least=1, remedy=remedy)
    if size % divisor:
        problem = f"{name}={divisor} does not divide axis {axis} of x, shape {x.shape}"
        problem += f" on each of {devices} devices" if devices > 1 else ""
        raise error(ValueError, problem, remedy)
    return size // divisor if num_groups is None else divisor


def sizes(name: str, value: object, example: str) -> tuple[int, ...]:
    """A shape: an int or several, none negative. An error shows `example`."""
    several = value if isinstance(value, list | tuple | range) else (value,)
    if isinstance(value, Array | np.ndarray) and jnp.issubdtype(value.dtype, jnp.integer) and value.ndim < 2:
        several = np.atleast_1d(value).tolist()
    try:
        shape = tuple(map(operator.index, several))
    except TypeError:
        problem = f"{name} must be an int or several, got {shown(value)}"
        raise error(TypeError, problem, f"give, for example, {example}") from None
    if any(n < 0 for n in shape):
        raise error(ValueError, f"{name}={value!r} has a negative size", "choose 0 or more")
    return shape
