"""The statistics that batch norm and its relatives keep, whatever framework stores them.

A `layer` is as in `calls`, with batch norm's fields, and with

    normalize(x, stats, *, train, decay, **call) -> y, stats
    initial_stats(features, dtype) -> stats        at the start, of weight 0
    at_step(value) -> value                        of what may be a schedule
    schedules                                      the names of the fields that may be one

It stores them by name: `mean`, `var`, and what its options ask for of `weight` and `step`.
"""

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

STATS = "mean", "var", "weight"


def mode(layer: Any, use_running_average: Any, update_stats: bool | None, frozen: bool) -> tuple[Any, Any]:
    """Whether a call normalizes by the batch's statistics, and whether it stores them.

    They are two questions. Flax asks the first; its answer to the second, where the batch's are used, is that
    of `update_stats=None`, in the call and in the layer.
    """
    if frozen:
        return False, False
    with calling(type(layer).__name__):
        use_running_average = check.train(use_running_average, "use_running_average")
    traced = check.traced(use_running_average)
    train = jnp.logical_not(use_running_average) if traced else not use_running_average
    if update_stats is None:
        update_stats = layer.update_stats
    return train, train if update_stats is None else bool(update_stats)


def normalize_and_update(
    layer: Any,
    x: Array,
    parameters: dict[str, Array],
    stored: dict[str, Array],
    *,
    train: Any,
    updated: Any,
    **call: Any,
) -> tuple[Array, dict[str, Array]]:
    """y, and the statistics to store, shaped as they came in: none where nothing is stored.

    Args:
      layer, x, parameters: as for `calls.normalize`.
      stored: the statistics that `names` lists, by name; what is not stored yet, at its start.
      train: whether the batch's statistics normalize, a bool or traced.
      updated: whether the statistics are updated: a bool, or `train`.
      call: the options of `calls.normalize`, and what else `normalize` takes.
    """

    def norm(train: Any) -> tuple[Array, Any]:
        options = {"decay": layer.at_step(layer.momentum), "feature_axis": layer.axis, **call}
        if layer.unbiased:
            options["unbiased"] = True
        stats = moments(layer, x, stored, train)
        return layers.normalize(layer, x, parameters, stats, train=train, **options)

    y, new = norm(train)
    if updated is False:
        return y, {}
    if updated is True and train is not True:
        _, new = norm(True)  # in a compiled program its y costs nothing
    values = dict(zip(STATS, new, strict=True))
    if "weight" in stored and check.traced(updated):
        values["weight"] = jnp.where(
            updated, values["weight"].reshape(stored["weight"].shape), stored["weight"]
        )
    if "step" in stored:
        values["step"] = stored["step"] + jnp.asarray(updated, jnp.int32)
    # an eager reshape is a dispatch
    return y, {
        name: value if (value := values[name]).shape == old.shape else value.reshape(old.shape)
        for name, old in stored.items()
    }


def moments(layer: Any, x: Array, stored: dict[str, Array], train: Any) -> Moments:
    """The stored statistics as the state of a function whose features are on these axes of x.

    Where `var` has an axis more than `mean` they are the covariances of groups, and none is reshaped.
    """
    mean, var, weight = widened(layer, stored, train)
    if weight is None:
        weight = np.ones(mean.shape[: mean.ndim * 2 - var.ndim], var.dtype)  # numpy's: no dispatch
    if var.ndim > mean.ndim:
        return Moments(mean, var, weight)
    shape = layers.feature_shape(layer, x)
    return Moments(*(layers.per_feature(layer, v, x, shape) for v in (mean, var, weight)))


def widened(layer: Any, stored: dict[str, Array], train: Any) -> tuple[Array, Array, Any]:
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


def names(layer: Any) -> list[str]:
    """What is stored: Flax's two, and what a debiased or cumulative average or a schedule needs."""
    stored = ["mean", "var"]
    if layer.debias or layer.momentum is None:
        stored.append("weight")
    if any(callable(getattr(layer, name)) for name in layer.schedules):
        stored.append("step")
    return stored


def start(layer: Any, features: layers.Shape, dtype: DTypeLike) -> dict[str, Array]:
    """All that may be stored, at the start."""
    stats = layer.initial_stats(features, dtype)
    return {**dict(zip(STATS, stats, strict=True)), "step": jnp.zeros((), jnp.int32)}


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
