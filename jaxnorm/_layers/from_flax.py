"""Which of a model's layers are Flax's norms, and the classes of jaxnorm that take their places."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from inspect import getattr_static
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


def choose(layer: Any, norms: Mapping[Any, Any]) -> Choice:
    """What takes the place of a layer's class.

    Args:
      layer: any layer of a model.
      norms: Flax's norms, and ours for each.
    """
    cls: Any = type(layer)
    if issubclass(cls, Named):
        return Choice()
    flax_s = next((base for base in cls.__mro__ if base in norms), None)
    if flax_s is None:
        foreign = f"{cls.__name__} is not a subclass of a norm of Flax"
        return Choice(reason=foreign if cls.__name__.endswith("Norm") else "")
    ours = norms[flax_s]
    needed = _needed(flax_s, ours)
    methods = {name for name in needed & vars(layer).keys() if _is_method(getattr_static(ours, name))}
    return _clash(cls, ours, min(methods)) if methods else _of_class(cls, flax_s, ours)


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


@functools.cache
def _of_class(cls: Any, flax_s: Any, ours: Any) -> Choice:
    """What takes the place of a class: one class for all models, so that compiled programs know it again.

    Args:
      cls: a norm of Flax, or a subclass.
      flax_s: the norm of Flax.
      ours: that of jaxnorm.
    """
    if cls is flax_s:
        return Choice(ours)
    for name, method in vars(flax_s).items():
        called = name == "__call__" or not name.startswith("__")
        called = called and name not in _MODES and inspect.isfunction(method)
        if called and getattr(cls, name) is not getattr(flax_s, name):
            return Choice(reason=f"{cls.__name__} overrides {name} of {flax_s.__name__}")
    names = {*dir(cls), *getattr(cls, "__dataclass_fields__", ())}
    if taken := names & _needed(flax_s, ours):
        return _clash(cls, ours, min(taken))
    body = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return Choice(type(cls)(cls.__name__, (cls, ours), {**body, "__init__": cls.__init__}))


def _clash(cls: type, ours: type, name: str) -> Choice:
    """A subclass is left that has given `name` to something else than `ours` needs it for."""
    return Choice(reason=f"{cls.__name__} has {name}, which jaxnorm's {ours.__name__} has, too")


@functools.cache
def _needed(flax_s: Any, ours: Any) -> frozenset[str]:
    """The names that a norm of ours has, and that of Flax has not."""
    known = {*dir(flax_s), *inspect.signature(flax_s.__init__).parameters}
    return frozenset(name for name in dir(ours) if not name.startswith("__") and name not in known)


def _is_method(value: Any) -> bool:
    return callable(value) or isinstance(value, property)
