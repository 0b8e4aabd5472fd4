"""Linen layers that Flax lacks and that keep statistics: batch norm's relatives."""

from dataclasses import field
from typing import Any

from flax import linen as nn
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

import jaxnorm
from jaxnorm._layers import state as state
from jaxnorm._layers.calls import Initializer, Schedule, Shape
from jaxnorm.linen.batch import BatchNorm


class BatchRenorm(BatchNorm):
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

    r_max: float | Schedule = 3.0
    d_max: float | Schedule = 5.0

    schedules = ("momentum", "r_max", "d_max")
    uses_stats = "to correct the batch's towards"

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        r_max, d_max = self.at_step(self.r_max), self.at_step(self.d_max)
        return jaxnorm.batch_renorm(x, stats, r_max=r_max, d_max=d_max, **call)


class GhostBatchNorm(BatchNorm):
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

    num_ghosts: int = field(kw_only=True)

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        return jaxnorm.ghost_batch_norm(x, stats, num_ghosts=self.num_ghosts, **call)


class _Bank(BatchNorm):
    """One state for every index."""

    uses_stats = "for every index"

    @nn.compact
    def __call__(
        self,
        x: Array,
        index: int | Array,
        use_running_average: bool | None = None,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
        update_stats: bool | None = None,
    ) -> Array:
        call = {"mask": mask, "weights": weights, "scale": scale, "bias": bias, "index": index}
        return self.normalize_and_update(x, use_running_average, update_stats, **call)

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        return jaxnorm.bank_norm(x, stats, **call)


class DomainBatchNorm(_Bank):
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

    num_domains: int = field(kw_only=True)

    def initial_stats(self, features: Shape, dtype: DTypeLike) -> Any:
        return super().initial_stats((state.count(self, "num_domains"), *features), dtype)


class RecurrentBatchNorm(_Bank):
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

    max_length: int = field(kw_only=True)
    scale_init: Initializer = initializers.constant(0.1)

    def initial_stats(self, features: Shape, dtype: DTypeLike) -> Any:
        return super().initial_stats((state.count(self, "max_length"), *features), dtype)


class EvoNormB0(BatchNorm):
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

    slope_init: Initializer = initializers.ones

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"slope": features, **super().shapes(features)}

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        return jaxnorm.evonorm_b0(x, stats, **call)


class SwitchableNorm(BatchNorm):
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

    mean_logits_init: Initializer = initializers.ones
    var_logits_init: Initializer = initializers.ones

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"mean_logits": (3,), "var_logits": (3,), **super().shapes(features)}

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        return jaxnorm.switchable_norm(x, stats, **call)


class InputNorm(BatchNorm):
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

    momentum: Any = None
    epsilon: float = 1e-8
    use_bias: bool = False
    use_scale: bool = False
    clip: float | None = None

    uses_stats = "to normalize by all that was seen"

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        return jaxnorm.input_norm(x, stats, clip=self.clip, **call)


class DecorrelatedBatchNorm(BatchNorm):
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

    group_size: int | None = None
    iterations: int | None = None

    def initial_stats(self, features: Shape, dtype: DTypeLike) -> Any:
        (size,) = features
        return jaxnorm.initial_covariance(size, group_size=self.group_size, weight=0.0, dtype=dtype)

    def normalize(self, x: Array, stats: Any, **call: Any) -> tuple[Array, Any]:
        state = jaxnorm.Covariance(*stats)
        return jaxnorm.decorrelated_batch_norm(x, state, iterations=self.iterations, **call)


class IterNorm(DecorrelatedBatchNorm):
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

    iterations: int | None = 5
