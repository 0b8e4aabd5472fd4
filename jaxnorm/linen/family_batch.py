"""Linen layers of the family that remember: batch norm's relatives."""

from functools import partial
from typing import Any

from flax import linen as nn
from jax import Array

from jaxnorm._layers import calls as layers
from jaxnorm._layers import family_state as family
from jaxnorm._layers import state as state
from jaxnorm.linen.batch import BatchNorm, remembered
from jaxnorm.linen.family import own_parameters


def remembering(
    layer: Any,
    x: Array,
    conditions: dict[str, Any],
    use_running_average: bool | None = None,
    *,
    mask: Array | None = None,
    weights: Array | None = None,
    scale: Array | None = None,
    bias: Array | None = None,
    update_stats: bool | None = None,
) -> Array:
    """The call of a layer, as `BatchNorm` has it, under conditions."""
    own = own_parameters(layer, x, scale=scale, bias=bias)
    norm = partial(layer.remember, x, mask, weights, **own, **conditions)

    def initial() -> dict[str, Array]:
        shape = layers.feature_shape(layer, x, layer.features)
        return layer.initial(shape, layers.stats_dtype(layer, x, own["dtype"]))

    names = state.names(layer, layer.scheduled)
    return remembered(layer, norm, names, initial, use_running_average, update_stats)


class Remembering(family.Remembering, BatchNorm):
    @nn.compact
    def __call__(self, x: Array, *args: Any, **options: Any) -> Array:
        conditions, options = self.called(*args, **options)
        return remembering(self, x, conditions, **options)


class BatchRenorm(family.BatchRenorm, Remembering):
    """Batch renorm: batch norm whose training agrees with its evaluation, in small batches too.

    y = ((x - mean) / sigma * r + d) * scale + bias, where r and d, limited by `r_max` and `d_max`, lead from
    the batch's statistics to the stored ones. Each limit may be an optax schedule, of the updates counted in
    `step`: the paper starts at 1 and 0, batch norm, and raises both. All else is as in `BatchNorm`.

    Ioffe, 2017, arXiv:1702.03275.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0], [3.0]])
    >>> norm = jn.BatchRenorm(momentum=0.5, use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x)
    >>> y, variables = norm.apply(variables, x, mutable="batch_stats")
    >>> print(y.round(3).ravel(), variables["batch_stats"]["mean"].ravel())
    [1. 3.] [1.]
    """


class GhostBatchNorm(family.GhostBatchNorm, Remembering):
    """Ghost batch norm: each of `num_ghosts` contiguous parts of the batch by its own statistics.

    The stored ones are those of the whole batch. All else is as in `BatchNorm`.

    Hoffer, Hubara and Soudry, 2017, arXiv:1705.08741.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0], [3.0], [10.0], [30.0]])
    >>> norm = jn.GhostBatchNorm(num_ghosts=2, momentum=0.5, use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x)
    >>> y, variables = norm.apply(variables, x, mutable="batch_stats")
    >>> print(y.round(3).ravel(), variables["batch_stats"]["mean"].ravel())
    [-1.  1. -1.  1.] [5.5]
    """


class DomainBatchNorm(family.DomainBatchNorm, Remembering):
    """Batch norm with statistics for each of `num_domains`, and one scale and bias for all.

    It is called with x, of one domain, and the domain, an integer, also traced; the others' statistics stay
    as they are. All else is as in `BatchNorm`.

    Chang et al., 2019, arXiv:1906.03950; of clean and adversarial images Xie et al., 2019, arXiv:1911.09665.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[4.0], [6.0]])
    >>> norm = jn.DomainBatchNorm(num_domains=3, momentum=0.5, use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x, 1)
    >>> y, variables = norm.apply(variables, x, 1, mutable="batch_stats")
    >>> print(y.round(3).ravel(), variables["batch_stats"]["mean"].ravel())
    [-1.  1.] [0.  2.5 0. ]
    """


