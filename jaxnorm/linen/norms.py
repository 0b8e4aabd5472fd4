"""Linen layers of Flax that normalize every sample by itself."""

from typing import Any, ClassVar

from flax import linen as nn
from jax import Array
from jax.nn import initializers

import jaxnorm
from jaxnorm._layers import calls as layers
from jaxnorm._layers.calls import Initializer
from jaxnorm.linen.batch import Stateful
from jaxnorm.linen.parameters import Layer, normalized


class _Norm(Layer):
    """The call of all of them."""

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        return normalized(self, x, mask=mask, weights=weights, scale=scale, bias=bias)


class LayerNorm(_Norm, nn.LayerNorm):
    """Layer norm: y = (x - mean) / sqrt(var + epsilon) * scale + bias, over `reduction_axes`.

    Scale and bias have one value for each place of `feature_axes`, which may be other axes.

    With `zero_centered_scale=True` the parameter g, 0 at first, stands for a scale of 1 + g.

    Ba, Kiros and Hinton, 2016, arXiv:1607.06450.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> y, variables = jn.LayerNorm().init_with_output(jax.random.key(0), jnp.asarray([1.0, 3.0]))
    >>> print(y.round(3))
    [-1.  1.]
    """

    zero_centered_scale: bool = False

    def normalize(self, x: Array, **call: Any) -> Array:
        return jaxnorm.layer_norm(x, **layers.rows(self), **call)


class RMSNorm(_Norm, nn.RMSNorm):
    """RMS norm: y = x / sqrt(mean(|x|^2) + epsilon) * scale, over `reduction_axes`.

    With `zero_centered_scale=True` the parameter g, 0 at first, stands for a scale of 1 + g. `use_bias=True`
    adds a bias, as Equinox does.

    Zhang and Sennrich, 2019, arXiv:1910.07467.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> y, variables = jn.RMSNorm().init_with_output(jax.random.key(0), jnp.asarray([1.0, 7.0]))
    >>> print(y.round(3))
    [0.2 1.4]
    """

    zero_centered_scale: bool = False
    use_bias: bool = False
    bias_init: Initializer = initializers.zeros

    def normalize(self, x: Array, **call: Any) -> Array:
        return jaxnorm.rms_norm(x, **layers.rows(self), **call)


class GroupNorm(_Norm, nn.GroupNorm):
    """Group norm: the channels, `feature_axis`, in `num_groups` groups or in groups of `group_size`.

    Each sample and group has its own mean and variance, over all other axes or over `reduction_axes`,
    of which the channels' axis must be one. ValueError, as in Flax, where the groups do not divide the
    channels.

    Wu and He, 2018, arXiv:1803.08494.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0, 3.0, 10.0, 30.0]])
    >>> y, variables = jn.GroupNorm(num_groups=2).init_with_output(jax.random.key(0), x)
    >>> print(y.round(3))
    [[-1.  1. -1.  1.]]
    """

    feature_axis: int = -1

    def normalize(self, x: Array, **call: Any) -> Array:
        layers.check_reduced(self, x)
        (channels,) = layers.feature_shape(self, x)
        num_groups, _ = layers.groups(channels, self.num_groups, self.group_size)
        call["feature_axis"], call["reduction_axes"] = self.feature_axis, self.reduction_axes
        return jaxnorm.group_norm(x, num_groups, **call)


class InstanceNorm(Stateful, nn.InstanceNorm):
    """Instance norm: each sample and channel has its own mean and variance.

    They are taken over all axes but 0 and `feature_axes`.

    With `track_stats=True` the collection `batch_stats` holds `mean` and `var`, the averages with weight
    `momentum` on the old value of the mean over samples of their means and variances, and evaluation
    (`use_running_average=True`) is by these. `unbiased=True` stores PyTorch's variance. Modes, `update_stats`
    and freezing are as in `BatchNorm`. Without `track_stats` they change nothing.

    Ulyanov, Vedaldi and Lempitsky, 2016, arXiv:1607.08022.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[[1.0], [3.0]], [[10.0], [30.0]]])
    >>> y, variables = jn.InstanceNorm().init_with_output(jax.random.key(0), x)
    >>> print(y.round(3).ravel())
    [-1.  1. -1.  1.]
    """

    track_stats: bool = False
    use_running_average: bool | None = None
    momentum: Any = 0.9
    unbiased: bool = False
    update_stats: bool | None = None

    averages_instances: ClassVar[bool] = True

    # batch norm's options, which this norm has not
    debias: ClassVar[bool] = False
    every_k: ClassVar[int] = 1
    blend: ClassVar[None] = None
    count_skipped: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        use_running_average: bool | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
        update_stats: bool | None = None,
    ) -> Array:
        call = {"mask": mask, "weights": weights, "scale": scale, "bias": bias}
        if not self.track_stats:
            return normalized(self, x, feature_axis=self.feature_axes, **call)
        return self.normalize_and_update(x, use_running_average, update_stats, **call)

    def normalize(self, x: Array, *stats: Any, **call: Any) -> Any:
        return jaxnorm.running_instance_norm(x, *stats, **call) if stats else jaxnorm.instance_norm(x, **call)
