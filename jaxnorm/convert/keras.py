"""Keras 3, whatever its backend. A layer must be built."""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from jaxnorm._base import checks as check
from jaxnorm._base.messages import error, public
from jaxnorm._norms.responses import unit_norm
from jaxnorm.convert import layers
from jaxnorm.convert.norms import Norm, Variables, Words, Wrapped, as_jax, keys_of, not_ours, variables_of
from jaxnorm.convert.report import Row, Tell, tell
from jaxnorm.convert.sources import Arrays, dotted, read
from jaxnorm.convert.wrapped import LAYER

_AFFINE = {"gamma": "scale", "beta": "bias"}
WORDS = {
    "batch_norm": Words({"moving_mean": "mean", "moving_variance": "var"}, _AFFINE),
    "layer_norm": Words({}, _AFFINE, axes=None),
    "group_norm": Words({}, _AFFINE),
    "rms_norm": Words({"scale": "scale"}, {}, axes=None),
}
KINDS = (*WORDS, "spectral_norm")
_CLASSES = {
    "BatchNormalization": "batch_norm",
    "LayerNormalization": "layer_norm",
    "GroupNormalization": "group_norm",
    "RMSNormalization": "rms_norm",
    "SpectralNormalization": "spectral_norm",
}


@public
def from_keras_state(
    state: Mapping[str, Any], kind: str, *, prefix: str = "", report: Tell = None
) -> Variables:
    """Linen's variables of one norm of Keras 3.

    gamma to scale, beta to bias, moving_mean and moving_variance to mean and var. A spectral norm has kernel,
    bias and vector_u.

    Args:
      state: arrays by their names, `{w.name: w for w in layer.weights}`, or by their paths, with a prefix.
      kind: "batch_norm", "layer_norm", "group_norm", "rms_norm" or "spectral_norm".
      prefix: of the norm's keys, with or without the slash at its end.
      report: called with the `Report`.

    Returns:
      {"params": ..., "batch_stats": ...}, as from `from_torch_state`.

    Raises:
      ValueError, TypeError: those of `from_torch_state`.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> convert.from_keras_state({"n/gamma": np.ones(1), "n/beta": np.zeros(1)}, "layer_norm", prefix="n")
    {'params': {'bias': Array([0.], dtype=float32), 'scale': Array([1.], dtype=float32)}}
    """
    variables, rows = _numpy(state, kind, prefix)
    tell(report, rows)
    return as_jax(variables)


@public
def to_keras_state(variables: Any, kind: str, *, prefix: str = "", report: Tell = None) -> Arrays:
    """The arrays of Keras, by name, of one norm's variables: the inverse of `from_keras_state`, bitwise.

    `for w in layer.weights: w.assign(state[w.name])` takes them.

    Args:
      variables: linen's, or a layer of jaxnorm.nnx.
      kind, prefix, report: as there.

    Raises:
      ValueError: an unknown kind; variables that are missing or have no place there.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> convert.to_keras_state({"params": {"scale": np.ones(2)}}, "rms_norm")
    {'scale': array([1., 1.])}
    """
    check.choice("kind", kind, KINDS)
    variables = layers.as_numpy(layers.linen_variables(variables))
    if kind in WORDS:
        state, rows = keys_of(variables, kind, WORDS[kind], prefix, "/")
        tell(report, rows)
        return state
    flat = {"/".join(path): v for c in variables.values() for path, v in layers.leaves_of(c)}
    inner = LAYER
    names = {f"{inner}/kernel": "kernel", f"{inner}/bias": "bias", f"{inner}/kernel/u": "vector_u"}
    sigma = f"{inner}/kernel/sigma"
    found = read(flat, kind, "", [f"{inner}/kernel", f"{inner}/kernel/u"], [f"{inner}/bias", sigma], "|")
    tell(report, [Row(names.get(name, ""), name) for name in found])
    return {dotted(prefix, "/") + names[name]: v for name, v in found.items() if name in names}


@public
def from_keras(layer: Any, *, api: str = "linen", report: Tell = None, **options: Any) -> Any:
    """The layer that does what a norm of Keras 3 does, with its parameters and its statistics.

    BatchNormalization, LayerNormalization, GroupNormalization, RMSNormalization, UnitNormalization, and
    SpectralNormalization of Dense and Conv1D to Conv3D. Keras overwrites the kernel under
    SpectralNormalization in training and evaluates by it as it is; here each call divides it, so that the two
    agree as far as the power iteration has converged.

    Args:
      layer: built, of any backend.
      api: "linen" or "nnx".
      report: called with the `Report`.
      options: other fields of our layer, such as `axis_name` and `dtype`.

    Returns:
      (layer, variables) of linen, or the layer of nnx.

    Raises:
      ValueError: a layer that is not built, or what no layer here does.
      TypeError: no layer of Keras.

    >>> import importlib.util, os
    >>> from jaxnorm import convert
    >>> if importlib.util.find_spec("keras") and "KERAS_BACKEND" in os.environ:
    ...     import keras
    ...     norm = keras.layers.LayerNormalization()
    ...     norm.build((None, 3))
    ...     layer, variables = convert.from_keras(norm)
    ...     assert variables["params"]["scale"].shape == (3,)
    """
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(layer, keras.Layer):
        problem = f"layer must be a keras.Layer, got {type(layer).__name__}"
        raise error(TypeError, problem, "give a layer, or its arrays to from_keras_state")
    name = type(layer).__name__
    if name == "UnitNormalization":
        axis = layer.axis if isinstance(layer.axis, int) else tuple(layer.axis)
        tell(report, [Row(f"axis={layer.axis}", f"jaxnorm.unit_norm, axis={axis}")])
        return layers.sequential(partial(unit_norm, axis=axis, epsilon=1e-12), api)
    if name not in _CLASSES:
        raise not_ours(f"there is no layer for {name}", f"give {', '.join(_CLASSES)} or UnitNormalization")
    if not layer.built:
        raise not_ours(f"{name} is not built and has no weights", "call it once, or its build")
    norm = _described(layer, _CLASSES[name])
    return layers.build(norm, api, report, options)


