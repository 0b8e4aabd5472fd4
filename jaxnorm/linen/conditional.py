"""Linen layers that own what makes their scale and bias of a condition."""

from functools import partial
from typing import Any

from flax import linen as nn
from jax import Array

from jaxnorm._layers import calls as layers
from jaxnorm._layers import family as family
from jaxnorm._layers import family_state as state
from jaxnorm._layers import parts as parts
from jaxnorm.linen.family import own_parameters
from jaxnorm.linen.family_batch import Remembering, remembering


def _projected(layer: Any, x: Array, condition: Array) -> dict[str, Any]:
    (size,) = layers.feature_shape(layer, x, layer.features)
    dense = nn.Dense(
        layer.width(size),
        dtype=layer.dtype,
        param_dtype=layer.param_dtype,
        kernel_init=layer.kernel_init,
        name="projection",
    )
    return own_parameters(layer, x, **layer.split(dense(layer.activated(condition))))


class _Conditional(parts.Projected, nn.Module):
    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        return self.normalize(x, **_projected(self, x, condition))


class _Adaptive(parts.Projected, parts.Measured, nn.Module):
    @nn.compact
    def __call__(
        self, x: Array, condition: Array, *, mask: Array | None = None, weights: Array | None = None
    ) -> Any:
        return self.normalize(x, mask, weights, **_projected(self, x, condition))


class FiLM(family.FiLM, _Conditional):
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


class AdaLayerNorm(family.AdaLayerNorm, _Adaptive):
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


class AdaLayerNormZero(family.AdaLayerNormZero, _Adaptive):
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


class ConditionalBatchNorm(state.ConditionalBatchNorm, Remembering):
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


class SPADE(state.SPADE, Remembering):
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

    @nn.compact
    def __call__(self, x: Array, *args: Any, **options: Any) -> Array:
        conditions, options = self.called(*args, **options)
        (size,) = layers.feature_shape(self, x, self.features)
        conv = partial(
            nn.Conv,
            kernel_size=self.kernel_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
        )
        hidden = self.activation(conv(self.hidden, name="shared")(self.resized(x, **conditions)))
        maps = self.split(conv(self.width(size), name="projection")(hidden))
        return remembering(self, x, {}, **{**maps, **options})
