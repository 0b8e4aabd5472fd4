"""Nnx layers of Flax that normalize every sample by itself."""

from dataclasses import InitVar, field
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.typing import PromoteDtypeFn
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

import jaxnorm
from jaxnorm._base.compilation import compiled
from jaxnorm._layers import calls as layers
from jaxnorm._layers.calls import Axes, Initializer
from jaxnorm.nnx.batch import Stateful
from jaxnorm.nnx.parameters import NO_METADATA, Layer, Metadata, normalized, promoted


class _Norm(Layer):
    """The call of all of them but RMS norm."""

    @compiled
    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        call = {"mask": mask, "weights": weights, "scale": scale, "bias": bias}
        return normalized(self, x, promote=promoted(self), **call)


class LayerNorm(_Norm, nnx.LayerNorm):
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

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    promote_dtype: PromoteDtypeFn = promote_dtype
    rngs: InitVar[nnx.Rngs]
    bias_metadata: InitVar[Metadata] = NO_METADATA
    scale_metadata: InitVar[Metadata] = NO_METADATA
    zero_centered_scale: bool = False

    def normalize(self, x: Array, **call: Any) -> Array:
        return jaxnorm.layer_norm(x, **layers.rows(self), **call)


class RMSNorm(Layer, nnx.RMSNorm):
    """RMS norm: y = x / sqrt(mean(|x|^2) + epsilon) * scale, over `reduction_axes`.

    With `zero_centered_scale=True` the parameter g, 0 at first, stands for a scale of 1 + g. `use_bias=True`
    adds a bias, as Equinox does.

    Zhang and Sennrich, 2019, arXiv:1910.07467.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> print(jn.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.asarray([1.0, 7.0])).round(3))
    [0.2 1.4]
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    promote_dtype: PromoteDtypeFn = promote_dtype
    rngs: InitVar[nnx.Rngs]
    scale_metadata: InitVar[Metadata] = NO_METADATA
    zero_centered_scale: bool = False
    use_bias: bool = False
    bias_init: Initializer = initializers.zeros

    def __post_init__(self, rngs: nnx.Rngs, scale_metadata: Metadata) -> None:
        super().__post_init__(rngs, NO_METADATA, scale_metadata)

    @compiled
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        *,
        weights: Array | None = None,
        scale: Array | None = None,
        bias: Array | None = None,
    ) -> Array:
        call = {"mask": mask, "weights": weights, "scale": scale, "bias": bias}
        return normalized(self, x, promote=promoted(self), **call)

    def normalize(self, x: Array, **call: Any) -> Array:
        return jaxnorm.rms_norm(x, **layers.rows(self), **call)


class GroupNorm(_Norm, nnx.GroupNorm):
    """Group norm: the channels, `feature_axis`, in `num_groups` groups or in groups of `group_size`.

    Each sample and group has its own mean and variance, over all other axes or over `reduction_axes`,
    of which the channels' axis must be one. ValueError, Flax's own, where the groups do not divide the
    channels.

    Wu and He, 2018, arXiv:1803.08494.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> norm = jn.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.asarray([[1.0, 3.0, 10.0, 30.0]])).round(3))
    [[-1.  1. -1.  1.]]
    """

    num_groups: Any = field(default=32, kw_only=False)
    group_size: Any = field(default=None, kw_only=False)
    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes | None = None
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    promote_dtype: PromoteDtypeFn = promote_dtype
    rngs: InitVar[nnx.Rngs]
    bias_metadata: InitVar[Metadata] = NO_METADATA
    scale_metadata: InitVar[Metadata] = NO_METADATA
    feature_axis: int = -1

    def __post_init__(self, *variables: Any) -> None:
        chosen = self.num_groups, self.group_size
        self.num_groups, self.group_size = layers.groups(self.num_features, *chosen, of="features")
        super().__post_init__(*variables)

    def normalize(self, x: Array, **call: Any) -> Array:
        layers.check_reduced(self, x)
        (channels,) = layers.feature_shape(self, x)
        num_groups, _ = layers.groups(channels, self.num_groups, None)
        call["feature_axis"], call["reduction_axes"] = self.feature_axis, self.reduction_axes
        return jaxnorm.group_norm(x, num_groups, **call)


class InstanceNorm(Stateful, nnx.InstanceNorm):
    """Instance norm: each sample and channel has its own mean and variance.

    They are taken over all axes but 0 and `feature_axes`.

    With `track_stats=True` the `nnx.BatchStat`s `mean` and `var` are averages, with weight `momentum` on the
    old value, of the mean over samples of their means and variances, and evaluation (`eval()`) is by these.
    `unbiased=True` stores PyTorch's variance. Modes, `update_stats` and freezing are as in `BatchNorm`.
    Without `track_stats` they change nothing.

    Ulyanov, Vedaldi and Lempitsky, 2016, arXiv:1607.08022.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> x = jnp.asarray([[[1.0], [3.0]], [[10.0], [30.0]]])
    >>> print(jn.InstanceNorm(1, rngs=nnx.Rngs(0))(x).round(3).ravel())
    [-1.  1. -1.  1.]
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    feature_axes: Axes = -1
    axis_name: Any = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    promote_dtype: PromoteDtypeFn = promote_dtype
    rngs: InitVar[nnx.Rngs]
    bias_metadata: InitVar[Metadata] = NO_METADATA
    scale_metadata: InitVar[Metadata] = NO_METADATA

    track_stats: bool = False
    use_running_average: bool | None = False
    momentum: Any = 0.9
    unbiased: bool = False
    update_stats: bool | None = None

    averages_instances: ClassVar[bool] = True

    # batch norm's options, which this norm has not
    debias: ClassVar[bool] = False
    every_k: ClassVar[int] = 1
    blend: ClassVar[None] = None
    count_skipped: ClassVar[bool] = False

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
            return self._by_instances(x, **call)
        return self.normalize_and_update(x, use_running_average, update_stats, **call)

    @compiled
    def _by_instances(self, x: Array, **call: Any) -> Array:
        return normalized(self, x, promote=promoted(self), feature_axis=self.feature_axes, **call)

    def _promotion(self, stored: dict[str, Array]) -> dict[str, Any]:
        return {"promote": promoted(self)}

    def normalize(self, x: Array, *stats: Any, **call: Any) -> Any:
        return jaxnorm.running_instance_norm(x, *stats, **call) if stats else jaxnorm.instance_norm(x, **call)
