"""Averages: how statistics are remembered. One update serves every state that has a weight."""

from typing import Any, TypeVar, cast

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import choose, divide
from jaxnorm._base.compilation import compiled
from jaxnorm._base.messages import error
from jaxnorm._base.sharding import state_as

State = TypeVar("State", bound=tuple[Any, ...])  # a NamedTuple with a field `weight`


@compiled
def ema(old: State, new: State, *, decay: ArrayLike) -> State:
    """The weighted moving average of statistics, debiased by its weight.

    weight' = decay * weight + (1 - decay),  v' = v + (1 - decay) / weight' * (new.v - v)

    The starting weight is the prior's strength: 1 is the average of Flax and PyTorch, 0 the debiased one
    of Adam and Haiku, whose first value is the first batch. Linear, as theirs: the spread between the
    means of mean and var is NOT added (`merge` adds it).

    Args:
      old: the state, any NamedTuple with a field `weight`, whose shape is a prefix of every other
        field's, or scalar. Where its weight is 0 the other fields are ignored, whatever they hold.
      new: the same for one batch. Where its weight is 0 the state is unchanged, bitwise.
      decay: the fraction of the OLD value that is kept, in [0, 1]: Flax's momentum, 1 - PyTorch's. A
        traced scalar is not checked: evaluate an optax schedule and pass the value.

    Returns:
      A state of the type, shapes and dtypes of `old`.

    Raises:
      ValueError: decay outside [0, 1]; fields of other shapes; no field `weight`.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> batch = jn.moments(jnp.array([4.0, 6.0]), axis=0)
    >>> float(jn.ema(jn.initial_stats(()), batch, decay=0.9).mean)
    0.5
    >>> float(jn.ema(jn.initial_stats((), weight=0.0), batch, decay=0.9).mean)
    5.0
    """
    check.decay(decay)
    _check_states(old, new)
    return averaged(old, new, decay)


def averaged(old: State, new: State, decay: ArrayLike) -> State:
    """`ema` without its checks; `decay` may also be an array that broadcasts to the weight."""
    before = cast(Any, type(old)(*map(jnp.asarray, old)))
    batch = state_as(type(new)(*map(jnp.asarray, new)), before)
    rate = 1 - jnp.asarray(decay, before.weight.dtype)
    weight = before.weight + rate * (1 - before.weight)
    # the first step is 1, also where division is not rounded to the nearest
    step = choose(before.weight > 0, divide(rate, weight), 1)
    changes = (batch.weight > 0) & (rate > 0)

    def average(v: Array, n: Array) -> Array:
        """v + step * (n - v): exactly n where step is 1, and exactly v where nothing changes."""
        n = n.astype(v.dtype)
        here = with_axes_of(v, step).astype(v.dtype)
        start = choose(with_axes_of(v, before.weight > 0), v, 0)
        mean = choose(here >= 1, n, start + here * (n - start))
        return choose(with_axes_of(v, changes), mean, v)

    fields = {f: average(getattr(before, f), getattr(batch, f)) for f in before._fields if f != "weight"}
    return state_as(before._replace(weight=choose(changes, weight, before.weight), **fields), before)


def with_axes_of(v: Array, weight: Array) -> Array:
    """`weight`, whose shape is a prefix of v's, with as many axes as v."""
    return weight.reshape(weight.shape + (1,) * (v.ndim - weight.ndim))


def _check_states(old: Any, new: Any) -> None:
    """Two states of one kind, whose weight's shape is a prefix of every other field's."""
    for name, state in (("old", old), ("new", new)):
        if "weight" not in getattr(state, "_fields", ()):
            problem = f"{name} must be a NamedTuple with a field `weight`, got {type(state).__name__}"
            raise error(TypeError, problem, "use, for example, jaxnorm.Moments")
    alike = "the two must be alike"
    if new._fields != old._fields:
        problem = f"old has the fields {old._fields}, new {new._fields}"
        raise error(TypeError, problem, alike)
    for field, was, now in zip(old._fields, map(jnp.shape, old), map(jnp.shape, new), strict=True):
        if was != now:
            raise error(ValueError, f"old.{field} has shape {was}, new.{field} {now}", alike)
        prefix = jnp.shape(old.weight)
        if was[: len(prefix)] != prefix:
            problem = f"weight of shape {prefix} is not a prefix of the shape of {field}, {was}"
            remedy = f"give one weight for all, or one for each entry of {field}'s first axes"
            raise error(ValueError, problem, remedy)
