"""Linen layers whose scale and bias come from a condition."""

from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial
from typing import Any, ClassVar

import jax
from flax import linen as nn
from jax import Array
from jax.nn import initializers

import jaxnorm
from jaxnorm._layers import calls as layers
from jaxnorm._layers import conditional as conditional
from jaxnorm._layers import state as state
from jaxnorm._layers.calls import Initializer, Shape
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.parameters import Measured, Norm, normalized


class _Projected(Norm):
    """Its `parts` are a projection of the condition."""

    kernel_init: Initializer = initializers.lecun_normal()

    parts: ClassVar[tuple[str, ...]] = ("scale", "bias")

    def _projected(self, x: Array, condition: Array) -> dict[str, Array]:
        (size,) = layers.feature_shape(self, x)
        dense = nn.Dense(
            conditional.width(self.parts, size),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            name="projection",
        )
        return conditional.split(dense(condition), self.parts)


class FiLM(_Projected):
    """FiLM: y = x * (1 + scale) + bias, where a condition, called beside x, gives both.

    (scale, bias) are a linear `projection` of the condition, [batch, any].

    Perez, Strub, de Vries, Dumoulin and Courville, 2017, arXiv:1709.07871.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0, 3.0]])
    >>> y, variables = jn.FiLM().init_with_output(jax.random.key(0), x, jnp.zeros((1, 4)))
    >>> print((y - x).round(3))
    [[0. 0.]]
    """

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        return normalized(self, x, **self._projected(x, condition))

    def normalize(self, x: Array, *, scale: Array, **call: Any) -> Array:
        return jaxnorm.film(x, conditional.one_more(scale), feature_axis=self.feature_axes, **call)


class AdaLayerNorm(_Projected, Measured):
    """Adaptive layer norm (AdaLN): y = layer_norm(x) * (1 + scale) + bias, by a condition beside x.

    (scale, bias) are a linear `projection` of silu(condition), which is [batch, any], or has x's axes. It
    starts at 0: plain layer norm.

    Peebles and Xie, 2022, arXiv:2212.09748.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0, 3.0]])
    >>> y, variables = jn.AdaLayerNorm().init_with_output(jax.random.key(0), x, jnp.ones((1, 4)))
    >>> print(y.round(3))
    [[-1.  1.]]
    """

    kernel_init: Initializer = initializers.zeros
    activation: Callable[[Array], Array] = jax.nn.silu

    @nn.compact
    def __call__(
        self, x: Array, condition: Array, *, mask: Array | None = None, weights: Array | None = None
    ) -> Any:
        parts = self._projected(x, self.activation(condition))
        return normalized(self, x, mask=mask, weights=weights, **parts)

    def normalize(self, x: Array, **call: Any) -> Any:
        return jaxnorm.adaptive_layer_norm(x, axis=self.feature_axes, **call)


class AdaLayerNormZero(AdaLayerNorm):
    """AdaLN-zero: adaptive layer norm, and a gate that starts at 0, of one condition.

    (scale, bias, gate) are a linear `projection` of silu(condition), which starts at 0. The call returns y
    and the gate, of y's dtype: the block is `x + gate * block(y)`, at first the identity.

    Peebles and Xie, 2022, arXiv:2212.09748.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0, 3.0]])
    >>> (y, gate), variables = jn.AdaLayerNormZero().init_with_output(jax.random.key(0), x, jnp.ones((1, 4)))
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

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0], [3.0]])
    >>> norm = jn.ConditionalBatchNorm(num_classes=5, momentum=0.5, use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x, jnp.asarray([4, 0]))
    >>> y, variables = norm.apply(variables, x, jnp.asarray([4, 0]), mutable="batch_stats")
    >>> print(y.round(3).ravel(), variables["batch_stats"]["mean"].ravel())
    [-1.  1.] [1.]
    """

    num_classes: int = field(kw_only=True)

    @nn.compact
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

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[[[1.0], [3.0]]]])
    >>> norm = jn.SPADE(hidden=4, momentum=0.5, use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x, jnp.zeros((1, 1, 1, 2)))
    >>> y, variables = norm.apply(variables, x, jnp.zeros((1, 1, 1, 2)), mutable="batch_stats")
    >>> print(y.round(3).ravel(), variables["batch_stats"]["mean"].ravel())
    [-1.  1.] [1.]
    """

    use_bias: bool = False
    use_scale: bool = False
    hidden: int = 128
    kernel_size: Sequence[int] = (3, 3)
    kernel_init: Initializer = initializers.lecun_normal()
    activation: Callable[[Array], Array] = jax.nn.relu

    @nn.compact
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
        maps = self._maps(x, segmentation)
        brought = {name: v for name, v in {"scale": scale, "bias": bias}.items() if v is not None}
        call = {"mask": mask, "weights": weights, **maps, **brought}
        return self.normalize_and_update(x, use_running_average, update_stats, **call)

    def _maps(self, x: Array, segmentation: Array) -> dict[str, Array]:
        """The scale and the bias at every place of x, by two convolutions."""
        (size,) = layers.feature_shape(self, x)
        conv = partial(
            nn.Conv,
            kernel_size=self.kernel_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
        )
        hidden = conv(self.hidden, name="shared")(conditional.resized(segmentation, x))
        parts = "scale", "bias"
        projection = conv(conditional.width(parts, size), name="projection")
        return conditional.split(projection(self.activation(hidden)), parts)

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        return jaxnorm.spade(x, stats, **call)
