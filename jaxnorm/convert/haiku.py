"""Haiku: plain dicts of params and state, since its modules live inside of a transform."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnorm._base import checks as check
from jaxnorm._base.messages import error, public
from jaxnorm.convert import layers
from jaxnorm.convert.norms import Norm, Variables, Wrapped, not_ours
from jaxnorm.convert.report import Row, Tell, tell
from jaxnorm.convert.sources import Arrays, as_numpy, dotted, read, same_shape
from jaxnorm.convert.wrapped import LAYER

_EMA = tuple(f"~/{name}_ema/{part}" for name in ("mean", "var") for part in ("hidden", "average", "counter"))
_AFFINE = {"scale": "scale", "offset": "bias"}
# Of each kind: the keys that it needs, those that it may have, and its constructor's arguments with their
# defaults.
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]] = {
    "batch_norm": (
        _EMA,
        ("scale", "offset"),
        {"decay_rate": ..., "eps": 1e-5, "data_format": "channels_last"},
    ),
    "layer_norm": ((), ("scale", "offset"), {"axis": -1, "param_axis": None, "eps": 1e-5}),
    "rms_norm": ((), ("scale",), {"axis": -1, "param_axis": None, "eps": 1e-5}),
    "group_norm": ((), ("scale", "offset"), {"groups": ..., "eps": 1e-5, "data_format": "channels_last"}),
    "instance_norm": ((), ("scale", "offset"), {"eps": 1e-5, "data_format": "channels_last"}),
    "spectral_norm": (("w", "u0", "sigma"), ("b",), {"n_steps": 1, "eps": 1e-4}),
}
_SPECTRAL = {
    "w": f"params/{LAYER}/kernel",
    "b": f"params/{LAYER}/bias",
    "u0": f"batch_stats/{LAYER}/kernel/u",
    "sigma": f"batch_stats/{LAYER}/kernel/sigma",
}
Pair = tuple[dict[str, Arrays], dict[str, Arrays]]


@public
def from_haiku(
    params: Mapping[str, Any],
    kind: str,
    *,
    state: Mapping[str, Any] | None = None,
    prefix: str = "",
    api: str = "linen",
    report: Tell = None,
    **arguments: Any,
) -> Any:
    """The layer that does what a norm of Haiku does, with its parameters and its statistics.

    scale stays, offset becomes bias, in one axis. The average of each ExponentialMovingAverage is mean or
    var, and its counter becomes the weight 1 - decay_rate ** counter of our average with `debias=True`, which
    goes on in the same way. A spectral norm is that of a Linear: w and b in params, u0 and sigma of the
    `hk.SpectralNorm` in state.

    Args:
      params, state: of `hk.transform_with_state`, {module: {name: array}}, or {name: array} of one module.
      kind: "batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm" or "spectral_norm".
      prefix: the module's name, for example "net/~/batch_norm".
      api: "linen" or "nnx".
      report: called with the `Report`.
      arguments: what the module of Haiku was made with, which its arrays do not tell: decay_rate, eps, axis,
        param_axis, data_format, groups, n_steps. By default Haiku's own.

    Returns:
      (layer, variables) of linen, or the layer of nnx.

    Raises:
      ValueError: an unknown kind; keys that are missing or have no place; two counters that differ; what no
        layer here does.
      TypeError: no dict; an argument that the module does not have, or lacks.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> params = {"net/layer_norm": {"scale": np.ones(3), "offset": np.zeros(3)}}
    >>> layer, variables = convert.from_haiku(params, "layer_norm", prefix="net/layer_norm")
    >>> layer.epsilon, sorted(variables["params"])
    (1e-05, ['bias', 'scale'])
    """
    check.choice("kind", kind, tuple(_KINDS))
    needed, optional, defaults = _KINDS[kind]
    unknown = [name for name in arguments if name not in defaults]
    missing = [name for name, value in defaults.items() if value is ... and name not in arguments]
    if unknown or missing:
        words = [f"{word} {', '.join(n)}" for word, n in (("takes no", unknown), ("needs", missing)) if n]
        problem = f"a {kind} of Haiku {' and '.join(words)}"
        raise error(TypeError, problem, f"its arguments are {', '.join(defaults)}")
    given = defaults | arguments
    flat = _flat("params", params) | _flat("state", {} if state is None else state)
    values = read(flat, kind, prefix, needed, optional, "/")
    where = dotted(prefix, "/")
    rows = [Row(f"{name}={value}", _option(name, value)) for name, value in given.items()]
    if kind == "spectral_norm":
        norm = _spectral_norm(values, given, where, rows)
    else:
        norm = _norm(values, kind, given, where, rows)
    return layers.build(norm, api, report, {})


@public
def to_haiku(
    variables: Any,
    kind: str,
    *,
    prefix: str = "",
    ndim: int = 2,
    decay_rate: float | None = None,
    data_format: str = "channels_last",
    report: Tell = None,
) -> Pair:
    """The params and the state of Haiku of one norm's variables: the inverse of `from_haiku`.

    Parameters and averages are bitwise those that came. An average's hidden is average * weight, to a
    rounding, and its counter the least one that has this weight: beyond float32's resolution they are all
    alike.

    Args:
      variables: linen's, or a layer of jaxnorm.nnx.
      kind, report: as there.
      prefix: the module's name.
      ndim: how many axes x has, which Haiku's arrays of a batch_norm, for example, have, too.
      decay_rate: of a batch norm.
      data_format: where x has its channels.

    Returns:
      ({module: {name: array}} of parameters, the same of the state).

    Raises:
      ValueError: as there; a batch norm without a weight, which is no debiased average.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> convert.to_haiku({"params": {"scale": np.ones(1)}}, "rms_norm", prefix="rms_norm")
    ({'rms_norm': {'scale': array([1.])}}, {})
    """
    check.choice("kind", kind, tuple(_KINDS))
    variables = layers.as_numpy(layers.linen_variables(variables))
    module = prefix.rstrip("/")
    flat = {f"{c}/{'/'.join(path)}": v for c, tree in variables.items() for path, v in layers.leaves_of(tree)}
    if kind == "spectral_norm":
        names = {ours: theirs for theirs, ours in _SPECTRAL.items()}
        found = read(flat, kind, "", [_SPECTRAL[k] for k in ("w", "u0", "sigma")], [_SPECTRAL["b"]], "|")
        tell(report, [Row(names[key], key) for key in found])
        made = {names[key]: value for key, value in found.items()}
        first: Arrays = {name: made[name] for name in ("w", "b") if name in made}
        return {module: first}, {module: {name: made[name] for name in ("u0", "sigma")}}
    params = [f"params/{_AFFINE[name]}" for name in _KINDS[kind][1]]
    stats = [f"batch_stats/{name}" for name in ("mean", "var", "weight")] if kind == "batch_norm" else []
    found = read(flat, kind, "", stats, params, "|")
    shape = (1,) * (ndim - 1) + (-1,) if _last(data_format) else (1, -1) + (1,) * (ndim - 2)
    names = {f"params/{ours}": theirs for theirs, ours in _AFFINE.items()}
    wide = kind == "batch_norm" or (kind == "instance_norm" and not _last(data_format))
    made = {names[key]: (v.reshape(shape) if wide else v) for key, v in found.items() if key in names}
    # several axes, the last ones, are stored with axes of size 1 before them
    made = {key: v.reshape((1,) * (ndim - v.ndim) + v.shape) if v.ndim > 1 else v for key, v in made.items()}
    rows = [Row(names.get(key, f"~/*_ema of {key}"), key) for key in found]
    state: dict[str, Arrays] = {}
    if kind == "batch_norm":
        if decay_rate is None:
            raise error(TypeError, "a batch_norm of Haiku needs decay_rate", "give the module's")
        weight = found["batch_stats/weight"]
        counter = _counter(weight, decay_rate)
        for name in ("mean", "var"):
            average = found[f"batch_stats/{name}"]
            hidden = (average * weight).astype(average.dtype)
            arrays = {"hidden": hidden.reshape(shape), "average": average.reshape(shape), "counter": counter}
            state[f"{module}/~/{name}_ema"] = arrays
    tell(report, rows)
    return ({module: made} if made else {}), state


def _flat(what: str, tree: Any) -> dict[str, Any]:
    """{module: {name: array}} as {module/name: array}."""
    if not isinstance(tree, Mapping):
        problem = f"{what} must be a dict of arrays, got {type(tree).__name__}"
        raise error(TypeError, problem, "give what hk.transform_with_state's init returns")
    return {"/".join(path): value for path, value in layers.leaves_of(tree)}


def _option(name: str, value: Any) -> str:
    """What an argument of Haiku is here."""
    ours = {"eps": "epsilon", "decay_rate": "momentum", "groups": "num_groups", "axis": "reduction_axes"}
    return f"{ours.get(name, {'param_axis': 'feature_axes', 'data_format': 'axis'}.get(name, name))}={value}"


def _last(data_format: str) -> bool:
    """Whether the channels are on the last axis."""
    check.choice("data_format", data_format, ("channels_last", "channels_first", "N...C", "NC..."))
    return data_format in ("channels_last", "N...C")


def _axes(name: str, axis: Any) -> Any:
    """Axes as ints."""
    if isinstance(axis, slice):
        raise not_ours(f"{name}={axis} depends on x", "give the axes as ints")
    return axis if isinstance(axis, int) else tuple(axis)


def _norm(values: Arrays, kind: str, given: dict[str, Any], where: str, rows: list[Row]) -> Norm:
    """A norm of activations in our words.

    Args:
      values: its arrays, by Haiku's names.
      kind: of the norm.
      given: the arguments of its constructor.
      where: the prefix of its keys, for errors.
      rows: of the report.
    """
    options: dict[str, Any] = {"epsilon": given["eps"]}
    if kind in ("layer_norm", "rms_norm"):
        axes = _axes("axis", given["axis"])
        features = -1 if given["param_axis"] is None else _axes("param_axis", given["param_axis"])
        options |= {"reduction_axes": axes, "feature_axes": features}
        places = (features,) if isinstance(features, int) else features
    else:
        places = (-1 if _last(given["data_format"]) else 1,)
        option = {"batch_norm": "axis", "instance_norm": "feature_axes", "group_norm": "feature_axis"}[kind]
        options |= {} if kind == "group_norm" and places == (-1,) else {option: places[0]}
    affine = {name: values[name] for name in _AFFINE if name in values}
    same_shape(affine, kind, where, None)
    shaped = {_AFFINE[name]: _features(v, places) for name, v in affine.items()}
    variables: Variables = {"params": shaped} if shaped else {}
    ours = {name: f"params/{_AFFINE[name]}" for name in affine}
    if kind == "group_norm":
        options["num_groups"] = given["groups"]
    if kind == "batch_norm":
        options |= {"momentum": given["decay_rate"], "debias": True}
        variables["batch_stats"] = _averages(values, given["decay_rate"], where)
        for name in ("mean", "var"):
            parts = {"average": name, "hidden": name, "counter": "weight"}
            ours |= {f"~/{name}_ema/{part}": f"batch_stats/{to}" for part, to in parts.items()}
    options |= {
        f"use_{name}": name in shaped for name in _AFFINE.values() if (kind, name) != ("rms_norm", "bias")
    }
    size = next((v.size for c in reversed(variables.values()) for v in c.values()), 0)
    arrays = [Row(f"{where}{key} {value.shape}", ours[key]) for key, value in values.items()]
    return Norm(kind, size, options, variables, arrays + rows)


def _features(value: Any, places: tuple[int, ...]) -> Any:
    """A parameter without the axes of size 1 that Haiku broadcasts it with."""
    if len(places) == 1:
        return value.reshape(-1)
    return value if value.ndim == len(places) else value.reshape([value.shape[a] for a in sorted(places)])


def _averages(values: Arrays, decay: float, where: str) -> Arrays:
    """Mean, var and weight of two ExponentialMovingAverages."""
    counters = [int(values[f"~/{name}_ema/counter"]) for name in ("mean", "var")]
    if counters[0] != counters[1]:
        problem = (
            f"the counters of {where}~/mean_ema and {where}~/var_ema are {counters[0]} and {counters[1]}"
        )
        raise not_ours(problem, "one batch norm has seen as many means as variances")
    averages = {name: values[f"~/{name}_ema/average"] for name in ("mean", "var")}
    same_shape({f"~/{name}_ema/average": v for name, v in averages.items()}, "batch_norm", where, None)
    stats = {name: v.reshape(-1) for name, v in averages.items()}
    dtype = np.promote_types(stats["var"].dtype, np.float32)
    return stats | {"weight": np.full(stats["var"].shape, _weight(decay, counters[0]), dtype)}


def _weight(decay: float, counter: int) -> float:
    """The mass of a debiased average after so many updates."""
    return -float(np.expm1(counter * np.log(decay))) if decay > 0 else float(counter > 0)


def _counter(weight: Any, decay: float) -> Any:
    """The least counter whose weight this is in its dtype."""
    mass = float(as_numpy("weight", weight).reshape(-1)[0])
    least = float(np.finfo(weight.dtype).eps) / 4
    counter = round(np.log(max(1 - mass, least)) / np.log(decay)) if 0 < decay < 1 else int(mass > 0)
    return np.asarray(counter, np.int32)


def _spectral_norm(values: Arrays, given: dict[str, Any], where: str, rows: list[Row]) -> Norm:
    """The spectral norm of a Linear."""
    w, u = values["w"], values["u0"]
    if w.ndim != 2:
        raise not_ours(
            f"{where}w has shape {w.shape}", "the spectral norm of a Linear, of 2 axes, is converted"
        )
    if u.shape != (1, w.shape[1]):
        raise not_ours(
            f"{where}u0 has shape {u.shape} and w {w.shape}", f"u0 has the shape {(1, w.shape[1])}"
        )
    inner: Arrays = {"kernel": w} | ({"bias": values["b"]} if "b" in values else {})
    stats = {f"{LAYER}/kernel/{name}": values[key] for name, key in (("u", "u0"), ("sigma", "sigma"))}
    wrapped = Wrapped("dense", (w.shape[0], w.shape[1]), {"use_bias": "b" in values})
    options = {"n_steps": given["n_steps"], "epsilon": given["eps"]}
    arrays = [Row(f"{where}{key} {value.shape}", _SPECTRAL[key]) for key, value in values.items()]
    variables: Variables = {"params": {LAYER: inner}, "batch_stats": stats}
    return Norm("spectral_norm", w.shape[1], options, variables, arrays + rows, wrapped)
