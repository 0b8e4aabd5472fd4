"""What the layers that normalize the weights of another layer share."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax import Array

from jaxnorm._base.messages import calling, error
from jaxnorm._layers import calls as layers
from jaxnorm._layers import watching
from jaxnorm._norms import spectral as _spectral
from jaxnorm._norms import weights as _weights


def weight_norm(layer: Any, v: Array, scale: Array | None) -> Array:
    """The weights of length `scale` (1 where it is None) and of v's direction."""
    dtype = layers.result_dtype(layer, v, scale)
    options = {"feature_axis": layer.feature_axes, "epsilon": layer.epsilon, "select": _every}
    if watching.on():
        watching.tell_input(layer, v, None, {})
    with calling(type(layer).__name__, layers.words(layer)):
        return _weights.weight_norm(v, scale=scale, dtype=dtype, **options)


def weight_scale(layer: Any, v: Array, key: Array | None) -> Array:
    """The scale at the start: Flax's, or the length of v, with which v stays as it is."""
    lengths = partial(_weights.weight_lengths, v, feature_axis=layer.feature_axes, select=_every)
    if layer.scale_from_weights:
        return lengths().astype(layer.param_dtype)
    return layer.scale_init(key, jax.eval_shape(lengths).shape, layer.param_dtype)


def spectral_norm(layer: Any, v: Array, u: Array, sigma: Array) -> tuple[Array, dict[str, Array]]:
    """The matrix v by its largest singular value, and the new u and sigma."""
    dtype = layers.result_dtype(layer, v, u)
    options = {"n_steps": layer.n_steps, "epsilon": layer.epsilon, "dtype": dtype}
    if watching.on():
        watching.tell_input(layer, v, None, {})
    with calling(type(layer).__name__):
        w, stats = _spectral.spectral_norm(v, _spectral.SpectralStats(u, sigma), **options)
    return w, stats._asdict()


def is_matrix(layer: Any, v: Array) -> bool:
    """Whether spectral norm is defined on a parameter; Flax takes one of more axes for a matrix, too."""
    if v.ndim <= 1 or layer.n_steps < 1:
        return False
    if v.ndim > 2 and layer.error_on_non_matrix:
        raise ValueError(
            f"SpectralNorm: Input is {v.ndim}D but error_on_non_matrix is True; wrap a layer whose kernel is "
            "a matrix, or leave error_on_non_matrix out to flatten the leading axes."
        )
    return True


def nothing_to_bake(remedy: str) -> ValueError:
    """The error of `bake` where no weights are normalized."""
    return error(ValueError, "the model has no WeightNorm and no SpectralNorm", remedy)


def wrapped_elsewhere(places: Sequence[str]) -> ValueError:
    """The error of `bake` for a layer that is in a wrapper and, at other places, in none."""
    problem = f"a layer in a WeightNorm or SpectralNorm is elsewhere, too: {', '.join(sorted(places))}"
    return error(ValueError, problem, "the other uses would change: bake a model with copies")


def _every(*_: Any) -> bool:
    return True
