"""Linen layers that normalize the weights of another layer."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax import Array

from jaxnorm._base.messages import Named
from jaxnorm._layers import weights as shared


class WeightNorm(Named, nn.WeightNorm):
    """Weight norm: a layer with the weights scale * v / sqrt(sum |v|^2 + epsilon).

    The sum is over all axes but `feature_axes`. It is taken of the parameters of `layer_instance` whose path
    contains one of the names in `variable_filter`; None: of all. The scales, one value a feature, are
    parameters of this layer, `<layer>/<path>/scale`. They start at 1, or, with `scale_from_weights=True`, at
    the length of v: the wrapped layer then does what it did.

    Salimans and Kingma, 2016, arXiv:1602.07868.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from jaxnorm import linen as jn
    >>> layer = jn.WeightNorm(nn.Dense(1), scale_from_weights=True)
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 4)))
    >>> jax.tree.map(jnp.shape, variables["params"])
    {'layer_instance': {'bias': (1,), 'kernel': (4, 1)}, 'layer_instance/kernel/scale': (1,)}
    """

    scale_from_weights: bool = False

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def normalized(name: str, v: Array) -> Array:
            if self.variable_filter and not any(part in name for part in self.variable_filter):
                return v
            scale = None
            if self.use_scale:
                scale = self.param(f"{name}/scale", lambda key: shared.weight_scale(self, v, key))
            return shared.weight_norm(self, v, scale)

        return _with_weights(self, normalized)(self.layer_instance, *args, **kwargs)


class SpectralNorm(Named, nn.SpectralNorm):
    """Spectral norm: a layer whose matrices are divided by their largest singular values.

    Of each, `collection_name` holds `<layer>/<path>/u` and `<layer>/<path>/sigma`: where power iteration goes
    on from at the next call, and what it found. `update_stats=True` stores them. Parameters of more than two
    axes are flattened into matrices whose columns are the last axis, or refused with
    `error_on_non_matrix=True`.

    Miyato, Kataoka, Koyama and Yoshida, 2018, arXiv:1802.05957.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from jaxnorm import linen as jn
    >>> layer = jn.SpectralNorm(nn.Dense(2))
    >>> x = jnp.ones((1, 4))
    >>> variables = layer.init(jax.random.key(0), x, update_stats=False)
    >>> y, updates = layer.apply(variables, x, update_stats=True, mutable="batch_stats")
    >>> jax.tree.map(jnp.shape, updates["batch_stats"])
    {'layer_instance/kernel/sigma': (), 'layer_instance/kernel/u': (1, 2)}
    """

    @nn.compact
    def __call__(self, *args: Any, update_stats: bool, **kwargs: Any) -> Any:
        def normalized(name: str, v: Array) -> Array:
            if not shared.is_matrix(self, v):
                return v
            known = self.has_variable(self.collection_name, f"{name}/u")
            key: Any = None if known else self.make_rng("params")
            row = (1, v.shape[-1])
            starts = {
                "u": lambda: jax.random.normal(key, row, self.param_dtype),
                "sigma": lambda: nn.initializers.ones(key, (), self.param_dtype),
            }
            kept = {k: self.variable(self.collection_name, f"{name}/{k}", f) for k, f in starts.items()}
            w, new = shared.spectral_norm(self, v, **{k: variable.value for k, variable in kept.items()})
            for k, value in new.items() if update_stats else ():
                kept[k].value = value
            return w

        return _with_weights(self, normalized)(self.layer_instance, *args, **kwargs)


def _with_weights(layer: Any, normalized: Callable[[str, Array], Array]) -> Callable[..., Any]:
    """Calls the wrapped layer on normalized parameters; what is stored of them stays as it is."""

    def view(variables: Any) -> Any:
        def at(path: Any, v: Array) -> Array:
            _, *inner = path  # without the collection
            name = jax.tree_util.keystr(tuple(inner), simple=True, separator="/")
            return normalized(f"{layer.layer_instance.name}/{name}", v)

        return jax.tree_util.tree_map_with_path(at, variables)

    def call(wrapped: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapped(*args, **kwargs)

    return nn.map_variables(call, "params", view, init=layer.is_initializing())
