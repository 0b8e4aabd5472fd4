"""Checks of arguments, at trace time, all of one form: function, invariant, what came, remedy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnorm._base.arithmetic import TINY, promoted
from jaxnorm._base.axes import axes as axes
from jaxnorm._base.axes import groups as groups
from jaxnorm._base.axes import not_batch as not_batch
from jaxnorm._base.axes import sizes as sizes
from jaxnorm._base.messages import error, option
from jaxnorm._base.options import at_least as at_least
from jaxnorm._base.options import choice as choice
from jaxnorm._base.options import decay as decay
from jaxnorm._base.options import epsilon as epsilon
from jaxnorm._base.options import integer as integer
from jaxnorm._base.options import share as share
from jaxnorm._base.options import shown as shown
from jaxnorm._base.options import traced as traced
from jaxnorm._base.options import train as train
from jaxnorm._base.sharding import fitted


def array(function: str, name: str, value: Any, what: str) -> Any:
    """The dtype of an array, or of numbers that make one; a TypeError for anything else."""
    kind, module = type(value).__name__, type(value).__module__.partition(".")[0]
    if module == "torch":
        raise error(
            TypeError,
            function,
            f"{name} must {what}, got a torch {kind}; convert it first, for example with "
            f"jnp.asarray({name}.numpy()).",
        )
    if isinstance(value, list | tuple) and any(
        isinstance(v, Array | np.ndarray) for v in jax.tree.leaves(value)
    ):
        raise error(
            TypeError,
            function,
            f"{name} must {what}, got a {kind} of arrays; make it one array first, for example with "
            f"jnp.stack({name}).",
        )
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        try:
            dtype = np.asarray(value).dtype
        except ValueError:  # rows of different lengths
            dtype = np.dtype(object)
    if dtype == np.dtype(object):
        raise error(TypeError, function, f"{name} must {what}, got {shown(value)}; give one array.")
    return dtype


def numbers(function: str, name: str, value: Any) -> Array:
    """`value` as an array of numbers; integers become float32."""
    dtype = array(function, name, value, "hold numbers")
    if not jnp.issubdtype(dtype, jnp.number):
        raise error(
            TypeError,
            function,
            f"{name} must hold numbers, got dtype {dtype}; convert it first, for example with "
            f"{name}.astype(jnp.float32).",
        )
    value = jnp.asarray(value)
    keep = jnp.issubdtype(value.dtype, jnp.inexact) and value.dtype not in TINY
    return value if keep else value.astype(jnp.float32)


def real(function: str, name: str, value: Any) -> None:
    """An array of real numbers, for a formula that has an order or a sign."""
    if value is not None and jnp.iscomplexobj(value):
        raise error(
            TypeError,
            function,
            f"{name} is {jnp.result_type(value)}; give its real and imaginary parts as features.",
        )


def broadcastable(function: str, name: str, value: Any, x: Array, to: str = "x") -> Array:
    """`value` with as many axes as x, if it broadcasts to x as numpy does."""
    value = jnp.asarray(value)
    shape, missing = value.shape, x.ndim - value.ndim
    try:
        fits = missing >= 0 and jnp.broadcast_shapes(shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if fits:
        return fitted(value.reshape((1,) * missing + shape), x)
    name = option(name)
    remedy = f"give it the sizes of {to}, or 1, on {to}'s last axes"
    if missing > 0 and name.startswith("m."):
        remedy = f"take the moments with keepdims=True, or {remedy}"
    elif missing > 0 and shape and all(n in (1, size) for n, size in zip(shape, x.shape, strict=False)):
        remedy = f"it has the sizes of {to}'s first axes: give {name}[..., {', '.join(['None'] * missing)}]"
    raise error(
        ValueError,
        function,
        f"{name} of shape {shape} does not broadcast to {to}, shape {x.shape}; {remedy}.",
    )


def weights(function: str, where: Any, x: Array, name: str = "where", to: str = "x") -> Array | None:
    """A mask or weights, with as many axes as x; None stays None, and so does `True`."""
    if where is None or where is True:
        return None
    dtype = array(function, option(name), where, "be a boolean mask or real weights")
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    if not (real or dtype == jnp.bool_):
        raise error(
            TypeError,
            function,
            f"{option(name)} must be a boolean mask or real weights, got dtype {dtype}; convert it "
            f"first, for example with {option(name)}.astype(bool).",
        )
    return broadcastable(function, name, where, x, to)


def affine(
    function: str,
    name: str,
    value: Any,
    x: Array,
    features: tuple[int, ...] | None,
    to: str = "x",
    by: str = "feature_axis",
) -> Array | None:
    """scale or bias, with as many axes as x: the features' sizes belong to the feature axes.

    `by` is the option that says which axes these are.
    """
    if value is None:
        return None
    value = numbers(function, name, value)
    if jnp.iscomplexobj(value) and not jnp.iscomplexobj(x):
        raise error(
            TypeError,
            function,
            f"{name} is {value.dtype} but {to} is {x.dtype}; make {to} complex, or take the real "
            f"part of {name}.",
        )
    if features is not None and value.shape == tuple(x.shape[a] for a in features):
        return fitted(value.reshape([n if a in features else 1 for a, n in enumerate(x.shape)]), x)
    try:
        return broadcastable(function, name, value, x, to)
    except ValueError:
        if features is None:
            raise
    sizes = tuple(x.shape[a] for a in features)
    raise error(
        ValueError,
        function,
        f"{name} of shape {value.shape} is neither the sizes {sizes} of the feature axes {features} nor "
        f"broadcastable to {to}, shape {x.shape}; give it one of these shapes"
        f"{elsewhere(value.shape, x, by)}.",
    )


def elsewhere(shape: tuple[int, ...], x: Array, by: str, otherwise: str = "") -> str:
    """Advice for an array of one axis, whose size is that of another axis of x than it was taken for."""
    axis = next((a for a in range(1, x.ndim) if shape == x.shape[a : a + 1]), None)
    return otherwise if axis is None else f", or choose {option(by)}={axis}, which has that size"


def stats(function: str, stats: Any, x: Array, features: tuple[int, ...], of: str = "x") -> None:
    """The state of a norm of x, or of another array `of` that name.

    It has the sizes of the feature axes, is float32 or wider, and complex if x is.
    """
    sizes = tuple(x.shape[a] for a in features)
    for name in ("mean", "var", "weight"):
        if not hasattr(stats, name):
            raise error(
                TypeError,
                function,
                f"stats must be Moments, got {type(stats).__name__}; start from initial_stats({sizes}).",
            )
        value = getattr(stats, name)
        shape = jnp.shape(value)
        if shape != sizes:
            choose = elsewhere(shape, x, "feature_axis", f", or choose {option('feature_axis')}")
            raise error(
                ValueError,
                function,
                f"stats.{name} has shape {shape}, but {of}, shape {x.shape}, has {sizes} on its feature axes "
                f"{features}; start from initial_stats({sizes}){choose}.",
            )
        wide_dtype(function, f"stats.{name}", jnp.result_type(value))
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(stats.mean):
        raise error(
            TypeError,
            function,
            f"{of} is {x.dtype} but stats.mean is {jnp.result_type(stats.mean)}; start from "
            f"initial_stats({sizes}, dtype=jnp.{promoted(x.dtype, jnp.complex64).name}).",
        )


def one_shape(function: str, name: str, m: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Moments whose fields have one shape, as arrays."""
    if not hasattr(m, "_fields"):
        raise error(
            TypeError,
            function,
            f"{name} must be Moments, got {shown(m)}; take them with moments(x, axis).",
        )
    fields = type(m)(*(numbers(function, f"{name}.{f}", v) for f, v in zip(m._fields, m, strict=True)))
    shapes = [v.shape for v in fields]
    if len({*shapes, shape or shapes[0]}) > 1:
        raise error(
            ValueError,
            function,
            f"{name} has fields of shapes {shapes}, which must be one shape"
            + (f", {shape}" if shape is not None else "")
            + "; broadcast them first.",
        )
    return fields


def wide_dtype(function: str, name: str, dtype: Any) -> Any:
    """A dtype that statistics may have."""
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
        raise error(
            TypeError,
            function,
            f"{name} is {dtype}, in which averages stall; keep statistics in float32 or "
            f"wider, for example jnp.float32.",
        )
    return dtype
