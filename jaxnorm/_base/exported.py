"""States as arguments and results of functions that `jax.export` writes to a file."""

import contextlib
from typing import Any, TypeVar

from jax import export

State = TypeVar("State", bound=type[tuple[Any, ...]])


def exportable(state: State) -> State:
    """The class of a state, a NamedTuple, registered by the name `jaxnorm.` and its own."""
    # a module that is loaded again, as notebooks do, makes the class again, and its name is taken
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(state, serialized_name=f"jaxnorm.{state.__name__}")
    return state
