"""The statistics that batch norm and its relatives keep, whatever framework stores them.

A `layer` is as in `calls`, with batch norm's fields, and with

    normalize(x, stats, *, train, decay, **call) -> y, stats
    initial_stats(features, dtype) -> stats        at the start, of weight 0
    at_step(value) -> value                        of what may be a schedule
    schedules                                      the names of the fields that may be one
    averages_instances                             whether mean and var are means over instances
    uses_stats                                     what it needs stored statistics for, if it does

It stores them by name: `mean`, `var`, and what its options ask for.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.messages import calling, error
from jaxnorm._core.moments import Moments
from jaxnorm._layers import calls as layers
from jaxnorm._layers import watching
from jaxnorm._norms.microbatches import Pending, initial_pending

STATS = "mean", "var", "weight"
SAMPLE = "measured_sample"  # of a norm that is measured: see `recalibration`
# what `every_k` keeps: the moments since the last update of the average, the calls and the places
PENDING = "pending_mean", "pending_var", "pending_weight", "pending_calls", "pending_places"
SKIPPED = "skipped_channels", "skipped_batches"


def mode(layer: Any, use_running_average: Any, update_stats: bool | None, frozen: bool) -> tuple[Any, Any]:
    """Whether a call normalizes by the batch's statistics, and whether it stores them.

    They are two questions. Flax asks the first; its answer to the second, where the batch's are used, is that
    of `update_stats=None`, in the call and in the layer.
    """
    if update_stats is None:
        update_stats = layer.update_stats
    if not layer.track_stats:
        _refuse_stored(layer, {"update_stats=True": bool(update_stats), "a frozen layer": frozen})
        return True, False
    if frozen:
        return False, False
    with calling(type(layer).__name__):
        use_running_average = check.train(use_running_average, "use_running_average")
    traced = check.traced(use_running_average)
    train = jnp.logical_not(use_running_average) if traced else not use_running_average
    return train, train if update_stats is None else bool(update_stats)


def _refuse_stored(layer: Any, options: Mapping[str, bool]) -> None:
    """A ValueError for the first option that is set and that a layer without statistics cannot have."""
    for option, is_set in options.items():
        if is_set:
            problem = f"{option} needs stored statistics, and track_stats=False keeps none"
            with calling(type(layer).__name__):
                raise error(ValueError, problem, "leave out one of the two")


def tell(
    layer: Any, x: Array, stored: Mapping[str, Array], *, mask: Any = None, weights: Any = None, **_: Any
) -> None:
    """Tell `diagnose` of a call, if it asks.

    Args:
      layer: the norm.
      x: what it was called with.
      stored: its statistics by name; none with `track_stats=False`.
      mask, weights: of the call, whose other options do not matter.
    """
    if watching.on():
        features = check.axes(layers.feature_axes(layer), x, "feature_axis")
        axes = [axis for axis in range(x.ndim) if axis not in features]
        size = stored["mean"].size if "mean" in stored else 0
        watching.tell_statistics(layer, x, layers.where(mask, weights), axes, size)


def moments(layer: Any, x: Array, stored: Mapping[str, Array], train: Any) -> Moments:
    """The stored statistics as the state of a function whose features are on these axes of x."""
    mean, var, weight = widened(layer, stored, train)
    if weight is None:
        weight = np.ones(mean.shape[: mean.ndim * 2 - var.ndim], var.dtype)  # numpy's: no dispatch
    return shaped(layer, x, mean, var, weight)


def shaped(layer: Any, x: Array, mean: Array, var: Array, weight: Any) -> Moments:
    """Statistics in the shape of x's features.

    Where `var` has an axis more than `mean` they are the covariances of groups, and none is reshaped.
    """
    if var.ndim > mean.ndim:
        return Moments(mean, var, weight)
    shape = layers.feature_shape(layer, x)
    return Moments(*(layers.per_feature(layer, v, x, shape) for v in (mean, var, weight)))


def widened(layer: Any, stored: Mapping[str, Array], train: Any) -> tuple[Array, Array, Any]:
    """Mean, var and weight, of what is stored, for a call; a weight of None is 1."""
    mean, var = (v if v.dtype == jnp.float32 else layers.widen(v) for v in (stored["mean"], stored["var"]))
    weight = stored.get("weight")
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


def names(layer: Any, is_stored: Callable[[str], bool] = lambda name: False) -> list[str]:
    """What is stored: Flax's two, and what options need.

    Args:
      layer: with its options.
      is_stored: whether there is something of that name. What `every_k` has gathered is used up, whatever
        `every_k` is now.
    """
    every_k = count(layer, "every_k")
    if not layer.track_stats:
        if layer.uses_stats:
            problem = f"track_stats=False keeps no statistics, which are needed {layer.uses_stats}"
            with calling(type(layer).__name__):
                raise error(ValueError, problem, "choose BatchNorm")
        needs = {f"every_k={every_k}": every_k > 1, f"blend={layer.blend}": layer.blend is not None}
        _refuse_stored(layer, {**needs, "count_skipped=True": layer.count_skipped})
        return []
    if layer.averages_instances and layer.momentum is None:
        with calling(type(layer).__name__):
            problem = "momentum=None is a cumulative average, which this norm does not keep"
            raise error(ValueError, problem, "choose the fraction of the OLD average that is kept, as 0.9")
    stored = ["mean", "var"]
    if layer.debias or layer.momentum is None:
        stored.append("weight")
    if any(callable(getattr(layer, name)) for name in layer.schedules):
        stored.append("step")
    if every_k > 1 or is_stored(PENDING[0]):
        stored.extend(PENDING)
    if layer.count_skipped:
        stored.extend(SKIPPED)
    if is_stored(SAMPLE):
        stored.append(SAMPLE)
    return stored


def start(layer: Any, features: layers.Shape, dtype: DTypeLike) -> dict[str, Array]:
    """All that may be stored, at the start; no two are one array, so that all can be donated."""
    stats = layer.initial_stats(features, dtype)
    zero = jnp.zeros((), jnp.int32)
    return {
        **dict(zip(STATS, stats, strict=True)),
        "step": zero,
        **by_name(initial_pending(stats)),
        "skipped_channels": jnp.zeros_like(stats[-1], jnp.int32),
        "skipped_batches": jnp.zeros_like(zero),
    }


def by_name(pending: Pending) -> dict[str, Array]:
    """What `every_k` keeps, by the names in `PENDING`."""
    return dict(zip(PENDING, (*pending.moments, pending.calls, pending.places), strict=True))


def without_pending(stored: Mapping[str, Array]) -> dict[str, Array]:
    """The statistics of a layer, by name, with nothing gathered by `every_k`."""
    return {name: jnp.zeros_like(v) if name in PENDING else v for name, v in stored.items()}


def at_step(layer: Any, value: Any, step: Array | None) -> Any:
    """What may be a schedule, of the updates counted in `step`; None: not counted yet."""
    if not callable(value):
        return value
    if "step" not in names(layer):
        raise ValueError(
            f"{type(layer).__name__}: a schedule needs the number of updates, which is not counted; name the "
            f"field that holds it in `schedules`, now {layer.schedules}."
        )
    with layers.promotion():  # a schedule's own arithmetic
        return value(jnp.zeros((), jnp.int32) if step is None else step)


def count(layer: Any, field: str) -> int:
    """A field that says how many there are."""
    with calling(type(layer).__name__):
        return check.integer(field, getattr(layer, field), least=1, remedy="choose 1 or more")


def start_dtype(layer: Any, x: Array, dtype: DTypeLike) -> DTypeLike:
    """The dtype of linen's statistics at the start: Flax's, which does not depend on x, or float32 if wider.

    Args:
      layer: of linen.
      x: what is normalized; the mean of complex numbers is complex.
      dtype: of y.
    """
    least = jnp.float32 if layer.force_float32_reductions else layer.param_dtype
    return layers.mean_dtype(least, x.dtype, dtype)


def nothing_chosen(filter: Any, found: list[str]) -> ValueError:
    """What `freeze` says where its filter chooses nothing that keeps statistics."""
    there = ", ".join(name or "the model itself" for name in found) or "none that keeps statistics"
    return error(ValueError, f"filter={filter!r} chooses no batch norm", f"there is: {there}")


def mark(var: Any) -> Any:
    """What says that statistics are frozen: an array like them, which nn.vmap and nn.scan split alike."""
    return jax.tree.map(lambda v: jnp.ones_like(v, bool), var)
