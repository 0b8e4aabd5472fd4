"""PopArt as a linen layer."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.errors import ModifyScopeVariableError
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

import jaxnorm
from jaxnorm._base.messages import Named
from jaxnorm._layers import pop_art as shared
from jaxnorm._layers.calls import Initializer
from jaxnorm.linen.batch import _advice

_MUTABLE = (
    "PopArt: an update writes parameters and statistics; call apply(variables, targets, method='update', "
    "mutable=['params', 'batch_stats']) and keep what it returns."
)


class PopArt(Named, nn.Module):
    """PopArt: a last layer of `features` outputs in units of targets whose mean and deviation move.

    y = h @ kernel + bias, in the targets' units `denormalize(y)`; the loss compares y with
    `normalize(targets)`. `update(targets)`, first, moves the statistics and rescales kernel and bias, so that
    `denormalize(y)` stays as it was; it writes "params" and "batch_stats".

    van Hasselt, Guez, Hessel, Mnih and Silver, 2016, arXiv:1602.07714.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> h, targets = jnp.asarray([[3.0, 4.0]]), jnp.asarray([[10.0], [30.0]])
    >>> head = jn.PopArt(1, momentum=0.5, kernel_init=jax.nn.initializers.ones)
    >>> variables = head.init(jax.random.key(0), h)
    >>> _, variables = head.apply(variables, targets, method="update", mutable=["params", "batch_stats"])
    >>> print(head.apply(variables, head.apply(variables, h), method="denormalize").round(3))
    [[7.]]
    >>> print(variables["batch_stats"]["mean"])
    [10.]
    """

    features: int
    momentum: float = 0.999
    epsilon: float = 1e-4
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros
    axis_name: Any = None
    axis_index_groups: Any = None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (h.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        for name, value in jaxnorm.initial_stats(self.features)._asdict().items():
            self.variable("batch_stats", name, lambda value=value: value)
        return shared.predicted(self, h, kernel, bias)

    def update(self, targets: Array, *, mask: Array | None = None, weights: Array | None = None) -> None:
        """New statistics, and a kernel and a bias that predict the same by them; frozen, all stay."""
        if self.has_variable("batch_stats", "frozen"):
            return
        with _advice(ModifyScopeVariableError, _MUTABLE):
            for name, value in shared.updated(self, self._values(), targets, mask, weights).items():
                place = shared.PLACES[name]
                boxed: Any = self.get_variable(place, name)
                self.put_variable(place, name, meta.replace_boxed(boxed, value))

    def normalize(self, targets: Array) -> Array:
        """Targets in the units of y."""
        return jaxnorm.standardize(targets, shared.moments(self, self._values()), epsilon=self.epsilon)

    def denormalize(self, y: Array) -> Array:
        """y in the units of the targets."""
        return jaxnorm.unstandardize(y, shared.moments(self, self._values()), epsilon=self.epsilon)

    def _values(self) -> dict[str, Array]:
        return {name: meta.unbox(self.get_variable(place, name)) for name, place in shared.PLACES.items()}
