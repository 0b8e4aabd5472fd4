"""PopArt as an nnx layer."""

from dataclasses import InitVar, field
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

import jaxnorm
from jaxnorm._layers import pop_art as shared
from jaxnorm._layers.calls import Initializer
from jaxnorm.nnx.batch import is_frozen
from jaxnorm.nnx.parameters import Fields


class PopArt(Fields):
    """PopArt: a last layer of `out_features` in units of targets whose mean and deviation move.

    y = h @ kernel + bias, in the targets' units `denormalize(y)`; the loss compares y with
    `normalize(targets)`. `update(targets)`, first, moves the statistics and rescales kernel and bias, so that
    `denormalize(y)` stays as it was.

    van Hasselt, Guez, Hessel, Mnih and Silver, 2016, arXiv:1602.07714.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> h, targets = jnp.asarray([[3.0, 4.0]]), jnp.asarray([[10.0], [30.0]])
    >>> head = jn.PopArt(2, 1, momentum=0.5, kernel_init=jax.nn.initializers.ones, rngs=nnx.Rngs(0))
    >>> head.update(targets)
    >>> print(head.denormalize(head(h)).round(3), head.mean[...])
    [[7.]] [10.]
    """

    in_features: int = field(kw_only=False)
    out_features: int = field(kw_only=False)
    momentum: float = 0.999
    epsilon: float = 1e-4
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros
    axis_name: Any = None
    axis_index_groups: Any = None
    rngs: InitVar[nnx.Rngs]

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        shape = self.in_features, self.out_features
        self.kernel = nnx.Param(self.kernel_init(rngs.params(), shape, self.param_dtype))
        self.bias = nnx.Param(self.bias_init(rngs.params(), shape[1:], self.param_dtype))
        for name, value in jaxnorm.initial_stats(self.out_features)._asdict().items():
            setattr(self, name, nnx.BatchStat(value))

    @property
    def frozen(self) -> bool:
        """Whether `freeze` holds the statistics, the kernel and the bias still in `update`."""
        return is_frozen(self)

    def __call__(self, h: Array) -> Array:
        return shared.predicted(self, h, self.kernel[...], self.bias[...])

    def update(self, targets: Array, *, mask: Array | None = None, weights: Array | None = None) -> None:
        """New statistics, and a kernel and a bias that predict the same by them; frozen, all stay."""
        if self.frozen:
            return
        for name, value in shared.updated(self, self._values(), targets, mask, weights).items():
            getattr(self, name).set_value(value)

    def normalize(self, targets: Array) -> Array:
        """Targets in the units of y."""
        return jaxnorm.standardize(targets, shared.moments(self, self._values()), epsilon=self.epsilon)

    def denormalize(self, y: Array) -> Array:
        """y in the units of the targets."""
        return jaxnorm.unstandardize(y, shared.moments(self, self._values()), epsilon=self.epsilon)

    def _values(self) -> dict[str, Array]:
        return {name: getattr(self, name)[...] for name in shared.PLACES}