def _numpy(state: Any, kind: str, prefix: str) -> tuple[Variables, list[Row]]:
    """`from_keras_state` with NumPy's arrays, and the rows of the report."""
    check.choice("kind", kind, KINDS)
    if kind in WORDS:
        return variables_of(state, kind, WORDS[kind], prefix, "/")
    values = read(state, kind, prefix, ["kernel", "vector_u"], ["bias"], "/")
    kernel, u = values["kernel"], values["vector_u"]
    if u.shape != (1, kernel.shape[-1]):
        problem = f"kernel has shape {kernel.shape} and vector_u {u.shape}"
        raise not_ours(problem, f"vector_u has the shape {(1, kernel.shape[-1])}")
    inner = LAYER
    params = {name: values[name] for name in ("kernel", "bias") if name in values}
    stats = {f"{inner}/kernel/u": u, f"{inner}/kernel/sigma": np.ones((), u.dtype)}
    ours = {"vector_u": f"batch_stats/{inner}/kernel/u"}
    rows = [
        Row(f"{dotted(prefix, '/')}{k} {v.shape}", ours.get(k, f"params/{inner}/{k}"))
        for k, v in values.items()
    ]
    return {"params": {inner: params}, "batch_stats": stats}, rows


def _described(layer: Any, kind: str) -> Norm:
    """A layer of Keras in our words."""
    if getattr(layer, "renorm", False):
        raise not_ours(
            "renorm=True is batch renorm", "copy its statistics into jaxnorm's BatchRenorm by hand"
        )
    if getattr(layer, "rms_scaling", False):
        problem = "rms_scaling=True divides by the deviation and does not subtract the mean"
        raise not_ours(problem, "no layer here does, and Keras has deprecated it for RMSNormalization")
    if kind == "spectral_norm":
        return _spectral_norm(layer)
    variables, arrays = _numpy({w.name: w for w in layer.weights}, kind, "")
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    features = (
        int(np.prod([v.size for v in variables["params"].values()][:1])) if "params" in variables else 0
    )
    options: dict[str, Any] = {"epsilon": layer.epsilon}
    rows = [Row(f"epsilon={layer.epsilon}", f"epsilon={layer.epsilon}")]
    axis = axes[0] if len(axes) == 1 else tuple(axes)
    if kind == "batch_norm":
        options |= {"axis": axis, "momentum": layer.momentum}
        rows.append(Row(f"momentum={layer.momentum}", f"momentum={layer.momentum}"))
        features = variables["batch_stats"]["mean"].size
        if not layer.trainable:
            rows.append(
                Row("trainable=False", "", "freeze(...) of jaxnorm.linen and nnx holds statistics still")
            )
    elif kind == "group_norm":
        options["num_groups"] = layer.groups
        options |= {} if axis == -1 else {"feature_axis": axis}
        rows.append(Row(f"groups={layer.groups}", f"num_groups={layer.groups}"))
        features = features or layer.input_spec.axes[layer.axis]
    else:
        options |= {"reduction_axes": axis, "feature_axes": axis}
    rows.append(Row(f"axis={layer.axis}", f"axis={axis}"))
    there = variables.get("params", {})
    names = ("scale",) if kind == "rms_norm" else ("scale", "bias")
    options |= {f"use_{name}": name in there for name in names}
    return Norm(kind, features, options, variables, arrays + rows)


def _spectral_norm(layer: Any) -> Norm:
    """A SpectralNormalization of Dense or Conv."""
    inner = layer.layer
    name = type(inner).__name__
    if name not in ("Dense", "Conv1D", "Conv2D", "Conv3D"):
        raise not_ours(
            f"a SpectralNormalization of {name} is not converted", "give Dense or Conv1D to Conv3D"
        )
    variables, rows = _numpy({w.name: w for w in layer.weights}, "spectral_norm", "")
    rows.append(Row(f"power_iterations={layer.power_iterations}", f"n_steps={layer.power_iterations}"))
    options: dict[str, Any] = {"use_bias": inner.use_bias}
    *k, size, out = inner.kernel.shape
    groups = 1
    if name != "Dense":
        if inner.data_format != "channels_last":
            raise not_ours(f"data_format={inner.data_format!r}", "Conv of Flax is channels_last")
        groups = inner.groups
        padding = inner.padding.upper() if inner.padding != "causal" else "CAUSAL"
        options |= {"kernel_size": tuple(k), "strides": tuple(inner.strides), "padding": padding}
        options |= {"kernel_dilation": tuple(inner.dilation_rate), "feature_group_count": groups}
    if inner.activation.__name__ != "linear":
        raise not_ours(
            f"{name} has the activation {inner.activation.__name__}",
            "take it out, and call it after the layer",
        )
    wrapped = Wrapped("dense" if name == "Dense" else "conv", (size * groups, out), options)
    # Keras bounds a length from below by its epsilon, which is added to the square here
    own = {"n_steps": layer.power_iterations, "epsilon": 1e-14}
    return Norm("spectral_norm", out, own, variables, rows, wrapped)
