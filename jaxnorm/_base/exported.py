"""States as arguments and results of functions that `jax.export` writes to a file."""

import contextlib
from typing import Any, TypeVar

from jax import export

State = TypeVar("State", bound=type[tuple[Any, ...]])


def exportable(state: State) -> State:
    """The class of a state, a NamedTuple, registered under the name `jaxnorm.` and that of the class."""
    # where a module is reloaded, as in notebooks, the name is registered already
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(state, serialized_name=f"jaxnorm.{state.__name__}")
    return state
