"""The one place that makes layers of jaxnorm.linen and jaxnorm.nnx, which stand on a higher floor.

They are imported when a layer is asked for: a file here that imported them would close a circle with the
layers' own helpers, and `import jaxnorm.convert` would bring Flax along.
"""

import importlib
import sys
from typing import Any

from jaxnorm._base import checks as check
from jaxnorm._base.messages import error
from jaxnorm.convert.norms import CLASSES, Norm, Variables, Wrapped, as_jax
from jaxnorm.convert.report import Tell, tell
from jaxnorm.convert.sources import as_numpy as one_as_numpy
from jaxnorm.convert.wrapped import LAYER

APIS = ("linen", "nnx")
FIRST = "params", "batch_stats"


def build(norm: Norm, api: str, report: Tell, more: dict[str, Any]) -> Any:
    """A layer with the variables of a norm: in linen both of them, in nnx the layer.

    Args:
      norm: in our words.
      api: "linen" or "nnx".
      report: called with the report.
      more: fields of the layer that the user gave; they go before the norm's own.
    """
    check.choice("api", api, APIS)
    variables = as_jax(norm.variables)
    made = getattr(importlib.import_module(f"jaxnorm.{api}"), CLASSES[norm.kind])
    options = norm.options | more
    tell(report, norm.rows)
    if api == "linen":
        inner = () if norm.wrapped is None else (_linen_layer(norm.wrapped),)
        return made(*inner, **options), variables
    if not norm.features:
        problem = f"a {CLASSES[norm.kind]} without scale and bias does not tell its features"
        raise error(ValueError, problem, "make the layer of jaxnorm.nnx by hand, or choose linen")
    nnx = importlib.import_module("flax.nnx")
    rngs = nnx.Rngs(0)  # of the start, which the variables replace
    first = norm.features if norm.wrapped is None else _nnx_layer(norm.wrapped, rngs)
    layer = made(first, rngs=rngs, **options)
    nnx.update(layer, nnx_state(variables))
    return layer


def sequential(function: Any, api: str) -> Any:
    """A layer without variables that calls a function, in linen with its empty variables."""
    check.choice("api", api, APIS)
    if api == "linen":
        return importlib.import_module("flax.linen").Sequential((function,)), {}
    return importlib.import_module("flax.nnx").Sequential(function)


def _linen_layer(w: Wrapped) -> Any:
    nn = importlib.import_module("flax.linen")
    return (nn.Dense if w.kind == "dense" else nn.Conv)(w.sizes[1], **w.options)


def _nnx_layer(w: Wrapped, rngs: Any) -> Any:
    nnx = importlib.import_module("flax.nnx")
    return (nnx.Linear if w.kind == "dense" else nnx.Conv)(*w.sizes, rngs=rngs, **w.options)


def nnx_state(variables: Any) -> Any:
    """An nnx.State of linen's variables, for nnx.update of a model whose layers have the same paths.

    nnx keeps a scale of several axes flat, the scales of a weight norm in `scales`, and the statistics of a
    spectral norm in `batch_stats`. Parts of a path that are numbers are places of a list.
    """
    nnx = importlib.import_module("flax.nnx")
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    state = []
    for collection, tree in variables.items():
        for path, value in leaves_of(tree):
            *folders, name = path
            if name.startswith(f"{LAYER}/"):
                _, kernel, name = name.split("/")
                if name == "v":  # which only the way back of linen's variables uses
                    continue
                path = [
                    *folders,
                    *(("scales", (kernel,)) if name == "scale" else ("batch_stats", (kernel, name))),
                ]
            elif name in ("scale", "bias", "mean", "var", "weight"):
                value = value.reshape(-1)
            parts = [int(p) if isinstance(p, str) and p.isdigit() else p for p in path]
            state.append((tuple(parts), kinds[collection](value)))
    return nnx.from_flat_state(state)


def linen_variables(source: Any) -> Any:
    """Linen's variables of one norm, of themselves or of a layer of nnx.

    Args:
      source: a dict of collections, or an nnx.Module.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(source, nnx.Module):
        return _of_nnx(nnx, source)
    if hasattr(source, "items") and set(source) <= set(FIRST):
        return source
    got = f"a dict of {', '.join(map(str, source))}" if hasattr(source, "items") else type(source).__name__
    problem = f"variables must be a dict of params and batch_stats, got {got}"
    raise error(TypeError, problem, "give variables of linen, or a layer of jaxnorm.nnx")


def _of_nnx(nnx: Any, layer: Any) -> Variables:
    """Linen's variables of a layer of nnx, the inverse of `nnx_state`."""
    variables: Variables = {}
    axes = getattr(layer, "feature_axes", -1)
    if not isinstance(axes, int) and len(axes) > 1 and hasattr(layer, "num_features"):
        problem = f"a {type(layer).__name__} of nnx keeps the scale of the axes {axes} flat"
        raise error(ValueError, problem, "give linen's variables, which have the shape")
    for path, variable in nnx.to_flat_state(nnx.state(layer)):
        if not isinstance(variable, nnx.Param | nnx.BatchStat):
            continue  # keys of random numbers
        collection = variables.setdefault("params" if isinstance(variable, nnx.Param) else "batch_stats", {})
        value = variable.get_value()
        if path[0] == "scales":
            collection[f"{LAYER}/{path[1][0]}/scale"] = value
        elif path[0] == "batch_stats":
            collection["/".join((LAYER, *path[1]))] = value
        elif path[0] == LAYER:
            collection.setdefault(LAYER, {})[path[1]] = value
        else:
            collection[path[-1]] = value
    return variables


def leaves_of(tree: Any, path: tuple[str, ...] = ()) -> Any:
    """The arrays of a nested dict, each with its path."""
    for name, value in tree.items():
        yield from leaves_of(value, (*path, name)) if hasattr(value, "items") else [((*path, name), value)]


def as_numpy(variables: Any) -> Variables:
    """Linen's variables with NumPy's arrays."""

    def each(tree: Any) -> Any:
        return {k: each(v) if hasattr(v, "items") else one_as_numpy(k, v) for k, v in tree.items()}

    return {name: each(collection) for name, collection in variables.items()}
