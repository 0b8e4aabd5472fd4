"""Arrays of any framework, by the keys of a state dict."""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnorm._base.messages import error

Arrays = dict[str, np.ndarray[Any, Any]]


def as_numpy(name: str, value: Any) -> np.ndarray[Any, Any]:
    """An array, a tensor or a variable as NumPy's, of its own dtype, on the host.

    Args:
      name: what an error calls it.
      value: of NumPy, JAX, PyTorch (on any device, with or without a gradient), Keras or Flax.
    """
    if type(value).__module__.partition(".")[0] == "torch":
        dtype = jnp.dtype(str(value.dtype).removeprefix("torch."))
        tensor = value.detach().cpu()
        # NumPy itself has no bfloat16 and no float8: float32 holds their values exactly
        narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
        value = (tensor.float() if narrow else tensor).numpy().astype(dtype)
    elif hasattr(value, "assign") and hasattr(
        value, "value"
    ):  # a variable of Keras, with its backend's tensor
        return as_numpy(name, value.value)
    elif hasattr(value, "get_value"):  # a variable of nnx
        value = value.get_value()
    elif hasattr(value, "unbox"):  # of linen, with its sharding
        value = value.unbox()
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise error(TypeError, f"{name} must hold numbers, got dtype {array.dtype}", "give arrays or tensors")
    return array


def dotted(prefix: str, separator: str = ".") -> str:
    """A prefix with its separator at its end; "" stays."""
    return prefix if not prefix or prefix.endswith(separator) else prefix + separator


def read(
    state: Any,
    what: str,
    prefix: str,
    needed: Collection[str],
    optional: Collection[str] = (),
    separator: str = ".",
) -> Arrays:
    """The arrays of one norm, by their keys without the prefix.

    Args:
      state: keys and arrays, of one norm or, with a prefix, of more.
      what: the kind of norm, for errors.
      prefix: of the keys that are read, with or without `separator` at its end.
      needed, optional: the keys without the prefix. A needed one that is missing, and one that is in neither,
        is an error.
      separator: of the parts of a key.
    """
    if not isinstance(state, Mapping):
        problem = f"the state must be a dict of arrays, got {type(state).__name__}"
        raise error(TypeError, problem, "give, for example, module.state_dict()")
    prefix = dotted(prefix, separator)
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if prefix and not found:
        there = ", ".join(sorted({key.partition(separator)[0] for key in state})) or "nothing"
        raise error(ValueError, f"no key begins with {prefix!r}", f"the keys begin with {there}")
    missing = [key for key in needed if key not in found]
    unknown = [key for key in found if key not in needed and key not in optional]
    if missing or unknown:
        parts = [
            f"{word} {', '.join(prefix + key for key in keys)}"
            for word, keys in (("is missing", missing), ("has no place for", unknown))
            if keys
        ]
        keys = ", ".join(needed) or "no key for certain"
        may = f", and may have {', '.join(optional)}" if optional else ""
        raise error(ValueError, f"a {what} {' and '.join(parts)}", f"it has {keys}{may}")
    return {key: as_numpy(prefix + key, value) for key, value in found.items()}


def same_shape(values: Arrays, what: str, prefix: str, axes: int | None = 1) -> None:
    """All arrays have one shape, of `axes` axes; None: of any number.

    Args:
      values: by key.
      what: the kind of norm, for errors.
      prefix: of the keys.
      axes: how many.
    """
    first = next(iter(values), "")
    for key, value in values.items():
        expected = values[first].shape
        if axes is not None and value.ndim != axes:
            problem = f"{prefix}{key} has shape {value.shape}"
            raise error(ValueError, problem, f"the arrays of a {what} have {axes} axis")
        if value.shape != expected:
            problem = f"{prefix}{key} has shape {value.shape}, but {prefix}{first} has {expected}"
            raise error(ValueError, problem, f"the arrays of a {what} have one shape")
