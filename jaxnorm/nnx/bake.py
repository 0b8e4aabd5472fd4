"""Weight norm and spectral norm, baked into the weights of an nnx model."""

from typing import Any

from flax import nnx

from jaxnorm._base.messages import public
from jaxnorm._layers import weights as shared
from jaxnorm.nnx.weights import by_sigma, of_length

Path = tuple[Any, ...]
_CONTAINERS = (nnx.List, nnx.Dict)


@public
def bake(model: nnx.Module) -> Any:
    """The model with plain layers in place of those in weight norm or spectral norm, whose weights they get.

    The layers are changed in place, and the wrappers taken out of the model: it evaluates as before. What
    calls a SpectralNorm with `update_stats` has to leave that out.

    Returns:
      The model; if that is itself a WeightNorm or a SpectralNorm, the layer in it.

    Raises:
      ValueError: nothing is wrapped; a wrapped layer is elsewhere in the model, too. Nothing is changed then.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> layer, x = jn.WeightNorm(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)), jnp.ones((1, 4))
    >>> plain = jn.bake(layer)
    >>> type(plain).__name__, bool((jnp.abs(jnp.linalg.norm(plain.kernel[...], axis=0) - 1) < 1e-6).all())
    ('Linear', True)
    """
    if not _wrappers(model):
        raise shared.nothing_to_bake("pass a model with one")
    shared_places = [list(map(tuple, places)) for places in nnx.find_duplicates(model)]
    for path, _ in _wrappers(model):
        _check_inside((*path, "layer_instance"), shared_places)
    while wrappers := _wrappers(model):
        path, wrapper = min(wrappers, key=lambda found: len(found[0]))  # what wraps a wrapper comes first
        normalized = of_length if isinstance(wrapper, nnx.WeightNorm) else by_sigma
        layer = wrapper.layer_instance
        for name, v in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
            v.set_value(normalized(wrapper, name, v))
        if not path:
            model = layer
            continue
        several = (list(map(tuple, places)) for places in nnx.find_duplicates(model))
        for place in next((places for places in several if path in places), [path]):
            _put(model, place, layer)
    return model


def _check_inside(layer: Path, shared_places: list[list[Path]]) -> None:
    """A wrapped layer and its variables are nowhere but in its wrapper, which itself may be shared.

    Args:
      layer: its path.
      shared_places: the paths of each module and each variable that has several.
    """
    count = len(layer)
    for places in shared_places:
        if any(place[:count] == layer for place in places):
            raise shared.wrapped_elsewhere(["/".join(map(str, place)) for place in places])


def _wrappers(model: Any) -> list[tuple[Path, Any]]:
    """The weight norms and spectral norms of a model, by path."""
    return [(p, m) for p, m in nnx.iter_modules(model) if isinstance(m, (nnx.WeightNorm, nnx.SpectralNorm))]


def _put(model: Any, path: Path, layer: Any) -> None:
    """Makes `layer` what is at a path in the model."""
    *parents, name = path
    for key in parents:
        model = model[key] if isinstance(model, _CONTAINERS) else getattr(model, key)
    if isinstance(model, _CONTAINERS):
        model[name] = layer
    else:
        setattr(model, name, layer)
