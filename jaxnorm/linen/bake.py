"""Weight norm and spectral norm, baked into the weights of a linen model."""

from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict, meta
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxnorm._base.messages import public
from jaxnorm._layers import weights as shared
from jaxnorm.linen.frozen import FrozenStats
from jaxnorm.linen.weights import SpectralNorm, WeightNorm

Path = tuple[str, ...]


@public
def bake(variables: Any, *, feature_axes: Any = -1, epsilon: float = 1e-12, n_steps: int = 1) -> Any:
    """Variables of the model without weight norm and spectral norm, whose layers have the normalized weights.

    They are for the same model with `layer` in place of `WeightNorm(layer)` and `SpectralNorm(layer)`, which
    evaluates as before. A layer that was made outside of a module, so that its variables are called
    `layer_instance`, has those of the wrapper's name. Wrappers are known by what they store, scales or
    vectors `u`, which a WeightNorm with `use_scale=False` does not.

    Args:
      variables: as `init` returned them.
      feature_axes, epsilon, n_steps: of the wrappers, by default theirs.

    Returns:
      New variables, of the same type.

    Raises:
      ValueError: nothing is wrapped.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from jaxnorm import linen as jn
    >>> variables = jn.WeightNorm(nn.Dense(2)).init(jax.random.key(0), jnp.ones((1, 4)))
    >>> jax.tree.map(jnp.shape, jn.bake(variables))
    {'params': {'bias': (2,), 'kernel': (4, 2)}}
    """
    none: Any = None
    of_length = WeightNorm(none, feature_axes=feature_axes, epsilon=epsilon)
    by_sigma = SpectralNorm(none, n_steps=n_steps, epsilon=epsilon)
    new: dict[str, Any] = {name: _flat(tree) for name, tree in variables.items()}
    params, stats = new.get("params", {}), new.get("batch_stats", {})
    inside: set[Path] = set()  # layers whose variables are among the wrapper's
    scales, vectors = _stored(params, "scale"), _stored(stats, "u")
    for path in (*scales, *vectors):
        place, nested = _place(params, path)
        if path in scales:
            w = shared.weight_norm(of_length, _value(params[place]), _value(params.pop(path)))
        else:
            *wrapper, name = path
            sigma = stats.pop((*wrapper, f"{name.removesuffix('/u')}/sigma"))
            w, _ = shared.spectral_norm(by_sigma, _value(params[place]), stats.pop(path), sigma)
        box = params[place]
        params[place] = box.replace_boxed(w) if isinstance(box, meta.AxisMetadata) else w
        if nested:
            inside.add(nested)
    if not (scales or vectors):
        raise shared.nothing_to_bake("pass variables with scales or vectors of one")
    for layer in inside:
        for name, flat in new.items():
            new[name] = {_outside(path, layer): v for path, v in flat.items()}
    trees = {name: unflatten_dict(flat) for name, flat in new.items() if flat or not variables[name]}
    return FrozenDict(trees) if isinstance(variables, FrozenDict) else trees


def _flat(tree: Any) -> dict[Path, Any]:
    """A collection as a dict of paths; frozen statistics are one value."""
    return dict(flatten_dict(tree, keep_empty_nodes=True, is_leaf=lambda _, v: isinstance(v, FrozenStats)))


def _stored(flat: Mapping[Path, Any], name: str) -> list[Path]:
    """The paths of what wrappers store by that name, `<layer>/<path>/<name>`."""
    return [path for path in flat if path and path[-1].endswith(f"/{name}")]


def _place(params: Mapping[Path, Any], stored: Path) -> tuple[Path, Path | None]:
    """The path of the normalized weight; and that of its layer, if it is among the wrapper's variables.

    A layer that is made in the module that wraps it is beside the wrapper.
    """
    *wrapper, key = stored
    layer, *inner, _ = key.split("/")
    nested = (*wrapper, layer)
    if (*nested, *inner) in params:
        return (*nested, *inner), nested
    return (*wrapper[:-1], layer, *inner), None


def _outside(path: Path, layer: Path) -> Path:
    """A path inside of a layer as it is without the layer's wrapper, whose name the layer takes."""
    count = len(layer)
    return (*layer[:-1], *path[count:]) if path[:count] == layer else path


def _value(boxed: Any) -> Array:
    """A parameter without its metadata."""
    value: Array = meta.unbox(boxed)
    return value
