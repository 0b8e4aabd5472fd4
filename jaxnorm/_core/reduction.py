"""Reduction: what statistics are taken over, and sums over it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnorm._base import collectives as devices
from jaxnorm._base.sharding import fitted, whole


class Reduction(NamedTuple):
    """What statistics are taken over. Static and hashable.

    Groups of channels are pooled after the other axes are reduced, where everything is small: x is never
    reshaped, which would change its layout on a TPU. A group shares its statistics.
    """

    axes: tuple[int, ...]  # of x, ascending
    names: devices.Names = devices.Names()  # mapped axes, reduced as well
    centered: bool = True  # False: second moments about 0, as RMS norm has them, and the mean is 0
    groups: tuple[int, int] | None = None  # an axis of x, none of `axes`, and how many groups it holds

    def members(self, shape: Sequence[Any]) -> int:
        """How many channels of x, of this shape, share a statistic."""
        return 1 if self.groups is None else shape[self.groups[0]] // self.groups[1]

    def points(self, shape: Sequence[Any]) -> Any:
        """How many elements of x, of this shape, one statistic is taken over on one device."""
        return math.prod(shape[a] for a in self.axes) * self.members(shape)

    def sum(self, v: Array) -> Array:
        """The sums of an array as large as x: [*channels], reduced axes of size 1, a value a channel."""
        return jnp.sum(v, axis=self.axes, keepdims=True)

    def pool(self, v: Array, shape: Sequence[Any]) -> Array:
        """Sums of one value a channel, [*channels], to sums of one value a group, [*stats].

        `shape` is that of x. A `v` of size 1 on the channels' axis is the same for every channel.
        """
        if self.groups is None:
            return v
        axis, count = self.groups
        if v.shape[axis] == 1:  # a mask that is alike for all channels counts once for each
            return jnp.repeat(v * self.members(shape), count, axis)
        # on an Explicit mesh a sharded axis is split only if each group is on one device, and else gathered
        v = whole(v, axis, parts=count)
        return jnp.sum(
            v.reshape(*v.shape[:axis], count, self.members(shape), *v.shape[axis + 1 :]), axis=axis + 1
        )

    def across_devices(self, *vs: Array) -> list[Array]:
        """Sums of one device as sums of all, in one collective."""
        return devices.psum(self.names, vs)

    def expand(self, v: Array | None, x: Array) -> Any:
        """One value a group, [*stats], to one a channel, [*channels], which is broadcast against x."""
        if self.groups is None or v is None or v.ndim == 0:
            return v
        axis, _ = self.groups
        members = self.members(x.shape)
        wide = jnp.broadcast_to(
            jnp.expand_dims(v, axis + 1), (*v.shape[: axis + 1], members, *v.shape[axis + 1 :])
        )
        return fitted(wide.reshape(*v.shape[:axis], v.shape[axis] * members, *v.shape[axis + 1 :]), x)
