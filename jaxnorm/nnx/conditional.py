"""Nnx layers whose scale and bias come from a condition."""

from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial
from typing import Any, ClassVar

import jax
from flax import nnx
from jax import Array
from jax.nn import initializers

import jaxnorm
from jaxnorm._layers import conditional as conditional
from jaxnorm._layers import state as state
from jaxnorm._layers.calls import Initializer, Shape
from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.parameters import Measured, Norm, normalized


class _Projected(Norm):
    """Its `parts` are a projection of the condition."""

    condition_features: int = field(kw_only=False)
    kernel_init: Initializer = initializers.lecun_normal()

    parts: ClassVar[tuple[str, ...]] = ("scale", "bias")

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        super().__post_init__(rngs)
        self.projection = nnx.Linear(
            self.condition_features,
            conditional.width(self.parts, self.num_features),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            rngs=rngs,
        )

    def _projected(self, condition: Array) -> dict[str, Array]:
        return conditional.split(self.projection(condition), self.parts)


class FiLM(_Projected):
    """FiLM: y = x * (1 + scale) + bias, where a condition, called beside x, gives both.

    (scale, bias) are a linear `projection` of the condition, [batch, any].

    Perez, Strub, de Vries, Dumoulin and Courville, 2017, arXiv:1709.07871.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[1.0, 3.0]])
    >>> y = jn.FiLM(2, 4, rngs=nnx.Rngs(0))(x, jnp.zeros((1, 4)))
    >>> print((y - x).round(3))
    [[0. 0.]]
    """

    def __call__(self, x: Array, condition: Array) -> Array:
        return normalized(self, x, **self._projected(condition))

    def normalize(self, x: Array, *, scale: Array, **call: Any) -> Array:
        return jaxnorm.film(x, conditional.one_more(scale), feature_axis=self.feature_axes, **call)


class AdaLayerNorm(_Projected, Measured):
    """Adaptive layer norm (AdaLN): y = layer_norm(x) * (1 + scale) + bias, by a condition beside x.

    (scale, bias) are a linear `projection` of silu(condition), which is [batch, any], or has x's axes. It
    starts at 0: plain layer norm.

    Peebles and Xie, 2022, arXiv:2212.09748.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[1.0, 3.0]])
    >>> y = jn.AdaLayerNorm(2, 4, rngs=nnx.Rngs(0))(x, jnp.ones((1, 4)))
    >>> print(y.round(3))
    [[-1.  1.]]
    """

    kernel_init: Initializer = initializers.zeros
    activation: Callable[[Array], Array] = jax.nn.silu

    def __call__(
        self, x: Array, condition: Array, *, mask: Array | None = None, weights: Array | None = None
    ) -> Any:
        parts = self._projected(self.activation(condition))
        return normalized(self, x, mask=mask, weights=weights, **parts)

    def normalize(self, x: Array, **call: Any) -> Any:
        return jaxnorm.adaptive_layer_norm(x, axis=self.feature_axes, **call)


class AdaLayerNormZero(AdaLayerNorm):
    """AdaLN-zero: adaptive layer norm, and a gate that starts at 0, of one condition.

    (scale, bias, gate) are a linear `projection` of silu(condition), which starts at 0. The call returns y
    and the gate, of y's dtype: the block is `x + gate * block(y)`, at first the identity.

    Peebles and Xie, 2022, arXiv:2212.09748.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[1.0, 3.0]])
    >>> y, gate = jn.AdaLayerNormZero(2, 4, rngs=nnx.Rngs(0))(x, jnp.ones((1, 4)))
    >>> print(y.round(3), gate)
    [[-1.  1.]] [[0. 0.]]
    """

    parts = ("scale", "bias", "gate")

    def normalize(self, x: Array, *, gate: Array, **call: Any) -> tuple[Array, Array]:
        y = super().normalize(x, **call)
        return y, conditional.beside(y, gate)


class ConditionalBatchNorm(BatchNorm):
    """Conditional batch norm: a scale and a bias for each of `num_classes`, by the labels beside x.

    The statistics are those of the whole batch. All else is as in `BatchNorm`.

    Dumoulin, Shlens and Kudlur, 2016, arXiv:1610.07629; de Vries et al., 2017, arXiv:1707.00683.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[1.0], [3.0]])
    >>> norm = jn.ConditionalBatchNorm(1, num_classes=5, momentum=0.5, rngs=nnx.Rngs(0))
    >>> y = norm(x, jnp.asarray([4, 0]))
    >>> print(y.round(3).ravel(), norm.mean[...].ravel())
    [-1.  1.] [1.]
    """

    num_classes: int

    def __call__(
        self,
        x: Array,
        labels: Array,
        use_running_average: bool | None = None,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
        update_stats: bool | None = None,
    ) -> Array:
        call = {"mask": mask, "weights": weights, "scale": scale, "bias": bias, "labels": labels}
        return self.normalize_and_update(x, use_running_average, update_stats, **call)

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return super().shapes((state.count(self, "num_classes"), *features))

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        return jaxnorm.conditional_batch_norm(x, stats, **call)


class SPADE(BatchNorm):
    """SPADE: batch norm without parameters, y * (1 + scale) + bias by maps made of a segmentation.

    It is called with x, channels last, and a segmentation, [batch, ..., classes], brought to x's size by
    nearest neighbours; a convolution to `hidden` channels, `activation`, and another give scale and bias.
    All else is as in `BatchNorm`.

    Park, Liu, Wang and Zhu, 2019, arXiv:1903.07291.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[[[1.0], [3.0]]]])
    >>> norm = jn.SPADE(1, 2, hidden=4, momentum=0.5, rngs=nnx.Rngs(0))
    >>> y = norm(x, jnp.zeros((1, 1, 1, 2)))
    >>> print(y.round(3).ravel(), norm.mean[...].ravel())
    [-1.  1.] [1.]
    """

    map_features: int = field(kw_only=False)
    use_bias: bool = False
    use_scale: bool = False
    hidden: int = 128
    kernel_size: Sequence[int] = (3, 3)
    kernel_init: Initializer = initializers.lecun_normal()
    activation: Callable[[Array], Array] = jax.nn.relu

    def __post_init__(self, rngs: nnx.Rngs, *metadata: Any) -> None:
        super().__post_init__(rngs, *metadata)
        conv = partial(
            nnx.Conv,
            kernel_size=self.kernel_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            rngs=rngs,
        )
        self.shared = conv(self.map_features, self.hidden)
        self.projection = conv(self.hidden, conditional.width(("scale", "bias"), self.num_features))

    def __call__(
        self,
        x: Array,
        segmentation: Array,
        use_running_average: bool | None = None,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
        update_stats: bool | None = None,
    ) -> Array:
        hidden = self.activation(self.shared(conditional.resized(segmentation, x)))
        maps = conditional.split(self.projection(hidden), ("scale", "bias"))
        brought = {name: v for name, v in {"scale": scale, "bias": bias}.items() if v is not None}
        call = {"mask": mask, "weights": weights, **maps, **brought}
        return self.normalize_and_update(x, use_running_average, update_stats, **call)

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        return jaxnorm.spade(x, stats, **call)
