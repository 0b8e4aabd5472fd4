"""Nnx's batch norm, the base of all norms that keep statistics."""

import inspect
from collections.abc import Callable
from dataclasses import InitVar
from functools import partial, wraps
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.typing import PromoteDtypeFn
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

import jaxnorm
from jaxnorm._base.compilation import compiled
from jaxnorm._layers import calls as layers
from jaxnorm._layers import recalibration
from jaxnorm._layers import state as state
from jaxnorm._layers import update as update
from jaxnorm._layers.calls import Initializer, Shape
from jaxnorm.nnx.parameters import NO_METADATA, Layer, Metadata, parameters, promoted

# Of a frozen layer: a variable, whatever its value, so that it is part of the layer's state.
MARK = "frozen_mark"


def is_frozen(layer: Any) -> bool:
    """Whether the layer has the mark of `freeze`."""
    return hasattr(layer, MARK)


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


class Stateful(Layer):
    """A layer that keeps statistics: what batch norm and instance norm have in common."""

    averages_instances: ClassVar[bool] = False  # whether mean and var are averages of those of instances
    uses_stats: ClassVar[str] = ""  # what a subclass needs stored statistics for, as "to ..."
    schedules: ClassVar[tuple[str, ...]] = ("momentum",)

    def __post_init__(self, *variables: Any) -> None:
        super().__post_init__(*variables)
        names, values = state.names(self), self._start()
        for name in names:
            setattr(self, name, nnx.BatchStat(values[name]))

    def initial_stats(self, features: Shape, dtype: DTypeLike) -> Any:
        """The statistics before training, of weight 0: mean, var and weight."""
        return jaxnorm.initial_stats(features, weight=0.0, dtype=dtype)

    def at_step(self, value: Any) -> Any:
        """The value of a field that may be a schedule, of the updates counted in `step`."""
        return state.at_step(self, value, self.step[...] if hasattr(self, "step") else None)

    def normalize_and_update(
        self, x: Array, use_running_average: bool | None, update_stats: bool | None, **call: Any
    ) -> Array:
        """y by `normalize`, and the statistics updated: what a call of a subclass returns.

        Args:
          x, use_running_average, update_stats: of the call.
          call: `mask`, `weights`, `scale` and `bias` of the call, and what else `normalize` takes.
        """
        layer: Any = self  # the fields are those of the subclasses, in Flax's order
        if use_running_average is None:
            use_running_average = layer.use_running_average
        if use_running_average is None and layer.track_stats:
            name = type(self).__name__
            raise ValueError(
                f"{name}: No `use_running_average` argument was provided to {name}. Pass it to the "
                "constructor or to the call, or set it with train(), eval() or nnx.view."
            )
        if hasattr(self, state.SAMPLE):
            train, updated = not self.frozen, False
        else:
            train, updated = state.mode(self, use_running_average, update_stats, self.frozen)
        y, new = self._y_and_stats(x, train=train, updated=updated, **call)
        state.tell(self, x, {"mean": layer.mean[...]} if hasattr(self, "mean") else {}, **call)
        for name, value in new.items():
            if hasattr(self, name):
                getattr(self, name).set_value(value)
            else:  # an option that was changed after the layer was built needs it
                setattr(self, name, nnx.BatchStat(value))
        return y

    @compiled
    def _y_and_stats(self, x: Array, **call: Any) -> tuple[Array, dict[str, Array]]:
        """y, and the statistics to store. Those that a changed option needs are created at their start."""
        names = state.names(self, partial(hasattr, self))
        stored = {name: getattr(self, name).get_value() for name in names if hasattr(self, name)}
        if len(stored) < len(names):
            values = self._start()
            stored = {name: stored.get(name, values[name]) for name in names}
        call.update(self._promotion(stored))
        run = recalibration.measure if state.SAMPLE in names else update.normalize_and_update
        return run(self, x, parameters(self), stored, **call)

    def _promotion(self, stored: dict[str, Array]) -> dict[str, Any]:
        """The option `promote` of `calls.normalize`, for a layer that promotes as Flax's own does."""
        return {}

    def _start(self) -> dict[str, Array]:
        """All that may be stored, at the start. A mean is complex if y or a parameter may be."""
        layer: Any = self
        dtype = layers.mean_dtype(jnp.float32, layer.dtype, layer.param_dtype)
        return state.start(self, (self.num_features,), dtype)

    @property
    def frozen(self) -> bool:
        """Whether `freeze` holds the statistics still."""
        return is_frozen(self)

    @_as_flax_calls_it
    def set_view(self, use_running_average: bool | None = None, update_stats: bool | None = None) -> None:
        """For `nnx.view`.

        Args:
          use_running_average: normalize by the stored statistics, not the batch's.
          update_stats: update the stored statistics, or keep them.
        """
        layer: Any = self
        if use_running_average is not None:
            layer.use_running_average = use_running_average
        if update_stats is not None:
            layer.update_stats = update_stats


