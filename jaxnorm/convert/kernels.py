"""Axes of Dense and Conv kernels: PyTorch has the output features first, Flax last."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnorm._base import checks as check
from jaxnorm._base.messages import error, public
from jaxnorm.convert.sources import as_numpy

KERNELS = ("dense", "conv", "conv_transpose")

NumPy = np.ndarray[Any, Any]


@public
def kernel_from_torch(weight: Any, kind: str, *, groups: int = 1) -> Array:
    """The `kernel` of Flax that does what this `weight` of PyTorch does.

    - dense: [out, in] to [in, out].
    - conv, of 1 to 3 dimensions, grouped or not: [out, in / groups, *k] to [*k, in / groups, out].
    - conv_transpose: [in, out / groups, *k] to [*k, in / groups, out], with the places of the kernel in
      reverse order, as `nn.ConvTranspose` and `lax.conv_transpose` want them; with several groups it is for
      `lax.conv_general_dilated` with `lhs_dilation` and `feature_group_count`.

    Args:
      weight: an array or a tensor of any dtype, which is kept.
      kind: "dense" (`torch.nn.Linear`), "conv" or "conv_transpose".
      groups: of a transposed convolution, whose weight does not tell them.

    Raises:
      ValueError: an unknown kind, a weight of another number of axes, groups that do not divide its inputs.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> convert.kernel_from_torch(np.zeros((8, 3, 5, 5)), "conv").shape
    (5, 5, 3, 8)
    """
    w = as_numpy("weight", weight)
    _check(w, kind, "weight")
    return jnp.asarray(to_kernel(w, kind, groups))


@public
def kernel_to_torch(kernel: Any, kind: str, *, groups: int = 1) -> NumPy:
    """The `weight` of PyTorch that does what this `kernel` of Flax does: the inverse of `kernel_from_torch`.

    Args:
      kernel: an array.
      kind, groups: as there.

    Returns:
      NumPy's, of the kernel's dtype.

    Raises:
      ValueError: as there.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> convert.kernel_to_torch(np.zeros((5, 5, 3, 8)), "conv").shape
    (8, 3, 5, 5)
    """
    w = as_numpy("kernel", kernel)
    _check(w, kind, "kernel")
    if kind != "conv_transpose":
        return np.ascontiguousarray(_ends(w, (-1, -2), (0, 1)))
    w = _ends(_flipped(w, range(w.ndim - 2)), (-2, -1), (0, 1))  # [in / groups, out, *k]
    _check_groups(w.shape[1], groups, "output")
    parts = np.split(w, groups, axis=1)
    return np.ascontiguousarray(np.concatenate(parts, axis=0))


def to_kernel(w: NumPy, kind: str, groups: int = 1) -> NumPy:
    """`kernel_from_torch` of NumPy's arrays, without checks of the kind."""
    if kind != "conv_transpose":
        return _ends(w, (0, 1), (-1, -2))
    _check_groups(w.shape[0], groups, "input")
    w = np.concatenate(np.split(w, groups, axis=0), axis=1)  # [in / groups, out, *k]
    return _flipped(_ends(w, (0, 1), (-2, -1)), range(w.ndim - 2))


def _ends(w: NumPy, these: tuple[int, int], there: tuple[int, int]) -> NumPy:
    return np.moveaxis(w, these, there)


def _flipped(w: NumPy, axes: range) -> NumPy:
    return np.flip(w, tuple(axes))


def _check(w: NumPy, kind: str, name: str) -> None:
    check.choice("kind", kind, KERNELS)
    least, most = (2, 2) if kind == "dense" else (3, 5)
    if not least <= w.ndim <= most:
        remedy = f"a {kind} {name} has {least}{'' if least == most else f' to {most}'} axes"
        raise error(ValueError, f"{name} has shape {w.shape}", remedy)


def _check_groups(features: int, groups: int, which: str) -> None:
    if groups < 1 or features % groups:
        problem = f"groups={groups} does not divide the {features} {which} features"
        raise error(ValueError, problem, f"choose a divisor of {features}")
