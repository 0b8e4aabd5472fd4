"""Norms of an nnx model that become part of the layers beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx
from jax import Array

from jaxnorm._base.messages import calling, error
from jaxnorm.nnx.batch import BatchNorm, is_frozen
from jaxnorm.nnx.family_batch import BatchRenorm, GhostBatchNorm
from jaxnorm.nnx.flow import check_flow
from jaxnorm.nnx.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from jaxnorm.population import pairs as shared
from jaxnorm.population import refusals

# Layers and norms are known by what they call: a subclass that calls something else computes something else.
_DENSE, _CONVS = (nnx.Linear, nnx.LinearGeneral), (nnx.Conv, nnx.ConvTranspose)
_LAYERS = {c.__call__ for c in (*_DENSE, *_CONVS)}
_BATCH = {c.__call__ for c in (nnx.BatchNorm, BatchNorm)}
_EVALUATIONS = {c.normalize for c in (BatchNorm, BatchRenorm, GhostBatchNorm)}
_OTHERS = {
    c.__call__
    for c in (
        *(nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm),
        *(LayerNorm, RMSNorm, GroupNorm, InstanceNorm),
    )
}


def fold(
    model: nnx.Module,
    pairs: Mapping[str, str | Sequence[str]],
    *,
    into: str = "previous",
    check: Any = None,
    **call_kwargs: Any,
) -> None:
    """Makes norms part of the layers before them, in place: the model evaluates as before.

    Kernel and bias of the layer are those of `jaxnorm.population.fold_batch_norm`; a bias is added where
    there is none, with the metadata of the kernel. The norm is the identity: scale 1, bias 0, mean 0, and
    var 1 - epsilon. Norms are Flax's or jaxnorm's batch norms, in evaluation, and those of their subclasses
    that evaluate likewise: batch renorm and ghost batch norm; layers are Linear, LinearGeneral, Conv and
    ConvTranspose. With `into="next"` norms become part of the layers after them; of a layer, RMS, group or
    instance norm it is the scale and the bias that do, and it goes on to normalize.

    A model does not show what it does between two layers. Where the module that has both can be traced, by
    `check` or else by an input made of the sizes of its layers, the output of one has to be the input of the
    other, and nothing else. Where it cannot, since it takes more than x, for instance, this is for you to see
    to; so is an output of the layer that is used elsewhere, too. `check` shows it.

    Args:
      model: in evaluation, as after `eval()`.
      pairs: {"path/of/norm": "path/of/layer before it"}, as in {"blocks/0/norm": "blocks/0/conv"}; with
        `into="next"` the layer after it, or several. Layers that are stacked by nnx.vmap, on axis 0 of norm
        and layer, are a pair.
      into: "previous" or "next".
      check, call_kwargs: prints the greatest difference between `model(*check, **call_kwargs)` before and
        after. A batch that is no tuple is the only argument.

    Raises:
      ValueError: a path at which there is no norm or no layer; sizes that do not fit; something between them;
        statistics of the batch in use; a norm without statistics, or whose evaluation is not that of batch
        norm; a layer or a norm that is in the model twice; into the next layer a shift with zeros put beside
        the input. The model is then as it was.
      TypeError: the model is no module; pairs are no dict.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> rngs, x = nnx.Rngs(0), jnp.ones((1, 3))
    >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=rngs), jn.BatchNorm(2, rngs=rngs))
    >>> y = model(x)
    >>> model.eval()
    >>> y = model(x)
    >>> jn.fold(model, {"layers/1": "layers/0"})
    >>> print((model(x) - y).round(5), model.layers[1].mean[...])
    [[0. 0.]] [0. 0.]
    """
    with calling("fold"):
        args = shared.arguments(check, call_kwargs)
        changes = _changes(model, shared.checked(pairs, into), into, args, call_kwargs)
    before = None if args is None else nnx.clone(model)(*args, **call_kwargs)
    for module, name, value in changes:
        _store(module, name, value)
    if args is not None:
        print(shared.difference(before, nnx.clone(model)(*args, **call_kwargs)))


def _changes(
    model: nnx.Module,
    chosen: Mapping[str, Sequence[str]],
    into: str,
    args: tuple[Any, ...] | None,
    kwargs: Mapping[str, Any],
) -> list[tuple[Any, str, Array | None]]:
    """The variables to set, as module, name and value. Nothing is set yet.

    Args:
      model, chosen, into: norms and the layers beside them, by path.
      args, kwargs: of a call of the model; None: there is none.
    """
    modules = {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model)}
    if not modules:
        problem = f"model must be an nnx.Module, got {type(model).__name__}"
        raise error(TypeError, problem, "pass the model itself, not its state")
    _check_single(model, chosen)
    changes: list[tuple[Any, str, Array | None]] = []
    for norm_path, layer_paths in chosen.items():
        norm, stored, options = _norm(modules, norm_path, into)
        kept = shared.neutral(norm_path, stored, **options)
        changes.extend((norm, name, value) for name, value in kept._asdict().items())
        for path in layer_paths:
            layer = _layer(modules, path)
            place, values = _place(norm_path, path, norm, stored, layer, into)
            kernel, bias = shared.folded(place, values, into=into, **options)
            changes.extend([(layer, "kernel", kernel), (layer, "bias", bias)])
    check_flow(modules, chosen, into, args, kwargs)
    return changes


def _check_single(model: nnx.Module, chosen: Mapping[str, Sequence[str]]) -> None:
    """A norm, the layers beside it, and their variables are each in the model once.

    They may all be inside of one module that is used several times, each time with all of them.
    """
    for places in nnx.find_duplicates(model):
        names = ["/".join(map(str, place)) for place in places]
        for norm, layers in chosen.items():
            pair = [norm, *layers]
            for path in pair:
                own = any(name == path or shared.is_inside(name, path) for name in names)
                around = [name for name in names if shared.is_inside(path, name)]
                if own or any(not shared.is_inside(p, name) for p in pair for name in around):
                    raise refusals.shared_module(path, names)


def _norm(modules: Mapping[str, Any], path: str, into: str) -> tuple[Any, shared.Norm, dict[str, Any]]:
    """The norm at a path, what it stores, and the options of `pairs.folded`."""
    norm: Any = modules.get(path)
    if norm is not None and _call(norm) in _OTHERS:
        if into == "previous":
            raise refusals.without_statistics(path)
    elif not isinstance(norm, nnx.BatchNorm):
        there = [
            name
            for name, m in modules.items()
            if isinstance(m, nnx.BatchNorm) or (into == "next" and _call(m) in _OTHERS)
        ]
        raise refusals.no_such("norm", path, there)
    else:
        _check_evaluation(path, norm)
    stored = shared.Norm(
        *(_value(getattr(norm, name, None)) for name in ("scale", "bias", "mean", "var")),
    )
    if any(v is not None and v.shape != stored.shape for v in stored):
        shapes = {v.shape for v in stored if v is not None}
        raise refusals.no_batch_norm(path, [], shapes)
    zero_centered = getattr(norm, "zero_centered_scale", False)
    return norm, stored, {"epsilon": norm.epsilon, "zero_centered_scale": zero_centered}


def _check_evaluation(path: str, norm: Any) -> None:
    """A batch norm evaluates as batch norm does, by stored statistics."""
    kind = type(norm)
    if kind.__call__ not in _BATCH or getattr(kind, "normalize", BatchNorm.normalize) not in _EVALUATIONS:
        raise refusals.other_norm(path, kind.__name__)
    if norm.use_running_average is False and not is_frozen(norm):
        raise refusals.batch_statistics(path, "use_running_average=False", "call model.eval() first")
    if getattr(norm, "track_stats", True) is False:
        raise refusals.batch_statistics(path, "track_stats=False", "fold norms that keep statistics")
    if getattr(norm, "blend", None) is not None:
        raise refusals.batch_statistics(path, f"blend={norm.blend}", "set blend=None first")


def _layer(modules: Mapping[str, Any], path: str) -> Any:
    """The layer at a path."""
    layer = modules.get(path)
    if layer is None or not isinstance(layer, (*_DENSE, *_CONVS)):
        there = [name for name, m in modules.items() if isinstance(m, (*_DENSE, *_CONVS))]
        raise refusals.no_such("layer", path, there)
    if type(layer).__call__ not in _LAYERS:
        raise refusals.unknown_layer(path, type(layer).__name__)
    for name, module in modules.items():
        wrapped = isinstance(module, (nnx.WeightNorm, nnx.SpectralNorm))
        if wrapped and shared.is_inside(path, name):
            raise refusals.normalized_weights(path, "nnx.bake(model)")
    return layer


def _place(
    norm_path: str, path: str, norm: Any, stored: shared.Norm, layer: Any, into: str
) -> tuple[shared.Layer, shared.Norm]:
    """The layer beside a norm, with the axes of its kernel that are the norm's features; the norm on them."""
    axes = shared.feature_axes(norm_path, path, norm, layer, into)
    shifts = stored.mean is not None or stored.bias is not None
    if into == "next" and shifts and isinstance(layer, _CONVS):
        zeros = shared.zeros_of(layer)
        if zeros is not None:
            raise refusals.padding(norm_path, path, type(layer).__name__, zeros)
        if layer.mask is not None:
            raise refusals.masked(path)
    groups = getattr(layer, "feature_group_count", 1) if into == "next" else 1
    beside = shared.Layer(layer.kernel[...], _value(layer.bias), axes, groups)
    return shared.shaped(norm_path, path, beside, stored)


def _call(module: Any) -> Any:
    """What a module calls; None for one that cannot be called."""
    return type(module).__call__ if callable(module) else None


def _value(variable: Any) -> Array | None:
    """What a variable holds; None where there is none."""
    return None if variable is None else variable[...]


def _store(module: Any, name: str, value: Array | None) -> None:
    """Sets a variable, or adds a bias like the kernel; None: none."""
    variable = getattr(module, name, None)
    if value is None:
        return
    if variable is not None:
        variable.set_value(value)
        return
    kernel = module.kernel
    metadata = {k: v for k, v in kernel.get_metadata().items() if not k.startswith("on_")}
    names = metadata.get("out_sharding")
    if names is not None:
        metadata["out_sharding"] = shared.bias_sharding(names, module, value)
    module.bias = type(kernel)(value, **metadata)
    module.use_bias = True
