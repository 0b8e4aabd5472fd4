"""Checks of arguments, at trace time, all of one form: function, invariant, what came, remedy."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnorm._arithmetic import promoted
from jaxnorm._sharding import fitted


def numbers(function: str, name: str, value: Any) -> Array:
    """`value` as an array of numbers; integers become float32."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        dtype = np.asarray(value).dtype
    if not jnp.issubdtype(dtype, jnp.number):
        raise TypeError(
            f"{function}: {name} must hold numbers, got dtype {dtype}; convert it first, for example "
            f"with {name}.astype(jnp.float32)."
        )
    value = jnp.asarray(value)
    return value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(jnp.float32)


def axes(function: str, axis: Any, x: Array, name: str = "axis", of: str = "x") -> tuple[int, ...]:
    """`axis`, an int or several, as ascending indices from 0."""
    given = tuple(range(x.ndim)) if axis is None else axis
    given = tuple(given) if isinstance(given, Iterable) else (given,)
    found = []
    for a in given:
        try:
            index = a.__index__()
        except AttributeError:
            raise TypeError(
                f"{function}: {name} must be an int or several, got {axis!r}; name axes of {of} by number."
            ) from None
        if not -x.ndim <= index < x.ndim:
            choices = f"choose from {-x.ndim} to {x.ndim - 1}" if x.ndim else "a scalar has no axes"
            raise ValueError(f"{function}: {name}={a} is out of range for {of}, shape {x.shape}; {choices}.")
        found.append(index % x.ndim)
    if len(set(found)) != len(found):
        raise ValueError(
            f"{function}: {name}={axis!r} names an axis of {of}, shape {x.shape}, twice; name each once."
        )
    return tuple(sorted(found))


def broadcastable(function: str, name: str, value: Any, x: Array, to: str = "x") -> Array:
    """`value` with as many axes as x, if it broadcasts to x as numpy does."""
    value = jnp.asarray(value)
    try:
        fits = value.ndim <= x.ndim and jnp.broadcast_shapes(value.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{function}: {name} of shape {value.shape} does not broadcast to {to}, shape {x.shape}; "
            f"give it the sizes of {to}, or 1, on {to}'s last axes."
        )
    return fitted(value.reshape((1,) * (x.ndim - value.ndim) + value.shape), x)


def weights(function: str, where: Any, x: Array, name: str = "where") -> Array | None:
    """A mask or weights, with as many axes as x; None stays None, and so does `True`."""
    if where is None or where is True:
        return None
    dtype = where.dtype if hasattr(where, "dtype") else np.asarray(where).dtype
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    if not (real or dtype == jnp.bool_):
        raise TypeError(
            f"{function}: {name} must be a boolean mask or real weights, got dtype {dtype}; convert it "
            f"first, for example with {name}.astype(bool)."
        )
    return broadcastable(function, name, where, x)


def affine(
    function: str, name: str, value: Any, x: Array, features: tuple[int, ...] | None, to: str = "x"
) -> Array | None:
    """scale or bias, with as many axes as x: the features' sizes belong to the feature axes."""
    if value is None:
        return None
    value = numbers(function, name, value)
    if jnp.iscomplexobj(value) and not jnp.iscomplexobj(x):
        raise TypeError(
            f"{function}: {name} is {value.dtype} but {to} is {x.dtype}; make {to} complex, or take the real "
            f"part of {name}."
        )
    if features is not None and value.shape == tuple(x.shape[a] for a in features):
        return fitted(value.reshape([n if a in features else 1 for a, n in enumerate(x.shape)]), x)
    try:
        return broadcastable(function, name, value, x, to)
    except ValueError:
        if features is None:
            raise
    sizes = tuple(x.shape[a] for a in features)
    raise ValueError(
        f"{function}: {name} of shape {value.shape} is neither the sizes {sizes} of the feature axes "
        f"{features} nor broadcastable to x, shape {x.shape}; give it one of these shapes."
    )


def stats(function: str, stats: Any, x: Array, features: tuple[int, ...]) -> None:
    """The state of a norm: the sizes of the feature axes, float32 or wider, complex if x is."""
    sizes = tuple(x.shape[a] for a in features)
    for name in ("mean", "var", "weight"):
        if not hasattr(stats, name):
            raise TypeError(
                f"{function}: stats must be Moments, got {type(stats).__name__}; start from "
                f"initial_stats({sizes})."
            )
        value = getattr(stats, name)
        if jnp.shape(value) != sizes:
            raise ValueError(
                f"{function}: stats.{name} has shape {jnp.shape(value)}, but x, shape {x.shape}, has "
                f"{sizes} on its feature axes {features}; start from initial_stats({sizes}), or "
                f"choose feature_axis."
            )
        wide_dtype(function, f"stats.{name}", jnp.result_type(value))
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(stats.mean):
        raise TypeError(
            f"{function}: x is {x.dtype} but stats.mean is {jnp.result_type(stats.mean)}; start from "
            f"initial_stats({sizes}, dtype=jnp.{promoted(x.dtype, jnp.complex64).name})."
        )


