"""Nnx layers of the family that keep no state."""

import inspect
from typing import Any, ClassVar

from flax import nnx
from jax import Array

from jaxnorm._base.compilation import compiled_method
from jaxnorm._core.moments import Moments
from jaxnorm._layers import calls as layers
from jaxnorm._layers import family as family
from jaxnorm._layers import parts as parts


def parameters(layer: Any, x: Array) -> dict[str, Array]:
    features = layers.feature_shape(layer, x, layer.features)
    return {name: getattr(layer, name)[...] for name in layer.shapes(features)}


def own_parameters(layer: Any, x: Array, **overrides: Any) -> dict[str, Any]:
    """The parameters that the layer's class names, the dtype that they give y, and the devices."""
    return parts.own(layer, x, parameters(layer, x), **overrides)


def create_parameters(layer: Any, num_features: int, rngs: nnx.Rngs) -> None:
    for name, shape in layer.shapes((num_features,)).items():
        start = layer.initializer(name, (num_features,))
        setattr(layer, name, nnx.Param(start(rngs.params(), shape, layer.param_dtype)))


class Described(nnx.Module):
    """Shows its fields among the arguments of its constructor."""

    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__signature__ = parts.signature(cls, cls.__init__)


class Layer(parts.Layer, Described):
    def __init__(self, num_features: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        for name, value in parts.settings(type(self), **options).items():
            setattr(self, name, value)
        self.num_features = num_features
        create_parameters(self, num_features, rngs)


class _Pointwise(Layer):
    @compiled_method
    def __call__(self, x: Array) -> Array:
        return self.normalize(x, **own_parameters(self, x))


class _Measured(Layer, parts.Measured):
    @compiled_method
    def __call__(self, x: Array, *, mask: Array | None = None, weights: Array | None = None) -> Any:
        return self.normalize(x, mask, weights, **own_parameters(self, x))


class DynamicTanh(_Pointwise, family.DynamicTanh):
    """Dynamic tanh (DyT): y = tanh(alpha * x) * scale + bias, in a norm's place.

    `alpha`, one number, starts at 0.5. There are no statistics, and so no mask. The evidence is mixed: see
    `jaxnorm.dynamic_tanh`.

    Zhu, Chen, He, LeCun and Liu, 2025, arXiv:2503.10622.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([0.0, 2.0, 100.0])
    >>> y = jn.DynamicTanh(3, rngs=nnx.Rngs(0))(x)
    >>> print(y.round(3))
    [0.    0.762 1.   ]
    """


class Derf(_Pointwise, family.Derf):
    """Dynamic erf (Derf): y = erf(alpha * x + shift) * scale + bias, in a norm's place.

    `alpha` and `shift`, one number each, start at 0.5 and 0. The evidence is mixed: see
    `jaxnorm.dynamic_erf`.

    Chen et al., 2025, arXiv:2512.10938.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([0.0, 2.0, 100.0])
    >>> y = jn.Derf(3, rngs=nnx.Rngs(0))(x)
    >>> print(y.round(3))
    [0.    0.843 1.   ]
    """


class ScaleNorm(_Pointwise, family.ScaleNorm):
    """Scale norm: y = scale * x / sqrt(sum |x|^2 + epsilon), with one learned number for all features.

    It starts at the square root of the number of features, as RMS norm, or by `scale_init`.

    Nguyen and Salazar, 2019, arXiv:1910.05895.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([1.0, 7.0])
    >>> y = jn.ScaleNorm(2, rngs=nnx.Rngs(0))(x)
    >>> print(y.round(3))
    [0.2 1.4]
    """


class GatedRMSNorm(Layer, family.GatedRMSNorm):
    """Gated RMS norm: y = rms_norm(x) * scale * silu(gate), called with x and the gate.

    With `norm_before_gate=False` it is rms_norm(x * silu(gate)) * scale, as in Mamba-2.

    Dao and Gu, 2024, arXiv:2405.21060.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([1.0, 7.0])
    >>> y = jn.GatedRMSNorm(2, rngs=nnx.Rngs(0))(x, jnp.asarray([20.0, 0.0]))
    >>> print(y.round(3))
    [4. 0.]
    """

    @compiled_method
    def __call__(
        self, x: Array, gate: Array, *, mask: Array | None = None, weights: Array | None = None
    ) -> Array:
        return self.normalize(x, mask, weights, gate=gate, **own_parameters(self, x))


class PartialRMSNorm(_Measured, family.PartialRMSNorm):
    """Partial RMS norm: y = x / sqrt(mean(|x[:k]|^2) + epsilon) * scale, by the first k features alone.

    k is `fraction` of the features, by default the paper's 6.25 %, rounded, and at least 1.

    Zhang and Sennrich, 2019, arXiv:1910.07467.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> norm = jn.PartialRMSNorm(4, fraction=0.5, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.asarray([2.0, 2.0, 5.0, 4.0])).round(3))
    [1.  1.  2.5 2. ]
    """


class QKNorm(Layer, family.QKNorm):
    """QK norm: norm(query) * query_scale and norm(key) * key_scale, over the features of a head.

    It is called with queries and keys, [..., heads, features], of as many heads each as they have, and
    returns both, of one dtype. `norm` is `jaxnorm.rms_norm`, as in OLMo 2 and Qwen3, or `jaxnorm.layer_norm`,
    as in ViT-22B. The scales, one value a feature, serve all heads; without them: `use_scale=False`.

    Henry et al., 2020, arXiv:2010.04245; Dehghani et al., 2023, arXiv:2302.05442.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> query, key = jnp.asarray([[1.0, 7.0], [7.0, 1.0]]), jnp.asarray([[3.0, 3.0]])
    >>> query, key = jn.QKNorm(2, rngs=nnx.Rngs(0))(query, key)
    >>> print(query.round(3).tolist(), key)
    [[0.2, 1.4], [1.4, 0.2]] [[1. 1.]]
    """

    @compiled_method
    def __call__(self, query: Array, key: Array) -> tuple[Array, Array]:
        return self.normalize(query, key=key, **own_parameters(self, query))


class FilterResponseNorm(_Measured, family.FilterResponseNorm):
    """Filter response norm: y = max(x / sqrt(mean |x|^2 + epsilon) * scale + bias, threshold).

    The mean is that of a sample's channel; the threshold is learned, and starts at 0: no other activation is
    needed. Without it: `use_threshold=False`. `use_learned_epsilon=True` adds a parameter to epsilon.

    Singh and Krishnan, 2019, arXiv:1911.09737.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[[1.0], [-7.0]]])
    >>> y = jn.FilterResponseNorm(1, rngs=nnx.Rngs(0))(x)
    >>> print(y.round(3).ravel())
    [0.2 0. ]
    """


class GlobalResponseNorm(_Measured, family.GlobalResponseNorm):
    """Global response norm: y = x + scale * x * g / mean(g) + bias, with g the length of a channel.

    Scale and bias start at 0, where y = x.

    Woo et al., 2023, arXiv:2301.00808.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[[1.0, 3.0]]])
    >>> y = jn.GlobalResponseNorm(2, rngs=nnx.Rngs(0))(x)
    >>> print(y.round(3).ravel())
    [1. 3.]
    """


class EvoNormS0(_Measured, family.EvoNormS0):
    """EvoNorm S0: y = x * sigmoid(slope * x) / sqrt(var + epsilon) * scale + bias, by groups of channels.

    It is its own activation. As in `GroupNorm`, either `num_groups` or `group_size`, with `num_groups=None`.

    Liu, Brock, Simonyan and Le, 2020, arXiv:2004.02967.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[2.0, -2.0]])
    >>> y = jn.EvoNormS0(2, num_groups=1, rngs=nnx.Rngs(0))(x)
    >>> print(y.round(3).tolist())
    [[0.881, -0.119]]
    """


class RevIN(_Measured, family.RevIN):
    """Reversible instance norm: y = (x - mean) / sqrt(var + epsilon) * scale + bias, and the way back.

    The call returns y and the moments, taken over `axis`, the time; `denormalize(forecast, moments)` takes a
    forecast of any length back to x's level and spread, and inverts scale and bias.

    Kim, Kim, Tae, Park, Choi and Choo, ICLR 2022.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> norm = jn.RevIN(1, rngs=nnx.Rngs(0))
    >>> y, moments = norm(jnp.asarray([[[1.0], [3.0]]]))
    >>> print(norm.denormalize(y, moments).round(3).ravel())
    [1. 3.]
    """

    def denormalize(self, y: Array, moments: Moments) -> Array:
        return self.restore(y, moments, parameters(self, y))
