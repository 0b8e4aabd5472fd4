"""What the layers that remember share: the statistics of batch norm, and of weights."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.messages import calling
from jaxnorm._core import moments as _moments
from jaxnorm._core.moments import Moments
from jaxnorm._layers import calls as layers
from jaxnorm._norms import batch as _batch
from jaxnorm._norms import spectral as _spectral
from jaxnorm._norms import weights as _weights


def mode(layer: Any, use_running_average: Any, update_stats: bool | None, frozen: bool) -> tuple[Any, Any]:
    """Whether a call normalizes by the batch's statistics, and whether it stores them.

    They are two questions. Flax asks the first; its answer to the second, where the batch's are used, is that
    of `update_stats=None`, in the call and in the layer.
    """
    if frozen:
        return False, False
    with calling(type(layer).__name__):
        use_running_average = check.train("layer", use_running_average, "use_running_average")
    traced = check.traced(use_running_average)
    train = jnp.logical_not(use_running_average) if traced else not use_running_average
    if update_stats is None:
        update_stats = layer.update_stats
    return train, train if update_stats is None else bool(update_stats)


def remembered(
    norm: Callable[..., tuple[Array, Any]], kept: dict[str, Array], *, train: Any, updated: Any
) -> tuple[Array, dict[str, Array]]:
    """y, and the statistics to store, shaped as they came in: none where nothing is stored.

    Args:
      norm: `(kept, *, train) -> (y, (mean, var, weight))`.
      kept: what the layer's options ask for, by name, as it is stored or, if it is not stored yet, at its
        start.
      train: whether the batch's statistics normalize, a bool or traced.
      updated: whether the statistics are updated: a bool, or `train`.
    """
    y, new = norm(kept, train=train)
    if updated is False:
        return y, {}
    if updated is True and train is not True:
        _, new = norm(kept, train=True)  # in a compiled program its y costs nothing
    values = dict(zip(("mean", "var", "weight"), new, strict=True))
    if "weight" in kept and check.traced(updated):
        values["weight"] = jnp.where(updated, values["weight"].reshape(kept["weight"].shape), kept["weight"])
    if "step" in kept:
        values["step"] = kept["step"] + jnp.asarray(updated, jnp.int32)
    return y, {name: _reshaped(values[name], v.shape) for name, v in kept.items()}


def batch_norm(
    layer: Any,
    x: Array,
    mask: Any,
    weights: Any,
    kept: dict[str, Array],
    *,
    train: Any,
    **own: Any,
) -> tuple[Array, Moments]:
    return layers.call(
        _batch.batch_norm,
        layer,
        x,
        mask,
        weights,
        stats=moments(layer, x, layer.axis, *widened(layer, kept, train)),
        train=train,
        feature_axis=layer.axis,
        decay=scheduled(layer.momentum, kept),
        unbiased=layer.unbiased,
        **own,
    )


def scheduled(value: Any, kept: dict[str, Array]) -> Any:
    """What may be a schedule, of the updates counted in `step`."""
    if not callable(value):
        return value
    with layers.promotion():  # a schedule's own arithmetic
        return value(kept["step"])


def widened(layer: Any, kept: dict[str, Array], train: Any) -> tuple[Array, Array, Any]:
    """Mean, var and weight, of what is stored, for a call; a weight of None is 1."""
    mean, var = (v if v.dtype == jnp.float32 else layers.widen(v) for v in (kept["mean"], kept["var"]))
    weight = kept.get("weight")
    if weight is None or train is False:  # evaluation is by the stored mean and var, whatever their weight
        return mean, var, None
    if layer.momentum is not None:
        # statistics that were loaded without a weight are a whole average; those of the start are none
        loaded = jnp.logical_not(_initial(mean, var, weight.ndim)).astype(weight.dtype)
        # a cumulative average has counts of batches as weights, of which the moving one takes at most 1
        weight = jnp.where(weight > 0, jnp.minimum(weight, 1), loaded)
    return mean, var, weight if train is True else jnp.where(train, weight, 1)


def _initial(mean: Array, var: Array, axes: int) -> Array:
    """Whether mean and var are those of the start, one answer for each place of their first `axes`."""
    unit = jnp.eye(var.shape[-1], dtype=var.dtype) if var.ndim > mean.ndim else jnp.ones((), var.dtype)
    same = mean == 0, var == jnp.broadcast_to(unit, var.shape)
    of_mean, of_var = (v.all(tuple(range(axes, v.ndim))) for v in same)
    return of_mean & of_var


def moments(layer: Any, x: Array, axes: layers.Axes, mean: Array, var: Array, weight: Any) -> Moments:
    """The state of a function whose features are on these axes of x."""
    if weight is None:
        weight = np.ones(var.shape, var.dtype)  # numpy's: no dispatch
    shape = layers.feature_shape(layer, x, axes)
    values = mean, var, weight
    return Moments(*(v if v.shape == shape else layers.per_feature(layer, v, x, axes) for v in values))


def names(layer: Any, schedules: Iterable[str] = ("momentum",)) -> list[str]:
    """What a batch norm keeps: Flax's two, and what a debiased or cumulative average or a schedule needs."""
    kept = ["mean", "var"]
    if layer.debias or layer.momentum is None:
        kept.append("weight")
    if any(callable(getattr(layer, name)) for name in schedules):
        kept.append("step")
    return kept


