"""Weight norm and spectral norm, with the layer whose weights they normalize.

PyTorch and Equinox keep weights with the output features first, so that these functions serve both.
"""

from typing import Any

import numpy as np

from jaxnorm.convert.kernels import to_kernel
from jaxnorm.convert.norms import Variables, not_ours
from jaxnorm.convert.sources import Arrays

LAYER = "layer_instance"  # linen's name of what is wrapped
KERNEL = f"{LAYER}/kernel"
# Where the arrays of both are, by the letters that are used here.
PLACES = {
    "weight": f"params/{KERNEL}",
    "bias": f"params/{LAYER}/bias",
    "g": f"params/{KERNEL}/scale",
    **{letter: f"batch_stats/{KERNEL}/{letter}" for letter in "uv"},
}
NumPy = np.ndarray[Any, Any]


def weight_norm(v: NumPy, g: NumPy, bias: NumPy | None, name: str) -> Variables:
    """Linen's variables of a weight norm.

    Args:
      v: [out, in, *k] the direction.
      g: [out, 1, ...] the length of each output feature's weights, or [] of all of them.
      bias: [out], or with axes of size 1 after it.
      name: of v, for errors.
    """
    if g.shape not in ((), (v.shape[0],) + (1,) * (v.ndim - 1)):
        problem = f"{name} has shape {v.shape} and its lengths {g.shape}"
        raise not_ours(
            problem, "only one length for each output feature (dim=0), or one in all, is converted"
        )
    params = {LAYER: _layer(v, bias, name), f"{KERNEL}/scale": g.reshape(-1) if g.ndim else g}
    return {"params": params}


def spectral_norm(w: NumPy, u: NumPy, v: NumPy, bias: NumPy | None, name: str) -> Variables:
    """Linen's variables of a spectral norm.

    Power iteration here needs u alone. v is kept beside it, for the way back.

    Args:
      w: [out, in, *k] the weight.
      u, v: [out], [in * k] its singular vectors.
      bias: [out], or with axes of size 1 after it.
      name: of w, for errors.
    """
    layer = _layer(w, bias, name)
    if u.shape != w.shape[:1] or v.shape != (w[0].size,):
        problem = f"{name} has shape {w.shape} and its vectors {u.shape} and {v.shape}"
        raise not_ours(problem, f"u has {w.shape[0]} places and v has {w[0].size}")
    stats = {f"{KERNEL}/u": u[None], f"{KERNEL}/v": v, f"{KERNEL}/sigma": _sigma(w, u, v)}
    return {"params": {LAYER: layer}, "batch_stats": stats}


def back(variables: Any, kind: str) -> Arrays:
    """The inverse of `weight_norm` and `spectral_norm`: their arguments by name, as far as there are any.

    Args:
      variables: linen's.
      kind: "weight_norm" or "spectral_norm".
    """
    params, stats = dict(variables.get("params", {})), dict(variables.get("batch_stats", {}))
    layer = dict(params.pop(LAYER, {}))
    inner = {f"{LAYER}/{name}": value for name, value in layer.items()}
    found = {name: np.asarray(value) for name, value in (inner | params | stats).items()}
    needed = {"weight_norm": [f"{KERNEL}/scale"], "spectral_norm": [f"{KERNEL}/u", f"{KERNEL}/sigma"]}[kind]
    known = [KERNEL, f"{LAYER}/bias", *needed, *([f"{KERNEL}/v"] if kind == "spectral_norm" else [])]
    wrong = [n for n in (KERNEL, *needed) if n not in found] + [n for n in found if n not in known]
    if wrong:
        there = ", ".join(found) or "nothing"
        raise not_ours(f"the variables of a {kind} are {', '.join(known)}, got {there}", "give those of one")
    kernel = found[KERNEL]
    w = np.ascontiguousarray(np.moveaxis(kernel, (-1, -2), (0, 1)))
    made = {"weight": w}
    if f"{LAYER}/bias" in found:
        made["bias"] = found[f"{LAYER}/bias"]
    if kind == "weight_norm":
        scale = found[f"{KERNEL}/scale"]
        made["g"] = scale.reshape(-1, *[1] * (w.ndim - 1)) if scale.ndim else scale
        return made
    u = made["u"] = found[f"{KERNEL}/u"][0]
    v = found.get(f"{KERNEL}/v")
    # a v that was loaded is old once u has been updated: sigma tells
    if v is None or not np.isclose(_sigma(w, u, v), found[f"{KERNEL}/sigma"], rtol=1e-6):
        v = w.reshape(w.shape[0], -1).T @ u
        v = v / max(np.linalg.norm(v), np.finfo(v.dtype).tiny)
    return made | {"v": v}


def _layer(w: NumPy, bias: NumPy | None, name: str) -> dict[str, NumPy]:
    """The parameters of the wrapped Dense or Conv."""
    if not 2 <= w.ndim <= 5:
        raise not_ours(
            f"{name} has shape {w.shape}", "a weight of Linear or Conv1d to Conv3d has 2 to 5 axes"
        )
    layer = {"kernel": to_kernel(w, "dense" if w.ndim == 2 else "conv")}
    if bias is not None:
        if bias.size != w.shape[0]:
            problem = f"{name} has shape {w.shape} and its bias {bias.shape}"
            raise not_ours(problem, f"a bias has {w.shape[0]} places")
        layer["bias"] = bias.reshape(-1)
    return layer


def _sigma(w: NumPy, u: NumPy, v: NumPy) -> NumPy:
    """The singular value to u and v."""
    return np.asarray(u @ (w.reshape(w.shape[0], -1) @ v))
