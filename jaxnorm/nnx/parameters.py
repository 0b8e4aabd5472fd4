"""The fields and parameters of an nnx layer, and the bases of the layers without a state."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from functools import partial, update_wrapper
from types import MethodType
from typing import Any, ClassVar, dataclass_transform

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from flax.nnx.nn.dtypes import promote_dtype
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnorm._base.messages import Named
from jaxnorm._layers import calls as layers
from jaxnorm._layers.calls import Axes, Initializer, Shape

Metadata = Mapping[str, Any]
HOOKS = "normalize", "shapes", "initial_stats", "at_step", "normalize_and_update"
NO_METADATA: Metadata = FrozenDict()  # equal to Flax's default, which is no default of a dataclass


class Signature:
    """For `inspect.signature` of a class: nnx's own metaclass hides what its constructor takes."""

    def __get__(self, layer: Any, cls: Any) -> inspect.Signature:
        if layer is not None:
            raise AttributeError("__signature__")  # a layer's is that of its call
        return inspect.signature(partial(cls.__init__, None))


# Python changes the class of a layer of Flax, as `convert` does, where nnx.Module is the first base.
@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(field,))
class Fields(nnx.Module, Named):
    """A module whose annotated fields are the arguments of its constructor, as in linen.

    `__post_init__` makes its variables. A subclass may write a constructor instead.
    """

    __signature__: ClassVar[Any] = Signature()
    _written: ClassVar[bool] = False  # whether someone wrote the constructor

    def __init_subclass__(cls, **options: Any) -> None:
        cls._written = cls._written or "__init__" in vars(cls)
        dataclass(init=not cls._written, kw_only=True, eq=False, repr=False)(cls)
        super().__init_subclass__(**options)


class _Hook:
    """A method that is no call of the model: `nnx.tabulate` would trace whatever a plain function takes."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        update_wrapper(self, method)

    def __get__(self, layer: Any, cls: Any) -> Any:
        return self if layer is None else MethodType(self.method, layer)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.method(*args, **options)


class Layer(Fields):
    """A layer of some features, with the parameters that `shapes` names, normalized by `normalize`."""

    num_features: int = field(kw_only=False)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in HOOKS:
            method = getattr(cls, name, None)
            if inspect.isfunction(method):
                setattr(cls, name, _Hook(method))

    def __post_init__(self, *variables: Any) -> None:
        _create_parameters(self, *variables)

    def shapes(self, features: Shape) -> dict[str, Shape]:
        """The shapes of the parameters, by name, for features of this shape."""
        return layers.affine(self, features)


def _create_parameters(
    layer: Any, rngs: nnx.Rngs, bias_metadata: Metadata = NO_METADATA, scale_metadata: Metadata = NO_METADATA
) -> None:
    """The variables of a layer, by what its constructor takes and does not store.

    Args:
      layer: with all its fields.
      rngs: each parameter draws a key, as in Flax.
      bias_metadata, scale_metadata: of the variables.
    """
    metadata = {"bias": bias_metadata, "scale": scale_metadata}
    features = (layer.num_features,)
    for name, shape in layer.shapes(features).items():
        start = layers.initializer(layer, name, features)
        value = start(rngs.params(), shape, layer.param_dtype)
        setattr(layer, name, nnx.Param(value, **metadata.get(name, {})))
    for name in metadata:
        if not getattr(layer, f"use_{name}", True):
            setattr(layer, name, nnx.data(None))  # as in Flax


def parameters(layer: Any) -> dict[str, Array]:
    """The layer's parameters, by name."""
    found = {name: getattr(layer, name, None) for name in layer.shapes((layer.num_features,))}
    return {name: variable[...] for name, variable in found.items() if variable is not None}


def normalized(layer: Any, x: Array, **call: Any) -> Any:
    """The call of a layer without a state; `call` is that of `calls.normalize`."""
    return layers.normalize(layer, x, parameters(layer), **call)


def promoted(layer: Any, *stats: Array) -> Any:
    """What x, the statistics and the parameters are promoted to by a layer of Flax, for `calls.normalize`.

    Dtypes are all that is wanted: x in a wider one would be a copy, in a narrower one a loss.
    """

    def promote(arrays: tuple[Array, ...]) -> Any:
        x, *values = arrays
        arrays = (x, *stats, *values)
        if layer.promote_dtype is promote_dtype:  # Flax's own is what `result_dtype` does
            return arrays
        with layers.promotion():
            return jax.eval_shape(partial(layer.promote_dtype, dtype=layer.dtype), arrays)

    return promote


class Norm(Layer):
    """A layer without a state, which adds its fields, `normalize` and a call."""

    feature_axes: Axes = -1
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    rngs: InitVar[nnx.Rngs]


class Affine(Norm):
    """One that may have a scale and a bias."""

    use_scale: bool = True
    use_bias: bool = True
    scale_init: Initializer = initializers.ones
    bias_init: Initializer = initializers.zeros


class Measured(Norm):
    """One that takes moments: of what is not masked, and on several devices."""

    epsilon: float = 1e-6
    axis_name: Any = None
    axis_index_groups: Any = None
