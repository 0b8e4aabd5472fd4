"""A call of a layer that keeps statistics: y, and what is stored afterwards.

y        by the layer's `normalize`: by the batch's statistics, the stored ones, or a blend of both
stats    the average with this batch in it, or with every `every_k` batches at once
skipped  how many channels and batches were left out, as they were not finite
"""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxnorm._base import checks as check
from jaxnorm._base.messages import calling, error
from jaxnorm._core.moments import Moments
from jaxnorm._core.moments import moments as moments_of
from jaxnorm._layers import calls as layers
from jaxnorm._layers import state as state
from jaxnorm._norms.banks import blended
from jaxnorm._norms.microbatches import Pending, accumulate


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
      stored: the statistics that `state.names` lists, by name; what is not stored yet, at its start.
      train: whether the batch's statistics normalize, a bool or traced.
      updated: whether the statistics are updated: a bool, or `train`.
      call: the options of `calls.normalize`, and what else `normalize` takes.
    """

    def norm(x: Array, stats: Any, train: Any, **options: Any) -> tuple[Array, Any]:
        options = {"feature_axis": layers.feature_axes(layer), **call, **options}
        return layers.normalize(layer, x, parameters, stats, train=train, **options)

    if not layer.track_stats:
        dtype = layers.mean_dtype(jnp.float32, x.dtype, layer.dtype)
        nothing = state.start(layer, layers.feature_shape(layer, x), dtype)
        stats = state.shaped(layer, x, *(nothing[name] for name in state.STATS))
        return norm(x, stats, True, decay=None)[0], {}

    averaging = {"decay": layer.at_step(layer.momentum)}
    if layer.unbiased:
        averaging["unbiased"] = True
    stats = state.moments(layer, x, stored, train)
    used = stats if train is True or layer.blend is None else _blend(layer, x, stats, train, **call)
    y, new = norm(x, used, train, **averaging)
    if updated is False:
        return y, {}
    if updated is True and train is not True:
        stats = state.moments(layer, x, stored, True)
        _, new = norm(x, stats, True, **averaging)  # in a compiled program its y costs nothing

    values: dict[str, Array] = {}
    step: int | Array = 1
    gathers, counts = (names[0] in stored for names in (state.PENDING, state.SKIPPED))
    if gathers or counts:
        # The moments of this batch alone, as a state that starts with it: of weight 0 where there are none.
        # They are those that y is made by, and a compiled program takes them once.
        empty = stats._replace(weight=jnp.zeros_like(stats.weight))
        batch = norm(x, empty, True, decay=None)[1]
        called = at_index(call.get("index"), batch.weight)
        of_x = partial(moments_of_batch, layer, x, stats, initializing=call.get("initializing", False))
    if counts:
        where = layers.where(call.get("mask"), call.get("weights"))
        seen = called & (of_x(where).weight > 0)  # of which x is not read
        values |= _skipped(stored, seen, seen & (batch.weight == 0))
    if gathers:
        places = None
        if layer.unbiased and call.get("weights") is not None:
            places = of_x(jnp.asarray(layers.where(call.get("mask"), call["weights"])) > 0).weight
        mean, var, weight, calls, counted = (stored[name] for name in state.PENDING)
        parts = state.shaped(layer, x, layers.widen(mean), layers.widen(var), weight)
        calls, counted = (v.reshape(parts.weight.shape) for v in (calls, counted))
        new, left = accumulate(
            type(batch)(*map(jnp.asarray, stats)),
            Pending(type(batch)(*parts), calls, counted),
            batch,
            every_k=layer.every_k,
            places=places,
            called=called,
            **averaging,
        )
        values |= state.by_name(left)
        step = jnp.any(called & (left.calls == 0)).astype(jnp.int32)  # the average was updated
    values |= dict(zip(state.STATS, new, strict=True))
    if "step" in stored:
        values["step"] = stored["step"] + step
    return y, {name: _kept(updated, values[name], old) for name, old in stored.items()}


def _kept(updated: Any, new: Array, old: Array) -> Array:
    """The new value in the old one's shape, where the statistics are updated."""
    if new.shape != old.shape:  # an eager reshape is a dispatch
        new = new.reshape(old.shape)
    return jnp.where(updated, new, old.astype(new.dtype)) if check.traced(updated) else new


