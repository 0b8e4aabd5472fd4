"""The public functions and layers of jaxnorm."""

import inspect
from types import ModuleType

import jaxnorm
from jaxnorm import linen, nnx


def public(module):
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }


FUNCTIONS = {name: v for name, v in public(jaxnorm).items() if inspect.isfunction(v)}
LAYERS = [
    (module, name)
    for module in (linen, nnx)
    for name, value in public(module).items()
    if inspect.isclass(value) and value.__module__.startswith(module.__name__)
]
DOCUMENTED = [(jaxnorm, name) for name, v in public(jaxnorm).items() if callable(v)] + LAYERS
