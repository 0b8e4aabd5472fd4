"""Public functions as programs: eagerly one dispatch in place of dozens, and traced once for many calls."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar

import jax
import numpy as np

from jaxnorm._base.collectives import explain
from jaxnorm._base.messages import calling, public
from jaxnorm._base.options import VALUES, alpha, traced

P = ParamSpec("P")
R = TypeVar("R")

# An argument's name, or its place where it was given by place.
Key: TypeAlias = str | int
# The static arguments of a call, each as (key, type, value): the type, as 1 == True.
Static: TypeAlias = tuple[tuple[Key, type, Any], ...]

# Options that decide what is traced. They are static, whatever they are held in.
STATIC = {
    *("axis", "feature_axis", "reduction_axes", "axis_name", "axis_index_groups"),
    *("num_groups", "group_size", "num_ghosts", "num_features", "size", "ord", "iterations"),
    *("unbiased", "keepdims", "zero_centered_scale", "norm_before_gate", "output_axis", "groups"),
}

# A layer's words for options whose values are checked.
WORDS = {"decay": "momentum", "alpha": "blend"}


def compiled(function: Callable[P, R], **checks: Callable[[Any], Any]) -> Callable[P, R]:
    """A function or a method, compiled; a network of fifty equal layers traces and lowers it once.

    Arrays, and named tuples of them, are the program's arguments. All else is static, so that every check
    finds what it would find eagerly. Inside the program an array has no value. Options that are held in
    arrays are therefore checked before every call, by `checks` and by those that all functions share.

    The object of a method, a pytree that the method does not change, is an argument, too. It is flattened at
    every call, so that a changed option is seen. Its options are its fields.
    """
    positional = list(inspect.signature(function).parameters)
    is_method = positional[0] == "self"
    values = VALUES | checks
    if is_method:
        values = {WORDS.get(name, name): check for name, check in (VALUES | {"alpha": alpha}).items()}
    plain: Callable[..., Any] = function

    def program(static: Static, keys: Sequence[Key], arrays: Sequence[Any]) -> Any:
        """The call of `function`, put together from its static arguments and its arrays, by their keys."""
        arguments: dict[Any, Any] = {key: v for key, _, v in static} | dict(zip(keys, arrays, strict=True))
        if is_method:
            arguments[0] = jax.tree.unflatten(static[0][2], arguments[0])
        by_place = [arguments.pop(key) for key in sorted(key for key in arguments if isinstance(key, int))]
        return plain(*by_place, **arguments)

    program.__name__ = function.__qualname__  # profiles show it
    program = jax.jit(program, static_argnums=(0, 1))

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        fields: Mapping[Any, Any] = vars(args[0]) if is_method else options
        name = type(args[0]).__name__ if is_method else function.__name__
        checked = {option: fields[option] for option in values.keys() & fields.keys()}
        with calling(name, WORDS):
            for option, value in checked.items():
                if _is_array(value):
                    values[option](value)
        leaves, structure = jax.tree.flatten(args[0]) if is_method else ([], None)
        # The leaves are no arrays where the object holds references, for example, or is no pytree. nnx takes
        # a traced field for a part of the structure, which is static here and must not be traced.
        if not all(map(_is_array, leaves)) or (is_method and any(map(traced, checked.values()))):
            return function(*args, **options)
        by_place = (structure, *args[1:]) if is_method else args
        static, arrays = _static_and_arrays(by_place, options, positional)
        if is_method:
            arrays[0] = leaves
        if not arrays or not _hashable(static):
            return function(*args, **options)
        try:
            return program(static, tuple(arrays), tuple(arrays.values()))
        except (NotImplementedError, AssertionError, KeyError, jax.errors.UnexpectedTracerError) as raised:
            with calling(name):
                explain(raised, fields, jax.tree.leaves(arrays))
            raise

    return call if is_method else public(call)


class _List(tuple[Any, ...]):
    """A list as a static argument, which must be hashable. Messages show it as the list that it was."""

    def __repr__(self) -> str:
        return repr(list(self))


def _static(value: object) -> Any:
    """An option that decides what is traced: Python's numbers, and hashable if it can be."""
    if isinstance(value, jax.Array | np.ndarray):
        return value if traced(value) else _static(np.asarray(value).tolist())
    if not isinstance(value, Iterable) or isinstance(value, str):
        return value
    return (_List if isinstance(value, list) else tuple)(map(_static, value))


def _static_and_arrays(
    args: Sequence[Any], options: Mapping[str, Any], positional: Sequence[str]
) -> tuple[Static, dict[Key, Any]]:
    """A call's static arguments and its arrays, by key; `positional` names the function's arguments."""
    static: list[tuple[Key, type, Any]] = []
    arrays: dict[Key, Any] = {}
    by_key: dict[Key, Any] = {**dict(enumerate(args)), **dict(sorted(options.items()))}
    for key, value in by_key.items():
        # where there are too many arguments, the function itself will raise Python's error
        name = positional[key] if isinstance(key, int) and key < len(positional) else key
        if name in STATIC:
            value = _static(value)
        elif _is_array(value):
            arrays[key] = value
            continue
        static.append((key, type(value), value))
    return tuple(static), arrays


def _is_array(value: object) -> bool:
    """Whether a program takes it as an argument: an array, or a named tuple of arrays."""
    if value is None:  # most options: the questions below take time
        return False
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return any(map(_is_array, value))
    # numpy's strings and objects are left for the checks to refuse
    return isinstance(value, jax.Array) or (isinstance(value, np.ndarray) and value.dtype.kind not in "OSUMm")


def _hashable(value: object) -> bool:
    """Whether a value can be part of a static argument, by which JAX keys its compiled programs."""
    try:
        hash(value)
    except TypeError:
        return False
    return True
