"""What a conversion has mapped, and what it has left out."""

from collections.abc import Callable
from typing import NamedTuple

Tell = Callable[["Report"], object] | None  # what `report=` may be


class Row(NamedTuple):
    """One array or option.

    Args:
      theirs: its name there, with its shape or value; "" where it was left out on the way there.
      ours: its name here; "" where it was left out on the way here.
      note: what to know about it.
    """

    theirs: str
    ours: str
    note: str = ""


class Report(NamedTuple):
    """What a conversion has mapped, and what it has left out: `str` of it is a table.

    Args:
      rows: of `theirs`, `ours` and `note`, one for every array and every option that was mapped.

    >>> import numpy as np
    >>> from jaxnorm import convert
    >>> state = {"n.weight": np.ones(2, np.float32), "n.bias": np.zeros(2, np.float32)}
    >>> variables = convert.from_torch_state(state, "layer_norm", prefix="n", report=print)
    theirs         ours
    n.weight (2,)  params/scale
    n.bias (2,)    params/bias
    """

    rows: tuple[Row, ...]

    @property
    def left_out(self) -> list[str]:
        """The names of what has no place on the other side."""
        return [row.theirs or row.ours for row in self.rows if not (row.theirs and row.ours)]

    def __str__(self) -> str:
        named = [Row(a or "left out", b or "left out", note) for a, b, note in self.rows]
        cells = [Row("theirs", "ours"), *named]
        first, second = (max(len(row[i]) for row in cells) for i in (0, 1))
        return "\n".join(f"{a:{first}}  {b:{second}}  {note}".rstrip() for a, b, note in cells)


def tell(report: Tell, rows: list[Row]) -> None:
    """Hand the rows to whom the user wants to have them; None: to nobody."""
    if report is not None:
        report(Report(tuple(rows)))
