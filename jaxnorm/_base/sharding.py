"""Sharding: arrays that meet on a mesh whose axes are Explicit, where a type says how an array is sharded.

Arithmetic merges the shardings of its operands: `x * scale` is sharded over the axes of both. A select, a
stack and the branches of a cond want one sharding, and so does a state, which must keep its own. These
functions change nothing where no array is sharded in its type: on one device, on Auto axes, in shard_map.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

Axes = tuple[Any, ...]  # an entry for each axis of an array: None, a mesh axis, or a tuple of them


def axes_of(v: Array) -> Axes:
    """The mesh axes that each axis of an array is sharded over."""
    return tuple(jax.typeof(v).sharding.spec)


def alike(*values: Array) -> list[Array]:
    """Arrays that broadcast to each other, as arrays of one shape and one sharding.

    As they are if none is sharded. Where two are sharded over different axes, the first one decides.
    """
    axes = [axes_of(v) for v in values]
    if not any(map(any, axes)):
        return list(values)
    shape = jnp.broadcast_shapes(*(v.shape for v in values))
    merged = [_first(axes, a - len(shape)) for a in range(len(shape))]
    mesh = next(mesh_of(v) for v, of in zip(values, axes, strict=True) if any(of))
    return [_to(v, shape, tuple(merged), mesh) for v in values]


def sharded_as(v: Array, kind: Any) -> Array:
    """`v`, broadcast to the shape of this type, `jax.typeof` of an array, and sharded as it is."""
    return _to(v, kind.shape, tuple(kind.sharding.spec), kind.sharding.mesh)


def state_as(new: Any, old: Any) -> Any:
    """The state `new`, a tuple of arrays, with every field sharded as that of `old` is: it can be scanned."""
    return type(new)(*(sharded_as(n, jax.typeof(o)) for n, o in zip(new, old, strict=True)))


def fitted(v: Array, x: Array) -> Array:
    """`v`, which broadcasts to x along as many axes, without what x's sharding leaves no room for.

    A parameter that is stored in parts over the axis that x's batch is sharded over, for example, is
    gathered; one that is stored in parts over another axis stays so.
    """
    own, others = axes_of(v), axes_of(x)
    if not any(own) or not any(others):
        return v
    taken = {name for axis in others for name in _names(axis)}
    wanted = []
    for n, axis, other in zip(v.shape, own, others, strict=True):
        free = other is None and not taken.intersection(_names(axis))
        wanted.append(axis if free else other if n != 1 and axis is not None else None)
    return _to(v, v.shape, tuple(wanted), mesh_of(v))


def as_sums(v: Array, x: Array, axes: Sequence[int]) -> Array:
    """`v`, of as many axes as x, sharded as sums of x over `axes` are."""
    return _to(v, v.shape, tuple(None if a in axes else of for a, of in enumerate(axes_of(x))), mesh_of(x))


def whole(v: Array, axis: int, *, parts: int | None = None) -> Array:
    """`v`, gathered along `axis`; not if `parts` is given, and each of so many parts is on one device."""
    if axes_of(v)[axis] is None or (parts is not None and parts % shards(v)[axis] == 0):
        return v
    wanted = tuple(None if a == axis % v.ndim else of for a, of in enumerate(axes_of(v)))
    return _to(v, v.shape, wanted, mesh_of(v))


def beside(v: Array, other: Array) -> Array:
    """`v` on the mesh of `other`: a constant is on none, and an update of a slice wants one mesh."""
    axes = mesh_of(other).explicit_axes
    return (
        jax.sharding.reshard(v, NamedSharding(mesh_of(other), PartitionSpec()))
        if axes and mesh_of(v).empty
        else v
    )


def gathered(v: Array) -> Array:
    """`v`, all of it on every device."""
    return _to(v, v.shape, (None,) * v.ndim, mesh_of(v))


def replicated(*values: Array) -> NamedSharding | None:
    """The sharding of what all devices have, for operations on arrays that are sharded; None if none is."""
    mesh = next((mesh_of(v) for v in values if any(axes_of(v))), None)
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def shards(x: Array) -> list[int]:
    """Into how many pieces each axis is cut, as far as tracing knows."""
    return [math.prod(mesh_of(x).shape[name] for name in _names(axis)) for axis in axes_of(x)]


def mesh_of(v: Array) -> Any:
    """The mesh that an array is sharded over."""
    return jax.typeof(v).sharding.mesh


def _names(axis: Any) -> Axes:
    return () if axis is None else axis if isinstance(axis, tuple) else (axis,)


def _first(axes: Sequence[Axes], place: int) -> Any:
    """The mesh axes of the first array that is sharded at this place, counted from the end."""
    found = (of[place] for of in axes if len(of) >= -place)
    return next((axis for axis in found if axis is not None), None)


def _to(v: Array, shape: Sequence[Any], axes: Axes, mesh: Any) -> Array:
    """`v`, broadcast to this shape, in this sharding."""
    own = axes_of(v)
    added = len(shape) - v.ndim
    kept = tuple(
        axis if n == m else None for axis, n, m in zip(axes[added:], v.shape, shape[added:], strict=True)
    )
    if own != kept:
        v = jax.sharding.reshard(v, NamedSharding(mesh_of(v) if any(own) else mesh, PartitionSpec(*kept)))
    if v.shape == tuple(shape):
        return v
    return jnp.broadcast_to(
        v, shape, out_sharding=NamedSharding(mesh, PartitionSpec(*axes)) if any(axes) else None
    )
