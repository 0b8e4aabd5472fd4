"""Nnx layers that normalize every sample by itself."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jax import Array

from jaxnorm._base.compilation import compiled_method
from jaxnorm._base.messages import Named
from jaxnorm._layers import calls as layers
from jaxnorm.nnx.parameters import own_parameters


def _zero_centered(flax: Any) -> Callable[..., None]:
    """The constructor of a layer of Flax, with one option more."""

    @layers.extends(flax.__init__)
    def __init__(self: Any, *args: Any, zero_centered_scale: bool = False, **options: Any) -> None:
        if zero_centered_scale:
            options.setdefault("scale_init", nnx.initializers.zeros)
        flax.__init__(self, *args, **options)
        self.zero_centered_scale = zero_centered_scale

    return __init__


class LayerNorm(Named, nnx.LayerNorm):
    """Layer norm: y = (x - mean) / sqrt(var + epsilon) * scale + bias, over `reduction_axes`.

    Scale and bias have one value for each place of `feature_axes`, which may be other axes.

    With `zero_centered_scale=True` the parameter g, 0 at first, stands for a scale of 1 + g.

    Ba, Kiros and Hinton, 2016, arXiv:1607.06450.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> print(jn.LayerNorm(2, rngs=nnx.Rngs(0))(jnp.asarray([1.0, 3.0])).round(3))
    [-1.  1.]
    """

    __init__ = _zero_centered(nnx.LayerNorm)

    @compiled_method
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        return layers.layer_norm(
            self, x, mask, weights, **own_parameters(self, x, self.feature_axes, scale=scale, bias=bias)
        )


class RMSNorm(Named, nnx.RMSNorm):
    """RMS norm: y = x / sqrt(mean(|x|^2) + epsilon) * scale, over `reduction_axes`.

    With `zero_centered_scale=True` the parameter g, 0 at first, stands for a scale of 1 + g.

    Zhang and Sennrich, 2019, arXiv:1910.07467.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> print(jn.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.asarray([1.0, 7.0])).round(3))
    [0.2 1.4]
    """

    __init__ = _zero_centered(nnx.RMSNorm)

    @compiled_method
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        *,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        return layers.rms_norm(
            self, x, mask, weights, **own_parameters(self, x, self.feature_axes, scale=scale, bias=bias)
        )


class GroupNorm(Named, nnx.GroupNorm):
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

    @layers.extends(nnx.GroupNorm.__init__)
    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        **options: Any,
    ) -> None:
        # Flax's constructor takes a numpy int for no int
        groups = layers.as_ints("GroupNorm", num_groups=num_groups, group_size=group_size)
        super().__init__(num_features, **groups, **options)
        self.num_features = num_features

    @compiled_method
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        # Flax's constructor has checked both, and set each from the other
        groups = {"num_groups": self.num_groups, "group_size": None}
        return layers.group_norm(
            self, x, mask, weights, **groups, **own_parameters(self, x, -1, scale=scale, bias=bias)
        )


class InstanceNorm(Named, nnx.InstanceNorm):
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

    @compiled_method
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        return layers.instance_norm(
            self, x, mask, weights, **own_parameters(self, x, self.feature_axes, scale=scale, bias=bias)
        )
