"""Public functions as programs: eagerly one dispatch in place of dozens, and traced once for many calls."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from jaxnorm._base.collectives import explained, named, with_groups
from jaxnorm._base.messages import calling, error, public
from jaxnorm._base.options import VALUES, decay, traced

P = ParamSpec("P")
R = TypeVar("R")
Checks = Mapping[str, Callable[[str, Any], Any]]

# Options that decide what is traced. They are Python's numbers in the program, whatever they are held in, and
# a list of them is no reason to leave it.
STATIC = {
    *("axis", "feature_axis", "reduction_axes", "axis_name", "axis_index_groups"),
    *("num_groups", "group_size", "num_ghosts", "num_features", "size", "ord", "iterations"),
    *("unbiased", "keepdims", "zero_centered_scale", "norm_before_gate"),
}

FIELDS = {"momentum": decay, **{name: check for name, check in VALUES.items() if name != "decay"}}


def compiled(function: Callable[P, R], **checks: Callable[[str, Any], Any]) -> Callable[P, R]:
    """`function`, compiled; a network of fifty equal layers traces and lowers it once.

    Arrays, and named tuples of them, are the program's arguments. All else is known when it is traced, so
    that every check finds what it would find eagerly. The values of arrays are not known then: those of
    options are checked at every call, before it, by `checks` and by those that all functions share.
    """
    name, plain = function.__name__, public(function)
    places = dict(enumerate(inspect.signature(function).parameters))
    values = {**VALUES, **checks}

    def program(known: Any, names: Any, arrays: Any) -> Any:
        args, options = _together(known, names, arrays)
        return plain(*args, **options)

    program.__name__ = name  # profiles show it
    program = jax.jit(program, static_argnums=(0, 1))

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        known, arrays = _apart(args, options, places)
        for option in arrays.keys() & values.keys():
            values[option](name, arrays[option])
        if not arrays or not _hashable(known):
            return plain(*args, **options)
        try:
            return program(known, tuple(arrays), tuple(arrays.values()))
        except (KeyError, jax.errors.UnexpectedTracerError) as raised:
            _explain_jet(name, arrays, raised)
            raise
        except NotImplementedError:  # where jax.vmap goes through the program, after it was traced
            axis_name = with_groups(name, options.get("axis_name"), options.get("axis_index_groups"))
            with explained(name, named(axis_name)):
                raise

    return call


def compiled_method(function: Callable[P, R]) -> Callable[P, R]:
    """A method that changes nothing, compiled likewise: its object, a pytree, is an argument, too.

    It is taken apart at every call, so that a changed option is seen, and read while the method is traced. An
    object that holds anything but arrays, such as references, or that is no pytree, is called as it is.
    """

    def program(structure: Any, known: Any, names: Any, leaves: Any, arrays: Any) -> Any:
        args, options = _together(known, names, arrays)
        return function(jax.tree.unflatten(structure, leaves), *args, **options)

    program.__name__ = function.__qualname__
    program = jax.jit(program, static_argnums=(0, 1, 2))

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        layer: Any = args[0]
        leaves, structure = jax.tree.flatten(layer)
        known, arrays = _apart(args[1:], options, {})
        if not all(map(_is_array, leaves)) or not _hashable(known):
            return function(*args, **options)
        _check_fields(layer)
        try:
            return program(structure, known, tuple(arrays), leaves, tuple(arrays.values()))
        except (KeyError, jax.errors.UnexpectedTracerError) as raised:
            _explain_jet(type(layer).__name__, arrays, raised)
            raise

    return call


def _check_fields(layer: Any) -> None:
    """The values of a layer's options that are held in arrays, which its program does not know."""
    fields = vars(layer)
    for name, check in FIELDS.items():
        if isinstance(fields.get(name), jax.Array):
            with calling(type(layer).__name__, {"decay": "momentum"}):
                check(name, fields[name])


class _Listed:
    """A list as a static argument: compared by what is in it. Messages show what the user wrote."""

    def __init__(self, value: Any):
        self.value, self.items = value, _items(value)

    def __hash__(self) -> int:
        return hash(self.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Listed) and self.items == other.items


def _items(value: Any) -> Any:
    """Lists, and whatever else can be gone through, as tuples."""
    if isinstance(value, Iterable) and not isinstance(value, str | jax.Array):
        return type(value), tuple(map(_items, value))
    return type(value), value


def _static(value: Any) -> Any:
    """An option that decides what is traced, as Python's numbers, hashable if it can be."""
    if isinstance(value, jax.Array | np.ndarray):
        return value if traced(value) else _static(np.asarray(value).tolist())
    if isinstance(value, Iterator):
        value = tuple(value)
    return value if _hashable(value) else _Listed(value)


def _apart(args: Any, options: Any, places: Mapping[Any, str]) -> tuple[Any, dict[Any, Any]]:
    """What is known of a call's arguments, and its arrays, by name or place."""
    known, arrays = [], {}
    for name, value in (*enumerate(args), *sorted(options.items())):
        if _is_array(value) and places.get(name, name) not in STATIC:
            arrays[name] = value
            continue
        if places.get(name, name) in STATIC:
            value = _static(value)
        known.append((name, type(value), value))  # the type: 1 == True
    return tuple(known), arrays


def _together(known: Any, names: Any, arrays: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of the call that was taken apart."""
    options = {name: v.value if isinstance(v, _Listed) else v for name, _, v in known}
    options |= dict(zip(names, arrays, strict=True))
    places = sorted(name for name in options if isinstance(name, int))
    return [options.pop(place) for place in places], options


def _is_array(value: Any) -> bool:
    if value is None:  # most options: nothing is asked of them
        return False
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return any(map(_is_array, value))
    # numpy's strings and objects are left for the checks to refuse
    return isinstance(value, jax.Array) or (isinstance(value, np.ndarray) and value.dtype.kind not in "OSUMm")


def _hashable(known: Any) -> bool:
    try:
        hash(known)
    except TypeError:
        return False
    return True


def _explain_jet(function: str, arrays: Mapping[Any, Any], raised: Exception) -> None:
    """The error of `jax.experimental.jet`, which knows neither remat nor custom derivatives, in words."""
    kinds = (type(v).__name__ for v in jax.tree.leaves(arrays))
    if "JetTracer" in kinds:
        raise error(
            NotImplementedError,
            function,
            "jax.experimental.jet has no rule for jax.checkpoint, which keeps the memory of the backward "
            "pass small; take higher derivatives by jax.jvp of jax.jvp, or by jax.hessian.",
        ) from raised
