"""Nnx layers that Flax lacks and that keep no state."""

from collections.abc import Callable
from typing import Any

from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

import jaxnorm
from jaxnorm._base.compilation import compiled
from jaxnorm._core.moments import Moments
from jaxnorm._layers import calls as layers
from jaxnorm._layers import family as family
from jaxnorm._layers.calls import Axes, Initializer, Shape
from jaxnorm.nnx.parameters import Affine, Measured, Norm, normalized, parameters


class _Pointwise(Norm):
    """Without moments."""

    @compiled
    def __call__(self, x: Array) -> Array:
        return normalized(self, x)


class _Masked(Measured):
    """With moments of what is not masked."""

    @compiled
    def __call__(self, x: Array, *, mask: Array | None = None, weights: Array | None = None) -> Any:
        return normalized(self, x, mask=mask, weights=weights)


class DynamicTanh(_Pointwise, Affine):
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

    alpha_init: Initializer = initializers.constant(0.5)

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"alpha": (), **super().shapes(features)}

    def normalize(self, x: Array, **call: Any) -> Array:
        return jaxnorm.dynamic_tanh(x, feature_axis=self.feature_axes, **call)


class Derf(DynamicTanh):
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

    shift_init: Initializer = initializers.zeros

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"shift": (), **super().shapes(features)}

    def normalize(self, x: Array, **call: Any) -> Array:
        return jaxnorm.dynamic_erf(x, feature_axis=self.feature_axes, **call)


class ScaleNorm(_Pointwise):
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

    epsilon: float = 1e-10
    scale_init: Initializer | None = None

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"scale": ()}

    def normalize(self, x: Array, **call: Any) -> Array:
        return jaxnorm.scale_norm(x, axis=self.feature_axes, **call)


class GatedRMSNorm(Measured):
    """Gated RMS norm: y = rms_norm(x) * scale * silu(gate), called with x and the gate.

    With `norm_before_gate=False` it is rms_norm(x * silu(gate)) * scale, as in Mamba-2. With `group_size`
    each group of so many features has its own mean square.

    Dao and Gu, 2024, arXiv:2405.21060.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([1.0, 7.0])
    >>> y = jn.GatedRMSNorm(2, rngs=nnx.Rngs(0))(x, jnp.asarray([20.0, 0.0]))
    >>> print(y.round(3))
    [4. 0.]
    """

    norm_before_gate: bool = True
    group_size: int | None = None
    use_scale: bool = True
    scale_init: Initializer = initializers.ones

    @compiled
    def __call__(
        self, x: Array, gate: Array, *, mask: Array | None = None, weights: Array | None = None
    ) -> Array:
        return normalized(self, x, mask=mask, weights=weights, gate=gate)

    def normalize(self, x: Array, **call: Any) -> Array:
        call["norm_before_gate"], call["group_size"] = self.norm_before_gate, self.group_size
        return jaxnorm.gated_rms_norm(x, axis=self.feature_axes, **call)


class PartialRMSNorm(_Masked):
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

    feature_axes: int = -1
    fraction: float = 0.0625
    use_scale: bool = True
    scale_init: Initializer = initializers.ones

    def normalize(self, x: Array, **call: Any) -> Array:
        size = family.part_of_features(self, x)
        return jaxnorm.partial_rms_norm(x, num_features=size, feature_axis=self.feature_axes, **call)


class QKNorm(Measured):
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

    norm: Callable[..., Array] = jaxnorm.rms_norm
    use_scale: bool = True
    scale_init: Initializer = initializers.ones

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"query_scale": features, "key_scale": features} if self.use_scale else {}

    @compiled
    def __call__(self, query: Array, key: Array) -> tuple[Array, Array]:
        return normalized(self, query, key=key)

    def normalize(self, x: Array, *, key: Array, dtype: DTypeLike, **call: Any) -> tuple[Array, Array]:
        both = layers.result_dtype(self, key, dtype)  # they will be multiplied
        return jaxnorm.qk_norm(x, key, norm=self.norm, axis=self.feature_axes, dtype=both, **call)


class FilterResponseNorm(_Masked, Affine):
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

    use_threshold: bool = True
    use_learned_epsilon: bool = False
    threshold_init: Initializer = initializers.zeros
    learned_epsilon_init: Initializer = initializers.constant(1e-4)

    def shapes(self, features: Shape) -> dict[str, Shape]:
        used = {"threshold": self.use_threshold, "learned_epsilon": self.use_learned_epsilon}
        return {**super().shapes(features), **{name: features for name in used if used[name]}}

    def normalize(self, x: Array, **call: Any) -> Array:
        return jaxnorm.filter_response_norm(x, feature_axis=self.feature_axes, **call)


class GlobalResponseNorm(_Masked, Affine):
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

    feature_axes: int = -1
    scale_init: Initializer = initializers.zeros

    def normalize(self, x: Array, **call: Any) -> Array:
        return jaxnorm.global_response_norm(x, feature_axis=self.feature_axes, **call)


class EvoNormS0(_Masked, Affine):
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

    feature_axes: int = -1
    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-5
    slope_init: Initializer = initializers.ones

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"slope": features, **super().shapes(features)}

    def normalize(self, x: Array, **call: Any) -> Array:
        call["num_groups"], call["group_size"] = self.num_groups, self.group_size
        return jaxnorm.evonorm_s0(x, feature_axis=self.feature_axes, **call)


class RevIN(_Masked, Affine):
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

    axis: Axes = 1
    epsilon: float = 1e-5

    def normalize(self, x: Array, **call: Any) -> tuple[Array, Moments]:
        return jaxnorm.reversible_norm(x, axis=self.axis, feature_axis=self.feature_axes, **call)

    def denormalize(self, y: Array, moments: Moments) -> Array:
        """A forecast in the units of x, of which the call returned these moments."""
        return family.restore(self, y, moments, parameters(self))
