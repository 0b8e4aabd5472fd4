"""Which of a model's layers are Flax's norms, and the classes of jaxnorm that take their places."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxnorm._base.messages import Named


class Swapped(list[tuple[str, str]]):
    """The norms that were swapped, `(path, class name)` each.

    `left` lists the norms that were not, `(path, class name, reason)` each.
    """

    left: list[tuple[str, str, str]]

    def __init__(self) -> None:
        super().__init__()
        self.left = []

    def add(self, path: tuple[Any, ...], name: str, reason: str) -> None:
        """A layer is listed once, however often a model calls it.

        Args:
          path: of the layer in the model.
          name: of its class.
          reason: why it was left; empty if it was swapped.
        """
        place = "/".join(map(str, path))
        if reason and (place, name, reason) not in self.left:
            self.left.append((place, name, reason))
        elif not reason and (place, name) not in self:
            self.append((place, name))


class Choice(NamedTuple):
    """What becomes of a layer: a class of ours, or a reason why it is left, or neither if it is no norm."""

    cls: Any = None
    reason: str = ""


def choose(layer: Any, norms: Mapping[type, type]) -> Choice:
    """What takes the place of a layer's class.

    Args:
      layer: any layer of a model.
      norms: Flax's norms, and ours for each.
    """
    cls = type(layer)
    if issubclass(cls, Named):
        return Choice()
    flax_s = next((base for base in cls.__mro__ if base in norms), None)
    if flax_s is None:
        foreign = (
            f"{cls.__name__} is not a subclass of a norm of Flax" if cls.__name__.endswith("Norm") else ""
        )
        return Choice(reason=foreign)
    ours = norms[flax_s]
    if changed := _overridden(cls, flax_s):
        return Choice(reason=f"{cls.__name__} overrides {changed} of {flax_s.__name__}")
    if taken := _taken(layer, flax_s, ours):
        return Choice(reason=f"{cls.__name__} has {taken}, which jaxnorm's {ours.__name__} has, too")
    return Choice(ours if cls is flax_s else _combined(cls, ours))


def missing(layer: Any, cls: type) -> dict[str, Any]:
    """The fields that the class has and the layer has not, with their values: the defaults.

    Args:
      layer: of Flax.
      cls: ours that takes the place of the layer's class.
    """
    fields: Any = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    absent = {f.name: f.default for f in fields if f.name not in vars(layer)}
    if "num_features" in absent:  # Flax's GroupNorm does not keep it
        absent["num_features"] = layer.num_groups * layer.group_size
    return absent


# Of a method that only chooses a mode, a subclass calls the inherited one.
_MODES = {"set_view"}


def _overridden(cls: type, flax_s: type) -> str:
    """The first of the methods of a norm's call that a subclass has changed; empty if there is none."""
    for name, method in vars(flax_s).items():
        called = name == "__call__" or not name.startswith("__")
        if called and name not in _MODES and inspect.isfunction(method):
            if getattr(cls, name) is not getattr(flax_s, name):
                return name
    return ""


def _taken(layer: Any, flax_s: type, ours: type) -> str:
    """A name that a user gave to something of a norm, and that ours needs; empty if there is none.

    An attribute of the layer that is called like an option of ours is that option.
    """
    known = {*dir(flax_s), *inspect.signature(flax_s.__init__).parameters}
    needed = {name for name in dir(ours) if not name.startswith("__")} - known
    methods = {name for name in needed if _is_method(inspect.getattr_static(ours, name))}
    of_class = {*dir(type(layer)), *getattr(type(layer), "__dataclass_fields__", ())}
    return min((needed & of_class) | (methods & vars(layer).keys()), default="")


def _is_method(value: Any) -> bool:
    return callable(value) or isinstance(value, property)


@functools.cache
def _combined(cls: type, ours: type) -> type:
    """The subclass of a user's norm that calls ours. One for all models: compiled programs know it again."""
    body = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls)(cls.__name__, (cls, ours), {**body, "__init__": cls.__init__})
