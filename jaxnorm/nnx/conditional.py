"""Nnx layers that own what makes their scale and bias of a condition."""

from functools import partial
from typing import Any

from flax import nnx
from jax import Array

from jaxnorm._layers import family as family
from jaxnorm._layers import family_state as state
from jaxnorm._layers import parts as parts
from jaxnorm.nnx.batch import remembered
from jaxnorm.nnx.family import Layer, own_parameters
from jaxnorm.nnx.family_batch import Remembering


class _Conditional(Layer, parts.Projected):
    def __init__(self, num_features: int, condition_features: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        super().__init__(num_features, rngs=rngs, **options)
        self.projection = nnx.Linear(
            condition_features,
            self.width(num_features),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            rngs=rngs,
        )

    def projected(self, x: Array, condition: Array) -> dict[str, Any]:
        return own_parameters(self, x, **self.split(self.projection(self.activated(condition))))

    def __call__(self, x: Array, condition: Array) -> Array:
        return self.normalize(x, **self.projected(x, condition))


class _Adaptive(_Conditional, parts.Measured):
    def __call__(
        self, x: Array, condition: Array, *, mask: Array | None = None, weights: Array | None = None
    ) -> Any:
        return self.normalize(x, mask, weights, **self.projected(x, condition))


class FiLM(_Conditional, family.FiLM):
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


class AdaLayerNorm(_Adaptive, family.AdaLayerNorm):
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


class AdaLayerNormZero(_Adaptive, family.AdaLayerNormZero):
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


class ConditionalBatchNorm(Remembering, state.ConditionalBatchNorm):
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


class SPADE(Remembering, state.SPADE):
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

    def __init__(self, num_features: int, map_features: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        super().__init__(num_features, rngs=rngs, **options)
        conv = partial(
            nnx.Conv,
            kernel_size=self.kernel_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            rngs=rngs,
        )
        self.shared = conv(map_features, self.hidden)
        self.projection = conv(self.hidden, self.width(num_features))

    def __call__(self, x: Array, *args: Any, **options: Any) -> Array:
        conditions, options = self.called(*args, **options)
        hidden = self.activation(self.shared(self.resized(x, **conditions)))
        maps = self.split(self.projection(hidden))
        return remembered(self, x, **{**maps, **options})
