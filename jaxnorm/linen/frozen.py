"""The statistics of a frozen norm, as linen's variables hold them."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import serialization
from flax.core import FrozenDict
from jax import export


class FrozenStats(FrozenDict[str, Any]):
    """The statistics of one norm, which read like a dict and do not change: what is written is left out.

    So they stand still also under Flax's own BatchNorm, which does not look for the mark, `frozen`. A
    transformation of Flax writes back all that a layer has, changed or not, so that writing is no error.

    Args:
      values: the statistics and their mark.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any], **_: Any) -> None:
        self._values = dict(values)
        self._hash = None

    # Flax copies this, as a pytree, of a FrozenDict for a call that may write: it stays a FrozenStats.
    _dict: Any = property(lambda self: self)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Nothing: a norm that writes new statistics here leaves the frozen ones as they are."""

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def pretty_repr(self, num_spaces: int = 4) -> str:
        return f"FrozenStats({self._values!r})"

    def __reduce__(self) -> Any:
        return FrozenStats, (self._values,)


jax.tree_util.register_pytree_with_keys_class(FrozenStats)
export.register_pytree_node_serialization(
    FrozenStats,
    serialized_name="jaxnorm.linen.FrozenStats",
    serialize_auxdata=lambda names: "/".join(names).encode(),
    deserialize_auxdata=lambda names: tuple(names.decode().split("/")),
)


def _to_state(stats: FrozenStats) -> dict[str, Any]:
    # one level deeper than other statistics are, so that variables that are not frozen refuse it
    return {"frozen": serialization.to_state_dict(dict(stats))}


def _from_state(stats: FrozenStats, state: dict[str, Any]) -> FrozenStats:
    """The statistics of a frozen norm, or of one that was not frozen when it was saved."""
    saved = state["frozen"] if "frozen" in state else {**state, "frozen": stats["frozen"]}
    return FrozenStats(serialization.from_state_dict(dict(stats), saved))


serialization.register_serialization_state(FrozenStats, _to_state, _from_state)
