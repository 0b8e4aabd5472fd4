"""Sharding: arrays on a mesh whose axes are Explicit, where an array's type says how it is sharded.

Arithmetic merges the shardings of its operands: `x * scale` is sharded over the axes of both. A select, a
stack and the branches of a cond want one sharding, and a state must leave with the sharding that it came
with. These functions change nothing where no array is sharded in its type: on one device, on Auto axes, in
shard_map.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

# The mesh axes that an axis of an array is sharded over: None, a name, or a tuple of names.
MeshAxis: TypeAlias = Hashable
Axes: TypeAlias = tuple[MeshAxis, ...]
State = TypeVar("State", bound=tuple[Any, ...])  # a NamedTuple of arrays


def axes_of(v: Array) -> Axes:
    """The mesh axes that each axis of an array is sharded over."""
    return tuple(jax.typeof(v).sharding.spec)


def mesh_of(v: Array) -> AbstractMesh:
    """The mesh that an array is sharded over."""
    return jax.typeof(v).sharding.mesh


def alike(*values: Array) -> list[Array]:
    """Arrays that broadcast to each other, as arrays of one shape and one sharding.

    As they are if none is sharded. Where two are sharded over different axes, the first one decides.
    """
    axes = [axes_of(v) for v in values]
    if not any(map(any, axes)):
        return list(values)
    shape = jnp.broadcast_shapes(*(v.shape for v in values))
    merged = tuple(_first(axes, a - len(shape)) for a in range(len(shape)))
    mesh = next(mesh_of(v) for v, of_v in zip(values, axes, strict=True) if any(of_v))
    return [_to(v, shape, merged, mesh) for v in values]


def sharded_as(v: Array, kind: ShapedArray) -> Array:
    """`v`, broadcast to the shape of this type, `jax.typeof` of an array, and sharded as it is."""
    return _to(v, kind.shape, tuple(kind.sharding.spec), kind.sharding.mesh)


def state_as(new: State, old: State) -> State:
    """The state `new` with every field sharded as that of `old` is, so that a scan can carry it."""
    return type(new)(*(sharded_as(n, jax.typeof(o)) for n, o in zip(new, old, strict=True)))


def fitted(v: Array, x: Array) -> Array:
    """`v`, which broadcasts to x and has as many axes, resharded so that x keeps its sharding.

    A parameter that is stored in parts over the axis that x's batch is sharded over, for example, is
    gathered; one that is stored in parts over another axis stays so.
    """
    of_v, of_x = axes_of(v), axes_of(x)
    if not any(of_v) or not any(of_x):
        return v
    used = {name for axis in of_x for name in _names(axis)}

    def axis(n: int, a: MeshAxis, b: MeshAxis) -> MeshAxis:
        """For an axis of v of size n, sharded over a, beside one of x that is sharded over b."""
        if b is None and not used.intersection(_names(a)):
            return a
        return b if n != 1 and a is not None else None

    return _to(v, v.shape, tuple(map(axis, v.shape, of_v, of_x)), mesh_of(v))


def as_sums(v: Array, x: Array, axes: Sequence[int]) -> Array:
    """`v`, of as many axes as x, sharded as sums of x over `axes` are."""
    return _to(
        v, v.shape, tuple(None if a in axes else name for a, name in enumerate(axes_of(x))), mesh_of(x)
    )


def whole(v: Array, axis: int, *, parts: int | None = None) -> Array:
    """`v`, gathered along `axis`; not if it is in so many `parts` there that each is on one device."""
    if axes_of(v)[axis] is None or (parts is not None and parts % shards(v)[axis] == 0):
        return v
    names = tuple(None if a == axis % v.ndim else name for a, name in enumerate(axes_of(v)))
    return _to(v, v.shape, names, mesh_of(v))


def gathered(v: Array) -> Array:
    """`v`, all of it on every device."""
    return _to(v, v.shape, (None,) * v.ndim, mesh_of(v))


def on_mesh_of(other: Array, v: Array) -> Array:
    """`v` on the mesh of `other`: a constant is on none, and an update of a slice wants one mesh."""
    if mesh_of(v).empty and mesh_of(other).explicit_axes:
        return jax.sharding.reshard(v, NamedSharding(mesh_of(other), PartitionSpec()))
    return v


def replicated(*values: Array) -> NamedSharding | None:
    """The sharding of what all devices have, for operations on arrays that are sharded; None if none is."""
    mesh = next((mesh_of(v) for v in values if any(axes_of(v))), None)
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def shards(x: Array) -> list[int]:
    """Into how many pieces each axis is cut, as far as tracing knows."""
    return [math.prod(mesh_of(x).shape[name] for name in _names(axis)) for axis in axes_of(x)]


def _names(axis: MeshAxis) -> Axes:
    """The mesh axes of one axis of an array, as a tuple."""
    return () if axis is None else axis if isinstance(axis, tuple) else (axis,)


def _first(axes: Sequence[Axes], place: int) -> Any:
    """The mesh axes of the first array that is sharded at this place, counted from the end."""
    return next((of[place] for of in axes if len(of) >= -place and of[place] is not None), None)


def _to(v: Array, shape: Sequence[int], axes: Axes, mesh: AbstractMesh) -> Array:
    """`v`, broadcast to this shape, sharded over these axes of this mesh."""
    before = axes_of(v)
    added = len(shape) - v.ndim
    # an axis of size 1 cannot be sharded: it is broadcast first
    after = tuple(
        axis if n == m else None for axis, n, m in zip(axes[added:], v.shape, shape[added:], strict=True)
    )
    if before != after:
        v = jax.sharding.reshard(v, NamedSharding(mesh_of(v) if any(before) else mesh, PartitionSpec(*after)))
    if v.shape == tuple(shape):
        return v
    out = NamedSharding(mesh, PartitionSpec(*axes)) if any(axes) else None
    return jnp.broadcast_to(v, shape, out_sharding=out)
