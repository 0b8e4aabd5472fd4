"""Checks of the values of options, whatever they are held in: Python's numbers, numpy's or JAX's.

A value is checked where it can be had without waiting: not a tracer's, nor that of an array which is still
being computed.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxnorm._base.messages import error, option


def traced(value: Any) -> bool:
    """Whether a value is known only when the program runs."""
    return isinstance(value, jax.core.Tracer)


def known(value: Any) -> Any:
    """A value as numpy has it; None for one that is not here yet."""
    if isinstance(value, Array):
        array: Any = value
        if traced(array) or not array.is_fully_addressable or not array.is_ready():
            return None
    return np.asarray(value)


def shown(value: Any) -> str:
    """A value as a message shows it: a number, or the dtype and the shape of an array."""
    if not isinstance(value, Array | np.ndarray | np.generic):
        return repr(value) if isinstance(value, int | float | complex | str | tuple | list) else _named(value)
    numeric = jnp.issubdtype(value.dtype, np.generic)  # not a random key
    if numeric and value.ndim == 0 and (number := known(value)) is not None:
        return repr(number.item())
    return f"{value.dtype.name}[{','.join(map(str, value.shape))}]"


def _named(value: Any) -> str:
    return repr(value) if value is None else f"an object of type {type(value).__name__}"


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _fits(value: Any, holds: Callable[[Any], Any]) -> bool:
    """Whether a value is one real number for which `holds` is true, where that is known."""
    given = value if isinstance(value, Array) else np.asarray(value)
    if given.ndim or not _is_real(given.dtype):
        return False
    number = known(value)
    return number is None or bool(holds(number))


def epsilon(function: str, value: Any) -> Array:
    """epsilon >= 0 as a float32 or wider scalar without a gradient."""
    if not _fits(value, lambda v: v >= 0):
        raise error(
            ValueError,
            function,
            f"{option('epsilon')}={shown(value)} is not a number >= 0; it is added to the variance: choose, "
            "for example, 1e-5.",
        )
    return lax.stop_gradient(value) if traced(value) else jnp.asarray(value)


def decay(function: str, value: Any) -> Any:
    """The fraction kept of the old average, in [0, 1]."""
    if not _fits(value, lambda v: (v >= 0) & (v <= 1)):
        raise error(
            ValueError,
            function,
            f"{option('decay')}={shown(value)} is outside [0, 1]; it is the fraction of the OLD average "
            "that is kept, 1 - PyTorch's momentum: choose, for example, 0.99.",
        )
    return value


def share(function: str, value: Any) -> Any:
    """alpha of a blend, in [0, 1]."""
    if not _fits(value, lambda v: (v >= 0) & (v <= 1)):
        raise error(
            ValueError,
            function,
            f"{option('alpha')}={shown(value)} is outside [0, 1]; it is the share of stats, 1 - alpha that "
            "of the batch: choose, for example, 0.9.",
        )
    return value


def at_least(function: str, name: str, value: Any, least: float) -> None:
    """A real number, or several, none below `least`."""
    given = value if isinstance(value, Array) else np.asarray(value)
    if not _is_real(given.dtype):
        raise error(
            TypeError,
            function,
            f"{option(name)} must be a number, got {shown(value)}; choose {least} or more.",
        )
    numbers = known(value)
    if numbers is not None and not np.all(numbers >= least):
        raise error(
            ValueError, function, f"{option(name)}={shown(value)} is too small; choose {least} or more."
        )


def integer(
    function: str, name: str, value: Any, *, least: int | None = None, remedy: str = "give a Python int"
) -> int:
    """An int that is known while tracing, as Python has it, and not below `least`."""
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None:
        raise error(TypeError, function, f"{option(name)} must be an int, got {shown(value)}; {remedy}.")
    if least is not None and found < least:
        raise error(ValueError, function, f"{option(name)}={found} is too small; {remedy}.")
    return found


def choice(function: str, name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """One of a few."""
    if value not in choices:
        listed = " or ".join(map(repr, choices))
        raise error(ValueError, function, f"{option(name)}={shown(value)} is not known; choose {listed}.")


def train(function: str, value: Any, name: str = "train") -> Any:
    """A switch: a Python bool, or a boolean scalar that is known when the program runs."""
    given = value if isinstance(value, Array) else np.asarray(value)
    if given.ndim or given.dtype != np.bool_:
        batch, stored = ("True", "False") if name == "train" else ("False", "True")
        raise error(
            TypeError,
            function,
            f"{name} must be a bool, got {shown(value)}; pass {batch} for the batch's statistics, {stored} "
            "for the stored ones, or a traced boolean scalar.",
        )
    return value if isinstance(value, Array) else bool(value)


# The options whose values are checked in every public function that has them, by name.
VALUES: dict[str, Callable[[str, Any], Any]] = {
    "epsilon": epsilon,
    "decay": decay,
    "train": train,
    "r_max": lambda function, value: at_least(function, "r_max", value, 1),
    "d_max": lambda function, value: at_least(function, "d_max", value, 0),
    "clip": lambda function, value: at_least(function, "clip", value, 0),
}
