"""Modules of torch.nn. PyTorch itself is not imported: whoever has a module has imported it."""

import sys
from typing import Any

import numpy as np

from jaxnorm._base.messages import error, public
from jaxnorm.convert import layers
from jaxnorm.convert.norms import Norm, Wrapped, channels_last, not_ours
from jaxnorm.convert.report import Row, Tell
from jaxnorm.convert.torch_state import numpy_variables

_OURS = (
    "BatchNorm1d to 3d, SyncBatchNorm, LayerNorm, GroupNorm, InstanceNorm1d to 3d, RMSNorm, or a Linear or "
    "Conv1d to 3d under weight_norm or spectral_norm"
)


@public
def from_torch(
    norm: Any,
    *,
    api: str = "linen",
    input_features_last: bool = True,
    count: int | None = None,
    report: Tell = None,
    **options: Any,
) -> Any:
    """The layer that does what a norm of PyTorch does, with its parameters and its statistics.

    BatchNorm1d to 3d, SyncBatchNorm, LayerNorm, GroupNorm, InstanceNorm1d to 3d, RMSNorm, and Linear or
    Conv1d to Conv3d under weight_norm or spectral_norm, in either of their forms.

    `momentum` becomes `1 - momentum`, `eps` `epsilon` (RMSNorm's None the least of float32), the variance
    that is averaged is the unbiased one. `momentum=None` becomes the cumulative average of jaxnorm, which has
    the spread between the batches in it and weighs a batch by its places; PyTorch's has the same mean, where
    all batches have one size. A spectral norm agrees as far as its power iteration has converged: PyTorch
    evaluates by both stored vectors, jaxnorm by a step from one of them. weight_norm and spectral_norm come
    with the layer that they are of, `nn.Dense` or `nn.Conv` with its padding, strides, dilation and groups.

    Args:
      norm: the module. A RMSNorm of another library (Llama's, Gemma's), with a weight and an epsilon, wants
        the option `zero_centered_scale`: True if it multiplies by 1 + weight.
      api: "linen" or "nnx".
      input_features_last: x has its features on the last axis, as is usual in Flax: a LayerNorm((C, H, W))
        then is over H, W, C, and its weight is turned. False: where PyTorch has them.
      count: with `momentum=None`, how many places of a channel the average has seen. None: as many as
        batches, since PyTorch does not store more; the next batch then counts for much.
      report: called with the `Report`.
      options: other fields of the layer, such as `axis_name` and `dtype`.

    Returns:
      (layer, variables) of linen, or the layer of nnx, which is in evaluation where the module is.

    Raises:
      ValueError: a norm that has seen no input yet (Lazy*), or what no layer here does.
      TypeError: no module.

    >>> import importlib.util
    >>> from jaxnorm import convert
    >>> if importlib.util.find_spec("torch"):
    ...     import torch
    ...     layer, variables = convert.from_torch(torch.nn.BatchNorm2d(8, momentum=0.2))
    ...     assert layer.momentum == 0.8 and variables["batch_stats"]["var"].shape == (8,)
    """
    nn = getattr(sys.modules.get("torch"), "nn", None)
    if nn is None or not isinstance(norm, nn.Module):
        remedy = "give a module of torch.nn, or its state dict to from_torch_state"
        raise error(TypeError, f"norm must be a torch.nn.Module, got {type(norm).__name__}", remedy)
    if any(nn.parameter.is_lazy(p) for p in [*norm.parameters(), *norm.buffers()]):
        problem = f"{type(norm).__name__} has seen no input yet and has no weights"
        raise error(ValueError, problem, "call it once in PyTorch")
    made = _described(nn, norm, input_features_last, options, count)
    if api == "nnx" and made.options.get("track_stats", made.kind == "batch_norm"):
        options = {"use_running_average": not norm.training} | options
    layer = layers.build(made, api, report, options)
    if api == "nnx" and made.kind == "spectral_norm" and not norm.training:
        layer.eval()
    return layer


