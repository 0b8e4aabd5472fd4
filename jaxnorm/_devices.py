"""Devices: sums over named axes, in one collective, under every way that JAX has to name an axis."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnorm._arithmetic import common


class Names(NamedTuple):
    """The named axes of a sum, and the groups of devices that it is taken within. Static and hashable."""

    names: tuple[Any, ...] = ()
    groups: tuple[tuple[int, ...], ...] | None = None


def bound(function: str, axis_name: Any, groups: Any = None) -> Names:
    """Bound axis names, as a tuple."""
    if axis_name is None:
        if groups is not None:
            raise ValueError(
                f"{function}: axis_index_groups={groups!r} divides a named axis, but axis_name is None; "
                f"give the axis's name as axis_name."
            )
        return Names()
    found = tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)
    for name in found:
        try:
            lax.axis_size(name)
        except NameError:
            raise ValueError(
                f"{function}: axis_name={name!r} is not bound here; call it inside jax.shard_map, "
                f"jax.pmap or jax.vmap with that axis name, or leave axis_name out: plain jit with "
                f"sharded arrays needs none."
            ) from None
    if groups is not None:
        groups = tuple(tuple(int(i) for i in group) for group in groups)
    return Names(found, groups)


@contextlib.contextmanager
def explained(function: str, over: Names) -> Iterator[None]:
    """JAX's refusal of groups, as an error that names the way that works."""
    try:
        yield
    except NotImplementedError:
        if over.groups is None:
            raise
        raise ValueError(
            f"{function}: axis_index_groups={over.groups}: JAX takes groups only under jax.pmap and under "
            f"jax.shard_map(check_vma=False); instead, make the mesh axis {over.names} two axes, one "
            f"across the groups and one within, and give the inner one as axis_name."
        ) from None


def size(over: Names) -> int:
    """How many devices take part in a sum."""
    if not over.names:
        return 1
    # psum of a Python number is a Python number: the count never travels
    return lax.psum(1, over.names, axis_index_groups=over.groups)


def psum(over: Names, values: Sequence[Array]) -> list[Array]:
    """The sums of several small arrays over the named axes, in ONE collective."""
    return _together(lambda v: _psum(over, v), values) if over.names else list(values)


def pmean(over: Names, values: Sequence[Array]) -> list[Array]:
    """The same for equally weighted averages."""
    return _together(lambda v: _psum(over, v / size(over)), values) if over.names else list(values)


def _psum(over: Names, v: Array) -> Array:
    return lax.psum(v, over.names, axis_index_groups=over.groups)


def _together(collective: Any, values: Sequence[Array]) -> list[Array]:
    if len(values) == 1:
        return [collective(values[0])]
    # a new leading axis, not a ravel: arrays that are sharded over further axes are not resharded
    stacked = jnp.stack(common(*jnp.broadcast_arrays(*values)))
    return [
        part if part.dtype == v.dtype else part.real
        for part, v in zip(collective(stacked), values, strict=True)
    ]


def varying(*values: Any) -> frozenset[Any]:
    """The manual mesh axes that values vary over: none outside of shard_map(check_vma=True)."""
    names: frozenset[Any] = frozenset()
    for v in values:
        if v is not None:
            kind = jax.typeof(v)
            manual = getattr(kind, "manual_axis_type", None)  # jax >= 0.10
            names |= manual.varying if manual is not None else getattr(kind, "vma", frozenset())
    return names


def vary(v: Array, over: frozenset[Any]) -> Array:
    """`v`, marked as varying over these mesh axes, too."""
    names = over - varying(v)
    return lax.pcast(v, tuple(sorted(names, key=str)), to="varying") if names else v


def vary_together(values: Sequence[Array | None], like: Array) -> list[Array | None]:
    """Small arrays marked as varying in ONE cast: its transpose is one psum, not one for each."""
    given = [v for v in values if v is not None]
    names = varying(like) - varying(*given)
    if not names or len(given) < 2 or jnp.broadcast_shapes(*(v.shape for v in given)) == like.shape:
        return list(values)
    cast = iter(_together(lambda v: vary(v, varying(like)), given))
    return [None if v is None else next(cast) for v in values]


def spread(v: Array, like: Array) -> Array:
    """`v` broadcast to the shape of `like`, varying and sharded as `like` is."""
    kind = jax.typeof(like)
    explicit = any(s is not None for s in getattr(kind.sharding, "spec", ()))
    return jnp.broadcast_to(
        vary(v, varying(like)), like.shape, out_sharding=kind.sharding if explicit else None
    )
