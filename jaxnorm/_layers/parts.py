"""What a layer of the family is in any framework: fields, parameters, one call.

A layer of linen or nnx is such a class on a base of its framework, which stores the parameters that `shapes`
names, each initialized by the field `<name>_init`, and hands them to `normalize`.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, dataclass_transform

import jax.numpy as jnp
from jax import Array
from jax.nn import initializers

from jaxnorm._base.messages import Named
from jaxnorm._layers import calls as layers

Shape = tuple[int, ...]
T = TypeVar("T")


@dataclass_transform(kw_only_default=True)
def fields(cls: type[T]) -> type[T]:
    """A part of a layer: fields alone, so that the framework's own constructor, ==, hash and repr stay."""
    return dataclasses.dataclass(kw_only=True, init=False, eq=False, repr=False)(cls)


@fields
class Layer(Named):
    """`function` by the layer's parameters and by those of its fields that `options` names."""

    function: ClassVar[Callable[..., Any]]
    options: ClassVar[tuple[str, ...]] = ()
    axes_option: ClassVar[str] = "feature_axis"

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @property
    def features(self: Any) -> Any:
        """The axes that have parameters of their own."""
        return self.feature_axes

    def shapes(self, features: Shape) -> dict[str, Shape]:
        """The parameters, for features of that shape."""
        return {name: features for name in ("scale", "bias") if getattr(self, f"use_{name}", False)}

    def initializer(self, name: str, features: Shape) -> Any:
        return getattr(self, f"{name}_init")

    def chosen(self) -> dict[str, Any]:
        return {self.axes_option: self.features, **{name: getattr(self, name) for name in self.options}}

    def normalize(self, x: Array, *args: Any, **own: Any) -> Any:
        return type(self).function(x, *args, **self.chosen(), **own)


@fields
class Forgetting(Layer):
    """Without a state."""

    feature_axes: Any = -1


@fields
class Affine(Layer):
    use_scale: Any = True
    use_bias: Any = True
    scale_init: Any = initializers.ones
    bias_init: Any = initializers.zeros


@fields
class Measured(Layer):
    """A norm that takes moments: of what is not masked, and on several devices."""

    epsilon: Any = 1e-6
    axis_name: Any = None
    axis_index_groups: Any = None

    def normalize(self, x: Array, mask: Any = None, weights: Any = None, **own: Any) -> Any:
        return layers.call(type(self).function, self, x, mask, weights, **self.chosen(), **own)


@fields
class Projected(Layer):
    """A norm by what a network of its own makes of a condition: the parts that `parts` names."""

    parts: ClassVar[tuple[str, ...]] = ("scale", "bias")
    kernel_init: Any = initializers.lecun_normal()

    def activated(self, condition: Array) -> Array:
        return condition

    def split(self, projected: Array) -> dict[str, Array]:
        return dict(zip(self.parts, jnp.split(projected, len(self.parts), -1), strict=True))

    def width(self, features: int) -> int:
        return len(self.parts) * features


def own(
    layer: Any,
    x: Array,
    stored: dict[str, Array],
    *,
    initializing: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """The layer's parameters, in x's shapes, the dtype that they give y, and the devices that it meets."""
    shapes = layer.shapes(layers.feature_shape(layer, x, layer.features))
    if hasattr(layer, "num_features"):
        layers.check_width(layer, x, layer.features)
    for name, value in stored.items():
        if value.size != math.prod(shapes[name]):
            raise ValueError(layers.misfit(layer, x, layer.features, value.shape[-1]))
    values = {name: value.reshape(shapes[name]) for name, value in stored.items()}
    values |= layers.given(**overrides)
    alone = initializing or not hasattr(layer, "axis_name")
    return {
        **values,
        "dtype": layers.result_dtype(layer, x, *values.values()),
        **({} if alone else layers.devices(layer)),
    }


def signature(cls: type, *constructors: Callable[..., None]) -> inspect.Signature:
    """Of a class whose constructors take its fields, too, by name."""
    known = {p.name: p for f in constructors for p in inspect.signature(f).parameters.values()}
    known |= {
        f.name: inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if f.default is dataclasses.MISSING else f.default,
        )
        for f in dataclasses.fields(cls)
    }
    named = [p for name, p in known.items() if name != "self" and p.kind is not p.VAR_KEYWORD]
    return inspect.Signature(sorted(named, key=lambda p: p.kind))


def settings(cls: type, *constructors: Callable[..., None], **options: Any) -> dict[str, Any]:
    """The options with the defaults of those that were not given."""
    bound = signature(cls, *constructors).bind(**options)
    bound.apply_defaults()
    return bound.arguments
