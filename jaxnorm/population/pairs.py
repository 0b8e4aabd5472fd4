"""A norm and the layers beside it, as a model stores them: what the `fold` of linen and of nnx share."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import abs2, one_plus, wide
from jaxnorm._base.messages import error
from jaxnorm._core.moments import Moments
from jaxnorm.population import refusals as refusals
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
    """A layer beside a norm; which axes of its kernel, without those that stack layers, are its features."""

    kernel: Array
    bias: Array | None
    feature_axis: tuple[int, ...]  # negative
    groups: int = 1
    stacked: int = 0  # how many leading axes stack layers


def checked(pairs: Any, into: Any) -> dict[str, tuple[str, ...]]:
    """The layers beside each norm, by the norm's path.

    Args:
      pairs: as `fold` takes them.
      into: one of `SIDES`.
    """
    check.choice("into", into, SIDES)
    if not isinstance(pairs, Mapping) or not pairs:
        problem = f"pairs must be a dict with a pair or more, got {type(pairs).__name__} {pairs!r}"
        raise error(TypeError, problem, 'give {"path/of/norm": "path/of/layer"}')
    found: dict[str, tuple[str, ...]] = {}
    for norm, layers in pairs.items():
        several = (layers,) if isinstance(layers, str) else tuple(layers)
        if len(several) > 1 and into == "previous":
            problem = f"norm '{norm}' has {len(several)} layers before it"
            raise error(ValueError, problem, "it can become part of one")
        found[norm] = several
    every = [layer for several in found.values() for layer in several]
    twice = next((layer for layer in every if every.count(layer) > 1), None)
    if twice is not None:
        raise error(ValueError, f"layer '{twice}' is beside two norms", "name each layer once")
    return found


def arguments(batch: Any, kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The positional arguments of the model's call with which `fold` checks itself; None: without a check.

    Args:
      batch: an array, or a tuple of the model's positional arguments; None: there is none.
      kwargs: the call's keywords.
    """
    if batch is None and kwargs:
        names = ", ".join(sorted(kwargs))
        problem = f"{names} would be for the model's call with the batch `check`, which is None"
        raise error(TypeError, problem, "give check, too, or leave them out")
    return batch if batch is None or isinstance(batch, tuple) else (batch,)


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
    count = len(features)
    if feature_axis is not None:
        axes = feature_axis if isinstance(feature_axis, tuple) else (feature_axis,)
        if any(a >= 0 for a in axes):
            problem = f"feature_axis={feature_axis!r} counts from the first axis, which may stack layers"
            raise error(ValueError, problem, "count from the last: choose a negative axis")
        choices = [Layer(kernel, bias, axes, stacked=count - len(axes))]
    else:
        last = -1 if into == "previous" else -2
        first = -count if into == "previous" else -kernel.ndim
        several = Layer(kernel, bias, tuple(range(first, first + count)))
        choices = [Layer(kernel, bias, (last,), stacked=count - 1), several]
        if into == "next" and bias is not None:  # whose axes are those that come after the features
            choices = [c for c in choices if -1 - max(c.feature_axis) == bias.ndim - c.stacked]
    fitting = {c.feature_axis: fitted for c in choices if (fitted := _fitted(c, features, into)) is not None}
    if len(fitting) > 1:
        names = " or ".join(str(a[0] if len(a) == 1 else a) for a in fitting)
        problem = f"norm '{norm}' has features of shape {features}, which may be on several axes of layer "
        problem += f"'{layer}' with a kernel of shape {kernel.shape}"
        raise error(ValueError, problem, f"say which: feature_axis={names}")
    if not fitting:
        raise refusals.misfit(norm, layer, features, kernel.shape)
    return next(iter(fitting.values()))


def _fitted(layer: Layer, features: tuple[int, ...], into: str) -> Layer | None:
    """The layer, with its groups, if a norm's features of this shape fit; else None."""
    axes, stacked, shape = layer.feature_axis, layer.stacked, layer.kernel.shape
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


