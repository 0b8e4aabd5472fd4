"""From the fields and the call of a layer to the arguments of its function.

A `layer` is an object of either framework with Flax's fields, and with

    shapes(features) -> {name: shape}          its parameters, for features of that shape
    normalize(x, [stats,] **call) -> y         the call of its function

What only the framework knows, the stored parameters and whether this is initialization, is handed in.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import TINY, is_float8, promoted
from jaxnorm._base.collectives import bound, with_groups
from jaxnorm._base.messages import calling
from jaxnorm._layers import watching

Axes = int | Sequence[int]
Shape = tuple[int, ...]
Initializer = Callable[..., Array]
Schedule = Callable[[Array], ArrayLike]  # as optax has them: of the number of updates

# Flax promotes, and so do its layers here, where the user's own arithmetic may not
promotion = partial(jax.numpy_dtype_promotion, "standard")


def normalize(
    layer: Any,
    x: Array,
    parameters: dict[str, Array],
    *state: Any,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    initializing: bool = False,
    promote: Callable[[tuple[Array, ...]], tuple[Array, ...]] = tuple,
    **more: Any,
) -> Any:
    """The layer's `normalize`, with its fields and its call in the functions' words.

    Args:
      layer: it has the fields `dtype` and, if its function takes them, `epsilon` and `axis_name`.
      x: what is normalized.
      parameters: as they are stored, by name.
      state: what `normalize` has right after x.
      mask, weights, scale, bias: of the call; this scale and bias come before the layer's own.
      initializing: then no device is asked for anything.
      promote: of x and the parameters, which together tell the dtype of y.
      more: handed on as it is.
    """
    brought = {"scale": scale, "bias": bias}
    values = _shaped(layer, x, parameters)
    values |= {name: jnp.asarray(v) for name, v in brought.items() if v is not None}
    options = {**values, **more, "dtype": result_dtype(layer, *promote((x, *values.values())))}
    if hasattr(layer, "epsilon"):
        options["epsilon"] = layer.epsilon
    if hasattr(layer, "axis_name"):
        options |= {"where": where(mask, weights), **({} if initializing else devices(layer))}
    if _is_complex(options["dtype"]) and not jnp.iscomplexobj(x):
        x = x.astype(mean_dtype(x, jnp.complex64))  # its parameters are complex
    if watching.on() and not state:
        watching.tell_input(layer, x, options.get("where"), parameters)
    with calling(type(layer).__name__, words(layer, mask)):
        return layer.normalize(x, *state, **options)


def devices(layer: Any) -> dict[str, Any]:
    """The devices whose statistics are shared: Flax ignores groups of an axis that has no name.

    `diagnose` may call a model outside of its devices: the batch is then whole.
    """
    if layer.axis_name is None or (watching.on() and not bound(layer.axis_name, option=None).names):
        return {}
    with calling(type(layer).__name__):
        return {"axis_name": with_groups(layer.axis_name, layer.axis_index_groups)}


def words(layer: Any, mask: Any = None) -> dict[str, str]:
    """A layer's words for the options of its function."""
    features = _features_option(layer)
    return {
        "alpha": "blend",
        "where": "weights" if mask is None else "mask",
        "decay": "momentum",
        "train": "use_running_average",
        "feature_axis": features,
        "axis": next((name for name in ("reduction_axes", "axis") if hasattr(layer, name)), features),
    }


def where(mask: ArrayLike | None, weights: ArrayLike | None) -> ArrayLike | None:
    """Flax's mask counts as bool; weights are real; a masked place has no weight."""
    if mask is None:
        return weights
    mask = jnp.asarray(mask, bool)
    if weights is None:
        return mask
    mask, weights = jnp.broadcast_arrays(mask, weights)
    return jnp.where(mask, weights, 0)


# ---------------------------------------------------------------- features and parameters


def feature_axes(layer: Any) -> Axes:
    """The axes that have parameters of their own: batch norm's are `axis`, group norm's `feature_axis`."""
    return getattr(layer, _features_option(layer), -1)


def _features_option(layer: Any) -> str:
    """The layer's name of the option that chooses them."""
    return next((name for name in ("feature_axes", "feature_axis") if hasattr(layer, name)), "axis")


def feature_shape(layer: Any, x: Array) -> Shape:
    """The sizes of x's feature axes, ascending: the shape of one value a feature."""
    with calling(type(layer).__name__, words(layer)):
        if not isinstance(x, Array | np.ndarray):
            x = check.numbers("x", x)
        return tuple(x.shape[a] for a in check.axes(feature_axes(layer), x, "feature_axis"))


def affine(layer: Any, features: Shape) -> dict[str, Shape]:
    """The shapes of the scale and the bias, where the layer has them."""
    return {name: features for name in ("scale", "bias") if getattr(layer, f"use_{name}", False)}


def initializer(layer: Any, name: str, features: Shape) -> Initializer:
    """Of a parameter: the field `<name>_init`, or `scale_init`.

    A zero-centred scale starts at 0 where Flax's default is 1. The one number of ScaleNorm, whose
    `scale_init` is None, starts at the length of a vector of ones.
    """
    start = getattr(layer, f"{name}_init", None) or layer.scale_init
    if start is None:
        return initializers.constant(math.sqrt(math.prod(features)))
    centered = name == "scale" and getattr(layer, "zero_centered_scale", False)
    return initializers.zeros if centered and start is initializers.ones else start


