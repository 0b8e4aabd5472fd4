"""Checks of arguments, at trace time. An error says what was expected, what came, and the remedy."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base.arithmetic import TINY, promoted
from jaxnorm._base.axes import axes as axes
from jaxnorm._base.axes import groups as groups
from jaxnorm._base.axes import not_batch as not_batch
from jaxnorm._base.axes import sizes as sizes
from jaxnorm._base.messages import error, option
from jaxnorm._base.options import alpha as alpha
from jaxnorm._base.options import at_least as at_least
from jaxnorm._base.options import choice as choice
from jaxnorm._base.options import decay as decay
from jaxnorm._base.options import epsilon as epsilon
from jaxnorm._base.options import integer as integer
from jaxnorm._base.options import is_real, shown
from jaxnorm._base.options import traced as traced
from jaxnorm._base.options import train as train
from jaxnorm._base.sharding import fitted

Fields = TypeVar("Fields", bound=tuple[Any, ...])  # Moments: a NamedTuple of arrays


def array_dtype(name: str, value: object, what: str) -> np.dtype[Any]:
    """The dtype of an array, or of numbers that make one; a TypeError for anything else.

    Args:
      name: what an error calls `value`.
      value: what the user gave.
      what: what it must do, as in "hold numbers".
    """
    kind, module = type(value).__name__, type(value).__module__.partition(".")[0]
    if module == "torch":
        remedy = f"convert it first, for example with jnp.asarray({name}.numpy())"
        raise error(TypeError, f"{name} must {what}, got a torch {kind}", remedy)
    if isinstance(value, list | tuple) and any(
        isinstance(v, Array | np.ndarray) for v in jax.tree.leaves(value)
    ):
        remedy = f"make it one array first, for example with jnp.stack({name})"
        raise error(TypeError, f"{name} must {what}, got a {kind} of arrays", remedy)
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        try:
            dtype = np.asarray(value).dtype
        except ValueError:  # rows of different lengths
            dtype = np.dtype(object)
    if dtype == np.dtype(object):
        raise error(TypeError, f"{name} must {what}, got {shown(value)}", "give one array")
    return dtype


def numbers(name: str, value: ArrayLike) -> Array:
    """`value` as an array of numbers; integers become float32."""
    dtype = array_dtype(name, value, "hold numbers")
    if not jnp.issubdtype(dtype, jnp.number):
        remedy = f"convert it first, for example with {name}.astype(jnp.float32)"
        raise error(TypeError, f"{name} must hold numbers, got dtype {dtype}", remedy)
    value = jnp.asarray(value)
    keep = jnp.issubdtype(value.dtype, jnp.inexact) and value.dtype not in TINY
    return value if keep else value.astype(jnp.float32)


def real(x: Array) -> None:
    """x is real, for a formula that needs an order or a sign."""
    if jnp.iscomplexobj(x):
        raise error(TypeError, f"x is {x.dtype}", "give its real and imaginary parts as features")


def broadcastable(name: str, value: ArrayLike, x: Array, to: str = "x") -> Array:
    """`value` with as many axes as x, if it broadcasts to x, which is called `to`, as in numpy."""
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
    problem = f"{name} of shape {shape} does not broadcast to {to}, shape {x.shape}"
    raise error(ValueError, problem, remedy)


def weights(where: ArrayLike | None, x: Array, name: str = "where", to: str = "x") -> Array | None:
    """A mask or weights, with as many axes as x; None stays None, and so does `True`."""
    if where is None or where is True:
        return None
    word, what = option(name), "be a boolean mask or real weights"
    dtype = array_dtype(word, where, what)
    if not (is_real(dtype) or dtype == jnp.bool_):
        remedy = f"convert it first, for example with {word}.astype(bool)"
        raise error(TypeError, f"{word} must {what}, got dtype {dtype}", remedy)
    return broadcastable(name, where, x, to)


def affine(
    name: str,
    value: ArrayLike | None,
    x: Array,
    features: tuple[int, ...] | None,
    to: str = "x",
    by: str = "feature_axis",
) -> Array | None:
    """scale, bias, or another parameter, with as many axes as x; None stays None.

    Args:
      name: what an error calls `value`.
      value: of the feature axes' sizes, or of any shape that broadcasts to x.
      x: the array that it is broadcast against.
      features: the feature axes; None: there are none, and `value` broadcasts.
      to: what x is called.
      by: the option that chooses the feature axes.
    """
    if value is None:
        return None
    value = numbers(name, value)
    if jnp.iscomplexobj(value) and not jnp.iscomplexobj(x):
        remedy = f"make {to} complex, or take the real part of {name}"
        raise error(TypeError, f"{name} is {value.dtype} but {to} is {x.dtype}", remedy)
    if features is None:
        return broadcastable(name, value, x, to)
    sizes = tuple(x.shape[a] for a in features)
    if value.shape == sizes:
        return fitted(value.reshape([n if a in features else 1 for a, n in enumerate(x.shape)]), x)
    try:
        return broadcastable(name, value, x, to)
    except ValueError:
        problem = (
            f"{name} of shape {value.shape} is neither the sizes {sizes} of the feature axes {features} "
        )
        problem += f"nor broadcastable to {to}, shape {x.shape}"
        remedy = f"give it one of these shapes{elsewhere(value.shape, x, by)}"
        raise error(ValueError, problem, remedy) from None


def elsewhere(shape: tuple[int, ...], x: Array, by: str, otherwise: str = "") -> str:
    """Advice for an array of one axis that has the size of an axis of x which is no feature axis.

    Args:
      shape: of the array.
      x: the array that it does not fit.
      by: the option that chooses the feature axes.
      otherwise: the advice where no axis has that size.
    """
    axis = next((a for a in range(1, x.ndim) if shape == x.shape[a : a + 1]), None)
    return otherwise if axis is None else f", or choose {option(by)}={axis}, which has that size"


def stats(stats: Any, x: Array, features: tuple[int, ...], of: str = "x") -> None:
    """The state of a norm of x, which is called `of`.

    It has the sizes of the feature axes, is float32 or wider, and complex if x is.
    """
    sizes = tuple(x.shape[a] for a in features)
    start = f"start from initial_stats({sizes}"
    for name in ("mean", "var", "weight"):
        if not hasattr(stats, name):
            raise error(TypeError, f"stats must be Moments, got {type(stats).__name__}", f"{start})")
        shape = jnp.shape(getattr(stats, name))
        if shape != sizes:
            problem = (
                f"stats.{name} has shape {shape}, but {of}, shape {x.shape}, has {sizes} on its feature axes "
            )
            axis = option("feature_axis")
            remedy = f"{start}){elsewhere(shape, x, 'feature_axis', f', or choose {axis}')}"
            raise error(ValueError, f"{problem}{features}", remedy)
        wide_dtype(f"stats.{name}", jnp.result_type(getattr(stats, name)))
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(stats.mean):
        problem = f"{of} is {x.dtype} but stats.mean is {jnp.result_type(stats.mean)}"
        remedy = f"{start}, dtype=jnp.{promoted(x.dtype, jnp.complex64).name})"
        raise error(TypeError, problem, remedy)


def one_shape(name: str, m: Fields, shape: tuple[int, ...] | None = None) -> Fields:
    """Moments as arrays, whose fields all have one shape: `shape`, if that is not None."""
    fields = getattr(m, "_fields", None)
    if fields is None:
        problem = f"{name} must be Moments, got {shown(m)}"
        raise error(TypeError, problem, "take them with moments(x, axis)")
    arrays = [numbers(f"{name}.{f}", v) for f, v in zip(fields, m, strict=True)]
    shapes = [v.shape for v in arrays]
    if len({*shapes, shapes[0] if shape is None else shape}) > 1:
        problem = f"{name} has fields of shapes {shapes}, which must be one shape"
        problem += "" if shape is None else f", {shape}"
        raise error(ValueError, problem, "broadcast them first")
    return type(m)(*arrays)


def wide_dtype(name: str, dtype: DTypeLike) -> np.dtype[Any]:
    """A dtype that statistics may have."""
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
        remedy = "keep statistics in float32 or wider, for example jnp.float32"
        raise error(TypeError, f"{name} is {dtype}, in which averages stall", remedy)
    return dtype
