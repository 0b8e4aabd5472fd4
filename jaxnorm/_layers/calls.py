"""What the linen and nnx layers share: from Flax's names to the functions', and the calls.

A `layer` is any object with Flax's fields. What only its framework knows, where the parameters live and
whether this is initialization, it hands in as `own`: scale, bias, dtype, axis_name, axis_index_groups.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import TINY, is_float8, promoted
from jaxnorm._base.collectives import with_groups
from jaxnorm._base.messages import calling
from jaxnorm._norms import sample as _norms

Axes = int | Sequence[int]

# Flax promotes, and so do its layers here, where the user's own arithmetic may not
promotion = partial(jax.numpy_dtype_promotion, "standard")


def layer_norm(layer: Any, x: Array, mask: Any, weights: Any, **own: Any) -> Array:
    return call(_norms.layer_norm, layer, x, mask, weights, **_rows(layer), **own)


def rms_norm(layer: Any, x: Array, mask: Any, weights: Any, **own: Any) -> Array:
    return call(_norms.rms_norm, layer, x, mask, weights, **_rows(layer), **own)


def _rows(layer: Any) -> dict[str, Any]:
    return {
        "axis": layer.reduction_axes,
        "feature_axis": layer.feature_axes,
        "zero_centered_scale": layer.zero_centered_scale,
    }


def group_norm(
    layer: Any,
    x: Array,
    mask: Any,
    weights: Any,
    *,
    num_groups: Any,
    group_size: Any,
    **own: Any,
) -> Array:
    """The errors are Flax's sentences, which its users may match."""
    reduced, channels = layer.reduction_axes, x.shape[-1]
    last = x.ndim - 1
    if reduced is not None and last not in check.axes("GroupNorm", reduced, x, "reduction_axes"):
        raise ValueError(
            "GroupNorm: The reduction axes must include the final dimension as this is assumed to be "
            f"the feature axis. Got reduction_axes={reduced} for x, shape {x.shape}: add -1."
        )
    num_groups, group_size = as_ints("GroupNorm", num_groups=num_groups, group_size=group_size).values()
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            "GroupNorm: Either `num_groups` or `group_size` should be specified. If `group_size` is to "
            "be specified, pass `num_groups=None` as argument to override the default `num_groups` "
            f"value of 32. Got num_groups={num_groups} and group_size={group_size}."
        )
    if group_size is not None and (group_size < 1 or channels % group_size):
        raise ValueError(
            f"GroupNorm: Number of channels ({channels}) is not multiple of the group size "
            f"({group_size}). Choose a divisor of {channels}."
        )
    if num_groups is not None and (num_groups < 1 or channels % num_groups):
        raise ValueError(
            f"GroupNorm: Number of groups ({num_groups}) does not divide the number of channels "
            f"({channels}). Choose a divisor of {channels}."
        )
    groups = {"num_groups": num_groups, "group_size": group_size, "reduction_axes": reduced}
    return call(_norms.group_norm, layer, x, mask, weights, **groups, **own)


def instance_norm(layer: Any, x: Array, mask: Any, weights: Any, **own: Any) -> Array:
    axes = {"feature_axis": layer.feature_axes}
    return call(_norms.instance_norm, layer, x, mask, weights, **axes, **own)


def feature_shape(layer: Any, x: Array, axes: Axes) -> tuple[int, ...]:
    """The sizes of x's feature axes, ascending: the shape of one value a feature."""
    with calling(type(layer).__name__, words(layer)):
        if not isinstance(x, Array | np.ndarray):
            x = check.numbers("layer", "x", x)
        return tuple(x.shape[a] for a in check.axes("layer", axes, x, "feature_axis"))


def per_feature(layer: Any, value: Array, x: Array, axes: Axes) -> Array:
    """A stored array, which nnx keeps flat, in the shape of x's feature axes."""
    shape = feature_shape(layer, x, axes)
    if value.shape == shape:
        return value
    if value.size != math.prod(shape):
        raise ValueError(misfit(layer, x, axes, value.size))
    return value.reshape(shape)


def misfit(layer: Any, x: Array, axes: Axes, size: Any) -> str:
    option = words(layer)["feature_axis"]
    elsewhere = check.elsewhere((size,), x, option) if hasattr(layer, option) else ""
    return (
        f"{type(layer).__name__}: {size} stored features do not fit axis {axes} of x, shape {x.shape}; "
        f"choose a layer of {math.prod(feature_shape(layer, x, axes))} features{elsewhere}."
    )


