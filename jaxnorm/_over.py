"""Over: what statistics are taken over."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import Maybe
from jaxnorm._sharding import whole


class Over(NamedTuple):
    """What statistics are taken over. Static and hashable.

    Groups of channels are pooled after all else, where everything is small: x is never split, which
    would change its layout on a TPU and be slow elsewhere. What meets x has one value a channel.
    """

    axes: tuple[int, ...]  # ascending
    names: devices.Names = devices.Names()
    centered: bool = True  # False: about 0, and var is the second moment
    groups: tuple[int, int] | None = None  # an axis, none of `axes`, and into how many groups it falls

    def behind(self) -> "Over":
        """The same of arrays with one more axis in front."""
        groups = None if self.groups is None else (self.groups[0] + 1, self.groups[1])
        return self._replace(axes=tuple(a + 1 for a in self.axes), groups=groups)

    def size(self, shape: Sequence[Any]) -> Any:
        """How many points of x, of this shape, each statistic is taken over on one device."""
        return math.prod(shape[a] for a in self.axes) * self._members(shape)

    def per_group(self, v: Array, shape: Sequence[Any], reduce: Callable[..., Array] = jnp.sum) -> Array:
        """One value a channel, of x of this shape, to one a group."""
        if self.groups is None:
            return v
        axis, count = self.groups
        if v.shape[axis] == 1:  # the same for every channel
            v = jnp.broadcast_to(v, (*v.shape[:axis], shape[axis], *v.shape[axis + 1 :]))
        v = whole(v, axis, parts=count)
        return reduce(
            v.reshape(*v.shape[:axis], count, self._members(shape), *v.shape[axis + 1 :]), axis=axis + 1
        )

    def per_channel(self, v: Maybe, shape: Sequence[Any]) -> Maybe:
        """One value a group to one a channel."""
        if self.groups is None or v is None:
            return v
        axis, _ = self.groups
        wide = (*v.shape[: axis + 1], self._members(shape), *v.shape[axis + 1 :])
        repeated = jnp.broadcast_to(jnp.expand_dims(v, axis + 1), wide)
        return repeated.reshape(*v.shape[:axis], shape[axis], *v.shape[axis + 1 :])

    def shared(self, v: Maybe, shape: Sequence[Any]) -> Maybe:
        """What the channels of a group share, back to one value a group."""
        if v is None:
            return v
        return self.per_group(v, shape, lambda v, axis: lax.index_in_dim(v, 0, axis, keepdims=False))

    def channels(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """The shape of what has one value a channel, of x of this shape."""
        return tuple(1 if a in self.axes else n for a, n in enumerate(shape))

    def _members(self, shape: Sequence[Any]) -> Any:
        return 1 if self.groups is None else shape[self.groups[0]] // self.groups[1]