class RecurrentBatchNorm(family.RecurrentBatchNorm, Remembering):
    """Recurrent batch norm: statistics for each of `max_length` time steps, and one scale and bias.

    It is called with x, of one time step, and the time, an integer, also traced; later steps share the last
    statistics. `mask` leaves out the sequences that have ended. The scale starts at 0.1. All else is as in
    `BatchNorm`.

    Cooijmans et al., 2016, arXiv:1603.09025.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[4.0], [6.0]])
    >>> norm = jn.RecurrentBatchNorm(max_length=3, momentum=0.5, use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x, 1)
    >>> y, variables = norm.apply(variables, x, 1, mutable="batch_stats")
    >>> print(y.round(3).ravel(), variables["batch_stats"]["mean"].ravel())
    [-0.1  0.1] [0.  2.5 0. ]
    """


class EvoNormB0(family.EvoNormB0, Remembering):
    """EvoNorm B0: y = x / max(sigma, slope * x + sigma') * scale + bias, its own activation.

    sigma is the batch's deviation, or the stored one, sigma' the instance's. All else is as in `BatchNorm`.

    Liu, Brock, Simonyan and Le, 2020, arXiv:2004.02967.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[[2.0], [4.0]], [[-2.0], [-4.0]]])
    >>> norm = jn.EvoNormB0(use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x)
    >>> y, variables = norm.apply(variables, x, mutable="batch_stats")
    >>> print(y.round(3).ravel(), variables["batch_stats"]["mean"].ravel())
    [ 0.632  0.8   -0.632 -1.265] [0.]
    """


class SwitchableNorm(family.SwitchableNorm, Remembering):
    """Switchable norm: a learned mixture of the moments of instance, layer and batch norm.

    Its shares are the softmaxes of `mean_logits` and `var_logits`, three numbers each. All else is as in
    `BatchNorm`.

    Luo, Ren, Peng, Zhang and Li, 2018, arXiv:1806.10779.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[[1.0], [3.0]], [[5.0], [7.0]]])
    >>> norm = jn.SwitchableNorm(momentum=0.5, use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x)
    >>> y, variables = norm.apply(variables, x, mutable="batch_stats")
    >>> print(y.round(3).ravel().tolist(), variables["batch_stats"]["mean"].ravel())
    [-1.091, 0.218, -0.218, 1.091] [2.]
    """


class InputNorm(family.InputNorm, Remembering):
    """Running input norm: observations by the moments of all that were seen, y within +-`clip`.

    The statistics are the exact ones of all batches together, with `momentum` a moving average; training
    updates them and then uses them. There are no parameters. All else is as in `BatchNorm`.

    Chan, Golub and LeVeque, 1979.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0], [3.0]])
    >>> norm = jn.InputNorm(clip=5.0, use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x)
    >>> y, variables = norm.apply(variables, x, mutable="batch_stats")
    >>> print(y.round(3).ravel(), variables["batch_stats"]["mean"].ravel())
    [-1.  1.] [2.]
    """


class DecorrelatedBatchNorm(family.DecorrelatedBatchNorm, Remembering):
    """Decorrelated batch norm: y = (cov + epsilon * 1)^(-1/2) (x - mean) * scale + bias.

    The features of each group of `group_size`, by default all, are uncorrelated and of variance 1; `var`
    holds the covariances of the groups. All else is as in `BatchNorm`.

    Huang, Yang, Lang and Deng, 2018, arXiv:1804.08450.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0, 1.0], [-1.0, -1.0], [2.0, -2.0], [-2.0, 2.0]])
    >>> norm = jn.DecorrelatedBatchNorm(use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x)
    >>> y, variables = norm.apply(variables, x, mutable="batch_stats")
    >>> print(jnp.abs(y.T @ y / 4).round(2).tolist())
    [[1.0, 0.0], [0.0, 1.0]]
    """


class IterNorm(family.IterNorm, Remembering):
    """IterNorm: decorrelated batch norm, whose root is taken by `iterations` of Newton's method.

    Matrix products alone; the fewer they are, the less y is whitened. All else is as in `BatchNorm`.

    Huang, Zhou, Zhu, Liu and Shao, 2019, arXiv:1904.03441.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0, 1.0], [-1.0, -1.0], [2.0, -2.0], [-2.0, 2.0]])
    >>> norm = jn.IterNorm(iterations=9, use_running_average=False)
    >>> variables = norm.init(jax.random.key(0), x)
    >>> y, variables = norm.apply(variables, x, mutable="batch_stats")
    >>> print(jnp.abs(y.T @ y / 4).round(2).tolist())
    [[1.0, 0.0], [0.0, 1.0]]
    """