def as_ints(layer: str, **values: Any) -> dict[str, Any]:
    """Options that are ints or None, as Python has them."""
    return {name: v if v is None else check.integer(layer, name, v) for name, v in values.items()}


def check_width(layer: Any, x: Array, axes: Axes) -> None:
    """An nnx layer without parameters is of a width, too."""
    if math.prod(feature_shape(layer, x, axes)) != layer.num_features:
        raise ValueError(misfit(layer, x, axes, layer.num_features))


def nothing_chosen(function: str, filter: Any, found: list[str]) -> str:
    there = ", ".join(name or "the model itself" for name in found) or "none that keeps statistics"
    return f"{function}: filter={filter!r} chooses no batch norm; there is: {there}."


def initializer(layer: Any, name: str) -> Any:
    """Of a layer's scale or bias. A zero-centred scale starts at 0 where Flax's default is 1."""
    start = getattr(layer, f"{name}_init")
    centered = name == "scale" and getattr(layer, "zero_centered_scale", False)
    return jax.nn.initializers.zeros if centered and start is jax.nn.initializers.ones else start


def given(**overrides: Any) -> dict[str, Array]:
    """The scale and bias of a call, which come before the layer's own."""
    return {name: jnp.asarray(value) for name, value in overrides.items() if value is not None}


def extends(init: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Shows a constructor with the arguments of Flax's, `init`, before its own."""

    def decorate(extended: Any) -> Callable[..., None]:
        theirs = inspect.signature(init).parameters
        own = inspect.signature(extended).parameters
        new = [p for name, p in own.items() if p.kind is p.KEYWORD_ONLY and name not in theirs]
        extended.__signature__ = inspect.Signature([*theirs.values(), *new])
        return extended

    return decorate


def devices(layer: Any) -> dict[str, Any]:
    """A layer's devices. Like Flax's, it ignores groups of an axis that has no name."""
    if layer.axis_name is None:
        return {}
    return {"axis_name": with_groups(type(layer).__name__, layer.axis_name, layer.axis_index_groups)}


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


def _common(*values: Any) -> Any:
    """What JAX promotes arrays and dtypes to; those that it does not promote count as in `promoted`."""
    dtypes = [v.dtype if isinstance(v, Array | np.ndarray) else jnp.dtype(v) for v in values]
    if any(d in TINY or is_float8(d) for d in dtypes):
        return promoted(*dtypes)
    with promotion():
        return jnp.result_type(*values)


def stats_dtype(layer: Any, x: Array, dtype: DTypeLike) -> DTypeLike:
    """The dtype of linen's statistics at the start: Flax's, which does not depend on x, or float32 if wider.

    Args:
      layer: of linen.
      x: what is normalized; the mean of complex numbers is complex.
      dtype: of y.
    """
    least = jnp.float32 if layer.force_float32_reductions else layer.param_dtype
    return mean_dtype(least, x.dtype, dtype)


def call(
    function: Callable[..., Any],
    layer: Any,
    x: Array,
    mask: Any,
    weights: Any,
    **options: Any,
) -> Any:
    if _is_complex(options["dtype"]) and not jnp.iscomplexobj(x):
        x = x.astype(mean_dtype(x, jnp.complex64))  # it meets complex parameters
    with calling(type(layer).__name__, words(layer, mask)):
        return function(x, epsilon=layer.epsilon, where=where(mask, weights), **options)


def words(layer: Any, mask: Any = None) -> dict[str, str]:
    """A layer's words for the options of its function."""
    features = "feature_axes" if hasattr(layer, "feature_axes") else "axis"
    return {
        "where": "weights" if mask is None else "mask",
        "decay": "momentum",
        "train": "use_running_average",
        "feature_axis": features,
        "axis": next((name for name in ("reduction_axes", "axis") if hasattr(layer, name)), features),
    }


def _is_complex(dtype: DTypeLike | None) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating)


def widen(value: Array) -> Array:
    """In float32 or wider: a running average stalls in bfloat16."""
    return value.astype(mean_dtype(value))


def where(mask: ArrayLike | None, weights: ArrayLike | None) -> ArrayLike | None:
    """Flax's mask counts as bool; weights are real; a masked place has no weight."""
    if mask is None:
        return weights
    mask = jnp.asarray(mask, bool)
    if weights is None:
        return mask
    mask, weights = jnp.broadcast_arrays(mask, weights)
    return jnp.where(mask, weights, 0)