def folded(
    layer: Layer, norm: Norm, *, into: str, epsilon: float, zero_centered_scale: bool = False
) -> tuple[Array, Array | None]:
    """The kernel and the bias of the layer with the norm in it.

    Args:
      layer, norm: as they are stored.
      into: one of `SIDES`.
      epsilon: the norm's.
      zero_centered_scale: the norm's scale is 1 + what is stored.
    """

    def one(kernel: Array, bias: Array | None, norm: Norm) -> tuple[Array, Array | None]:
        options: dict[str, Any] = {
            "scale": one_plus(norm.scale) if zero_centered_scale else norm.scale,
            "norm_bias": norm.bias,
            "feature_axis": layer.feature_axis,
        }
        if norm.mean is None or norm.var is None:
            return fold_scale(kernel, bias, groups=layer.groups, **options)
        # evaluation is by the stored mean and var, whatever their weight
        stats = Moments(norm.mean, norm.var, jnp.ones(norm.var.shape, wide(norm.var.dtype)))
        if into == "previous":
            return fold_batch_norm(kernel, bias, stats, epsilon=epsilon, **options)
        return fold_into_next(kernel, bias, stats, epsilon=epsilon, groups=layer.groups, **options)

    for _ in range(layer.stacked):
        one = jax.vmap(one)
    return one(layer.kernel, layer.bias, norm)


def neutral(
    path: str, norm: Norm, *, epsilon: float, zero_centered_scale: bool = False, kept: Array | None = None
) -> Norm:
    """The norm's arrays with which it is the identity, of the same dtypes, or y = x + kept.

    var + epsilon is 1 to the last bit in float32, as 1 - epsilon is rounded by less than half a unit of 1.

    Args:
      path: the norm's.
      norm: as it is stored.
      epsilon, zero_centered_scale: the norm's.
      kept: one value a feature; None is 0. It is the norm's bias, or where it has none, its mean.
    """
    if norm.var is not None and epsilon > 1:
        problem = f"norm '{path}' has epsilon={epsilon}, with which no variance >= 0 makes it the identity"
        raise error(ValueError, problem, "choose an epsilon of at most 1")
    scale, bias, mean, var = norm
    if scale is not None:
        scale = jnp.zeros_like(scale) if zero_centered_scale else jnp.ones_like(scale)
    if bias is not None:
        bias = jnp.zeros_like(bias) if kept is None else kept.astype(bias.dtype)
        kept = None
    if mean is not None:
        mean = jnp.zeros_like(mean) if kept is None else (-kept).astype(wide(mean.dtype))
    if var is not None:
        var = jnp.full(var.shape, 1 - epsilon, wide(var.dtype))
    return Norm(scale, bias, mean, var)


def feature_axes(norm_path: str, layer_path: str, norm: Any, layer: Any, into: str) -> tuple[int, ...]:
    """Which axes of a kernel are a norm's features: negative, ascending.

    Args:
      norm_path, layer_path: where they are.
      norm: with batch norm's `axis`, or `feature_axes`; without, its features are the last axis.
      layer: with the fields of Flax's Linear, LinearGeneral, Conv or ConvTranspose.
      into: one of `SIDES`.
    """
    chosen = getattr(norm, "axis", getattr(norm, "feature_axes", -1))
    axes = sorted(chosen) if isinstance(chosen, Iterable) else [chosen]
    if hasattr(layer, "kernel_size"):  # x has a batch axis, the window's axes, and the features
        ndim = len(layer.kernel_size) + 2
        axes = [a - ndim if a >= 0 else a for a in axes]
        features = [-1]
        on_kernel = [-1 if (into == "previous") != getattr(layer, "transpose_kernel", False) else -2]
    elif not hasattr(layer, "axis"):
        features, on_kernel = [-1], [-1 if into == "previous" else -2]
    elif layer.batch_axis:
        features, on_kernel = [], []
    elif into == "previous":
        features = on_kernel = list(range(-len(layer.out_features), 0))
    else:
        features = list(layer.axis)
        on_kernel = [i - len(features) - len(layer.out_features) for i in range(len(features))]
    place = dict(zip(features, on_kernel, strict=True))
    found = tuple(place.get(a, 0) for a in axes)
    if 0 in found or list(found) != sorted(found):
        problem = (
            f"norm '{norm_path}' has its features on axis {chosen}, and layer '{layer_path}' on {features}"
        )
        raise error(ValueError, problem, "give both the same, counted from the last: -1")
    return found


