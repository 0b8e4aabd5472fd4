"""The layers of the family that forget: each is a function, its parameters and its options."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import initializers

from jaxnorm._base import checks as check
from jaxnorm._core.moments import Moments
from jaxnorm._core.standardize import unstandardize
from jaxnorm._layers import calls as layers
from jaxnorm._layers.parts import Affine, Forgetting, Measured, Projected, Shape, fields
from jaxnorm._norms import conditional as _conditional
from jaxnorm._norms import evonorm as _evonorm
from jaxnorm._norms import inputs as _inputs
from jaxnorm._norms import lengths as _lengths
from jaxnorm._norms import responses as _responses
from jaxnorm._norms import sample as _norms
from jaxnorm._norms import transformers as _transformers


@fields
class DynamicTanh(Affine, Forgetting):
    function: ClassVar[Any] = staticmethod(_transformers.dynamic_tanh)
    alpha_init: Any = initializers.constant(0.5)

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"alpha": (), **super().shapes(features)}


@fields
class Derf(DynamicTanh):
    function = staticmethod(_transformers.dynamic_erf)
    shift_init: Any = initializers.zeros

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"shift": (), **super().shapes(features)}


@fields
class ScaleNorm(Forgetting):
    function = staticmethod(_lengths.scale_norm)
    options = ("epsilon",)
    axes_option = "axis"
    epsilon: Any = 1e-10
    scale_init: Any = None

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"scale": ()}

    def initializer(self, name: str, features: Shape) -> Any:
        return self.scale_init or initializers.constant(math.sqrt(math.prod(features)))


@fields
class GatedRMSNorm(Measured, Forgetting):
    function = staticmethod(_transformers.gated_rms_norm)
    options = ("norm_before_gate",)
    axes_option = "axis"
    norm_before_gate: Any = True
    use_scale: Any = True
    scale_init: Any = initializers.ones


@fields
class PartialRMSNorm(Measured, Forgetting):
    function = staticmethod(_transformers.partial_rms_norm)
    fraction: Any = 0.0625
    use_scale: Any = True
    scale_init: Any = initializers.ones

    def normalize(self, x: Array, *args: Any, **own: Any) -> Any:
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"PartialRMSNorm: fraction={self.fraction} is outside (0, 1]; it is the part of the features "
                "whose mean square is taken: choose, for example, 0.0625."
            )
        (size,) = layers.feature_shape(self, x, self.features)
        return super().normalize(x, *args, num_features=max(1, round(self.fraction * size)), **own)


@fields
class QKNorm(Measured, Forgetting):
    function = staticmethod(_transformers.qk_norm)
    options = ("norm",)
    axes_option = "axis"
    norm: Any = _norms.rms_norm
    use_scale: Any = True
    scale_init: Any = initializers.ones

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"query_scale": features, "key_scale": features} if self.use_scale else {}

    def initializer(self, name: str, features: Shape) -> Any:
        return self.scale_init

    def normalize(self, x: Array, *args: Any, **own: Any) -> Any:
        own["dtype"] = layers.result_dtype(self, own["key"], own["dtype"])  # of both: they will be multiplied
        return super().normalize(x, *args, **own)


@fields
class FilterResponseNorm(Affine, Measured, Forgetting):
    function = staticmethod(_responses.filter_response_norm)
    use_threshold: Any = True
    use_learned_epsilon: Any = False
    threshold_init: Any = initializers.zeros
    learned_epsilon_init: Any = initializers.constant(1e-4)

    def shapes(self, features: Shape) -> dict[str, Shape]:
        more = {"threshold": self.use_threshold, "learned_epsilon": self.use_learned_epsilon}
        return {**super().shapes(features), **{name: features for name, used in more.items() if used}}


@fields
class GlobalResponseNorm(Affine, Measured, Forgetting):
    function = staticmethod(_responses.global_response_norm)
    scale_init: Any = initializers.zeros


@fields
class EvoNormS0(Affine, Measured, Forgetting):
    function = staticmethod(_evonorm.evonorm_s0)
    options = ("num_groups", "group_size")
    num_groups: Any = 32
    group_size: Any = None
    epsilon: Any = 1e-5
    slope_init: Any = initializers.ones

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"slope": features, **super().shapes(features)}


@fields
class RevIN(Affine, Measured, Forgetting):
    function = staticmethod(_inputs.reversible_norm)
    options = ("axis",)
    axis: Any = 1
    epsilon: Any = 1e-5

    def restore(self, y: Array, m: Moments, stored: Mapping[str, Array]) -> Array:
        """y in the units of x, from which `normalize` made it and m."""
        axes = check.axes(type(self).__name__, self.features, y)
        shape = [n if a in axes else 1 for a, n in enumerate(y.shape)]
        affine = {name: value.reshape(shape) for name, value in stored.items()}
        return unstandardize(y, m, epsilon=self.epsilon, **affine)


@fields
class FiLM(Projected, Forgetting):
    function = staticmethod(_conditional.film)

    def normalize(self, x: Array, *args: Any, **own: Any) -> Any:
        return super().normalize(x, *args, **own | {"scale": 1 + layers.widen(own["scale"])})


@fields
class AdaLayerNorm(Projected, Measured, Forgetting):
    function = staticmethod(_conditional.adaptive_layer_norm)
    axes_option = "axis"
    kernel_init: Any = initializers.zeros
    activation: Any = jax.nn.silu

    def activated(self, condition: Array) -> Array:
        return self.activation(condition)


@fields
class AdaLayerNormZero(AdaLayerNorm):
    parts = ("scale", "bias", "gate")

    def normalize(self, x: Array, *args: Any, **own: Any) -> Any:
        gate = own.pop("gate")
        y = super().normalize(x, *args, **own)
        places = tuple(range(1, 1 + x.ndim - gate.ndim))
        return y, jnp.expand_dims(gate, places).astype(y.dtype)
