"""Nnx layers that normalize the weights of another layer."""

from collections.abc import Callable
from dataclasses import InitVar, field
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.typing import PromoteDtypeFn
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnorm._base.messages import Named
from jaxnorm._layers import weights as shared
from jaxnorm._layers.calls import Initializer
from jaxnorm.nnx.parameters import Fields, Signature

Path = tuple[Any, ...]


class WeightNorm(Fields, nnx.WeightNorm):
    """Weight norm: a layer with the weights scale * v / sqrt(sum |v|^2 + epsilon).

    The sum is over all axes but `feature_axes`. It is taken of the parameters of `layer_instance` that
    `variable_filter` selects. Their `scales`, one value a feature, are parameters, too. They start at 1, or,
    with `scale_from_weights=True`, at the length of v: the wrapped layer then does what it did. The stored
    parameters stay as they are (Flax overwrites them, and does not train the scales).

    Salimans and Kingma, 2016, arXiv:1602.07868.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> linear = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    >>> layer = jn.WeightNorm(linear, scale_from_weights=True, rngs=nnx.Rngs(1))
    >>> x = jnp.ones((1, 4))
    >>> print((layer(x) - linear(x)).round(5))
    [[0.]]
    """

    layer_instance: nnx.Module = field(kw_only=False)
    feature_axes: Any = -1
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    epsilon: float = 1e-12
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    variable_filter: Any = nnx.PathContains("kernel")
    promote_dtype: PromoteDtypeFn = promote_dtype
    rngs: InitVar[nnx.Rngs]
    scale_from_weights: bool = False

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        self.feature_axes = () if self.feature_axes is None else self.feature_axes
        self.variable_filter = nnx.filterlib.to_predicate(self.variable_filter)
        # Flax's own scales are no parameters, take no random initializer and draw no key: the layers that
        # come after have the keys that they have there
        key: Any = (lambda: None) if self.scale_init is initializers.ones else rngs.params
        parameters = nnx.to_flat_state(nnx.state(self.layer_instance, nnx.Param))
        scales = {
            path: nnx.Param(shared.weight_scale(self, v[...], key()))
            for path, v in parameters
            if self.use_scale and self.variable_filter(path, v)
        }
        self.scales = nnx.data(scales) if self.use_scale else None

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        return _with_weights(self.layer_instance, partial(of_length, self))(x, *args, **kwargs)


class SpectralNorm(nnx.SpectralNorm, Named):
    """Spectral norm: a layer whose matrices are divided by their largest singular values.

    Of each, `batch_stats` holds u and sigma: where power iteration goes on from at the next call, and what it
    found. They are stored unless `update_stats=False` in the call, or else in the layer, or eval(). The
    parameters stay as they are (Flax overwrites them). Those of more than two axes are flattened into
    matrices whose columns are the last axis, or refused with `error_on_non_matrix=True`.

    Miyato, Kataoka, Koyama and Yoshida, 2018, arXiv:1802.05957.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> layer = jn.SpectralNorm(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), n_steps=20, rngs=nnx.Rngs(1))
    >>> y = layer(jnp.ones((1, 4)))
    >>> sigma = jnp.linalg.svd(layer.layer_instance.kernel[...])[1][0]
    >>> print((layer.batch_stats["kernel", "sigma"][...] - sigma).round(4))
    0.0
    """

    __signature__: ClassVar[Any] = Signature()

    def __call__(self, x: Array, update_stats: bool | None = None, **kwargs: Any) -> Any:
        if update_stats is None:
            update_stats = not self.use_running_average

        normalized = partial(by_sigma, self, update_stats=update_stats)
        return _with_weights(self.layer_instance, normalized)(x, **kwargs)


def of_length(layer: Any, path: Path, v: Any) -> Array:
    """The variable at a path in what a WeightNorm wraps, normalized if its filter selects it."""
    if not layer.variable_filter(path, v):
        return v[...]
    return shared.weight_norm(layer, v[...], layer.scales[path][...] if layer.use_scale else None)


def by_sigma(layer: Any, path: Path, v: Any, update_stats: bool = False) -> Array:
    """The variable at a path in what a SpectralNorm wraps, normalized if it is a matrix."""
    if not shared.is_matrix(layer, v):
        return v[...]
    kept = {name: layer.batch_stats[(*path, name)] for name in ("u", "sigma")}
    w, new = shared.spectral_norm(layer, v[...], **{name: s[...] for name, s in kept.items()})
    for name, value in new.items() if update_stats else ():
        kept[name].set_value(value)
    return w


def _with_weights(layer: nnx.Module, normalized: Callable[[Path, Any], Array]) -> Any:
    """The layer with other parameters. All else, its own statistics too, is shared with it."""
    graph, parameters, *rest = nnx.split(layer, nnx.Param, ...)
    flat = [(path, v.replace(normalized(path, v))) for path, v in nnx.to_flat_state(parameters)]
    return nnx.merge(graph, nnx.from_flat_state(flat), *rest)