def zeros_of(conv: Any) -> str | None:
    """The option by which a convolution sees zeros beside its input; None: it sees its input alone.

    Args:
      conv: with the fields of Flax's Conv or ConvTranspose.
    """
    if hasattr(conv, "transpose_kernel"):
        return f"strides={conv.strides!r}"
    if any(n not in (None, 1) for n in jax.tree.leaves(conv.input_dilation)):
        return f"input_dilation={conv.input_dilation!r}"
    padding = conv.padding
    if isinstance(padding, str):
        alone = padding in ("VALID", "CIRCULAR", "REFLECT") or all(n == 1 for n in conv.kernel_size)
    else:
        alone = not any(jax.tree.leaves(padding))
    return None if alone else f"padding={padding!r}"


def shaped(norm_path: str, layer_path: str, layer: Layer, norm: Norm) -> tuple[Layer, Norm]:
    """Layer and norm for `folded`, where the norm stores all its features on one axis, the last."""
    *stack, count = norm.shape
    inner = layer.kernel.shape[len(stack) :]
    fits = layer.kernel.shape[: len(stack)] == tuple(stack) and len(inner) >= -min(layer.feature_axis)
    sizes = [inner[a] for a in layer.feature_axis] if fits else []
    if not fits or math.prod(sizes) * layer.groups != count:
        raise refusals.misfit(norm_path, layer_path, norm.shape, layer.kernel.shape)
    if len(sizes) > 1:
        norm = Norm(*(v if v is None else v.reshape(*stack, *sizes) for v in norm))
    return layer._replace(stacked=len(stack)), norm


def bias_sharding(names: Any, layer: Any, bias: Array) -> Any:
    """The sharding of a new bias, by the names of a kernel's axes, or None: those of its outputs.

    Args:
      names: a tuple, or a PartitionSpec, of a name or None for each axis of the kernel.
      layer: as in `feature_axes`, with its kernel.
      bias: of the layer.
    """
    if not isinstance(names, tuple):
        return None
    every = [*names, *[None] * (layer.kernel.ndim - len(names))]
    several = layer.out_features
    outputs = len(several) if isinstance(several, tuple) else 1
    stacked = bias.ndim - outputs
    own = every[-2:-1] if getattr(layer, "transpose_kernel", False) else every[-outputs:]
    return type(names)(*every[:stacked], *own) if hasattr(names, "_partitions") else (*every[:stacked], *own)


def joined(owner: str, path: Iterable[Any]) -> str:
    """The path of a module inside the one at `owner`."""
    return "/".join([owner, *map(str, path)] if owner else map(str, path))


def is_inside(path: str, module: str) -> bool:
    """Whether a path is inside of the module at another; everything is inside of the model, at ""."""
    return not module or path.startswith(f"{module}/")


def common_path(paths: Iterable[str]) -> str:
    """The path of the smallest module that has the modules at all of these."""
    same = []
    for names in zip(*(path.split("/")[:-1] for path in paths), strict=False):
        if len(set(names)) > 1:
            break
        same.append(names[0])
    return "/".join(same)


def likely_shapes(layers: Iterable[Any]) -> list[tuple[int, ...]]:
    """Shapes of x that a module with these layers may take: those that its layers take."""
    shapes = []
    for layer in layers:
        features = getattr(layer, "in_features", None)
        if isinstance(features, int):
            shapes.append((2, *[32] * len(getattr(layer, "kernel_size", ())), features))
        elif isinstance(features, tuple):
            shapes.append((2, *features))
    return list(dict.fromkeys(shapes))[:8]


def difference(before: Any, after: Any) -> str:
    """The greatest difference of two trees of outputs, in a sentence."""
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    size, gap = (
        max((math.sqrt(jnp.max(abs2(jnp.asarray(v)), initial=0)) for v in values), default=0.0)
        for values in ([b for b, _ in pairs], [jnp.asarray(a) - b for b, a in pairs])
    )
    return f"fold: the greatest difference of the outputs is {gap:.2g}, of values up to {size:.2g}."
