"""Microbatches: their moments wait, merged, until the average takes those of the whole batch at once."""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxnorm._base import checks as check
from jaxnorm._base.compilation import compiled
from jaxnorm._base.exported import exportable
from jaxnorm._base.messages import public
from jaxnorm._base.sharding import state_as
from jaxnorm._core.average import with_axes_of
from jaxnorm._core.moments import Moments, merge
from jaxnorm._norms.batch import remember, sample_variance
from jaxnorm._norms.whitening import Covariance, merge_covariances, remember_covariance

State = TypeVar("State", bound=Moments | Covariance)


@exportable
class Pending(NamedTuple):
    """What has been seen since the last update of an average.

    >>> import jaxnorm as jn
    >>> from jaxnorm import population
    >>> population.initial_pending(jn.initial_stats(2)).calls.tolist()
    [0, 0]
    """

    moments: Moments | Covariance  # of the microbatches, merged; a weight of 0: nothing yet
    calls: Array  # int32, of the weight's shape: how many microbatches, empty ones too
    places: Array  # of the weight's shape: how many places of weight > 0, for the unbiased variance


@public
def initial_pending(stats: Moments | Covariance) -> Pending:
    """The accumulator of `accumulate` when nothing has been seen, for an average of this shape.

    Args:
      stats: the average: Moments, or the Covariance of a whitening norm.

    >>> import jaxnorm as jn
    >>> from jaxnorm import population
    >>> population.initial_pending(jn.initial_stats(2)).moments.weight.tolist()
    [0.0, 0.0]
    """
    weight = jnp.asarray(stats.weight)
    return Pending(
        jax.tree.map(jnp.zeros_like, stats), jnp.zeros_like(weight, jnp.int32), jnp.zeros_like(weight)
    )


@compiled
def accumulate(
    stats: State,
    pending: Pending,
    batch: State,
    *,
    every_k: int,
    decay: float | Array | None = 0.99,
    unbiased: bool = False,
    places: ArrayLike | None = None,
    called: ArrayLike = True,
) -> tuple[State, Pending]:
    """One microbatch more: the average takes the moments of every `every_k` of them once, merged.

    After `every_k` calls the average is that of one call with the whole batch: `merge` is exact.
    Between, it is unchanged, bitwise. Each call counts, also one whose batch is empty or not finite, which
    adds nothing. Nothing here is a collective: take the moments over the devices.

    Args:
      stats: the average, [*stats].
      pending: `initial_pending(stats)` at first.
      batch: the moments of this microbatch, biased: the new state of a norm with `decay=None` and a state of
        weight 0.
      every_k: how many calls make an update, 1 or more.
      decay: the fraction of the OLD average that is kept; None: the two are merged.
      unbiased: the average takes var * n / (n - 1), with n places of weight above 0 in the whole batch.
      places: how many this microbatch has, of the weight's shape; None: its weight.
      called: where the call counts, a boolean that broadcasts to the weight: False changes nothing there.

    Returns:
      The average and the accumulator, of the same types, shapes and dtypes.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> from jaxnorm import population
    >>> stats = jn.initial_stats(1, weight=0.0)
    >>> pending = population.initial_pending(stats)
    >>> for x in jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]]):
    ...     y, batch = jn.batch_norm(x, jn.initial_stats(1, weight=0.0), train=True, decay=None)
    ...     stats, pending = population.accumulate(stats, pending, batch, every_k=2)
    ...     print(stats.mean, stats.var)
    [0.] [1.]
    [4.] [5.]
    """
    check.integer("every_k", every_k, least=1, remedy="choose 1 or more")
    weight = jnp.asarray(stats.weight)
    called = jnp.broadcast_to(jnp.asarray(called), weight.shape)
    places = jnp.asarray(batch.weight if places is None else places)
    adds = called & (batch.weight > 0)
    added = batch._replace(weight=jnp.where(adds, batch.weight, 0))
    merged: Any = merge
    remembered: Any = remember
    if isinstance(stats, Covariance):
        merged, remembered = merge_covariances, remember_covariance
    moments = merged(pending.moments, state_as(added, stats))
    counted = pending.places + jnp.where(adds, places, 0).astype(pending.places.dtype)
    calls = pending.calls + called.astype(pending.calls.dtype)
    due = called & (calls >= every_k)
    whole = moments._replace(weight=jnp.where(due, moments.weight, 0))
    if unbiased:
        mean, var, _ = whole
        whole = type(whole)(mean, sample_variance(var, with_axes_of(var, counted)), whole.weight)
    empty = initial_pending(stats)
    rest = (jnp.where(with_axes_of(e, due), e, m) for e, m in zip(empty.moments, moments, strict=True))
    left = Pending(
        state_as(type(moments)(*rest), pending.moments),
        jnp.where(due, 0, calls),
        jnp.where(due, 0, counted),
    )
    return remembered(stats, whole, decay), left
