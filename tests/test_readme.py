"""Every Python block of the README and of docs/ runs, in order; the README's are examples/quickstart.py's."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(page):
    """What the page's blocks, one after the other, have named."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    names = {"__name__": page.stem}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return len(blocks), names


@pytest.mark.flexible
def test_the_blocks_of_the_readme_run():
    number, names = run(PAGES[0])
    assert number >= 4
    assert bool(names["mask"].any())
    assert bool(names["jnp"].isfinite(names["y"][names["mask"]]).all())
    assert bool(names["jnp"].isfinite(names["stats"].mean).all())


@pytest.mark.flexible
@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_the_blocks_of_the_documentation_run(page):
    """What they claim, they assert."""
    run(page)


@pytest.mark.flexible
def test_the_corners_are_those_of_the_readme(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    from corners import table

    readme = (ROOT / "README.md").read_text()
    for name, flax, ours, right in table():
        assert ours == right != flax
        # Flax's digits differ between machines where it has lost them all.
        assert re.search(rf"\| {re.escape(name)} \| [^|]+ \| {re.escape(f'{ours} | {right} |')}", readme)
