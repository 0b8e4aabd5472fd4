"""Nnx layers of the family that remember: batch norm's relatives."""

import dataclasses
import inspect
from functools import partial
from typing import Any, ClassVar

from flax import nnx
from jax import Array

from jaxnorm._layers import family_state as family
from jaxnorm._layers import parts as parts
from jaxnorm._layers import state as state
from jaxnorm.nnx.batch import BatchNorm, keep, remembered, stored
from jaxnorm.nnx.family import create_parameters, own_parameters


class Remembering(family.Remembering, BatchNorm):
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__signature__ = parts.signature(cls, BatchNorm.__init__, cls.__init__)

    def __init__(self, num_features: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        flax = BatchNorm.__init__
        values = parts.settings(type(self), flax, num_features=num_features, rngs=rngs, **options)
        theirs = {name: values[name] for name in inspect.signature(flax).parameters if name in values}
        super().__init__(**{**theirs, "use_scale": False, "use_bias": False})
        for field in dataclasses.fields(type(self)):
            setattr(self, field.name, values[field.name])
        keep(self, state.names(self, self.scheduled), self.initial)
        create_parameters(self, num_features, rngs)

    def __call__(self, x: Array, *args: Any, **options: Any) -> Array:
        conditions, options = self.called(*args, **options)
        return remembered(self, x, *conditions.values(), **options)

    def _prepared(
        self,
        x: Array,
        *conditions: Any,
        mask: Any = None,
        weights: Any = None,
        scale: Any = None,
        bias: Any = None,
    ) -> tuple[Any, dict[str, Array]]:
        stats = stored(self, state.names(self, self.scheduled))
        given = dict(zip(self.conditions, conditions, strict=False))
        own = own_parameters(self, x, scale=scale, bias=bias)
        return partial(self.remember, x, mask, weights, **own, **given), stats


class BatchRenorm(Remembering, family.BatchRenorm):
    """Batch renorm: batch norm whose training agrees with its evaluation, in small batches too.

    y = ((x - mean) / sigma * r + d) * scale + bias, where r and d, limited by `r_max` and `d_max`, lead from
    the batch's statistics to the stored ones. Each limit may be an optax schedule, of the updates counted in
    `step`: the paper starts at 1 and 0, batch norm, and raises both. All else is as in `BatchNorm`.

    Ioffe, 2017, arXiv:1702.03275.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[1.0], [3.0]])
    >>> norm = jn.BatchRenorm(1, momentum=0.5, rngs=nnx.Rngs(0))
    >>> y = norm(x)
    >>> print(y.round(3).ravel(), norm.mean[...].ravel())
    [1. 3.] [1.]
    """


class GhostBatchNorm(Remembering, family.GhostBatchNorm):
    """Ghost batch norm: each of `num_ghosts` contiguous parts of the batch by its own statistics.

    The stored ones are those of the whole batch. All else is as in `BatchNorm`.

    Hoffer, Hubara and Soudry, 2017, arXiv:1705.08741.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[1.0], [3.0], [10.0], [30.0]])
    >>> norm = jn.GhostBatchNorm(1, num_ghosts=2, momentum=0.5, rngs=nnx.Rngs(0))
    >>> y = norm(x)
    >>> print(y.round(3).ravel(), norm.mean[...].ravel())
    [-1.  1. -1.  1.] [5.5]
    """


class DomainBatchNorm(Remembering, family.DomainBatchNorm):
    """Batch norm with statistics for each of `num_domains`, and one scale and bias for all.

    It is called with x, of one domain, and the domain, an integer, also traced; the others' statistics stay
    as they are. All else is as in `BatchNorm`.

    Chang et al., 2019, arXiv:1906.03950; of clean and adversarial images Xie et al., 2019, arXiv:1911.09665.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[4.0], [6.0]])
    >>> norm = jn.DomainBatchNorm(1, num_domains=3, momentum=0.5, rngs=nnx.Rngs(0))
    >>> y = norm(x, 1)
    >>> print(y.round(3).ravel(), norm.mean[...].ravel())
    [-1.  1.] [0.  2.5 0. ]
    """


class RecurrentBatchNorm(Remembering, family.RecurrentBatchNorm):
    """Recurrent batch norm: statistics for each of `max_length` time steps, and one scale and bias.

    It is called with x, of one time step, and the time, an integer, also traced; later steps share the last
    statistics. `mask` leaves out the sequences that have ended. The scale starts at 0.1. All else is as in
    `BatchNorm`.

    Cooijmans et al., 2016, arXiv:1603.09025.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[4.0], [6.0]])
    >>> norm = jn.RecurrentBatchNorm(1, max_length=3, momentum=0.5, rngs=nnx.Rngs(0))
    >>> y = norm(x, 1)
    >>> print(y.round(3).ravel(), norm.mean[...].ravel())
    [-0.1  0.1] [0.  2.5 0. ]
    """


class EvoNormB0(Remembering, family.EvoNormB0):
    """EvoNorm B0: y = x / max(sigma, slope * x + sigma') * scale + bias, its own activation.

    sigma is the batch's deviation, or the stored one, sigma' the instance's. All else is as in `BatchNorm`.

    Liu, Brock, Simonyan and Le, 2020, arXiv:2004.02967.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[[2.0], [4.0]], [[-2.0], [-4.0]]])
    >>> norm = jn.EvoNormB0(1, rngs=nnx.Rngs(0))
    >>> y = norm(x)
    >>> print(y.round(3).ravel(), norm.mean[...].ravel())
    [ 0.632  0.8   -0.632 -1.265] [0.]
    """


class SwitchableNorm(Remembering, family.SwitchableNorm):
    """Switchable norm: a learned mixture of the moments of instance, layer and batch norm.

    Its shares are the softmaxes of `mean_logits` and `var_logits`, three numbers each. All else is as in
    `BatchNorm`.

    Luo, Ren, Peng, Zhang and Li, 2018, arXiv:1806.10779.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[[1.0], [3.0]], [[5.0], [7.0]]])
    >>> norm = jn.SwitchableNorm(1, momentum=0.5, rngs=nnx.Rngs(0))
    >>> y = norm(x)
    >>> print(y.round(3).ravel().tolist(), norm.mean[...].ravel())
    [-1.091, 0.218, -0.218, 1.091] [2.]
    """


class InputNorm(Remembering, family.InputNorm):
    """Running input norm: observations by the moments of all that were seen, y within +-`clip`.

    The statistics are the exact ones of all batches together, with `momentum` a moving average; training
    updates them and then uses them. There are no parameters. All else is as in `BatchNorm`.

    Chan, Golub and LeVeque, 1979.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[1.0], [3.0]])
    >>> norm = jn.InputNorm(1, clip=5.0, rngs=nnx.Rngs(0))
    >>> y = norm(x)
    >>> print(y.round(3).ravel(), norm.mean[...].ravel())
    [-1.  1.] [2.]
    """


class DecorrelatedBatchNorm(Remembering, family.DecorrelatedBatchNorm):
    """Decorrelated batch norm: y = (cov + epsilon * 1)^(-1/2) (x - mean) * scale + bias.

    The features of each group of `group_size`, by default all, are uncorrelated and of variance 1; `var`
    holds the covariances of the groups. All else is as in `BatchNorm`.

    Huang, Yang, Lang and Deng, 2018, arXiv:1804.08450.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[1.0, 1.0], [-1.0, -1.0], [2.0, -2.0], [-2.0, 2.0]])
    >>> norm = jn.DecorrelatedBatchNorm(2, rngs=nnx.Rngs(0))
    >>> y = norm(x)
    >>> print(jnp.abs(y.T @ y / 4).round(2).tolist())
    [[1.0, 0.0], [0.0, 1.0]]
    """


class IterNorm(Remembering, family.IterNorm):
    """IterNorm: decorrelated batch norm, whose root is taken by `iterations` of Newton's method.

    Matrix products alone; the fewer they are, the less y is whitened. All else is as in `BatchNorm`.

    Huang, Zhou, Zhu, Liu and Shao, 2019, arXiv:1904.03441.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[1.0, 1.0], [-1.0, -1.0], [2.0, -2.0], [-2.0, 2.0]])
    >>> norm = jn.IterNorm(2, iterations=9, rngs=nnx.Rngs(0))
    >>> y = norm(x)
    >>> print(jnp.abs(y.T @ y / 4).round(2).tolist())
    [[1.0, 0.0], [0.0, 1.0]]
    """
