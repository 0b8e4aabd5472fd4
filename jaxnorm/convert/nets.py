"""The state dict of a whole net, by a table of names with a line a layer."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxnorm._base import checks as check
from jaxnorm._base.messages import error, public
from jaxnorm.convert.kernels import KERNELS, kernel_from_torch, kernel_to_torch
from jaxnorm.convert.layers import APIS, leaves_of, nnx_state
from jaxnorm.convert.norms import CLASSES, as_jax, channels_last
from jaxnorm.convert.report import Report, Row, Tell, tell
from jaxnorm.convert.sources import Arrays, read
from jaxnorm.convert.torch_state import numpy_variables, to_torch_state
from jaxnorm.convert.wrapped import LAYER

Key = tuple[str, ...]  # the path of an array in nested dicts
Table = Mapping[str, tuple[str, str] | None]
KINDS = (*KERNELS, *CLASSES)


@public
def net_from_torch(state: Mapping[str, Any], table: Table, *, api: str = "linen", report: Tell = None) -> Any:
    """The variables of a whole net, from a state dict of PyTorch and a table with a line a layer.

    A line says where a layer of PyTorch is, where its layer of Flax is, and what it is::

        table = {
            "stem.conv": ("Conv_0", "conv"),
            "stem.bn": ("BatchNorm_0", "batch_norm"),
            "head": ("classifier/Dense_0", "dense"),
            "projection": ("WeightNorm_0(Dense_1)", "weight_norm"),
            "position_ids": None,
        }

    In a compact module of linen the layer in a weight norm lies beside it, and the path names both.

    Args:
      state: keys and arrays or tensors.
      table: prefix of the keys, without the dot at its end: path of the layer, with slashes, and its kind:
        those of `from_torch_state`, "dense", "conv" and "conv_transpose". None: these keys are left out.
      api: "linen", or "nnx", where a number in a path is a place in a list.
      report: called with the `Report`.

    Returns:
      {"params": ..., "batch_stats": ...} of linen; or an nnx.State, for `nnx.update(model, state)`.

    Raises:
      ValueError: keys that no line names, lines that name no key, an unknown kind, and the errors of
        `from_torch_state` and `kernel_from_torch`.

    >>> import jax, numpy as np
    >>> from jaxnorm import convert
    >>> state = {"fc.weight": np.ones((2, 3)), "fc.bias": np.ones(2), "norm.weight": np.ones(2)}
    >>> table = {"fc": ("Dense_0", "dense"), "norm": ("RMSNorm_0", "rms_norm")}
    >>> variables = convert.net_from_torch(state, table)
    >>> jax.tree.map(lambda v: v.shape, variables["params"])
    {'Dense_0': {'bias': (2,), 'kernel': (3, 2)}, 'RMSNorm_0': {'scale': (2,)}}
    """
    check.choice("api", api, APIS)
    owners = {key: _owner(key, table) for key in state}
    unnamed = [key for key, owner in owners.items() if owner is None]
    unused = [prefix for prefix in table if prefix not in owners.values()]
    if unnamed:
        remedy = "give each a line, or None as its line to leave it out"
        raise error(ValueError, f"the table has no line for {', '.join(unnamed)}", remedy)
    if unused:
        there = ", ".join(sorted({key.rpartition(".")[0] or key for key in state})) or "nothing"
        raise error(ValueError, f"no key is of the lines {', '.join(unused)}", f"there are {there}")
    variables: dict[str, Any] = {}
    rows = []
    for prefix, line in table.items():
        keys = {key: state[key] for key, owner in owners.items() if owner == prefix}
        if line is None:
            rows += [Row(key, "", "None in the table") for key in keys]
            continue
        path, kind = line
        found, its_rows = _layer(keys, kind, prefix)
        for collection, arrays in found.items():
            for key, value in leaves_of(arrays):
                _put(variables, (collection, *_outward(key, path)), value)
        rows += [row._replace(ours=_at(row.ours, path)) for row in its_rows]
    tell(report, rows)
    return nnx_state(variables) if api == "nnx" else variables


@public
def net_to_torch(variables: Any, table: Table, *, parametrized: bool = True, report: Tell = None) -> Arrays:
    """The state dict of PyTorch of a whole net: the inverse of `net_from_torch`, bitwise.

    Args:
      variables: linen's.
      table: as there; a line of None makes no key.
      parametrized: as in `to_torch_state`.
      report: called with the `Report`.

    Returns:
      NumPy's arrays, without the keys that were left out.

    Raises:
      ValueError: variables that no line names or that a line does not find, and the errors of
        `to_torch_state`.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> variables = {"params": {"Dense_0": {"kernel": np.ones((3, 2))}}}
    >>> convert.net_to_torch(variables, {"fc": ("Dense_0", "dense")})["fc.weight"].shape
    (2, 3)
    """
    rest = {name: dict(leaves_of(collection)) for name, collection in variables.items()}
    state: Arrays = {}
    rows: list[Row] = []

    def keep(report: Report) -> None:
        rows.extend(report.rows)

    for prefix, line in table.items():
        if line is None:
            continue
        path, kind = line
        found: dict[str, Any] = {}
        for collection, leaves in rest.items():
            for full in list(leaves):
                if key := _inward(full, path):
                    _put(found, (collection, *key), leaves.pop(full))
        if not found:
            there = ", ".join(sorted({"/".join(key[:-1]) for leaves in rest.values() for key in leaves}))
            raise error(ValueError, f"there is no variable of {path}", f"there are {there or 'no others'}")
        if kind in KERNELS:
            arrays = read(found.get("params"), kind, "", ["kernel"], ["bias"], "/")
            arrays["kernel"] = kernel_to_torch(arrays["kernel"], kind)
            keys = {"kernel": f"{prefix}.weight", "bias": f"{prefix}.bias"}
            state |= {keys[name]: value for name, value in arrays.items()}
            rows += [Row(keys[name], f"params/{name}") for name in arrays]
        else:
            state |= to_torch_state(found, kind, prefix=prefix, parametrized=parametrized, report=keep)
    unnamed = ["/".join((name, *key)) for name, leaves in rest.items() for key in leaves]
    if unnamed:
        raise error(ValueError, f"the table has no line for {', '.join(unnamed)}", "give each a line")
    tell(report, rows)
    return state


def _owner(key: str, table: Table) -> str | None:
    """The longest prefix of the table that a key has; None: it has none."""
    lines = [prefix for prefix in table if key == prefix or key.startswith(f"{prefix}.")]
    return max(lines, key=len, default=None)


def _layer(keys: Arrays, kind: str, prefix: str) -> tuple[Any, list[Row]]:
    """Linen's variables of one layer, and the rows of the report.

    Args:
      keys: of the state dict, with the prefix.
      kind: of the layer.
      prefix: of its keys.
    """
    check.choice("kind", kind, KINDS)
    if kind in CLASSES:
        variables, rows = numpy_variables(keys, kind, prefix)
        return as_jax(channels_last(variables, first=False)), rows
    arrays = read(keys, kind, prefix, ["weight"], ["bias"])
    kernel = kernel_from_torch(arrays["weight"], kind)
    made = {"kernel": kernel}
    if (bias := arrays.get("bias")) is not None:
        if bias.shape != kernel.shape[-1:]:
            problem = f"{prefix}.bias has shape {bias.shape}, but {prefix}.weight {arrays['weight'].shape}"
            raise error(ValueError, problem, f"a bias has {kernel.shape[-1]} places")
        made["bias"] = jnp.asarray(bias)
    names = {"weight": "params/kernel", "bias": "params/bias"}
    return {"params": made}, [Row(f"{prefix}.{k} {v.shape}", names[k]) for k, v in arrays.items()]


def _at(ours: str, path: str) -> str:
    """A row's "params/scale" with the path of the layer in it; "" stays."""
    collection, *key = ours.split("/", 1)
    if not key:
        return ours
    # the name of a scale or of a vector has slashes in it
    inner = key[0].split("/") if key[0] in (f"{LAYER}/kernel", f"{LAYER}/bias") else key
    return "/".join((collection, *_outward(tuple(inner), path)))


