"""Devices: sums over named axes, in one collective, under every way that JAX has to name an axis."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnorm._base.arithmetic import common
from jaxnorm._base.messages import error
from jaxnorm._base.sharding import alike, sharded_as


class Names(NamedTuple):
    """The named axes of a sum, and the groups of devices that it is taken within. Static and hashable."""

    names: tuple[Any, ...] = ()
    groups: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class IfBound:
    """An axis name that may be missing: statistics are local where it is not bound.

    For a model that is trained across devices and evaluated on one: every function and layer takes it as
    `axis_name`, or in a tuple of names. It is said explicitly, since no error can tell a name that is
    misspelt from one that is missing.

    Raises:
      TypeError: several names; make each of them an IfBound.

    >>> import jax, jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[1.0, 3.0], [5.0, 7.0]])
    >>> mean = lambda x: jn.moments(x, axis=0, axis_name=jn.IfBound("data")).mean
    >>> mean(x[0]), jax.vmap(mean, axis_name="data")(x)
    (Array(2., dtype=float32), Array([4., 4.], dtype=float32))
    """

    name: Any

    def __post_init__(self) -> None:
        if isinstance(self.name, (tuple, list)):
            each = ", ".join(f"IfBound({name!r})" for name in self.name)
            raise TypeError(f"IfBound: name={self.name!r} is not one name; give axis_name=({each}).")


def bound(function: str, axis_name: Any, groups: Any = None, *, option: str = "axis_name") -> Names:
    """Bound axis names, as a tuple. `option` is what the caller of `function` gave them as."""
    if axis_name is None:
        if groups is not None:
            raise error(
                ValueError,
                function,
                f"axis_index_groups={groups!r} divides a named axis, but axis_name is None; "
                f"give the axis's name as axis_name.",
            )
        return Names()
    found = []
    for given in axis_name if isinstance(axis_name, (tuple, list)) else (axis_name,):
        name = given.name if isinstance(given, IfBound) else given
        try:
            lax.axis_size(name)
        except NameError:
            if isinstance(given, IfBound):
                continue
            raise error(
                ValueError,
                function,
                f"{option}={name!r} is not bound here; call it inside jax.shard_map, "
                f"jax.pmap or jax.vmap with that axis name, leave {option} out (plain jit with sharded "
                f"arrays needs none), or give IfBound({name!r}), which is local where the name is missing.",
            ) from None
        found.append(name)
    return named(found, groups) if found else Names()  # no group where there is nothing to divide


def named(axis_name: Any, groups: Any = None) -> Names:
    """Axis names and groups as they were given, as tuples."""
    names = axis_name if isinstance(axis_name, (tuple, list)) else (axis_name,)
    return Names(tuple(names), None if groups is None else tuple(tuple(map(int, g)) for g in groups))


@contextlib.contextmanager
def explained(function: str, over: Names) -> Iterator[None]:
    """What JAX refuses, as errors that name the ways that work."""
    try:
        yield
    except NotImplementedError:
        if over.groups is None:
            raise
        raise error(
            ValueError,
            function,
            f"axis_index_groups={over.groups}: JAX takes groups only under jax.pmap and under "
            f"jax.shard_map(check_vma=False); instead, make the mesh axis {over.names} two axes, one "
            f"across the groups and one within, and give the inner one as axis_name.",
        ) from None
    except AssertionError:
        here = jax.sharding.get_abstract_mesh().axis_names
        inner = [name for name in over.names if name not in here]
        if not here or not inner:
            raise
        raise error(
            ValueError,
            function,
            f"axis_name={inner[0]!r} is an axis of jax.vmap, over which JAX sums inside of "
            f"jax.shard_map(check_vma=False) only; use that, or reduce that axis as an axis of x.",
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
    # lax.psum takes names that are alike: mesh axes that v varies over, or others, as vmap's are
    outer = varying(v)
    for names in ([n for n in over.names if n not in outer], [n for n in over.names if n in outer]):
        if names:
            v = lax.psum(v, tuple(names), axis_index_groups=over.groups)
    return v


def _together(collective: Any, values: Sequence[Array]) -> list[Array]:
    if len(values) == 1:
        return [collective(values[0])]
    # a new leading axis, not a ravel: arrays that are sharded over further axes are not resharded
    stacked = jnp.stack(common(*jnp.broadcast_arrays(*alike(*values))))
    return [
        part if part.dtype == v.dtype else part.real
        for part, v in zip(collective(stacked), values, strict=True)
    ]


def varying(*values: Any) -> frozenset[Any]:
    """The manual mesh axes that arrays, or types, vary over: none outside of shard_map(check_vma=True)."""
    names: frozenset[Any] = frozenset()
    for v in values:
        if v is not None:
            kind = v if isinstance(v, jax.core.ShapedArray) else jax.typeof(v)
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


def spread(v: Array, kind: Any) -> Array:
    """`v` broadcast to the shape of this type, `jax.typeof` of an array, varying and sharded as it is."""
    return sharded_as(vary(v, varying(kind)), kind)
