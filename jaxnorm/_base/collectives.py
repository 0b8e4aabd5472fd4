"""Devices: sums over named axes, in one collective, under every way that JAX has to name an axis."""

import math
import operator
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray

from jaxnorm._base.arithmetic import common
from jaxnorm._base.messages import error
from jaxnorm._base.sharding import alike

# A name, an `IfBound`, an `InGroups`, several of them, or None.
AxisName: TypeAlias = Hashable | Sequence[Hashable]
Groups: TypeAlias = tuple[tuple[int, ...], ...]  # of device numbers along an axis


class Names(NamedTuple):
    """The named axes of a sum. Static and hashable.

    sums: axes that are summed over one after another, and the groups of devices that each sum stays within.
    """

    sums: tuple[tuple[tuple[Hashable, ...], Groups | None], ...] = ()

    @property
    def names(self) -> tuple[Hashable, ...]:
        """All the axes."""
        return tuple(name for names, _ in self.sums for name in names)


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


@dataclass(frozen=True)
class InGroups:
    """An axis name and groups of its devices: statistics are those of a group.

    Every function takes it as `axis_name`, or in a tuple of names. JAX sums within groups under `jax.pmap`
    and `jax.shard_map(check_vma=False)` only; a mesh axis that is two, one across groups and one within,
    works everywhere. `batch_norm`, its relatives and the layers take Flax's `axis_index_groups` as well.

    Args:
      name: an axis name, an `IfBound`, or a tuple of them: the devices of several axes are numbered together.
      groups: for each group the numbers of its devices along the axis, all groups equally large.

    Raises:
      TypeError: groups that are not lists of ints.

    >>> import jax, jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.InGroups("data", [[0, 2], [1, 3]])
    InGroups(name='data', groups=((0, 2), (1, 3)))
    >>> mean = lambda x: jn.moments(x, axis=0, axis_name=jn.InGroups("data", [[0]])).mean
    >>> jax.pmap(mean, axis_name="data")(jnp.array([[1.0, 3.0]])).tolist()
    [2.0]
    """

    name: Any
    groups: Any

    def __post_init__(self) -> None:
        """Make the groups tuples of ints, which are hashable; a TypeError if they are none."""
        try:
            groups = tuple(tuple(map(operator.index, group)) for group in self.groups)
        except TypeError:
            raise TypeError(
                f"InGroups: groups={self.groups!r} are not lists of device numbers; give, for example, "
                "((0, 1), (2, 3))."
            ) from None
        # tuples, so that it can be a static argument
        object.__setattr__(self, "groups", groups)
        if isinstance(self.name, list):
            object.__setattr__(self, "name", tuple(self.name))


def with_groups(axis_name: AxisName, axis_index_groups: Iterable[Iterable[int]] | None) -> AxisName:
    """Flax's two arguments as one axis name."""
    if axis_index_groups is None:
        return axis_name
    if axis_name is None:
        problem = f"axis_index_groups={axis_index_groups!r} divides a named axis, but axis_name is None"
        raise error(ValueError, problem, "give the axis's name as axis_name")
    return InGroups(axis_name, axis_index_groups)


def bound(axis_name: AxisName, *, option: str | None = "axis_name") -> Names:
    """The axes that names stand for, without those of an `IfBound` that are missing.

    Args:
      axis_name: a name, an `IfBound`, an `InGroups`, a tuple of them, or None.
      option: what an error calls `axis_name`; None: there is none, and all missing names are left out.
    """
    plain: list[Hashable] = []
    grouped: list[tuple[tuple[Hashable, ...], Groups | None]] = []
    for entry in _entries(axis_name):
        in_groups = isinstance(entry, InGroups)
        names = [name for name in _entries(entry.name if in_groups else entry) if _is_there(name, option)]
        names = [name.name if isinstance(name, IfBound) else name for name in names]
        if in_groups and names:
            grouped.append((tuple(names), entry.groups))
        elif not in_groups:
            plain += names
    return Names((*([(tuple(plain), None)] if plain else []), *grouped))


def _entries(axis_name: AxisName) -> Iterator[Any]:
    """Names, IfBound and InGroups, out of nested tuples of them."""
    if isinstance(axis_name, tuple | list):
        for entry in axis_name:
            yield from _entries(entry)
    elif axis_name is not None:
        yield axis_name