def _described(nn: Any, norm: Any, last: bool, options: dict[str, Any], count: int | None) -> Norm:
    """The norm in our words.

    Args:
      nn: torch.nn.
      norm: the module.
      last: whether the features are on the last axis of x.
      options: of the user.
      count: as in `from_torch`.
    """
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return _batch_norm(norm, "batch_norm", last, count)
    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
        return _batch_norm(norm, "instance_norm", last, count)
    if isinstance(norm, nn.GroupNorm):
        axis = {} if last else {"feature_axis": 1}
        given = {"num_groups": norm.num_groups, "epsilon": norm.eps} | axis
        return _made(norm, "group_norm", norm.num_channels, given, [_row("num_groups", norm.num_groups)])
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return _rows_norm(norm, "rms_norm" if isinstance(norm, nn.RMSNorm) else "layer_norm", last)
    wrapped = _wrapped(nn, norm)
    if wrapped is not None:
        return wrapped
    epsilon = _epsilon(norm)
    if epsilon is not None and type(norm).__name__.endswith("RMSNorm"):
        if "zero_centered_scale" not in options:
            remedy = "say zero_centered_scale=True if it multiplies by 1 + weight (Gemma), "
            remedy += "False if by weight (Llama)"
            raise not_ours(f"{type(norm).__name__} is not of torch.nn", remedy)
        given = {"epsilon": float(epsilon)}
        return _made(norm, "rms_norm", norm.weight.numel(), given, [])
    raise not_ours(f"there is no layer for {type(norm).__name__}", f"give {_OURS}")


def _row(name: str, value: Any, ours: str = "", note: str = "") -> Row:
    """A row of the report about an option."""
    return Row(f"{name}={value}", ours or f"{name}={value}", note)


def _made(norm: Any, kind: str, features: int, options: dict[str, Any], rows: list[Row]) -> Norm:
    """With the norm's parameters and statistics; what it has not, the layer has not."""
    state = norm.state_dict()
    variables, arrays = numpy_variables(state, kind) if state else ({}, [])
    there = variables.get("params", {})
    names = ("scale",) if kind == "rms_norm" else ("scale", "bias")
    options = options | {f"use_{name}": name in there for name in names}
    rows = [_row("eps", _epsilon(norm), f"epsilon={options['epsilon']}"), *rows]
    return Norm(kind, features, options, variables, arrays + rows)


def _epsilon(norm: Any) -> Any:
    """A module's epsilon, by the names that there are."""
    return getattr(norm, "eps", getattr(norm, "variance_epsilon", None))


def _batch_norm(norm: Any, kind: str, last: bool, count: int | None) -> Norm:
    """A batch norm, or an instance norm, which may keep statistics."""
    tracked = norm.running_mean is not None
    axis = {"batch_norm": "axis", "instance_norm": "feature_axes"}[kind]
    options = {"epsilon": norm.eps, axis: -1 if last else 1}
    rows = []
    state = norm.state_dict()
    if tracked:
        momentum = None if norm.momentum is None else 1 - norm.momentum
        options |= {"momentum": momentum, "unbiased": True}
        note = (
            "the spread between batches is in it" if momentum is None else "the fraction of the OLD average"
        )
        rows += [
            _row("momentum", norm.momentum, f"momentum={momentum}", note),
            Row("var * n / (n - 1)", "unbiased=True"),
        ]
    if tracked != (kind == "batch_norm"):  # the layers' defaults
        options["track_stats"] = tracked
        rows.append(_row("track_running_stats", tracked, f"track_stats={tracked}"))
    # an instance norm's statistics may be missing, a batch norm's not
    variables, arrays = numpy_variables(state, kind if tracked else "instance_norm") if state else ({}, [])
    if tracked and norm.momentum is None:
        seen = int(norm.num_batches_tracked) if count is None else count
        mean = variables["batch_stats"]["mean"]
        variables["batch_stats"]["weight"] = np.full(
            mean.shape, seen, np.promote_types(mean.dtype, np.float32)
        )
        note = "places, one a batch" if count is None else "places"
        arrays = [r for r in arrays if not r.theirs.startswith("num_batches_tracked")]
        arrays.append(Row("num_batches_tracked ()", "batch_stats/weight", note))
    if type(norm).__name__ == "SyncBatchNorm":
        rows.append(Row("SyncBatchNorm", "", "the axis of devices is the option axis_name of the layer"))
    there = variables.get("params", {})
    options |= {f"use_{name}": name in there for name in ("scale", "bias")}
    rows.insert(0, _row("eps", norm.eps, f"epsilon={norm.eps}"))
    return Norm(kind, norm.num_features, options, variables, arrays + rows)