class BatchNorm(Stateful, nnx.BatchNorm):
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

    `every_k=k` puts the moments of k training calls into the average once, merged: the statistics of the
    large batch under gradient accumulation. They wait in `pending_*`; `step` counts updates of the average.
    `blend=alpha` evaluates by alpha times the stored mean and var plus 1 - alpha times the batch's: a number
    in [0, 1], or a function of the number of samples. `track_stats=False` stores nothing and normalizes by
    the batch always. `count_skipped=True` keeps in `skipped_channels` and `skipped_batches` how often what
    was not finite was left out. See docs/statistics_after_training.md.

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

    A norm of your own that keeps statistics is a subclass, with its options as fields and a `normalize`: it
    returns y and the new statistics, a `Moments` like `stats`. `call` holds what `jaxnorm.batch_norm` takes:
    `train`, `decay`, `scale`, `bias`, `where`, `feature_axis`, `epsilon`, `dtype` and, where they are set,
    `axis_name`, `axis_index_groups` and `unbiased`. Storage, modes, masks, freezing and checkpoints are those
    of `BatchNorm`. More parameters: `shapes` adds them, each is initialized by the field `<name>_init`, and
    `call` holds them, too. A field that may be a schedule: name it in `schedules` and read it with
    `self.at_step(self.name)`. Other statistics than mean and var: `initial_stats`.

    >>> import jaxnorm
    >>> class StreamNorm(jn.BatchNorm):
    ...     '''By the running average with this batch in it, and never beyond `limit` deviations.'''
    ...
    ...     limit: float = 3.0
    ...
    ...     def normalize(self, x, stats, *, train, **call):
    ...         _, stats = jaxnorm.batch_norm(x, stats, train=train, **call)
    ...         y, _ = jaxnorm.batch_norm(x, stats, train=False, **call)
    ...         return jnp.clip(y, -self.limit, self.limit), stats
    >>> norm = StreamNorm(1, limit=1.0, debias=True, rngs=nnx.Rngs(0))
    >>> x = jnp.asarray([[1.0], [3.0]])
    >>> y = norm(x, mask=x < 3)
    >>> print(y.ravel(), norm.mean[...])
    [0. 1.] [1.]
    """

    use_running_average: bool | None = False
    axis: int = -1
    momentum: Any = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    promote_dtype: PromoteDtypeFn = promote_dtype
    rngs: InitVar[nnx.Rngs]
    bias_metadata: InitVar[Metadata] = NO_METADATA
    scale_metadata: InitVar[Metadata] = NO_METADATA
    update_stats: bool | None = None
    debias: bool = False
    unbiased: bool = False
    every_k: int = 1
    blend: Any = None
    track_stats: bool = True
    count_skipped: bool = False

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
        call = {"mask": mask, "weights": weights, "scale": scale, "bias": bias}
        return self.normalize_and_update(x, use_running_average, update_stats, **call)

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        """y and the new statistics: what a subclass changes."""
        return jaxnorm.batch_norm(x, stats, **call)

    def _promotion(self, stored: dict[str, Array]) -> dict[str, Any]:
        if type(self).normalize is not BatchNorm.normalize:
            return {}
        # Flax's own promotes its statistics, too
        return {"promote": promoted(self, *(stored[name] for name in ("mean", "var") if name in stored))}
