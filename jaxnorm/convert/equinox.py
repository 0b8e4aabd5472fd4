"""Equinox: its layers with their State, or plain dicts by the names of their fields."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnorm._base import checks as check
from jaxnorm._base.messages import error, public
from jaxnorm.convert import layers, wrapped
from jaxnorm.convert.norms import (
    Norm,
    Variables,
    Words,
    Wrapped,
    as_jax,
    channels_last,
    keys_of,
    not_ours,
    variables_of,
)
from jaxnorm.convert.report import Row, Tell, tell
from jaxnorm.convert.sources import Arrays, as_numpy, dotted

_AFFINE = {"weight": "scale", "bias": "bias"}
_STATS = {"mean": "mean", "var": "var"}
WORDS = {
    "batch_norm": Words(_STATS, _AFFINE, {"counter": "counts batches"}),
    "layer_norm": Words({}, _AFFINE, axes=None),
    "rms_norm": Words({}, _AFFINE, axes=None),
    "group_norm": Words({}, _AFFINE),
}
_CLASSES = {
    "LayerNorm": "layer_norm",
    "RMSNorm": "rms_norm",
    "GroupNorm": "group_norm",
    "BatchNorm": "batch_norm",
}


@public
def from_equinox_state(
    state: Mapping[str, Any],
    kind: str,
    *,
    prefix: str = "",
    momentum: float | None = None,
    input_features_last: bool = True,
    report: Tell = None,
) -> Variables:
    """Linen's variables of one norm of Equinox, of a dict with the names of its fields.

    weight to scale. A batch norm has mean and var, and in the mode "batch" the counter, too: mean and var are
    then divided by 1 - momentum ** counter, as Equinox does to evaluate, and that is the weight of the
    average.

    Args:
      state: arrays by name: weight, bias, and of a batch norm mean, var and, in the mode "batch", counter.
      kind: "batch_norm", "layer_norm", "rms_norm" or "group_norm".
      prefix: of the norm's keys, with or without the dot at its end.
      momentum: of a batch norm with a counter.
      input_features_last: a weight of several axes is [C, H, W] there and [H, W, C] here; False: it stays.
      report: called with the `Report`.

    Returns:
      {"params": ..., "batch_stats": ...}, as from `from_torch_state`.

    Raises:
      ValueError, TypeError: those of `from_torch_state`; a counter without a momentum.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> convert.from_equinox_state({"weight": np.ones(1)}, "rms_norm")
    {'params': {'scale': Array([1.], dtype=float32)}}
    """
    check.choice("kind", kind, tuple(WORDS))
    variables, rows = _numpy(state, kind, prefix, momentum)
    tell(report, rows)
    return as_jax(channels_last(variables, first=False) if input_features_last else variables)


@public
def to_equinox_state(
    variables: Any,
    kind: str,
    *,
    prefix: str = "",
    input_features_last: bool = True,
    report: Tell = None,
) -> Arrays:
    """The arrays of Equinox, by field, of one norm's variables: the inverse of `from_equinox_state`.

    mean and var are those that evaluation uses, which the mode "ema" stores; no counter is made. Bitwise for
    all but the mean and var that a counter has divided.

    Args:
      variables: linen's, or a layer of jaxnorm.nnx.
      kind, prefix, input_features_last, report: as there.

    Raises:
      ValueError: an unknown kind; variables that are missing or have no place there.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> convert.to_equinox_state({"params": {"scale": np.ones(2)}}, "rms_norm")
    {'weight': array([1., 1.])}
    """
    check.choice("kind", kind, tuple(WORDS))
    variables = layers.as_numpy(layers.linen_variables(variables))
    variables = channels_last(variables, first=True) if input_features_last else variables
    state, rows = keys_of(variables, kind, WORDS[kind], prefix)
    tell(report, rows)
    return state


@public
def from_equinox(
    layer: Any,
    *,
    state: Any = None,
    api: str = "linen",
    input_features_last: bool = True,
    report: Tell = None,
    **options: Any,
) -> Any:
    """The layer that does what a norm of Equinox does, with its parameters and its statistics.

    LayerNorm, RMSNorm, GroupNorm, BatchNorm in both modes, and WeightNorm and SpectralNorm of Linear and
    Conv1d to Conv3d. Equinox maps over the batch; the layer here is given all of it.

    A BatchNorm of the mode "batch" becomes one with `debias=True`, whose average goes on in the same way. Of
    the mode "ema" the evaluation and the statistics are the same; in training Equinox normalizes by the
    statistics just updated, and the layer here by the batch's. Before the first batch both start anew:
    Equinox then counts an initial variance of 1 into its average, and the layer here does not.

    Args:
      layer: of equinox.nn.
      state: the `eqx.nn.State` that goes with it; of BatchNorm and SpectralNorm.
      api: "linen" or "nnx".
      input_features_last: x has its features on the last axis, as is usual in Flax. False: on the first after
        the batch, where Equinox has them.
      report: called with the `Report`.
      options: other fields of our layer, such as `axis_name` and `dtype`.

    Returns:
      (layer, variables) of linen, or the layer of nnx.

    Raises:
      ValueError: a BatchNorm or SpectralNorm without its state; what no layer here does.
      TypeError: no layer of Equinox.

    >>> import importlib.util
    >>> from jaxnorm import convert
    >>> if importlib.util.find_spec("equinox"):
    ...     import equinox as eqx
    ...     layer, variables = convert.from_equinox(eqx.nn.LayerNorm(3))
    ...     assert variables["params"]["scale"].shape == (3,)
    """
    nn = getattr(sys.modules.get("equinox"), "nn", None)
    name = type(layer).__name__
    if nn is None or not isinstance(layer, sys.modules["equinox"].Module):
        remedy = "give a layer of equinox.nn, or its arrays to from_equinox_state"
        raise error(TypeError, f"layer must be an equinox.Module, got {name}", remedy)
    if isinstance(layer, nn.WeightNorm | nn.SpectralNorm):
        made = _wrapped(nn, layer, state)
    elif name in _CLASSES and isinstance(layer, getattr(nn, name)):
        made = _described(layer, _CLASSES[name], state, input_features_last)
    else:
        raise not_ours(
            f"there is no layer for {name}", f"give {', '.join(_CLASSES)}, WeightNorm or SpectralNorm"
        )
    return layers.build(made, api, report, options)


def _numpy(state: Any, kind: str, prefix: str, momentum: float | None) -> tuple[Variables, list[Row]]:
    """`from_equinox_state` with NumPy's arrays, and the rows of the report."""
    if not isinstance(state, Mapping) or f"{dotted(prefix)}counter" not in state:
        return variables_of(state, kind, WORDS[kind], prefix)
    key = f"{dotted(prefix)}counter"
    rest = {name: value for name, value in state.items() if name != key}
    variables, rows = variables_of(rest, kind, WORDS[kind], prefix)
    if momentum is None:
        raise not_ours(
            f"{key} says how often the average was updated", "give the momentum of the BatchNorm, too"
        )
    stats = variables["batch_stats"]
    counter = int(as_numpy(key, state[key]))
    weight = 1 - momentum**counter
    dtype = np.promote_types(stats["var"].dtype, np.float32)
    divided = {name: v / np.asarray(weight if counter else 1, v.dtype) for name, v in stats.items()}
    variables["batch_stats"] = divided | {"weight": np.full(stats["var"].shape, weight, dtype)}
    return variables, [*rows, Row(f"{key} ()", "batch_stats/weight", "mean and var are divided by it")]


