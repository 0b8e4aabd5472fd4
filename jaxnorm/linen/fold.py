"""Norms of a linen model that become part of the layers beside them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, meta
from jax import Array

from jaxnorm._base.messages import calling, error
from jaxnorm.population import pairs as shared
from jaxnorm.population import refusals

Path = tuple[str, ...]


def fold(
    variables: Any,
    pairs: Mapping[str, str | Sequence[str]],
    *,
    epsilon: float | None = None,
    into: str = "previous",
    feature_axis: int | tuple[int, ...] | None = None,
    zero_centered_scale: bool = False,
    model: nn.Module | None = None,
    check: Any = None,
    **apply_kwargs: Any,
) -> Any:
    """Variables in which norms are part of the layers before them: the same evaluation by the same model.

    Kernel and bias of the layer are those of `jaxnorm.population.fold_batch_norm`, and the norm is the
    identity: scale 1, bias 0, mean 0, and var 1 - epsilon. Where the layer has no bias the norm keeps one, in
    its bias or, without one, in its mean. `apply` takes the result as it took `variables`, frozen statistics
    too. With `into="next"` norms become part of the layers after them; of a norm without statistics it is
    the scale and the bias that do, and it goes on to normalize.

    Variables do not show the modules, so that this is for you to see to: the norm evaluates by its stored
    statistics; there is nothing between it and the layer, no activation nor a reshape that moves features;
    the layer is called for this norm alone; with `into="next"`, and a norm that has a bias or statistics, no
    Conv pads with zeros, and none is transposed. `check` shows whether it is so.

    Args:
      variables: as `init` returned them, with `params` and `batch_stats`.
      pairs: {"path/of/norm": "path/of/layer before it"}; with `into="next"` the layer after it, or several.
        Layers that are stacked by nn.scan or nn.vmap, on axis 0 of norm and layer, are a pair.
      epsilon: of these norms; None: 1e-5, Flax's for BatchNorm.
      into: "previous" or "next".
      feature_axis: the kernel's axes of the norm's features, negative; None: -1, or -2 into the next, or
        where a norm has several axes of features, all of a DenseGeneral's. It is -2 for a ConvTranspose with
        `transpose_kernel=True`.
      zero_centered_scale: these norms have that option.
      model, check, apply_kwargs: prints the greatest difference between
        `model.apply(variables, *check, **apply_kwargs)` before and after. A batch that is no tuple is the
        only argument.

    Returns:
      New variables, of the same type; `variables` stay as they are.

    Raises:
      ValueError: a path at which there is no norm or no layer; sizes that do not fit; a norm whose evaluation
        is not that of batch norm, as far as its variables show; a layer whose weights are normalized.
      TypeError: variables or pairs are no dict; `check` without a model.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from jaxnorm import linen as jn
    >>> model = nn.Sequential([nn.Dense(2), jn.BatchNorm(use_running_average=True)])
    >>> x = jnp.ones((1, 3))
    >>> variables = model.init(jax.random.key(0), x)
    >>> variables["batch_stats"]["layers_1"]["mean"] = jnp.asarray([1.0, 2.0])
    >>> folded = jn.fold(variables, {"layers_1": "layers_0"})
    >>> folded["batch_stats"]["layers_1"]["mean"].tolist()
    [0.0, 0.0]
    >>> print(model.apply(folded, x) - model.apply(variables, x))
    [[0. 0.]]
    """
    with calling("fold"):
        if (
            not isinstance(variables, Mapping)
            or isinstance(variables, nnx.State)
            or "params" not in variables
        ):
            problem = f"variables must be a dict with params, got {type(variables).__name__}"
            raise error(TypeError, problem, "pass the variables that init returned")
        args = shared.arguments(check, apply_kwargs)
        if args is not None and model is None:
            raise error(TypeError, "check needs the model, which is None", "pass model=, too")
        options = {
            "zero_centered_scale": zero_centered_scale,
            "epsilon": 1e-5 if epsilon is None else epsilon,
        }
        new = variables
        for norm, layers in shared.checked(pairs, into).items():
            new = _folded(new, norm, layers, into, feature_axis, options)
    if model is not None and args is not None:
        print(shared.difference(*(model.apply(v, *args, **apply_kwargs) for v in (variables, new))))
    return new


def _folded(
    variables: Any, norm_path: str, layer_paths: Sequence[str], into: str, feature_axis: Any, options: Any
) -> Any:
    """The variables with one norm in the layers beside it; `options` are those of `pairs.folded`."""
    norm = _norm(variables, norm_path, into)
    kept = None
    new = variables
    for path in layer_paths:
        kernel, bias = _layer(variables, path)
        place = shared.placed(norm_path, path, norm.shape, kernel, bias, into=into, feature_axis=feature_axis)
        kernel, new_bias = shared.folded(place, norm, into=into, **options)
        if bias is None and new_bias is not None:
            if into == "next":
                raise refusals.without_bias(norm_path, path)
            kept, new_bias = new_bias, None
        new = _with(new, "params", path, kernel=kernel, bias=new_bias)
    scale, bias, mean, var = shared.neutral(norm_path, norm, kept=kept, **options)
    new = _with(new, "params", norm_path, scale=scale, bias=bias)
    return _with(new, "batch_stats", norm_path, mean=mean, var=var)


def _norm(variables: Any, path: str, into: str) -> shared.Norm:
    """The norm at a path. Its evaluation is that of batch norm, as far as its variables show."""
    found = {name: dict(_nodes(variables.get(name, {}))) for name in ("params", "batch_stats")}
    names = tuple(path.split("/"))
    parameters, stats = (found[name].get(names, {}) for name in ("params", "batch_stats"))
    if not (parameters or stats) or "kernel" in parameters:
        there = {p for p, v in found["batch_stats"].items() if {"mean", "var"} <= v.keys()}
        if into == "next":
            there.update(p for p, v in found["params"].items() if v.keys() <= {"scale", "bias"})
        raise refusals.no_such("norm", path, ["/".join(p) for p in there])
    if into == "previous" and "mean" not in stats:
        raise refusals.without_statistics(path)
    others = sorted(set(parameters).difference({"scale", "bias"}))
    values = [meta.unbox(v) for v in (*parameters.values(), *(stats.get(n) for n in ("mean", "var")))]
    shapes = {v.shape for v in values if v is not None}
    if others or len(shapes) > 1:
        raise refusals.no_batch_norm(path, others, shapes)
    return shared.Norm(
        *(meta.unbox(parameters.get(name)) for name in ("scale", "bias")),
        *(meta.unbox(stats.get(name)) for name in ("mean", "var")),
    )


def _layer(variables: Any, path: str) -> tuple[Array, Array | None]:
    """Kernel and bias of the layer at a path."""
    found, names = dict(_nodes(variables["params"])), tuple(path.split("/"))
    node = found.get(names, {})
    if "kernel" not in node:
        raise refusals.no_such("layer", path, ["/".join(p) for p, v in found.items() if "kernel" in v])
    *parents, name = names
    for place, values in (*found.items(), *_nodes(variables.get("batch_stats", {}))):
        beside = place == tuple(parents) or place[:-1] == tuple(parents)
        if beside and any(key.startswith(f"{name}/kernel/") for key in values):
            raise refusals.normalized_weights(path, "linen.bake(variables)")
    return meta.unbox(node["kernel"]), meta.unbox(node.get("bias"))


def _nodes(tree: Any, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The modules of a collection: paths, and what is stored right there by name."""
    here = {name: v for name, v in tree.items() if not isinstance(v, Mapping)}
    if here:
        yield path, here
    for name, v in tree.items():
        if isinstance(v, Mapping):
            yield from _nodes(v, (*path, name))


def _with(variables: Any, collection: str, path: str, **values: Array | None) -> Any:
    """The variables with these values at a path, in their boxes; None: none."""
    for name, value in values.items():
        if value is not None:
            variables = _replaced(variables, (collection, *path.split("/"), name), value)
    return variables


def _replaced(node: Any, path: Path, value: Array) -> Any:
    """A tree of the same types with another value at a path."""
    if not path:
        return node.replace_boxed(value) if isinstance(node, meta.AxisMetadata) else value
    name, *rest = path
    new = {**node, name: _replaced(node[name], tuple(rest), value)}
    return type(node)(new) if isinstance(node, FrozenDict) else new
