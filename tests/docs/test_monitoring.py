"""What docs/monitoring.md says is what there is."""

import re
from pathlib import Path

import pytest
from test_readme import run

from jaxnorm import monitor
from jaxnorm.monitor import measures

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.flexible
def test_the_table_is_that_of_the_example():
    """But for digits, which differ between devices."""
    _, names = run(PAGE)

    def words(table):
        return [re.findall(r"[a-zA-Z_=]{2,}|│", line) for line in table.splitlines() if line[0] not in "┏┡└"]

    (shown,) = re.findall(r"^```text\n(┏.*?)^```", TEXT, re.M | re.S)
    assert words(shown) == words(names["report"].table())


def test_every_kind_is_explained():
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M)) == set(monitor.KINDS)


def test_the_limits_are_those_of_the_measures():
    assert f"fewer than {measures.SMALL_BATCH} samples" in TEXT
    assert (measures.SHIFT, measures.RATIO, measures.FAR, measures.NOISE) == (0.5, 2, 2, 4)
    assert (measures.SHARE, measures.EXPLODING, measures.FEW_BATCHES, measures.SATURATED) == (
        0.1,
        1e4,
        2,
        0.5,
    )