def _described(layer: Any, kind: str, state: Any, last: bool) -> Norm:
    """A norm of activations in our words.

    Args:
      layer: of Equinox.
      kind: of the norm.
      state: the State, or None.
      last: whether the features are on the last axis of x.
    """
    arrays = {name: value for name in _AFFINE if (value := getattr(layer, name)) is not None}
    options: dict[str, Any] = {"epsilon": layer.eps}
    rows = [Row(f"eps={layer.eps}", f"epsilon={layer.eps}")]
    if kind == "batch_norm":
        arrays |= _statistics(layer, state, options)
        options |= {"momentum": layer.momentum, "axis": -1 if last else 1}
        rows.append(Row(f"momentum={layer.momentum}", f"momentum={layer.momentum}"))
        rows.append(Row(f"mode={layer.mode}", f"debias={options['debias']}"))
        rows.append(
            Row(f"axis_name={layer.axis_name}", "", "the batch is an axis of x; devices are our axis_name")
        )
        features = layer.input_size
    elif kind == "group_norm":
        options |= {"num_groups": layer.groups} | ({} if last else {"feature_axis": 1})
        rows.append(Row(f"groups={layer.groups}", f"num_groups={layer.groups}"))
        features = layer.channels or 0
    else:
        shape = layer.shape
        features = int(np.prod(shape))
        if len(shape) > 1:
            axes = tuple(range(-len(shape), 0))
            options |= {"reduction_axes": axes, "feature_axes": axes}
        rows.append(Row(f"shape={shape}", f"reduction_axes={options.get('reduction_axes', -1)}"))
    variables, mapped = _numpy(arrays, kind, "", getattr(layer, "momentum", None)) if arrays else ({}, [])
    options |= {f"use_{ours}": theirs in arrays for theirs, ours in _AFFINE.items()}
    variables = channels_last(variables, first=False) if last else variables
    return Norm(kind, features, options, variables, mapped + rows)