def _is_there(name: Hashable, option: str | None) -> bool:
    """Whether an axis name is bound; an error if it is not, is no `IfBound`, and came as an `option`."""
    try:
        lax.axis_size(name.name if isinstance(name, IfBound) else name)
    except NameError:
        if isinstance(name, IfBound) or option is None:
            return False
        remedy = (
            f"call it inside jax.shard_map, jax.pmap or jax.vmap with that axis name, leave {option} "
            f"out (plain jit with sharded arrays needs none), or give IfBound({name!r}), which is "
            "local where the name is missing"
        )
        raise error(ValueError, f"{option}={name!r} is not bound here", remedy) from None
    return True


def explain(raised: Exception, options: Mapping[str, Any], arrays: Sequence[Any]) -> None:
    """Raise an error that names the ways that work, if JAX has refused what cannot be done.

    Args:
      raised: JAX's error.
      options: of the call, or the fields of a layer.
      arrays: of the call.
    """
    axis_name = options.get("axis_name")  # without one Flax's layers ignore groups
    sums = () if axis_name is None else bound(with_groups(axis_name, options.get("axis_index_groups"))).sums
    grouped = [entry for entry in sums if entry[1] is not None]
    if isinstance(raised, NotImplementedError) and grouped:
        ((names, groups), *_) = grouped
        problem = f"axis_index_groups={groups}: JAX takes groups only under jax.pmap and under "
        problem += "jax.shard_map(check_vma=False)"
        remedy = (
            f"instead, make the mesh axis {names} two axes, one across the groups and one within, and give "
        )
        remedy += "the inner one as axis_name"
        raise error(ValueError, problem, remedy) from None
    here = jax.sharding.get_abstract_mesh().axis_names
    inner = [name for names, _ in sums for name in names if name not in here]
    if isinstance(raised, AssertionError) and here and inner:
        problem = f"axis_name={inner[0]!r} is an axis of jax.vmap, over which JAX sums inside of "
        problem += "jax.shard_map(check_vma=False) only"
        raise error(ValueError, problem, "use that, or reduce that axis as an axis of x") from None
    if any(type(v).__name__ == "JetTracer" for v in arrays):
        problem = (
            "jax.experimental.jet has no rule for jax.checkpoint, which keeps the memory of the backward "
        )
        problem += "pass small"
        remedy = "take higher derivatives by jax.jvp of jax.jvp, or by jax.hessian"
        raise error(NotImplementedError, problem, remedy) from raised


def size(over: Names) -> int:
    """How many devices take part in a sum."""
    # psum of a Python number is a Python number: nothing is sent
    return math.prod(lax.psum(1, names, axis_index_groups=groups) for names, groups in over.sums)


def psum(over: Names, values: Sequence[Array]) -> list[Array]:
    """The sums of several small arrays over the named axes, in ONE collective."""
    if not over.names or len(values) < 2:
        return [_psum(over, v) for v in values]
    # a new leading axis, not a ravel: arrays that are sharded over further axes are not resharded
    stacked = jnp.stack(common(*jnp.broadcast_arrays(*alike(*values))))
    return [
        total if total.dtype == v.dtype else total.real
        for total, v in zip(_psum(over, stacked), values, strict=True)
    ]


def _psum(over: Names, v: Array) -> Array:
    """The sum of one array over the named axes, in as few collectives as their kinds allow."""
    for names, groups in over.sums:
        # one lax.psum takes mesh axes that v varies over, or other names, as vmap's are, and not both
        outer = varying(v)
        for some in ([n for n in names if n not in outer], [n for n in names if n in outer]):
            if some:
                v = lax.psum(v, tuple(some), axis_index_groups=groups)
    return v


def varying(*values: Array | ShapedArray | None) -> frozenset[Any]:
    """The manual mesh axes that arrays, or types, vary over: none outside of shard_map(check_vma=True)."""
    names: frozenset[Any] = frozenset()
    for v in values:
        if v is not None:
            kind = v if isinstance(v, ShapedArray) else jax.typeof(v)
            manual = getattr(kind, "manual_axis_type", None)  # jax >= 0.10
            names |= manual.varying if manual is not None else getattr(kind, "vma", frozenset())
    return names


def vary(v: Array, over: frozenset[Any]) -> Array:
    """`v`, marked as varying over these mesh axes, too."""
    names = over - varying(v)
    return lax.pcast(v, tuple(sorted(names, key=str)), to="varying") if names else v
