"""Checks of the values of options, whether Python, numpy or JAX holds them.

A value is checked where it can be read without waiting. A tracer has none, and a device that is still
computing an array is not waited for.
"""

import operator
from collections.abc import Callable
from typing import Any, SupportsIndex, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base.messages import error, option


def traced(value: object) -> bool:
    """Whether a value is known only when the program runs."""
    return isinstance(value, jax.core.Tracer)


def readable(value: object) -> np.ndarray[Any, Any] | None:
    """A value as a numpy array; None if it cannot be read without waiting."""
    array: Any = value  # jax.Array, as mypy knows it, has no is_ready
    if traced(value) or (isinstance(value, Array) and not (array.is_fully_addressable and array.is_ready())):
        return None
    return np.asarray(value)


def shown(value: object) -> str:
    """A value as a message shows it: a number, or the dtype and the shape of an array."""
    if value is None or isinstance(value, int | float | complex | str | tuple | list):
        return repr(value)
    if not isinstance(value, Array | np.ndarray | np.generic):
        return f"an object of type {type(value).__name__}"
    is_number = jnp.issubdtype(value.dtype, np.generic) and value.ndim == 0  # not a random key
    if is_number and (number := readable(value)) is not None:
        return repr(number.item())
    return f"{value.dtype.name}[{','.join(map(str, value.shape))}]"


def is_real(dtype: DTypeLike) -> bool:
    """Whether it is a dtype of integers or of real floating-point numbers."""
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _array(value: ArrayLike) -> Array | np.ndarray[Any, Any]:
    return value if isinstance(value, Array) else np.asarray(value)


def _is_number(value: ArrayLike, holds: Callable[[Any], Any]) -> bool:
    """Whether a value is one real number and, if it can be read, `holds` is true of it."""
    array = _array(value)
    if array.ndim or not is_real(array.dtype):
        return False
    number = readable(value)
    return number is None or bool(holds(number))


def epsilon(value: ArrayLike) -> Array:
    """epsilon >= 0 as a scalar without a gradient."""
    if not _is_number(value, lambda v: v >= 0):
        problem = f"{option('epsilon')}={shown(value)} is not a number >= 0"
        raise error(ValueError, problem, "it is added to the variance: choose, for example, 1e-5")
    return lax.stop_gradient(jnp.asarray(value)) if traced(value) else jnp.asarray(value)


def decay(value: ArrayLike) -> None:
    """The weight of the old average, in [0, 1]."""
    remedy = (
        "it is the fraction of the OLD average that is kept, 1 - PyTorch's momentum: choose, for example, "
    )
    if not _is_number(value, lambda v: (v >= 0) & (v <= 1)):
        problem = f"{option('decay')}={shown(value)} is outside [0, 1]"
        raise error(ValueError, problem, f"{remedy}0.99")


def alpha(value: ArrayLike) -> None:
    """The share of the stored statistics in a blend, in [0, 1]: a number, or an array of them."""
    remedy = f"it is the share of stats, 1 - {option('alpha')} that of the batch: choose, for example, 0.9"
    array = _array(value)
    numbers = readable(value) if is_real(array.dtype) else np.asarray(-1)
    if numbers is not None and not np.all((numbers >= 0) & (numbers <= 1)):
        raise error(ValueError, f"{option('alpha')}={shown(value)} is outside [0, 1]", remedy)


def at_least(name: str, value: ArrayLike, least: float) -> None:
    """A real number, or an array of them, none below `least`."""
    remedy = f"choose {least} or more"
    if not is_real(_array(value).dtype):
        raise error(TypeError, f"{option(name)} must be a number, got {shown(value)}", remedy)
    numbers = readable(value)
    if numbers is not None and not np.all(numbers >= least):
        raise error(ValueError, f"{option(name)}={shown(value)} is too small", remedy)


def integer(name: str, value: object, *, least: int | None = None, remedy: str = "give a Python int") -> int:
    """A static int, as Python has it, and not below `least`."""
    try:
        found = operator.index(cast(SupportsIndex, value))
    except TypeError:
        problem = f"{option(name)} must be an int, got {shown(value)}"
        raise error(TypeError, problem, remedy) from None
    if least is not None and found < least:
        raise error(ValueError, f"{option(name)}={found} is too small", remedy)
    return found


def choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """One of a few values."""
    if value not in choices:
        problem = f"{option(name)}={shown(value)} is not known"
        raise error(ValueError, problem, f"choose {' or '.join(map(repr, choices))}")


def train(value: bool | ArrayLike, name: str = "train") -> bool | Array:
    """A switch called `name`: a Python bool, or a boolean scalar that is known when the program runs."""
    array = _array(value)
    if array.ndim or array.dtype != np.bool_:
        batch, stored = ("True", "False") if name == "train" else ("False", "True")
        remedy = f"pass {batch} for the batch's statistics, {stored} for the stored ones, or a traced "
        remedy += "boolean scalar"
        raise error(TypeError, f"{name} must be a bool, got {shown(value)}", remedy)
    return value if isinstance(value, Array) else bool(value)


# The options whose values are checked in every public function that has them, by name.
VALUES: dict[str, Callable[[Any], Any]] = {
    "epsilon": epsilon,
    "decay": decay,
    "train": train,
    "r_max": lambda value: at_least("r_max", value, 1),
    "d_max": lambda value: at_least("d_max", value, 0),
    "clip": lambda value: at_least("clip", value, 0),
}