def initial_stats(shape: tuple[int, ...], dtype: DTypeLike) -> dict[str, Array]:
    """All that a batch norm may keep, at the start."""
    start = _moments.initial_stats(shape, weight=0.0, dtype=dtype)
    return {**start._asdict(), "step": jnp.zeros((), jnp.int32)}


def mark(var: Any) -> Any:
    """What says that statistics are frozen: an array like them, which nn.vmap and nn.scan split alike."""
    return jax.tree.map(lambda v: jnp.ones_like(v, bool), var)


def weight_norm(layer: Any, v: Array, scale: Array | None) -> Array:
    dtype = layers.result_dtype(layer, v, scale)
    options = {"feature_axis": layer.feature_axes, "epsilon": layer.epsilon, "select": _every}
    with calling(type(layer).__name__, layers.words(layer)):
        return _weights.weight_norm(v, scale=scale, dtype=dtype, **options)


def weight_scale(layer: Any, v: Array, key: Array | None) -> Array:
    """The scale at the start: Flax's, or the length of v, with which v stays as it is."""
    lengths = partial(_weights.weight_lengths, v, feature_axis=layer.feature_axes, select=_every)
    if layer.scale_from_weights:
        return lengths().astype(layer.param_dtype)
    return layer.scale_init(key, jax.eval_shape(lengths).shape, layer.param_dtype)


def spectral_norm(layer: Any, v: Array, u: Array, sigma: Array) -> tuple[Array, dict[str, Array]]:
    dtype = layers.result_dtype(layer, v, u)
    options = {"n_steps": layer.n_steps, "epsilon": layer.epsilon, "dtype": dtype}
    with calling(type(layer).__name__):
        w, stats = _spectral.spectral_norm(v, _spectral.SpectralStats(u, sigma), **options)
    return w, stats._asdict()


def is_matrix(layer: Any, v: Array) -> bool:
    """Whether spectral norm is defined on a parameter; Flax takes one of more axes for a matrix, too."""
    if v.ndim <= 1 or layer.n_steps < 1:
        return False
    if v.ndim > 2 and layer.error_on_non_matrix:
        raise ValueError(
            f"SpectralNorm: Input is {v.ndim}D but error_on_non_matrix is True; wrap a layer whose kernel is "
            "a matrix, or leave error_on_non_matrix out to flatten the leading axes."
        )
    return True


def _reshaped(value: Array, shape: tuple[int, ...]) -> Array:
    return value if value.shape == shape else value.reshape(shape)  # an eager reshape is a dispatch


def _every(*_: Any) -> bool:
    return True
