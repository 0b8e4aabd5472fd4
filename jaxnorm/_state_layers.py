"""What the layers that remember share: the statistics of batch norm, and of weights."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxnorm import _batch, _moments, _spectral, _weights
from jaxnorm import _checks as check
from jaxnorm import _layers as layers
from jaxnorm._messages import calling
from jaxnorm._moments import Moments


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

    `norm` is `(kept, *, train) -> (y, (mean, var, weight))`.
    """
    y, new = norm(kept, train=train)
    if updated is False:
        return y, {}
    if updated is True and train is not True:
        _, new = norm(kept, train=True)  # in a compiled program its y costs nothing
    values = dict(zip(("mean", "var", "weight"), new, strict=True))
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
        stats=moments(layer, x, layer.axis, *widened(kept)),
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


def widened(kept: dict[str, Array]) -> tuple[Array, Array, Any]:
    """Mean, var and weight. Flax stores no weight: its average begins at (0, 1) and has a mass of 1."""
    mean, var = (v if v.dtype == jnp.float32 else layers.widen(v) for v in (kept["mean"], kept["var"]))
    return mean, var, kept.get("weight")


def moments(layer: Any, x: Array, axes: layers.Axes, mean: Array, var: Array, weight: Any) -> Moments:
    """The state of a function whose features are on these axes of x."""
    if weight is None:
        weight = np.ones(var.shape, var.dtype)  # numpy's: no dispatch
    shape = layers.feature_shape(layer, x, axes)
    values = mean, var, weight
    return Moments(*(v if v.shape == shape else layers.per_feature(layer, v, x, axes) for v in values))


def names(layer: Any, schedules: Iterable[str] = ("momentum",)) -> list[str]:
    """What a batch norm keeps: Flax's two, and what a debiased average or a schedule needs."""
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


def warn_if_untrained(layer: Any, stats: dict[str, Array]) -> None:
    """Evaluation by the initial statistics changes nothing, and is seldom meant. Python shows it once."""
    mean, var = stats["mean"], stats["var"]
    # what is still being computed has been updated: nothing is waited for
    arrays: list[Any] = [v for v in (mean, var) if isinstance(v, Array)]  # a checkpoint may hold numpy's
    known = all(not check.traced(v) and v.is_fully_addressable and v.is_ready() for v in arrays)
    if known and not np.any(mean) and np.all(np.asarray(var) == 1):
        warnings.warn(
            f"{type(layer).__name__}: evaluated by statistics that no batch has updated; their mean of 0 and "
            "var of 1 leave x as it is. Train first (in linen, keep the batch_stats that apply returns), or "
            "load a checkpoint.",
            stacklevel=2,
        )


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