def misfit(layer: Any, x: Array, size: Any) -> str:
    """What to say where the layer has `size` features and x others."""
    option = words(layer)["feature_axis"]
    elsewhere = check.elsewhere((size,), x, option) if hasattr(layer, option) else ""
    return (
        f"{type(layer).__name__}: {size} stored features do not fit axis {feature_axes(layer)} of x, shape "
        f"{x.shape}; choose a layer of {math.prod(feature_shape(layer, x))} features{elsewhere}."
    )


def per_feature(layer: Any, value: Array, x: Array, shape: Shape) -> Array:
    """A stored array in the shape of x's features, which nnx keeps on one axis, the last."""
    first = value.ndim - len(shape)
    if first >= 0 and value.shape[first:] == shape:
        return value
    if value.shape[-1:] != (math.prod(shape),):
        raise ValueError(misfit(layer, x, math.prod(value.shape[-1:])))
    return value.reshape(value.shape[:-1] + shape)


def _shaped(layer: Any, x: Array, parameters: dict[str, Array]) -> dict[str, Array]:
    """The stored parameters, which nnx keeps flat, in the shapes that they have for x."""
    features = feature_shape(layer, x)
    if getattr(layer, "num_features", math.prod(features)) != math.prod(features):
        raise ValueError(misfit(layer, x, layer.num_features))
    shapes = layer.shapes(features)
    for name, value in parameters.items():
        if value.size != math.prod(shapes[name]):
            raise ValueError(misfit(layer, x, value.shape[-1]))
    return {name: v if v.shape == shapes[name] else v.reshape(shapes[name]) for name, v in parameters.items()}


def rows(layer: Any) -> dict[str, Any]:
    """What layer norm and RMS norm take of a layer besides."""
    return {
        "axis": layer.reduction_axes,
        "feature_axis": layer.feature_axes,
        "zero_centered_scale": layer.zero_centered_scale,
    }


def groups(channels: int, num_groups: Any, group_size: Any, *, of: str = "channels") -> tuple[int, int]:
    """How many groups a group norm has, and their size. The errors are Flax's sentences.

    Args:
      channels: how many.
      num_groups, group_size: one of them, ints.
      of: what Flax calls the channels.
    """
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            "GroupNorm: Either `num_groups` or `group_size` should be specified. If `group_size` is to be "
            "specified, pass `num_groups=None` as argument to override the default `num_groups` value of 32. "
            f"Got num_groups={num_groups} and group_size={group_size}."
        )
    name, value = ("group_size", group_size) if num_groups is None else ("num_groups", num_groups)
    with calling("GroupNorm"):
        count = size = check.integer(name, value)
    if num_groups is None:
        if size < 1 or channels % size:
            raise ValueError(
                f"GroupNorm: Number of {of} ({channels}) is not multiple of the group size ({size}). Choose "
                f"a divisor of {channels}."
            )
        return channels // size, size
    if count < 1 or channels % count:
        raise ValueError(
            f"GroupNorm: Number of groups ({count}) does not divide the number of channels ({channels}). "
            f"Choose a divisor of {channels}."
        )
    return count, channels // count


def check_reduced(layer: Any, x: Array) -> None:
    """Flax's group norm is over the channels, too."""
    reduced, axis = layer.reduction_axes, layer.feature_axis
    (channels,) = check.axes((axis,), x, "feature_axis")
    if reduced is None or channels in check.axes(reduced, x, "reduction_axes"):
        return
    problem = f"The reduction axes must include feature_axis={axis}."
    if axis == -1:  # Flax's sentence
        problem = (
            "The reduction axes must include the final dimension as this is assumed to be the feature axis."
        )
    raise ValueError(f"GroupNorm: {problem} Got reduction_axes={reduced} for x, shape {x.shape}: add {axis}.")


# ---------------------------------------------------------------- dtypes


def result_dtype(layer: Any, *arrays: Any) -> DTypeLike:
    """Flax's dtype of y: the layer's, or what x and the parameters promote to; of integers float32."""
    dtype = layer.dtype
    if dtype is None:
        dtype = _common(*(a for a in arrays if a is not None))
        return dtype if jnp.issubdtype(dtype, jnp.inexact) and dtype not in TINY else jnp.float32
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"{type(layer).__name__}: Dtype must be inexact: {dtype}; choose a floating or complex one."
        )
    return dtype


def mean_dtype(like: Array | DTypeLike, *others: DTypeLike | None) -> DTypeLike:
    """A stored mean is float32 or wider, as `like` is, and complex if that or any other is."""
    return _common(jnp.float32, like, *filter(_is_complex, others))


def widen(value: Array) -> Array:
    """In float32 or wider: a running average stalls in bfloat16."""
    return value.astype(mean_dtype(value))


def _common(*values: Any) -> Any:
    """What JAX promotes arrays and dtypes to; those that it does not promote count as in `promoted`."""
    dtypes = [v.dtype if isinstance(v, Array | np.ndarray) else jnp.dtype(v) for v in values]
    if any(d in TINY or is_float8(d) for d in dtypes):
        return promoted(*dtypes)
    with promotion():
        return jnp.result_type(*values)


def _is_complex(dtype: DTypeLike | None) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating)
