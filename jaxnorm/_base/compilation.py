"""Public functions as programs: eagerly one dispatch in place of dozens, and traced once for many calls."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar

import jax
import numpy as np

from jaxnorm._base.collectives import explained, named, with_groups
from jaxnorm._base.messages import calling, error, public
from jaxnorm._base.options import VALUES, alpha, decay, traced

P = ParamSpec("P")
R = TypeVar("R")

# The static arguments of a call, each as (name, type, value): the type, as 1 == True.
Static: TypeAlias = tuple[tuple[str, type, Any], ...]

# Options that decide what is traced. They are static, whatever they are held in.
STATIC = {
    *("axis", "feature_axis", "reduction_axes", "axis_name", "axis_index_groups"),
    *("num_groups", "group_size", "num_ghosts", "num_features", "size", "ord", "iterations"),
    *("unbiased", "keepdims", "zero_centered_scale", "norm_before_gate", "output_axis", "groups"),
}

# A layer's fields that hold the value of an option.
FIELDS = {name: check for name, check in VALUES.items() if name != "decay"}
FIELDS |= {"momentum": decay, "blend": alpha}


def compiled(function: Callable[P, R], **checks: Callable[[Any], Any]) -> Callable[P, R]:
    """`function`, compiled; a network of fifty equal layers traces and lowers it once.

    Arrays, and named tuples of them, are the program's arguments. All else is static, so that every check
    finds what it would find eagerly. Inside the program an array has no value. Options that are held in
    arrays are therefore checked before every call, by `checks` and by those that all functions share.
    """
    positional, values = _positional(function), {**VALUES, **checks}
    by_name: Callable[..., Any] = function

    def program(static: Static, names: Sequence[str], arrays: Sequence[Any]) -> Any:
        return by_name(**_arguments(static, names, arrays))

    program.__name__ = function.__name__  # profiles show it
    program = jax.jit(program, static_argnums=(0, 1))

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        static, arrays = _static_and_arrays(args, options, positional)
        for option in arrays.keys() & values.keys():
            values[option](arrays[option])
        if not arrays or not _hashable(static) or _miscalled(args, options, positional):
            return function(*args, **options)
        try:
            with _jet_explained(arrays):
                return program(static, tuple(arrays), tuple(arrays.values()))
        except NotImplementedError:  # where jax.vmap goes through the program, after it was traced
            axis_name = with_groups(options.get("axis_name"), options.get("axis_index_groups"))
            with explained(named(axis_name)):
                raise

    return public(call)


def compiled_method(function: Callable[P, R]) -> Callable[P, R]:
    """A method that changes nothing, compiled likewise: its object, a pytree, is an argument, too.

    It is flattened at every call, so that a changed option is seen. The method is called as it is if the
    object holds anything but arrays, such as references, or is no pytree.
    """

    _, *positional = _positional(function)  # without self

    def program(
        structure: Any, static: Static, names: Any, leaves: Sequence[Any], arrays: Sequence[Any]
    ) -> Any:
        return function(jax.tree.unflatten(structure, leaves), **_arguments(static, names, arrays))

    program.__name__ = function.__qualname__
    program = jax.jit(program, static_argnums=(0, 1, 2))

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        layer: Any = args[0]
        leaves, structure = jax.tree.flatten(layer)
        static, arrays = _static_and_arrays(args[1:], options, positional)
        miscalled = _miscalled(args[1:], options, positional)
        fields = {name: vars(layer).get(name) for name in FIELDS}
        # nnx takes a traced field for a part of the structure, which is static here and must not be traced
        if (
            miscalled
            or not all(map(_is_array, leaves))
            or not _hashable(static)
            or any(map(traced, fields.values()))
        ):
            return function(*args, **options)
        with calling(type(layer).__name__, {"decay": "momentum", "alpha": "blend"}):
            for name, value in fields.items():
                if isinstance(value, jax.Array):
                    FIELDS[name](value)
        with _jet_explained(arrays, type(layer).__name__):
            return program(structure, static, tuple(arrays), leaves, tuple(arrays.values()))

    return call


class _Listed:
    """A list, or another iterable, as a static argument: compared by its items. Messages show `value`."""

    def __init__(self, value: Iterable[object]):
        self.value, self.items = value, _items(value)

    def __hash__(self) -> int:
        return hash(self.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Listed) and self.items == other.items


def _items(value: object) -> Hashable:
    """Nested iterables as nested tuples, with the types of all."""
    if isinstance(value, Iterable) and not isinstance(value, str | jax.Array):
        return type(value), tuple(map(_items, value))
    return type(value), value


def _static(value: object) -> object:
    """An option that decides what is traced: Python's numbers, hashable if it can be."""
    if isinstance(value, jax.Array | np.ndarray):
        return value if traced(value) else _static(np.asarray(value).tolist())
    if isinstance(value, Iterator):
        value = tuple(value)
    return _Listed(value) if isinstance(value, Iterable) and not _hashable(value) else value


def _positional(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that may be given by place."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def _static_and_arrays(
    args: Sequence[Any], options: Mapping[str, Any], positional: Sequence[str]
) -> tuple[Static, dict[str, Any]]:
    """A call's static arguments and its arrays, by name; `positional` are the names of `args`."""
    static: list[tuple[str, type, Any]] = []
    arrays: dict[str, Any] = {}
    for name, value in (*zip(positional, args, strict=False), *sorted(options.items())):
        if name in STATIC:
            value = _static(value)
        elif _is_array(value):
            arrays[name] = value
            continue
        static.append((name, type(value), value))
    return tuple(static), arrays


def _miscalled(args: Sequence[Any], options: Mapping[str, Any], positional: Sequence[str]) -> bool:
    """Whether there are too many positional arguments, or one is given twice: Python's error says so."""
    return len(args) > len(positional) or not options.keys().isdisjoint(positional[: len(args)])


def _arguments(static: Static, names: Sequence[str], arrays: Sequence[Any]) -> dict[str, Any]:
    """The arguments of the call whose static ones and arrays these are."""
    values = {name: v.value if isinstance(v, _Listed) else v for name, _, v in static}
    return values | dict(zip(names, arrays, strict=True))


def _is_array(value: object) -> bool:
    if value is None:  # most options: the questions below take time
        return False
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return any(map(_is_array, value))
    # numpy's strings and objects are left for the checks to refuse
    return isinstance(value, jax.Array) or (isinstance(value, np.ndarray) and value.dtype.kind not in "OSUMm")


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def _jet_explained(arrays: Mapping[str, Any], layer: str = "") -> Iterator[None]:
    """The error of `jax.experimental.jet`, which knows neither remat nor custom derivatives, in words."""
    try:
        yield
    except (KeyError, jax.errors.UnexpectedTracerError) as raised:
        if all(type(v).__name__ != "JetTracer" for v in jax.tree.leaves(arrays)):
            raise
        problem = (
            "jax.experimental.jet has no rule for jax.checkpoint, which keeps the memory of the backward "
        )
        problem += "pass small"
        remedy = "take higher derivatives by jax.jvp of jax.jvp, or by jax.hessian"
        with calling(layer):
            raise error(NotImplementedError, problem, remedy) from raised
