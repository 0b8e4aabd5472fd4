"""Linen's batch norm, the base of all norms that keep statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from flax import linen as nn
from flax.errors import FlaxError, ModifyScopeVariableError
from jax import Array
from jax.typing import DTypeLike

import jaxnorm
from jaxnorm._layers import calls as layers
from jaxnorm._layers import recalibration
from jaxnorm._layers import state as state
from jaxnorm._layers import update as update
from jaxnorm._layers.calls import Shape
from jaxnorm.linen.parameters import Layer, parameters

_STATS = "batch_stats"
_MODE = (
    "say which statistics normalize, those of the batch in training (use_running_average=False) "
    "or the stored ones in evaluation (True), once: in the constructor or in the call."
)
_COLLECTION = (
    "the statistics are in the collection batch_stats that init returned; pass it to apply with "
    'the parameters: {"params": params, "batch_stats": batch_stats}.'
)
_MUTABLE = (
    'training updates the statistics; call apply(..., mutable=["batch_stats"]), which returns y '
    "and the new ones, or evaluate with use_running_average=True, or pass update_stats=False."
)


class Stateful(Layer):
    """A layer that keeps statistics: what batch norm and instance norm have in common."""

    averages_instances: ClassVar[bool] = False  # whether mean and var are averages of those of instances
    uses_stats: ClassVar[str] = ""  # what a subclass needs stored statistics for, as "to ..."
    schedules: ClassVar[tuple[str, ...]] = ("momentum",)

    def initial_stats(self, features: Shape, dtype: DTypeLike) -> Any:
        """The statistics before training, of weight 0: mean, var and weight."""
        return jaxnorm.initial_stats(features, weight=0.0, dtype=dtype)

    def at_step(self, value: Any) -> Any:
        """The value of a field that may be a schedule, of the updates counted in `step`."""
        return state.at_step(self, value, self.get_variable(_STATS, "step"))

    def normalize_and_update(
        self, x: Array, use_running_average: bool | None, update_stats: bool | None, **call: Any
    ) -> Array:
        """y by `normalize`, and the collection's statistics updated: what a call of a subclass returns.

        Args:
          x, use_running_average, update_stats: of the call.
          call: `mask`, `weights`, `scale` and `bias` of the call, and what else `normalize` takes.
        """
        name = type(self).__name__
        if self.track_stats:
            with _advice(ValueError, f"{name}: {_MODE}"):
                use_running_average = nn.merge_param(
                    "use_running_average", self.use_running_average, use_running_average
                )
        initializing, values = self.is_initializing(), parameters(self, x)
        names = state.names(self, partial(self.has_variable, _STATS))

        def start(name: str) -> Array:
            dtype = state.start_dtype(self, x, layers.result_dtype(self, x, *values.values()))
            return state.start(self, layers.feature_shape(self, x), dtype)[name]

        # A mean or var that is missing is an error, as in Flax; the first training call creates all else.
        there = {"mean", "var", *(n for n in names if initializing or self.has_variable(_STATS, n))}
        with _advice(FlaxError, f"{name}: {_COLLECTION}"):
            kept = {n: self.variable(_STATS, n, start, n) for n in names if n in there}
        stats = {n: kept[n].value if n in kept else start(n) for n in names}
        frozen = self.has_variable(_STATS, "frozen")
        if state.SAMPLE in names:
            train, updated = not frozen, False
        else:
            train, updated = state.mode(self, use_running_average, update_stats, frozen)
        modes = {"train": train, "updated": False if initializing else updated, "initializing": initializing}
        run = recalibration.measure if state.SAMPLE in names else update.normalize_and_update
        y, new = run(self, x, values, stats, **modes, **call)
        state.tell(self, x, stats, **call)
        with _advice(ModifyScopeVariableError, f"{name}: {_MUTABLE}"):
            for n, value in new.items():
                if n in kept:
                    kept[n].value = value
                else:
                    self.put_variable(_STATS, n, value)
        return y


class BatchNorm(Stateful, nn.BatchNorm):
    """Batch norm: y = (x - mean) / sqrt(var + epsilon) * scale + bias, over all axes but `axis`.

    The collection `batch_stats` holds `mean` and `var`, one value a feature: moving averages with weight
    `momentum` on the old value. An empty batch, or one that is masked whole, leaves them as they are;
    with `axis_name` every device counts by its unmasked elements. `use_running_average=True`, in the
    constructor or in the call, applies them; in the call it may be traced. As in Flax, giving it in
    neither or in both is a ValueError.

    After Flax's options: `update_stats`, in the constructor or in the call, says whether the statistics are
    updated, by default where the batch's are used. `debias=True` leaves the initial (0, 1) out of the
    average and keeps its `weight`; so does `momentum=None`, the exact average over all batches. `momentum`
    may be an optax schedule, of the updates counted in `step`. `unbiased=True` stores PyTorch's variance.

    `every_k=k` puts the moments of k training calls into the average once, merged: the statistics of the
    large batch under gradient accumulation. They wait in `pending_*`; `step` counts updates of the average.
    `blend=alpha` evaluates by alpha times the stored mean and var plus 1 - alpha times the batch's: a number
    in [0, 1], or a function of the number of samples. `track_stats=False` stores nothing and normalizes by
    the batch always. `count_skipped=True` keeps in `skipped_channels` and `skipped_batches` how often what
    was not finite was left out. See docs/statistics_after_training.md.

    Evaluation uses the stored mean and var, whatever the weight: before training they are 0 and 1, the
    identity. A weight of 0 says that no batch has been counted; one that is missing, as in a checkpoint of
    Flax, counts as 0, and the first training call stores it, as it does a missing `step`. A cumulative
    average then starts with that batch; with `debias=True` a mean and var other than 0 and 1 are a whole
    average, of weight 1. A channel whose mean or var is not finite, or whose var is negative, counts as not
    seen: evaluation takes 0 and 1, and training starts anew.

    Ioffe and Szegedy, 2015, arXiv:1502.03167.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0], [3.0]])
    >>> norm = jn.BatchNorm(momentum=0.5, epsilon=0.0)
    >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
    >>> y, state = norm.apply(variables, x, use_running_average=False, mutable="batch_stats")
    >>> y.tolist(), state["batch_stats"]["mean"].tolist()
    ([[-1.0], [1.0]], [1.0])

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
    >>> norm = StreamNorm(limit=1.0, debias=True, use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x)
    >>> y, updates = norm.apply(variables, x, mask=x < 3, mutable="batch_stats")
    >>> print(y.ravel(), updates["batch_stats"]["mean"])
    [0. 1.] [1.]
    """

    update_stats: bool | None = None
    debias: bool = False
    unbiased: bool = False
    every_k: int = 1
    blend: Any = None
    track_stats: bool = True
    count_skipped: bool = False

    @nn.compact
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


@contextmanager
def _advice(error: type[Exception], remedy: str) -> Iterator[None]:
    """Flax's own error, with what to do about it beneath."""
    try:
        yield
    except error as raised:
        raised.add_note(remedy)
        raise
