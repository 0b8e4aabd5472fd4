"""Flax linen layers: change the import and keep the model, its options and its checkpoints.

    from jaxnorm import linen as jn     # jn.BatchNorm for nn.BatchNorm, and so on

Each layer is a subclass of Flax's own, whose fields, defaults and variable names it inherits; the
computation is that of `jaxnorm`. Statistics are always accurate and in float32 or wider, so that
`use_fast_variance` and `force_float32_reductions` are accepted and change nothing. Every call takes Flax's
`mask`, read as bool, and real `weights >= 0` of the same meaning. Initialization updates no statistics and
meets no other device.
"""

import functools
from typing import Any

from flax import linen as nn
from jax import Array

from jaxnorm import _layers as layers
from jaxnorm._moments import initial_stats


class BatchNorm(nn.BatchNorm):
    """Batch norm: y = (x - mean) / sqrt(var + epsilon) * scale + bias, over all axes but `axis`.

    The collection `batch_stats` holds `mean` and `var`, one value a feature: moving averages with weight
    `momentum` on the old value. An empty batch, or one that is masked whole, leaves them as they are;
    with `axis_name` every device counts by its unmasked elements. `use_running_average=True`, in the
    constructor or in the call, applies them; in the call it may be traced. As in Flax, giving it in
    neither or in both is a ValueError.

    Ioffe and Szegedy, 2015, arXiv:1502.03167.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0], [3.0]])
    >>> norm = jn.BatchNorm(momentum=0.5, epsilon=0.0)
    >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
    >>> y, state = norm.apply(variables, x, use_running_average=False, mutable="batch_stats")
    >>> y.tolist(), state["batch_stats"]["mean"].tolist()
    ([[-1.0], [1.0]], [1.0])
    """

    @nn.compact
    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        own = _own(self, x, self.axis)
        initial = functools.partial(
            initial_stats,
            layers.feature_shape(self, x, self.axis),
            dtype=layers.mean_dtype(x, own["dtype"]),
        )
        mean = self.variable("batch_stats", "mean", lambda: initial().mean)
        var = self.variable("batch_stats", "var", lambda: initial().var)
        y, stats = layers.batch_norm(
            self,
            x,
            mask,
            weights,
            mean=mean.value,
            var=var.value,
            use_running_average=use_running_average,
            **own,
        )
        if stats is not None and not self.is_initializing():
            mean.value, var.value = stats.mean, stats.var
        return y


class LayerNorm(nn.LayerNorm):
    """Layer norm: y = (x - mean) / sqrt(var + epsilon) * scale + bias, over `reduction_axes`.

    Scale and bias have one value for each place of `feature_axes`, which may be other axes.

    Ba, Kiros and Hinton, 2016, arXiv:1607.06450.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> y, variables = jn.LayerNorm().init_with_output(jax.random.key(0), jnp.asarray([1.0, 3.0]))
    >>> print(y.round(3))
    [-1.  1.]
    """

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None, weights: Array | None = None) -> Array:
        return layers.layer_norm(self, x, mask, weights, **_own(self, x, self.feature_axes))


class RMSNorm(nn.RMSNorm):
    """RMS norm: y = x / sqrt(mean(|x|^2) + epsilon) * scale, over `reduction_axes`.

    Zhang and Sennrich, 2019, arXiv:1910.07467.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> y, variables = jn.RMSNorm().init_with_output(jax.random.key(0), jnp.asarray([1.0, 7.0]))
    >>> print(y.round(3))
    [0.2 1.4]
    """

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None, weights: Array | None = None) -> Array:
        return layers.rms_norm(self, x, mask, weights, **_own(self, x, self.feature_axes))


class GroupNorm(nn.GroupNorm):
    """Group norm: the channels, the last axis, in `num_groups` groups or in groups of `group_size`.

    Each sample and group has its own mean and variance, over all other axes or over `reduction_axes`,
    of which the last axis must be one. ValueError, as in Flax, where the groups do not divide the
    channels.

    Wu and He, 2018, arXiv:1803.08494.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[1.0, 3.0, 10.0, 30.0]])
    >>> y, variables = jn.GroupNorm(num_groups=2).init_with_output(jax.random.key(0), x)
    >>> print(y.round(3))
    [[-1.  1. -1.  1.]]
    """

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None, weights: Array | None = None) -> Array:
        groups = {"num_groups": self.num_groups, "group_size": self.group_size}
        return layers.group_norm(self, x, mask, weights, **groups, **_own(self, x, -1))


class InstanceNorm(nn.InstanceNorm):
    """Instance norm: each sample and channel has its own mean and variance.

    They are taken over all axes but 0 and `feature_axes`.

    Ulyanov, Vedaldi and Lempitsky, 2016, arXiv:1607.08022.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> x = jnp.asarray([[[1.0], [3.0]], [[10.0], [30.0]]])
    >>> y, variables = jn.InstanceNorm().init_with_output(jax.random.key(0), x)
    >>> print(y.round(3).ravel())
    [-1.  1. -1.  1.]
    """

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None, weights: Array | None = None) -> Array:
        return layers.instance_norm(self, x, mask, weights, **_own(self, x, self.feature_axes))


def _own(layer: Any, x: Array, axes: layers.Axes) -> dict[str, Any]:
    """The layer's parameters, the dtype that they give y, and, but at init, the devices it meets."""
    shape = layers.feature_shape(layer, x, axes)
    # in Flax's order, so that random initializers draw what they draw there
    parameters = {
        name: layer.param(name, getattr(layer, f"{name}_init"), shape, layer.param_dtype)
        for name in ("scale", "bias")
        if getattr(layer, f"use_{name}", False)
    }
    return {
        **parameters,
        "dtype": layers.result_dtype(layer, x, *parameters.values()),
        **({} if layer.is_initializing() else layers.devices(layer)),
    }
