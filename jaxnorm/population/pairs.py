"""A norm and the layers beside it, as a model stores them: what the `fold` of linen and of nnx share."""

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import abs2, wide
from jaxnorm._base.messages import error
from jaxnorm._core.moments import Moments
from jaxnorm.population.fold import fold_batch_norm, fold_into_next, fold_scale

# The layer that a norm becomes part of: the one whose output it takes, or those that take its output.
SIDES = "previous", "next"


class Norm(NamedTuple):
    """What is stored of a norm. Axes before those of the features stack layers."""

    scale: Array | None
    bias: Array | None
    mean: Array | None  # None: it keeps no statistics, as layer norm
    var: Array | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one value a feature."""
        return next((v.shape for v in (self.mean, self.scale, self.bias) if v is not None), ())


class Layer(NamedTuple):
    """A layer beside a norm, and which axes of its kernel, without those that stack layers, are the norm's."""

    kernel: Array
    bias: Array | None
    feature_axis: int | tuple[int, ...]
    groups: int = 1
    stacked: int = 0  # how many leading axes stack layers


def checked(pairs: Any, into: Any) -> dict[str, tuple[str, ...]]:
    """The layers beside each norm, by the norm's path.

    Args:
      pairs: as `fold` takes them.
      into: one of `SIDES`.
    """
    check.choice("fold", "into", into, SIDES)
    if not isinstance(pairs, Mapping) or not pairs:
        problem = f"pairs must be a dict with a pair or more, got {type(pairs).__name__} {pairs!r}"
        raise error(TypeError, "fold", problem, 'give {"path/of/norm": "path/of/layer"}')
    found: dict[str, tuple[str, ...]] = {}
    for norm, layers in pairs.items():
        several = (layers,) if isinstance(layers, str) else tuple(layers)
        if len(several) > 1 and into == "previous":
            problem = f"norm '{norm}' has {len(several)} layers before it"
            raise error(ValueError, "fold", problem, "it can become part of one")
        found[norm] = several
    every = [layer for several in found.values() for layer in several]
    twice = next((layer for layer in every if every.count(layer) > 1), None)
    if twice is not None:
        raise error(ValueError, "fold", f"layer '{twice}' is beside two norms", "name each layer once")
    return found


def no_such(kind: str, path: str, there: Collection[str]) -> ValueError:
    """The error for a path at which there is nothing.

    Args:
      kind: what was sought, "norm" or "layer".
      path: what the user gave.
      there: the paths of all that would do.
    """
    near = difflib.get_close_matches(path, there, n=3, cutoff=0.4) or sorted(there)[:8]
    remedy = f"there is: {', '.join(near)}" if near else "the model has none"
    return error(ValueError, "fold", f"there is no {kind} '{path}'", remedy)


def without_statistics(norm: str) -> ValueError:
    """The error for a norm without statistics that is to become part of the layer before it."""
    problem = f"norm '{norm}' keeps no statistics, without which it is not affine"
    remedy = 'only its scale and bias fold, into the layer after it: fold(..., into="next")'
    return error(ValueError, "fold", problem, remedy)


def misfit(norm: str, layer: str, features: tuple[int, ...], kernel: tuple[int, ...]) -> ValueError:
    """The error for a norm and a layer whose sizes do not fit."""
    problem = (
        f"norm '{norm}' has features of shape {features}, which do not fit layer '{layer}' with a kernel "
    )
    remedy = (
        "pair layers that follow each other, or choose the kernel's axis of the norm's features, feature_axis"
    )
    return error(ValueError, "fold", f"{problem}of shape {kernel}", remedy)


def placed(
    norm: str,
    layer: str,
    features: tuple[int, ...],
    kernel: Array,
    bias: Array | None,
    *,
    into: str,
    feature_axis: int | tuple[int, ...] | None,
) -> Layer:
    """Where a norm's features are in a kernel, by the shapes alone.

    Args:
      norm, layer: their paths.
      features: the shape of the norm's values.
      kernel, bias: of the layer.
      into: one of `SIDES`.
      feature_axis: the user's choice, negative axes of the kernel; None: to be found.
    """
    last = -1 if into == "previous" else -2
    count = len(features)
    if feature_axis is not None:
        axes = feature_axis if isinstance(feature_axis, tuple) else (feature_axis,)
        choices = [Layer(kernel, bias, axes, stacked=count - len(axes))]
    elif into == "previous":
        several = tuple(range(-count, 0))
        choices = [Layer(kernel, bias, (last,), stacked=count - 1), Layer(kernel, bias, several)]
    else:
        several = tuple(range(-kernel.ndim, count - kernel.ndim))
        choices = [Layer(kernel, bias, (last,), stacked=count - 1), Layer(kernel, bias, several)]
    fitting = {c.feature_axis: fitted for c in choices if (fitted := _fitted(c, features, into)) is not None}
    if len(fitting) > 1:
        axes = " or ".join(str(a[0] if len(a) == 1 else a) for a in fitting)
        problem = f"norm '{norm}' has features of shape {features}, and layer '{layer}' a kernel of shape "
        problem += f"{kernel.shape}, which are either stacked layers or several axes of features"
        raise error(ValueError, "fold", problem, f"say which: feature_axis={axes}")
    if not fitting:
        raise misfit(norm, layer, features, kernel.shape)
    return next(iter(fitting.values()))