def _rows_norm(norm: Any, kind: str, last: bool) -> Norm:
    """A layer norm or an RMS norm, over the last axes."""
    shape = tuple(norm.normalized_shape)
    epsilon = norm.eps
    if epsilon is None:  # arithmetic is in float32 or wider, there too
        double = norm.weight is not None and norm.weight.dtype.itemsize == 8
        epsilon = float(np.finfo(np.float64 if double else np.float32).eps)
    options: dict[str, Any] = {"epsilon": epsilon}
    if len(shape) > 1:
        axes = tuple(range(-len(shape), 0))
        options |= {"reduction_axes": axes, "feature_axes": axes}
    made = _made(
        norm, kind, int(np.prod(shape)), options, [_row("normalized_shape", shape, "reduction_axes")]
    )
    return made._replace(variables=channels_last(made.variables, first=False)) if last else made


def _wrapped(nn: Any, norm: Any) -> Norm | None:
    """A Linear or Conv under weight norm or spectral norm; None: it is under neither."""
    hooks = [
        h for h in norm._forward_pre_hooks.values() if type(h).__name__ in ("WeightNorm", "SpectralNorm")
    ]
    lists = getattr(norm, "parametrizations", {})
    found = [p for name in lists for p in lists[name] if type(p).__name__ in ("_WeightNorm", "_SpectralNorm")]
    if not hooks + found:
        return None
    (way, *more), wrap = hooks + found, _layer(nn, norm)
    if more or any(name != "weight" for name in lists) or (hooks and way.name != "weight"):
        name = type(norm).__name__.removeprefix("Parametrized")
        problem = f"{name} has several normalized parameters, or another than weight"
        raise not_ours(problem, "one norm, of the weight, is converted")
    kind = "weight_norm" if type(way).__name__.endswith("WeightNorm") else "spectral_norm"
    variables, rows = numpy_variables(norm.state_dict(), kind)
    options: dict[str, Any] = {"epsilon": 0.0}
    if kind == "spectral_norm":
        options = {"n_steps": way.n_power_iterations, "epsilon": way.eps**2}  # it is added to the square here
        rows.append(_row("n_power_iterations", way.n_power_iterations, f"n_steps={way.n_power_iterations}"))
        rows.append(_row("eps", way.eps, f"epsilon={way.eps**2}", "added to the square of a length"))
    elif variables["params"]["layer_instance/kernel/scale"].ndim == 0:
        options["feature_axes"] = None
    return Norm(kind, wrap.sizes[1], options, variables, rows, wrap)


def _layer(nn: Any, norm: Any) -> Wrapped:
    """The Dense or Conv that a Linear or Conv is."""
    bias = {"use_bias": norm.bias is not None}
    if isinstance(norm, nn.Linear):
        return Wrapped("dense", (norm.in_features, norm.out_features), bias)
    if not isinstance(norm, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        name = type(norm).__name__.removeprefix("Parametrized")
        raise not_ours(f"a weight norm or spectral norm of {name} is not converted", f"give {_OURS}")
    if norm.padding_mode != "zeros":
        raise not_ours(f"padding_mode={norm.padding_mode!r}", "Conv is converted with zeros only")
    padding = norm.padding
    padding = padding.upper() if isinstance(padding, str) else [(p, p) for p in padding]
    options = {
        "kernel_size": tuple(norm.kernel_size),
        "strides": tuple(norm.stride),
        "padding": padding,
        "kernel_dilation": tuple(norm.dilation),
        "feature_group_count": norm.groups,
    }
    return Wrapped("conv", (norm.in_channels, norm.out_channels), options | bias)
