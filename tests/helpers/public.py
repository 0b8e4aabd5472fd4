"""The public functions and layers of jaxnorm."""

import importlib
import inspect
from pathlib import Path
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
# The public packages of the floor between the norms and the layers.
PACKAGES = [
    importlib.import_module(f"jaxnorm.{name}")
    for name in ("population", "convert", "monitor")
    if (Path(jaxnorm.__file__).parent / name).exists()
]
AFTER_TRAINING = {
    f"{module.__name__.removeprefix('jaxnorm.')}.{name}": value
    for module in PACKAGES
    for name, value in public(module).items()
    if inspect.isfunction(value)
}
DOCUMENTED = [
    (module, name) for module in (jaxnorm, *PACKAGES) for name, v in public(module).items() if callable(v)
] + LAYERS