def _split(path: str) -> tuple[Key, Key]:
    """The parts of a path, and of net/WeightNorm_0(Dense_0) those of the wrapped layer, net/Dense_0."""
    outer, _, inner = path.removesuffix(")").partition("(")
    parts = tuple(outer.split("/"))
    return parts, (*parts[:-1], inner) if inner else ()


def _outward(key: Key, path: str) -> Key:
    """Where the net has what the layer at `path` has at `key`."""
    outer, inner = _split(path)
    if not inner:
        return (*outer, *key)
    if key[0] == LAYER:
        return (*inner, *key[1:])
    return (*outer, key[0].replace(LAYER, inner[-1], 1))


def _inward(full: Key, path: str) -> Key:
    """The inverse of `_outward`; () if `full` is not in the layer at `path`."""
    outer, inner = _split(path)
    if inner and full[: len(inner)] == inner:
        return (LAYER, *full[len(inner) :])
    if full[: len(outer)] != outer:
        return ()
    key = full[len(outer) :]
    return (key[0].replace(inner[-1], LAYER, 1),) if inner else key


def _put(tree: dict[str, Any], path: Key, value: Any) -> None:
    """Set a leaf of nested dicts."""
    *folders, name = path
    for part in folders:
        tree = tree.setdefault(part, {})
    tree[name] = value
