"""What norms tell of their calls where `diagnose` asks. Elsewhere a norm's program is what it was.

Inside `watching` a norm tells what it measured through a callback, so that it is heard from inside `jax.jit`,
`lax.scan` and `jax.checkpoint`, too. The switch is part of JAX's cache keys: what was compiled before is
traced again. The batch's statistics are not told: as in `recalibration` they are variables of the norm.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxnorm._base.arithmetic import abs2, divide
from jaxnorm._core.moments import combine, moments

# A tanh beyond this has less than 6 % of its slope left.
FLAT = 0.97

_switch = jax.make_user_context(default_value=False)
_lock = threading.Lock()
_told: list["Told"] = []  # by callbacks, which run in other threads


class Told(NamedTuple):
    """What one call of a norm tells."""

    path: str  # of the norm in the model, "b/norm"
    layer: str  # the name of its class
    options: dict[str, Any]  # what is static
    values: dict[str, np.ndarray]  # what was measured


def on() -> bool:
    """Whether calls are watched."""
    return bool(_switch.value)


@contextmanager
def watching() -> Iterator[list[Told]]:
    """Inside, norms are watched; the list holds what they told once the block has ended."""
    heard: list[Told] = []
    with _lock:
        _told.clear()
        with _switch(True):
            yield heard
            jax.effects_barrier()
        heard += _told
        _told.clear()


def tell_statistics(layer: Any, x: Array, where: ArrayLike | None, axes: Sequence[int], size: int) -> None:
    """Tell of a norm that keeps statistics.

    Args:
      layer: the norm.
      x: what it was called with.
      where: its mask or weights, or None.
      axes: the axes of x that the statistics are taken over.
      size: how many means are stored; 0: none.
    """
    momentum = layer.at_step(layer.momentum)
    values = {"epsilon": layer.epsilon, **({} if momentum is None else {"momentum": momentum})}
    _tell(layer, {"size": size, "by_batch": not layer.averages_instances}, values | counts(x, where, axes))


def tell_input(layer: Any, x: Array, where: ArrayLike | None, parameters: dict[str, Array]) -> None:
    """Tell of a norm that keeps none: the mean square of each sample, and how much of a tanh is saturated.

    Args:
      layer: the norm.
      x: what it normalizes.
      where: its mask or weights, or None.
      parameters: as they are stored, by name.
    """
    x = jnp.asarray(x)
    samples = moments(x, tuple(range(1, x.ndim)) or (0,), where=where, about=0.0)
    values = {"square": samples.var, "seen": samples.weight}
    if "alpha" in parameters:
        squash = {name: parameters[name] for name in ("alpha", "shift") if name in parameters}
        beyond = jnp.abs(layer.normalize(x, **squash)) > FLAT
        values["saturated"] = beyond.astype(jnp.float32).mean()
    if hasattr(layer, "epsilon"):
        values["epsilon"] = layer.epsilon
    _tell(layer, {"zero_centered": getattr(layer, "zero_centered_scale", False)}, values)


def counts(x: Array, where: ArrayLike | None, axes: Sequence[int]) -> dict[str, Array]:
    """How many samples x has, and as how many independent values it counts.

    Values of one sample are alike, so that a mean over n samples of m values is less exact than one over
    n * m independent values: it varies as the means of the samples do. `effective`, between n and n * m, is
    the number of independent values whose mean is as exact: the median of the channels.

    Args:
      x: any shape.
      where: a mask or weights, or None.
      axes: those that statistics are taken over; the first one is that of the samples.

    Returns:
      Scalars: `samples` and `effective`.
    """
    batch, *inside = sorted(axes) or [0]
    each = moments(x, tuple(inside), where=where, keepdims=True)
    whole = combine(each, batch)
    share = divide(each.weight, jnp.expand_dims(whole.weight, batch))
    off = abs2(share) * abs2(each.mean - jnp.expand_dims(whole.mean, batch))
    seen = (each.weight > 0).sum(batch).astype(off.dtype)
    error = off.sum(batch) * seen / jnp.maximum(seen - 1, 1)  # squared, of the mean
    independent = jnp.where(error > 0, whole.var / jnp.where(error > 0, error, 1), jnp.nan)
    samples = seen.max(initial=0)
    least = jnp.maximum(jnp.nan_to_num(jnp.nanmedian(independent), nan=0.0), samples)
    most = samples * math.prod(x.shape[a] for a in inside)
    return {"samples": samples, "effective": jnp.minimum(least, most)}


def _tell(layer: Any, options: dict[str, Any], values: dict[str, Any]) -> None:
    path = layer.watched_as if hasattr(layer, "watched_as") else "/".join(layer.path)
    arrays = {name: jnp.asarray(v) for name, v in values.items()}
    jax.debug.callback(partial(_hear, path, type(layer).__name__, options), arrays)


def _hear(path: str, layer: str, options: dict[str, Any], values: dict[str, Any]) -> None:
    _told.append(Told(path, layer, options, {name: np.asarray(v) for name, v in values.items()}))
