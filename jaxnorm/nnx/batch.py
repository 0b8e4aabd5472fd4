"""Nnx's batch norm."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxnorm._base.compilation import compiled_method
from jaxnorm._base.messages import Named
from jaxnorm._layers import calls as layers
from jaxnorm._layers import state as state
from jaxnorm.nnx.parameters import own_parameters

# Of a frozen layer: a variable, whatever its value, so that it is part of the layer's state.
MARK = "frozen_mark"


def _as_flax_calls_it(set_view: Callable[..., None]) -> Callable[..., Any]:
    """Flax's older `nnx.view` gives every module all that it was given, and takes back what was not meant."""
    parameters = inspect.signature(nnx.BatchNorm.set_view).parameters.values()
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        return set_view

    @wraps(set_view)
    def giving_back(
        self: Any, use_running_average: bool | None = None, update_stats: bool | None = None, **others: Any
    ) -> dict[str, Any]:
        set_view(self, use_running_average, update_stats)
        return others

    return giving_back


class BatchNorm(Named, nnx.BatchNorm):
    """Batch norm: y = (x - mean) / sqrt(var + epsilon) * scale + bias, over all axes but `axis`.

    The `nnx.BatchStat`s `mean` and `var` are moving averages with weight `momentum` on the old value. An
    empty batch, or one that is masked whole, leaves them as they are; with `axis_name` every device
    counts by its unmasked elements. `use_running_average=True`, in the call or else in the layer, applies
    them; in the call it may be traced; None in both is a ValueError. The mean is complex if `dtype` or
    `param_dtype` is.

    After Flax's options: `update_stats`, in the call or else in the layer, says whether the statistics are
    updated, by default where the batch's are used. `debias=True` leaves the initial (0, 1) out of the
    average and keeps its `weight`; so does `momentum=None`, the exact average over all batches. `momentum`
    may be an optax schedule, always traced, of the updates counted in `step`. `unbiased=True` stores
    PyTorch's variance. `nnx.view` takes `update_stats`, too.

    Evaluation uses the stored mean and var, whatever the weight: before training they are 0 and 1, the
    identity. A weight of 0 says that no batch has been counted; one that is missing, since `set_attributes`
    has changed an option, counts as 0, and the first training call stores it, as it does a missing `step`. A
    cumulative average then starts with that batch; with `debias=True` a mean and var other than 0 and 1 are a
    whole average, of weight 1. A channel whose mean or var is not finite, or whose var is negative, counts as
    not seen: evaluation takes 0 and 1, and training starts anew.

    Ioffe and Szegedy, 2015, arXiv:1502.03167.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> norm = jn.BatchNorm(1, momentum=0.5, epsilon=0.0, rngs=nnx.Rngs(0))
    >>> norm(jnp.asarray([[1.0], [3.0]])).tolist(), norm.mean.get_value().tolist()
    ([[-1.0], [1.0]], [1.0])
    >>> norm.eval()
    >>> norm(jnp.asarray([[1.0]])).tolist()
    [[0.0]]
    """

    @layers.extends(nnx.BatchNorm.__init__)
    def __init__(
        self,
        *args: Any,
        update_stats: bool | None = None,
        debias: bool = False,
        unbiased: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.update_stats, self.debias, self.unbiased = update_stats, debias, unbiased
        keep(self, state.names(self), partial(BatchNorm.initial, self))

    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
        update_stats: bool | None = None,
    ) -> Array:
        return remembered(
            self,
            x,
            use_running_average=use_running_average,
            update_stats=update_stats,
            mask=mask,
            weights=weights,
            scale=scale,
            bias=bias,
        )

    @property
    def frozen(self) -> bool:
        """Whether `freeze` holds the statistics still."""
        return is_frozen(self)

    def initial(self, features: tuple[int, ...], dtype: Any) -> dict[str, Array]:
        """All that may be stored, at the start."""
        return state.initial_stats(features, dtype)

    @compiled_method
    def _normalize(
        self, x: Array, *conditions: Any, train: Any, updated: Any, **options: Any
    ) -> tuple[Array, dict[str, Array]]:
        """y, and the statistics to store; only a relative is under conditions."""
        return state.remembered(*self._prepared(x, *conditions, **options), train=train, updated=updated)

    def _prepared(
        self, x: Array, mask: Any = None, weights: Any = None, scale: Any = None, bias: Any = None
    ) -> tuple[Any, dict[str, Array]]:
        """The norm of x, as `state.remembered` calls it, and the statistics that it is by."""
        stats = stored(self, state.names(self))
        own = own_parameters(self, x, self.axis, stats["mean"], stats["var"], scale=scale, bias=bias)
        return partial(state.batch_norm, self, x, mask, weights, **own), stats

    @_as_flax_calls_it
    def set_view(self, use_running_average: bool | None = None, update_stats: bool | None = None) -> None:
        """For `nnx.view`.

        Args:
          use_running_average: normalize by the stored statistics, not the batch's.
          update_stats: update the stored statistics, or keep them.
        """
        super().set_view(use_running_average)
        if update_stats is not None:
            self.update_stats = update_stats


def is_frozen(layer: Any) -> bool:
    """Whether the layer has the mark of `freeze`."""
    return hasattr(layer, MARK)


Initial = Callable[[tuple[int, ...], Any], dict[str, Array]]


def start(layer: Any, initial: Initial) -> dict[str, Array]:
    """All that the layer may keep, at the start. A mean is complex if y or a parameter may be."""
    return initial((layer.num_features,), layers.mean_dtype(jnp.float32, layer.dtype, layer.param_dtype))


def keep(layer: Any, names: list[str], initial: Initial) -> None:
    """Makes the variables of these names."""
    values = start(layer, initial)
    for name in names:
        setattr(layer, name, nnx.BatchStat(values[name]))


def stored(layer: Any, names: list[str]) -> dict[str, Array]:
    """The values of these names; those that a changed option needs, and that are not stored yet, start."""
    there = {name: getattr(layer, name)[...] for name in names if hasattr(layer, name)}
    if len(there) == len(names):
        return there
    values = start(layer, layer.initial)
    return {name: there.get(name, values[name]) for name in names}


def remembered(
    layer: Any,
    x: Array,
    *conditions: Any,
    use_running_average: bool | None = None,
    update_stats: bool | None = None,
    **options: Any,
) -> Array:
    """y, by the layer's statistics, which are kept updated."""
    if use_running_average is None:
        use_running_average = layer.use_running_average
    if use_running_average is None:
        name = type(layer).__name__
        raise ValueError(
            f"{name}: No `use_running_average` argument was provided to {name}. Pass it to the "
            "constructor or to the call, or set it with train(), eval() or nnx.view."
        )
    train, updated = state.mode(layer, use_running_average, update_stats, layer.frozen)
    y, new = layer._normalize(x, *conditions, train=train, updated=updated, **options)
    for name, value in new.items():
        if hasattr(layer, name):
            getattr(layer, name).set_value(value)
        else:  # an option that was changed after the layer was built needs it
            setattr(layer, name, nnx.BatchStat(value))
    return y