def epsilon(function: str, value: Any) -> Array:
    """epsilon >= 0 as a float32 or wider scalar without a gradient; a traced one is not checked."""
    if traced(value):
        return lax.stop_gradient(value)
    if np.ndim(value) != 0 or not jnp.issubdtype(np.asarray(value).dtype, jnp.number) or not value >= 0:
        raise ValueError(
            f"{function}: epsilon={value!r} is not a number >= 0; it is added to the variance: choose, "
            f"for example, 1e-5."
        )
    return jnp.asarray(value)


def decay(function: str, value: Any) -> Any:
    """The fraction kept of the old average, in [0, 1]; a traced one is not checked."""
    if traced(value):
        return value
    if np.ndim(value) != 0 or not jnp.issubdtype(np.asarray(value).dtype, jnp.number) or not 0 <= value <= 1:
        raise ValueError(
            f"{function}: decay={value!r} is outside [0, 1]; it is the fraction of the OLD average "
            f"that is kept, 1 - PyTorch's momentum: choose, for example, 0.99."
        )
    return value


def one_shape(function: str, name: str, m: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Moments whose fields have one shape, as arrays."""
    fields = type(m)(*(numbers(function, f"{name}.{f}", v) for f, v in zip(m._fields, m, strict=True)))
    shapes = [v.shape for v in fields]
    if len({*shapes, shape or shapes[0]}) > 1:
        raise ValueError(
            f"{function}: {name} has fields of shapes {shapes}, which must be one shape"
            + (f", {shape}" if shape is not None else "")
            + "; broadcast them first."
        )
    return fields


def wide_dtype(function: str, name: str, dtype: Any) -> Any:
    """A dtype that statistics may have."""
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
        raise TypeError(
            f"{function}: {name} is {dtype}, in which averages stall; keep statistics in float32 or "
            f"wider, for example jnp.float32."
        )
    return dtype


def groups(function: str, num_groups: Any, group_size: Any, axis: int, x: Array, *, pieces: int = 1) -> int:
    """The number of groups, from it or from their size; of `pieces` times as many channels as x has."""
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            f"{function}: Either `num_groups` or `group_size` should be specified, got "
            f"num_groups={num_groups} and group_size={group_size}; give exactly one."
        )
    size = x.shape[axis] * pieces
    name, parts = ("group_size", group_size) if num_groups is None else ("num_groups", num_groups)
    try:
        fits = parts.__index__() > 0 and size % parts.__index__() == 0
    except AttributeError:
        raise TypeError(
            f"{function}: {name} must be an int, got {parts!r}; choose a divisor of {size}."
        ) from None
    if not fits:
        raise ValueError(
            f"{function}: {name}={parts} does not divide axis {axis} of x, shape {x.shape}"
            + (f" on each of {pieces} devices" if pieces > 1 else "")
            + f"; choose a divisor of {size}."
        )
    return size // parts if num_groups is None else int(parts)


def not_batch(function: str, axis: Any, features: tuple[int, ...], x: Array) -> None:
    """The features are not on axis 0, the batch."""
    if 0 in features:
        raise ValueError(
            f"{function}: The channel axes cannot include the leading dimension as this is assumed to be "
            f"the batch axis, got feature_axis={axis!r} for x, shape {x.shape}; choose from 1 to "
            f"{x.ndim - 1}."
        )


def traced(value: Any) -> bool:
    """Whether a switch is known only when the program runs."""
    return isinstance(value, jax.core.Tracer)


def train(function: str, value: Any) -> bool:
    """A switch that is known now."""
    if np.ndim(value) != 0 or np.asarray(value).dtype != np.bool_:
        raise TypeError(
            f"{function}: train must be a bool, got {value!r}; pass True for the batch's statistics, "
            f"False for the stored ones, or a traced boolean scalar."
        )
    return bool(value)


def choice(function: str, name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """One of a few."""
    if value not in choices:
        listed = " or ".join(map(repr, choices))
        raise ValueError(f"{function}: {name}={value!r} is not known; choose {listed}.")


def at_least(function: str, name: str, value: Any, least: float) -> None:
    """A number, or several; a traced one is not checked."""
    if not traced(value) and not np.all(np.asarray(value) >= least):
        raise ValueError(f"{function}: {name}={value!r} is too small; choose {least} or more.")
