"""Every Python block of the README runs, in order, and is what examples/quickstart.py says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.mark.flexible
def test_the_blocks_run():
    assert len(BLOCKS) >= 4
    names = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, block {number}", "exec"), names)
    assert bool(names["mask"].any())
    assert bool(names["jnp"].isfinite(names["y"][names["mask"]]).all())
    assert bool(names["jnp"].isfinite(names["stats"].mean).all())


@pytest.mark.flexible
def test_the_corners_are_those_of_the_readme(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    from corners import table

    readme = (ROOT / "README.md").read_text()
    for name, flax, ours, right in table():
        assert ours == right != flax
        # Flax's digits differ between machines where it has lost them all.
        assert re.search(rf"\| {re.escape(name)} \| [^|]+ \| {re.escape(f'{ours} | {right} |')}", readme)