def _fitted(layer: Layer, features: tuple[int, ...], into: str) -> Layer | None:
    """The layer, with its groups, if a norm's features of this shape fit; else None."""
    axes, stacked, shape = layer.feature_axis, layer.stacked, layer.kernel.shape
    assert isinstance(axes, tuple)
    inner = shape[stacked:]
    if stacked < 0 or shape[:stacked] != features[:stacked] or any(-a > len(inner) for a in axes):
        return None
    sizes, own = tuple(inner[a] for a in axes), features[stacked:]
    if sizes == own:
        return layer
    if into == "next" and len(inner) > 2 and len(axes) == 1 and own[0] % sizes[0] == 0:
        groups = own[0] // sizes[0]
        # a Dense has no groups; a Conv's divide its output features
        return layer._replace(groups=groups) if inner[-1] % groups == 0 else None
    return None


def folded(layer: Layer, norm: Norm, *, into: str, epsilon: float) -> tuple[Array, Array | None]:
    """The kernel and the bias of the layer with the norm in it.

    Args:
      layer, norm: as they are stored.
      into: one of `SIDES`.
      epsilon: the norm's.
    """

    def one(kernel: Array, bias: Array | None, norm: Norm) -> tuple[Array, Array | None]:
        options = {"scale": norm.scale, "norm_bias": norm.bias, "feature_axis": layer.feature_axis}
        if norm.mean is None:
            return fold_scale(kernel, bias, groups=layer.groups, **options)
        mean, var = norm.mean, norm.var
        assert var is not None
        stats = Moments(
            mean, var, jnp.ones(var.shape, wide(var.dtype))
        )  # the stored ones, whatever the weight
        if into == "previous":
            return fold_batch_norm(kernel, bias, stats, epsilon=epsilon, **options)
        return fold_into_next(kernel, bias, stats, epsilon=epsilon, groups=layer.groups, **options)

    for _ in range(layer.stacked):
        one = jax.vmap(one)
    return one(layer.kernel, layer.bias, norm)


def neutral(path: str, norm: Norm, *, epsilon: float, kept: Array | None = None) -> Norm:
    """The norm's arrays with which it is the identity, of the same dtypes, or y = x + kept.

    var + epsilon is 1 to the last bit in float32, as 1 - epsilon is rounded by less than half a unit of 1.

    Args:
      path: the norm's.
      norm: as it is stored.
      epsilon: the norm's.
      kept: one value a feature; None is 0. It is the norm's bias, or where it has none, its mean.
    """
    if norm.var is not None and epsilon > 1:
        problem = f"norm '{path}' has epsilon={epsilon}, with which no variance >= 0 makes it the identity"
        raise error(ValueError, "fold", problem, "choose an epsilon of at most 1")
    mean = norm.mean if norm.mean is None else jnp.zeros_like(norm.mean)
    bias = norm.bias if norm.bias is None else jnp.zeros_like(norm.bias)
    if kept is not None and norm.bias is not None:
        bias = kept.astype(norm.bias.dtype)
    elif kept is not None and norm.mean is not None:
        mean = (-kept).astype(wide(norm.mean.dtype))
    return Norm(
        None if norm.scale is None else jnp.ones_like(norm.scale),
        bias,
        mean,
        None if norm.var is None else jnp.full(norm.var.shape, 1 - epsilon, wide(norm.var.dtype)),
    )


def difference(before: Any, after: Any) -> str:
    """The greatest difference of two trees of outputs, in a sentence."""
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    size, gap = (
        max((math.sqrt(jnp.max(abs2(jnp.asarray(v)), initial=0)) for v in values), default=0.0)
        for values in ([b for b, _ in pairs], [jnp.asarray(a) - b for b, a in pairs])
    )
    return f"fold: the greatest difference of the outputs is {gap:.2g}, of values up to {size:.2g}."
