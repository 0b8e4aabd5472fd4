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

    def program(positional: int, known: Any, names: Any, arrays: Any) -> Any:
        options = {name: value for name, _, value in known} | dict(zip(names, arrays, strict=True))
        args = [options.pop(i) for i in range(positional)]
        return function(*args, **options)

    program.__name__ = function.__name__  # profiles show it
    program = jax.jit(program, static_argnums=(0, 1, 2))

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        known, arrays = [], {}
        for name, value in (*enumerate(args), *sorted(options.items())):
            if _is_array(value):
                arrays[name] = value
            else:
                known.append((name, type(value), value))  # the type: 1 == True
        if not arrays or not _hashable(known):
            return function(*args, **options)
        return program(len(args), tuple(known), tuple(arrays), tuple(arrays.values()))

    return call


def _is_array(value: Any) -> bool:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return any(map(_is_array, value))
    # numpy's strings and objects are left for the checks to refuse
    return isinstance(value, jax.Array) or (isinstance(value, np.ndarray) and value.dtype.kind not in "OSUMm")


def _hashable(known: list[Any]) -> bool:
    try:
        hash(tuple(known))
    except TypeError:
        return False
    return True
