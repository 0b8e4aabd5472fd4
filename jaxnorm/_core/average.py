"""Averages: how statistics are remembered. One update serves every state that has a weight."""

from typing import Any, TypeVar, cast

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import choose
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
    check.decay("ema", decay)
    _check_states("ema", old, new)
    was = cast(Any, type(old)(*map(jnp.asarray, old)))
    now = state_as(type(new)(*map(jnp.asarray, new)), was)
    before, seen = was.weight, now.weight
    part = 1 - jnp.asarray(decay, before.dtype)
    full = before + part * (1 - before)
    # the first step is 1, also where division is not rounded to the nearest
    step = choose(before > 0, part / choose(full > 0, full, 1), jnp.ones_like(full))
    # a Python or numpy number is known while tracing; a device is not asked for the value of an array
    partly = not isinstance(decay, Array) and 0 < float(cast(Any, decay)) < 1
    taken = seen > 0 if partly else (seen > 0) & (part > 0)

    def average(v: Array, n: Array) -> Array:
        """v + step * (n - v); where all or nothing is taken, exactly."""
        n = n.astype(v.dtype)
        known, share = _beside(before > 0, v), _beside(step, v).astype(v.dtype)
        start = choose(known, v, 0)
        mixed = start + share * (n - start)
        mixed = mixed if partly else choose(share >= 1, n, mixed)
        return choose(_beside(taken, v), mixed, v)

    mixed = {f: average(getattr(was, f), getattr(now, f)) for f in was._fields if f != "weight"}
    return state_as(was._replace(weight=choose(taken, full, before), **mixed), was)


def _beside(weight: Array, v: Array) -> Array:
    """`weight`, whose shape is a prefix of v's, with as many axes as v."""
    return weight.reshape(weight.shape + (1,) * (v.ndim - weight.ndim))


def counted(state: Any) -> Any:
    """`state`, where it can be remembered: what is not finite counts as not seen."""
    good = jnp.asarray(True)
    for field in state:
        good &= jnp.isfinite(field)
    return state._replace(weight=choose(good, state.weight, 0))


def _check_states(function: str, old: Any, new: Any) -> None:
    """Two states of one kind, whose weight's shape is a prefix of every other field's."""
    for name, state in (("old", old), ("new", new)):
        if "weight" not in getattr(state, "_fields", ()):
            problem = f"{name} must be a NamedTuple with a field `weight`, got {type(state).__name__}"
            raise error(TypeError, function, problem, "use, for example, jaxnorm.Moments")
    alike = "the two must be alike"
    if new._fields != old._fields:
        problem = f"old has the fields {old._fields}, new {new._fields}"
        raise error(TypeError, function, problem, alike)
    for field, was, now in zip(old._fields, map(jnp.shape, old), map(jnp.shape, new), strict=True):
        if was != now:
            raise error(ValueError, function, f"old.{field} has shape {was}, new.{field} {now}", alike)
        prefix = jnp.shape(old.weight)
        if was[: len(prefix)] != prefix:
            problem = f"weight of shape {prefix} is not a prefix of the shape of {field}, {was}"
            remedy = f"give one weight for all, or one for each entry of {field}'s first axes"
            raise error(ValueError, function, problem, remedy)