def at_index(index: Any, weight: Array) -> Array:
    """Where a call counts: everywhere, or at the index of a bank, which is clipped as in `bank_norm`."""
    if index is None:
        return jnp.ones_like(weight, bool)
    states = jnp.arange(weight.shape[0]).reshape(-1, *(1,) * (weight.ndim - 1))
    return jnp.broadcast_to(states == jnp.clip(jnp.asarray(index), 0, weight.shape[0] - 1), weight.shape)


def _skipped(stored: dict[str, Array], seen: Array, left_out: Array) -> dict[str, Array]:
    """The counts of what was not finite, with this batch.

    Args:
      stored: the counts before, by name.
      seen: where the batch has something that is not masked.
      left_out: where it was not finite, of the same shape.
    """
    channels, batches = (stored[name] for name in state.SKIPPED)
    whole = jnp.any(left_out) & jnp.all(left_out == seen)
    return {
        "skipped_channels": channels + left_out.reshape(channels.shape).astype(channels.dtype),
        "skipped_batches": batches + whole.astype(batches.dtype),
    }


def moments_of_batch(
    layer: Any, x: Array, stats: Moments, where: Any, *, initializing: bool = False
) -> Moments:
    """The moments of x, differentiable in it, in the shape of the layer's statistics: alike in all of a bank.

    Args:
      layer, x: as for `normalize_and_update`.
      stats: in the shape of x's features, a bank of them, or the covariances of groups, of which the weight
        alone is then right.
      where: a mask, weights or None.
      initializing: then no device is asked for anything.
    """
    features = check.axes(layers.feature_axes(layer), x, "feature_axis")
    axes = tuple(a for a in range(x.ndim) if a not in features)
    m = moments_of(x, axes, where=where, **({} if initializing else layers.devices(layer)))
    if stats.var.ndim > stats.mean.ndim:
        return Moments(*(v.reshape(stats.mean.shape)[:, 0] for v in m))
    return Moments(*(jnp.broadcast_to(v, stats.mean.shape) for v in m))


def _blend(
    layer: Any,
    x: Array,
    stats: Moments,
    train: Any,
    *,
    mask: Any = None,
    weights: Any = None,
    initializing: bool = False,
    **_: Any,
) -> Moments:
    """The stored statistics blended with those of x; where `train` is traced and true, the stored ones.

    Args:
      layer, x: as for `normalize_and_update`.
      stats: in the shape of x's features, or a bank of them.
      train: False, or traced.
      mask, weights, initializing: of the call.
    """
    with calling(type(layer).__name__, layers.words(layer, mask)):
        if stats.var.ndim > stats.mean.ndim:
            problem = "blend is of a mean and a variance, and this layer stores covariances"
            raise error(ValueError, problem, "choose blend=None")
        where = layers.where(mask, weights)
        batch = moments_of_batch(layer, x, stats, where, initializing=initializing)
        alpha, features = layer.blend, layers.feature_shape(layer, x)
        if callable(alpha):  # of the number of samples, in which all places of a sample count as one
            owned = check.axes(layers.feature_axes(layer), x, "feature_axis")
            places = math.prod(n for axis, n in enumerate(x.shape) if axis and axis not in owned)
            with layers.promotion():
                alpha = alpha(batch.weight / places)
        check.alpha(alpha)
        if jnp.ndim(alpha):
            alpha = layers.per_feature(layer, jnp.asarray(alpha), x, features)
            alpha = jnp.broadcast_to(alpha, stats.mean.shape)
    whole = Moments(*map(jnp.asarray, stats))
    mixed = blended(whole, batch, alpha)
    if train is False:
        return mixed
    return Moments(*(jnp.where(train, s, m) for s, m in zip(whole, mixed, strict=True)))
