"""Linen's batch norm."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from flax import linen as nn
from flax.errors import FlaxError, ModifyScopeVariableError
from jax import Array

from jaxnorm._base.messages import Named
from jaxnorm._layers import calls as layers
from jaxnorm._layers import state as state
from jaxnorm.linen.parameters import own_parameters

_STATS = "batch_stats"
_MODE = (
    "BatchNorm: say which statistics normalize, those of the batch in training (use_running_average=False) "
    "or the stored ones in evaluation (True), once: in the constructor or in the call."
)
_COLLECTION = (
    "BatchNorm: the statistics are in the collection batch_stats that init returned; pass it to apply with "
    'the parameters: {"params": params, "batch_stats": batch_stats}.'
)
_MUTABLE = (
    'BatchNorm: training updates the statistics; call apply(..., mutable=["batch_stats"]), which returns y '
    "and the new ones, or evaluate with use_running_average=True, or pass update_stats=False."
)


class BatchNorm(Named, nn.BatchNorm):
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
    """

    update_stats: bool | None = None
    debias: bool = False
    unbiased: bool = False

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
        own = own_parameters(self, x, self.axis, scale=scale, bias=bias)
        norm = partial(state.batch_norm, self, x, mask, weights, **own)

        def initial() -> dict[str, Array]:
            shape = layers.feature_shape(self, x, self.axis)
            return state.initial_stats(shape, layers.stats_dtype(self, x, own["dtype"]))

        return remembered(self, norm, state.names(self), initial, use_running_average, update_stats)


def remembered(
    layer: Any,
    norm: Callable[..., tuple[Array, Any]],
    names: list[str],
    initial: Callable[[], dict[str, Array]],
    use_running_average: bool | None,
    update_stats: bool | None,
) -> Array:
    """y by `norm`, of the statistics that the collection holds by these names, and keeps updated."""
    with _advice(ValueError, _MODE):
        use_running_average = nn.merge_param(
            "use_running_average", layer.use_running_average, use_running_average
        )

    def start(name: str) -> Array:
        return initial()[name]

    # A mean or var that is missing is an error, as in Flax. All else is created by the first training call.
    there = {"mean", "var", *(n for n in names if layer.is_initializing() or layer.has_variable(_STATS, n))}
    with _advice(FlaxError, _COLLECTION):
        kept = {name: layer.variable(_STATS, name, start, name) for name in names if name in there}
    stats = {name: kept[name].value if name in kept else start(name) for name in names}
    frozen = layer.has_variable(_STATS, "frozen")
    train, updated = state.mode(layer, use_running_average, update_stats, frozen)
    if layer.is_initializing():
        updated = False
    y, new = state.remembered(norm, stats, train=train, updated=updated)
    with _advice(ModifyScopeVariableError, _MUTABLE):
        for name, value in new.items():
            if name in kept:
                kept[name].value = value
            else:
                layer.put_variable(_STATS, name, value)
    return y


@contextmanager
def _advice(error: type[Exception], remedy: str) -> Iterator[None]:
    """Flax's own error, with what to do about it beneath."""
    try:
        yield
    except error as raised:
        raised.add_note(remedy)
        raise