def _statistics(layer: Any, state: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The statistics of a BatchNorm, by the names of `from_equinox_state`; sets `debias` of the options."""
    if state is None:
        raise not_ours(
            "a BatchNorm has its statistics in a State", "give state=, the eqx.nn.State that goes with it"
        )
    options["debias"] = True
    if layer.mode == "batch":
        mean, var = state.get(layer.batch_state_index)
        return {"mean": mean, "var": var, "counter": state.get(layer.batch_counter)}
    mean, var = state.get(layer.ema_state_index)
    if bool(state.get(layer.ema_first_time_index)):  # nothing is stored yet
        return {"mean": np.zeros_like(mean), "var": np.ones_like(var), "counter": 0}
    options["debias"] = False  # the first batch was copied: a whole average
    return {"mean": mean, "var": var}


def _wrapped(nn: Any, layer: Any, state: Any) -> Norm:
    """A WeightNorm or a SpectralNorm."""
    inner, name = layer.layer, type(layer.layer).__name__
    if layer.weight_name != "weight" or not isinstance(inner, nn.Linear | nn.Conv) or inner.weight.ndim > 5:
        problem = f"a {type(layer).__name__} of {name}.{layer.weight_name}"
        raise not_ours(problem, "that of the weight of Linear or Conv1d to Conv3d is converted")
    weight, bias = as_numpy("weight", inner.weight), None
    if inner.bias is not None:
        bias = as_numpy("bias", inner.bias)
    options: dict[str, Any] = {"epsilon": 0.0}
    if isinstance(layer, nn.WeightNorm):
        kind, g = "weight_norm", as_numpy("g", layer.g)
        if layer.axis is None:
            g, options["feature_axes"] = g.reshape(()), None
        elif layer.axis != 0:
            raise not_ours(f"WeightNorm with axis={layer.axis}", "axis=0 or None is converted")
        variables = wrapped.weight_norm(weight, g, bias, "weight")
        rows = [Row(f"g {layer.g.shape}", f"params/{wrapped.KERNEL}/scale")]
    else:
        if state is None:
            raise not_ours(
                "a SpectralNorm has its vectors in a State", "give state=, the eqx.nn.State that goes with it"
            )
        kind, steps = "spectral_norm", layer.num_power_iterations
        u, v = (as_numpy("uv", vector) for vector in state.get(layer.uv_index))
        variables = wrapped.spectral_norm(weight, u, v, bias, "weight")
        options = {"n_steps": steps, "epsilon": layer.eps**2}  # it is added to the square here
        rows = [Row(f"{k} {x.shape}", f"batch_stats/{wrapped.KERNEL}/{k}") for k, x in (("u", u), ("v", v))]
        rows.append(Row(f"num_power_iterations={steps}", f"n_steps={steps}"))
    rows.append(Row(f"layer.weight {weight.shape}", f"params/{wrapped.KERNEL}"))
    if bias is not None:
        rows.append(Row(f"layer.bias {bias.shape}", f"params/{wrapped.LAYER}/bias"))
    return Norm(kind, weight.shape[0], options, variables, rows, _layer(nn, inner))


def _layer(nn: Any, inner: Any) -> Wrapped:
    """The Dense or Conv that a Linear or Conv is."""
    bias = {"use_bias": inner.bias is not None}
    if isinstance(inner, nn.Linear):
        return Wrapped("dense", (inner.in_features, inner.out_features), bias)
    if str(inner.padding_mode).upper() != "ZEROS":
        raise not_ours(f"padding_mode={inner.padding_mode!r}", "Conv is converted with zeros only")
    padding = inner.padding if isinstance(inner.padding, str) else [tuple(p) for p in inner.padding]
    options = {
        "kernel_size": tuple(inner.kernel_size),
        "strides": tuple(inner.stride),
        "padding": padding,
        "kernel_dilation": tuple(inner.dilation),
        "feature_group_count": inner.groups,
    }
    return Wrapped("conv", (inner.in_channels, inner.out_channels), options | bias)
