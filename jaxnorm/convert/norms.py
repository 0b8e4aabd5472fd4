"""A norm as every framework's file describes it, and the tables of their words."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._base.messages import error
from jaxnorm.convert.report import Row
from jaxnorm.convert.sources import Arrays, dotted, read, same_shape

Variables = dict[str, dict[str, Any]]  # linen's: collections of names and arrays

# The class of each kind in jaxnorm.linen and jaxnorm.nnx.
CLASSES = {
    "batch_norm": "BatchNorm",
    "layer_norm": "LayerNorm",
    "group_norm": "GroupNorm",
    "instance_norm": "InstanceNorm",
    "rms_norm": "RMSNorm",
    "weight_norm": "WeightNorm",
    "spectral_norm": "SpectralNorm",
}
# What a layer here stores besides, and why it has no place there.
OURS_ALONE = {
    "weight": "the weight of the average",
    "step": "counts the updates for a schedule of momentum",
    "frozen": "the mark of freeze",
}
COLLECTIONS = {"scale": "params", "bias": "params"}  # all else is of batch_stats


class Wrapped(NamedTuple):
    """The layer whose weights a weight norm or a spectral norm normalizes.

    Args:
      kind: "dense" or "conv".
      sizes: how many features come in and go out.
      options: Flax's, `use_bias` and those of a convolution.
    """

    kind: str
    sizes: tuple[int, int]
    options: dict[str, Any]


class Norm(NamedTuple):
    """A norm of another framework in our words.

    Args:
      kind: a key of CLASSES.
      features: how many, the product of several axes; nnx wants to know it.
      options: of the layer, in linen's words.
      variables: linen's.
      rows: of the report.
      wrapped: what a weight norm or a spectral norm is of.
    """

    kind: str
    features: int
    options: dict[str, Any]
    variables: Variables
    rows: list[Row]
    wrapped: Wrapped | None = None


class Words(NamedTuple):
    """A framework's keys of one kind of norm.

    Args:
      needed, optional: their name: ours.
      left_out: keys that have no place here, and why.
      axes: of every array; None: any number.
    """

    needed: Mapping[str, str]
    optional: Mapping[str, str]
    left_out: Mapping[str, str] = {}
    axes: int | None = 1


def variables_of(
    state: Any, kind: str, words: Words, prefix: str, separator: str = "."
) -> tuple[Variables, list[Row]]:
    """Linen's variables of one norm in a state dict, as NumPy's arrays, and the rows of the report.

    Args:
      state, prefix, separator: as in `sources.read`.
      kind: a key of CLASSES.
      words: of the framework.
    """
    names = {**words.needed, **words.optional}
    values = read(state, kind, prefix, words.needed, [*words.optional, *words.left_out], separator)
    prefix = dotted(prefix, separator)
    same_shape({key: v for key, v in values.items() if key in names}, kind, prefix, words.axes)
    variables: Variables = {}
    rows = []
    for key, value in values.items():
        ours = names.get(key, "")
        where = COLLECTIONS.get(ours, "batch_stats")
        if ours:
            variables.setdefault(where, {})[ours] = value
        note = words.left_out.get(key, "")
        rows.append(Row(f"{prefix}{key} {value.shape}", f"{where}/{ours}" if ours else "", note))
    return variables, rows


def keys_of(
    variables: Variables, kind: str, words: Words, prefix: str, separator: str = "."
) -> tuple[Arrays, list[Row]]:
    """A framework's state dict of linen's variables of one norm, and the rows of the report.

    The inverse of `variables_of`; what only our averages need is left out.
    """
    names = {ours: theirs for theirs, ours in {**words.needed, **words.optional}.items()}
    found = {name: v for collection in variables.values() for name, v in collection.items()}
    back = read(found, kind, "", words.needed.values(), [*words.optional.values(), *OURS_ALONE], "/")
    same_shape({name: v for name, v in back.items() if name in names}, kind, "", words.axes)
    keys = {name: dotted(prefix, separator) + names[name] for name in back if name in names}
    rows = [Row(keys.get(name, ""), name, "" if name in keys else OURS_ALONE[name]) for name in back]
    return {key: back[name] for name, key in keys.items()}, rows


def channels_last(variables: Variables, first: bool) -> Variables:
    """Scale and bias of several axes with the first of them moved last.

    Args:
      variables: linen's.
      first: the other way: the last of them is moved first.
    """
    here, there = (-1, 0) if first else (0, -1)
    return {
        name: {
            k: np.moveaxis(v, here, there) if k in COLLECTIONS and v.ndim > 1 else v
            for k, v in collection.items()
        }
        for name, collection in variables.items()
    }


def as_jax(variables: Variables) -> Variables:
    """Arrays of JAX, with statistics in float32 or wider, in which averages do not stall."""

    def statistic(v: Any) -> Any:
        return v if jnp.issubdtype(v.dtype, jnp.integer) else v.astype(np.promote_types(v.dtype, np.float32))

    made = {name: c if name == "params" else jax.tree.map(statistic, c) for name, c in variables.items()}
    return jax.tree.map(jnp.asarray, made)


def not_ours(problem: str, remedy: str) -> ValueError:
    """An error about what a layer here cannot do."""
    return error(ValueError, problem, remedy)
