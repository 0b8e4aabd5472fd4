"""PopArt as a layer, in any framework: a last layer and the statistics of its targets."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.nn import initializers

from jaxnorm._base.messages import Named, calling
from jaxnorm._core.moments import Moments
from jaxnorm._core.standardize import standardize, unstandardize
from jaxnorm._layers import calls as layers
from jaxnorm._layers import state as state
from jaxnorm._layers.parts import fields
from jaxnorm._norms import inputs as _inputs
from jaxnorm._norms.batch import sound

# where its values are stored
PLACES = dict.fromkeys(("kernel", "bias"), "params") | dict.fromkeys(Moments._fields, "batch_stats")


@fields
class PopArt(Named):
    """The framework's part gives `values`, by name, and takes them back."""

    momentum: Any = 0.999
    epsilon: Any = 1e-4
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Any = initializers.lecun_normal()
    bias_init: Any = initializers.zeros
    axis_name: Any = None
    axis_index_groups: Any = None

    def predicted(self, h: Array, kernel: Array, bias: Array) -> Array:
        dtype = layers.result_dtype(self, h, kernel, bias)
        y = h.astype(dtype) @ kernel.astype(dtype)
        return y + bias.astype(dtype).reshape((1,) * (y.ndim - 1) + bias.shape)

    def updated(self, values: dict[str, Array], targets: Array, mask: Any, weights: Any) -> dict[str, Array]:
        with calling("PopArt", layers.words(self, mask)):
            kernel, bias, stats = _inputs.pop_art(
                values["kernel"],
                values["bias"],
                self.moments(values),
                targets,
                decay=self.momentum,
                epsilon=self.epsilon,
                where=layers.where(mask, weights),
                **layers.devices(self),
            )
        return {"kernel": kernel, "bias": bias, **stats._asdict()}

    def normalized(self, values: dict[str, Array], targets: Array) -> Array:
        return standardize(targets, self.moments(values), epsilon=self.epsilon)

    def denormalized(self, values: dict[str, Array], y: Array) -> Array:
        return unstandardize(y, self.moments(values), epsilon=self.epsilon)

    def moments(self, values: dict[str, Array]) -> Moments:
        """The stored statistics, as the layers of batch norm have them."""
        return sound(Moments(*state.widened(self, values, True)))
