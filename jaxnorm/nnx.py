"""Flax nnx layers: change the import and keep the model, its options and its checkpoints.

    from jaxnorm import nnx as jn       # jn.BatchNorm for nnx.BatchNorm, and so on

Each layer is a subclass of Flax's own, whose options, defaults, variables and modes (`train`, `eval`,
`nnx.view`) it inherits; the computation is that of `jaxnorm`. Statistics are always accurate and in float32
or wider, so that `use_fast_variance` is accepted and changes nothing. `promote_dtype` chooses the dtype of
y, as in Flax; x itself is read as it is, without a cast. Every call takes Flax's `mask`, read as bool,
and real `weights >= 0` of the same meaning. With several feature axes, `num_features` is the product of
their sizes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxnorm import _layers as layers
from jaxnorm._moments import initial_stats


class BatchNorm(nnx.BatchNorm):
    """Batch norm: y = (x - mean) / sqrt(var + epsilon) * scale + bias, over all axes but `axis`.

    The `nnx.BatchStat`s `mean` and `var` are moving averages with weight `momentum` on the old value. An
    empty batch, or one that is masked whole, leaves them as they are; with `axis_name` every device
    counts by its unmasked elements. `use_running_average=True`, in the call or else in the layer, applies
    them; in the call it may be traced; None in both is a ValueError. The mean is complex if `dtype` or
    `param_dtype` is.

    Ioffe and Szegedy, 2015, arXiv:1502.03167.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> norm = jn.BatchNorm(1, momentum=0.5, epsilon=0.0, rngs=nnx.Rngs(0))
    >>> norm(jnp.asarray([[1.0], [3.0]])).tolist(), norm.mean.get_value().tolist()
    ([[-1.0], [1.0]], [1.0])
    >>> norm.eval()
    >>> norm(jnp.asarray([[1.0]])).tolist()
    [[0.0]]
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dtype = layers.mean_dtype(jnp.float32, self.dtype, self.param_dtype)
        self.mean.set_value(initial_stats(self.mean.shape, dtype=dtype).mean)

    functools.update_wrapper(__init__, nnx.BatchNorm.__init__)  # and its signature

    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
    ) -> Array:
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError(
                "BatchNorm: No `use_running_average` argument was provided to BatchNorm. Pass it to the "
                "constructor or to the call, or set it with train(), eval() or nnx.view."
            )
        mean, var = self.mean[...], self.var[...]
        y, stats = layers.batch_norm(
            self,
            x,
            mask,
            weights,
            mean=mean,
            var=var,
            use_running_average=use_running_average,
            **_own(self, x, self.axis, mean, var),
        )
        if stats is not None:
            self.mean.set_value(stats.mean)
            self.var.set_value(stats.var)
        return y


class LayerNorm(nnx.LayerNorm):
    """Layer norm: y = (x - mean) / sqrt(var + epsilon) * scale + bias, over `reduction_axes`.

    Scale and bias have one value for each place of `feature_axes`, which may be other axes.

    Ba, Kiros and Hinton, 2016, arXiv:1607.06450.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> print(jn.LayerNorm(2, rngs=nnx.Rngs(0))(jnp.asarray([1.0, 3.0])).round(3))
    [-1.  1.]
    """

    def __call__(self, x: Array, *, mask: Array | None = None, weights: Array | None = None) -> Array:
        return layers.layer_norm(self, x, mask, weights, **_own(self, x, self.feature_axes))


class RMSNorm(nnx.RMSNorm):
    """RMS norm: y = x / sqrt(mean(|x|^2) + epsilon) * scale, over `reduction_axes`.

    Zhang and Sennrich, 2019, arXiv:1910.07467.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> print(jn.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.asarray([1.0, 7.0])).round(3))
    [0.2 1.4]
    """

    def __call__(self, x: Array, mask: Array | None = None, *, weights: Array | None = None) -> Array:
        return layers.rms_norm(self, x, mask, weights, **_own(self, x, self.feature_axes))


class GroupNorm(nnx.GroupNorm):
    """Group norm: the channels, the last axis, in `num_groups` groups or in groups of `group_size`.

    Each sample and group has its own mean and variance, over all other axes or over `reduction_axes`,
    of which the last axis must be one. ValueError, Flax's own, where the groups do not divide the
    channels.

    Wu and He, 2018, arXiv:1803.08494.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> norm = jn.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.asarray([[1.0, 3.0, 10.0, 30.0]])).round(3))
    [[-1.  1. -1.  1.]]
    """

    def __call__(self, x: Array, *, mask: Array | None = None, weights: Array | None = None) -> Array:
        # Flax's constructor has checked both, and set each from the other
        groups = {"num_groups": self.num_groups, "group_size": None}
        return layers.group_norm(self, x, mask, weights, **groups, **_own(self, x, -1))


class InstanceNorm(nnx.InstanceNorm):
    """Instance norm: each sample and channel has its own mean and variance.

    They are taken over all axes but 0 and `feature_axes`.

    Ulyanov, Vedaldi and Lempitsky, 2016, arXiv:1607.08022.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[[1.0], [3.0]], [[10.0], [30.0]]])
    >>> print(jn.InstanceNorm(1, rngs=nnx.Rngs(0))(x).round(3).ravel())
    [-1.  1. -1.  1.]
    """

    def __call__(self, x: Array, *, mask: Array | None = None, weights: Array | None = None) -> Array:
        return layers.instance_norm(self, x, mask, weights, **_own(self, x, self.feature_axes))


def _own(layer: Any, x: Array, axes: layers.Axes, *stats: Array) -> dict[str, Any]:
    """The layer's parameters, the dtype that they give y, and the devices that it meets."""
    names = [name for name in ("scale", "bias") if hasattr(layer, name)]
    stored = [None if v is None else v[...] for v in (getattr(layer, name) for name in names)]
    promote = functools.partial(layer.promote_dtype, dtype=layer.dtype)
    with layers.promotion():
        # dtypes are all that is wanted: x in a wider one would be a copy, in a narrower one a loss
        first, *rest = jax.eval_shape(promote, (x, *stats, *stored))
    parameters = {
        name: layers.per_feature(layer, value, x, axes)
        for name, value in zip(names, stored, strict=True)
        if value is not None
    }
    return {
        **parameters,
        "dtype": layers.result_dtype(layer, first, *rest[len(stats) :]),
        **layers.devices(layer),
    }
