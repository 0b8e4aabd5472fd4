"""Public functions as programs: eagerly one dispatch in place of dozens, and traced once for many calls."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, compiled; a network of fifty equal layers traces and lowers it once.

    Arrays, and named tuples of them, are the program's arguments. All else is known when it is traced, so
    that every check finds what it would find eagerly.
    """

    def program(known: Any, names: Any, arrays: Any) -> Any:
        args, options = _together(known, names, arrays)
        return function(*args, **options)

    program.__name__ = function.__name__  # profiles show it
    program = jax.jit(program, static_argnums=(0, 1))

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        known, arrays = _apart(args, options)
        if not arrays or not _hashable(known):
            return function(*args, **options)
        return program(known, tuple(arrays), tuple(arrays.values()))

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
        leaves, structure = jax.tree.flatten(args[0])
        known, arrays = _apart(args[1:], options)
        if not all(map(_is_array, leaves)) or not _hashable(known):
            return function(*args, **options)
        return program(structure, known, tuple(arrays), leaves, tuple(arrays.values()))

    return call


def _apart(args: Any, options: Any) -> tuple[Any, dict[Any, Any]]:
    """What is known of a call's arguments, and its arrays, by name or place."""
    known, arrays = [], {}
    for name, value in (*enumerate(args), *sorted(options.items())):
        if _is_array(value):
            arrays[name] = value
        else:
            known.append((name, type(value), value))  # the type: 1 == True
    return tuple(known), arrays


def _together(known: Any, names: Any, arrays: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of the call that was taken apart."""
    options = {name: value for name, _, value in known} | dict(zip(names, arrays, strict=True))
    places = sorted(name for name in options if isinstance(name, int))
    return [options.pop(place) for place in places], options


def _is_array(value: Any) -> bool:
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
