"""Eager calls, compiled: one dispatch in place of dozens."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, compiled where it is called eagerly; where it is traced it is itself.

    Arrays, and named tuples of them, are the program's arguments. All else is known when it is traced, so
    that every check finds what it would find eagerly.
    """

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        known, arrays = [], {}
        for name, value in (*enumerate(args), *options.items()):
            if _is_array(value):
                arrays[name] = value
            else:
                known.append((name, type(value), value))  # the type: 1 == True
        traced = any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves(list(arrays.values())))
        if traced or not arrays or not _hashable(known):
            return function(*args, **options)
        return _program(function, len(args), tuple(known), tuple(arrays), tuple(arrays.values()))

    return call


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _program(function: Any, positional: int, known: Any, names: Any, arrays: Any) -> Any:
    options = {name: value for name, _, value in known} | dict(zip(names, arrays, strict=True))
    args = [options.pop(i) for i in range(positional)]
    return function(*args, **options)


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
