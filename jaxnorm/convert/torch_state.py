"""State dicts of PyTorch's norms, and back."""

from collections.abc import Mapping
from typing import Any

from jaxnorm._base import checks as check
from jaxnorm._base.messages import public
from jaxnorm.convert import layers, wrapped
from jaxnorm.convert.norms import (
    CLASSES,
    Variables,
    Words,
    as_jax,
    channels_last,
    keys_of,
    variables_of,
)
from jaxnorm.convert.report import Row, Tell, tell
from jaxnorm.convert.sources import Arrays, dotted, read

_AFFINE = {"weight": "scale", "bias": "bias"}
_STATS = {"running_mean": "mean", "running_var": "var"}
_COUNT = {"num_batches_tracked": "counts calls; read by from_torch where momentum=None"}
WORDS = {
    "batch_norm": Words(_STATS, _AFFINE, _COUNT),
    "layer_norm": Words({}, _AFFINE, axes=None),
    "group_norm": Words({}, _AFFINE),
    "instance_norm": Words({}, _AFFINE | _STATS, _COUNT),
    "rms_norm": Words({}, {"weight": "scale"}, axes=None),
}
# Each form of a weight norm and a spectral norm: PyTorch's parametrization and its older hook.
FORMS = {
    "weight_norm": (
        {"parametrizations.weight.original0": "g", "parametrizations.weight.original1": "weight"},
        {"weight_g": "g", "weight_v": "weight"},
    ),
    "spectral_norm": (
        {
            "parametrizations.weight.original": "weight",
            "parametrizations.weight.0._u": "u",
            "parametrizations.weight.0._v": "v",
        },
        {"weight_orig": "weight", "weight_u": "u", "weight_v": "v"},
    ),
}


@public
def from_torch_state(
    state: Mapping[str, Any],
    kind: str,
    *,
    prefix: str = "",
    input_features_last: bool = True,
    report: Tell = None,
) -> Variables:
    """Linen's variables of one norm in a state dict of PyTorch.

    weight to scale, running_mean and running_var to mean and var. num_batches_tracked has no place and is
    left out. A weight norm or a spectral norm of Linear or Conv1d to Conv3d, in either of its forms, becomes
    that of `nn.Dense` or `nn.Conv`. Parameters keep their dtype; statistics are in float32 or wider.

    Args:
      state: keys and arrays or tensors.
      kind: "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "weight_norm" or
        "spectral_norm".
      prefix: of the norm's keys, with or without the dot at its end.
      input_features_last: a weight of several axes is [C, H, W] there and [H, W, C] here; False: it stays.
      report: called with the `Report`.

    Returns:
      {"params": ..., "batch_stats": ...}, of which a collection without an array is left out. They fit the
      layer in nnx, too: `from_torch(..., api="nnx")` and `net_from_torch` make its state.

    Raises:
      ValueError: an unknown kind; keys that are missing or have no place; arrays that do not fit each other.
      TypeError: no dict, or not numbers.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> state = {f"bn1.{k}": np.ones(2) for k in ("weight", "bias", "running_mean", "running_var")}
    >>> variables = convert.from_torch_state(state, "batch_norm", prefix="bn1")
    >>> {name: sorted(arrays) for name, arrays in variables.items()}
    {'batch_stats': ['mean', 'var'], 'params': ['bias', 'scale']}
    """
    variables, rows = numpy_variables(state, kind, prefix)
    tell(report, rows)
    return as_jax(channels_last(variables, first=False) if input_features_last else variables)


def numpy_variables(state: Any, kind: str, prefix: str = "") -> tuple[Variables, list[Row]]:
    """`from_torch_state` with NumPy's arrays, whose axes are PyTorch's where a scale has several.

    Args:
      state, kind, prefix: as there.
    """
    check.choice("kind", kind, tuple(CLASSES))
    if kind in WORDS:
        return variables_of(state, kind, WORDS[kind], prefix)
    new, old = FORMS[kind]
    form = old if isinstance(state, Mapping) and dotted(prefix) + next(iter(old)) in state else new
    values = read(state, kind, prefix, form, ["bias"])
    arrays = {form.get(key, key): value for key, value in values.items()}
    name = next(key for key, value in form.items() if value == "weight")
    rows = [
        Row(f"{dotted(prefix)}{key} {value.shape}", wrapped.PLACES[form.get(key, key)])
        for key, value in values.items()
    ]
    whole, bias = dotted(prefix) + name, arrays.get("bias")
    if kind == "weight_norm":
        return wrapped.weight_norm(arrays["weight"], arrays["g"], bias, whole), rows
    return wrapped.spectral_norm(arrays["weight"], arrays["u"], arrays["v"], bias, whole), rows


@public
def to_torch_state(
    variables: Any,
    kind: str,
    *,
    prefix: str = "",
    parametrized: bool = True,
    input_features_last: bool = True,
    report: Tell = None,
) -> Arrays:
    """The state dict of PyTorch of one norm's variables: the inverse of `from_torch_state`, bitwise.

    `module.load_state_dict({key: torch.from_numpy(v) for key, v in state.items()})` takes it, and counts no
    batches: num_batches_tracked is not in it.

    Args:
      variables: linen's, or a layer of jaxnorm.nnx.
      kind, prefix, input_features_last: as there.
      parametrized: of a weight norm and a spectral norm, the keys of `torch.nn.utils.parametrizations`;
        False: those of the older `torch.nn.utils.weight_norm` and `spectral_norm`.
      report: called with the `Report`; what only our averages store is left out.

    Returns:
      NumPy's arrays, of the variables' dtypes.

    Raises:
      ValueError: an unknown kind; variables that are missing or have no place there.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> variables = {"params": {"scale": np.ones(2), "bias": np.zeros(2)}}
    >>> convert.to_torch_state(variables, "layer_norm", prefix="norm")
    {'norm.weight': array([1., 1.]), 'norm.bias': array([0., 0.])}
    """
    check.choice("kind", kind, tuple(CLASSES))
    variables = layers.linen_variables(variables)
    if kind in WORDS:
        variables = layers.as_numpy(variables)
        variables = channels_last(variables, first=True) if input_features_last else variables
        state, rows = keys_of(variables, kind, WORDS[kind], prefix)
    else:
        form = FORMS[kind][0 if parametrized else 1]
        arrays = wrapped.back(layers.as_numpy(variables), kind)
        names = {**{ours: theirs for theirs, ours in form.items()}, "bias": "bias"}
        state = {dotted(prefix) + names[name]: value for name, value in arrays.items()}
        rows = [Row(dotted(prefix) + names[name], wrapped.PLACES[name]) for name in arrays]
    tell(report, rows)
    return state
