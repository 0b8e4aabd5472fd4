"""Every Python block of the README and of docs/ runs, in order, and what they say of options is true."""

import inspect
import re
from pathlib import Path

import pytest

import jaxnorm.linen

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(page):
    """What the page's blocks, one after the other, have named."""
    blocks = re.findall(
        r"^```(?:python|\{code-cell\} python)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S
    )
    names = {"__name__": page.stem}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return len(blocks), names


@pytest.mark.flexible
def test_the_blocks_of_the_readme_run():
    number, names = run(PAGES[0])
    assert number == 2
    x, stats, merged = names["x"], names["stats"], names["merged"]
    assert names["predictions"].shape == (64, 1)
    assert bool(names["jnp"].isfinite(stats.mean).all())
    assert bool(names["jnp"].allclose(merged.var, x.var(0), atol=1e-6))


def test_the_readme_is_short():
    assert len(PAGES[0].read_text("utf-8").splitlines()) < 200


@pytest.mark.slow
@pytest.mark.flexible
@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_the_blocks_of_the_documentation_run(page):
    """What they claim, they assert. What needs PyTorch is run again by tests/peers, where it is."""
    if re.search("^import torch", page.read_text(encoding="utf-8"), re.M):
        pytest.importorskip("torch")
    run(page)


@pytest.mark.slow
@pytest.mark.flexible
def test_the_corners_are_those_of_the_readme(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    from corners import table

    readme = (ROOT / "README.md").read_text()
    for name, flax, ours, right in table():
        assert ours == right != flax
        # Flax's digits differ between machines where it has lost them all.
        assert re.search(rf"\| {re.escape(name)} \| [^|]+ \| {re.escape(f'{ours} | {right} |')}", readme)


# ---------------------------------------------------------------- who takes which option

SHARED = {"where", "axis_name", "dtype", "epsilon"}
AFFINE = {"scale", "bias"}


# Functions and layers whose options the changelog names.
OPTIONS_OF = (jaxnorm.batch_norm, jaxnorm.gated_rms_norm, jaxnorm.linen.BatchNorm, jaxnorm.linen.LayerNorm)


def parameters(name):
    return set(inspect.signature(getattr(jaxnorm, name)).parameters)


def of_tables(text):
    """The functions in the first column of the tables, each with the rest of its row."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*) \|$", text, re.M)
    return {name: rest for names, rest in rows for name in re.findall(r"`(\w+)`", names)}


def options_in(text):
    return set(re.findall(r"`(\w+)=`", text))


@pytest.mark.parametrize("options", [SHARED, AFFINE], ids=["shared", "affine"])
def test_the_family_says_which_function_takes_which_option(options):
    text = (ROOT / "docs" / "family.md").read_text(encoding="utf-8")
    _, listed, tables = re.split(r"^## (?:The list|Options)$", text.split("\n## Layers")[0], flags=re.M)
    exceptions = of_tables(tables.split("And every function")[options == AFFINE])
    functions = set(of_tables(listed))
    assert len(functions) > 30 and set(exceptions) < functions
    for name in functions:
        calls_a_norm = "options" in parameters(name)
        if "its norm" in exceptions.get(name, "") or "that they call" in exceptions.get(name, ""):
            assert calls_a_norm
        elif name in exceptions:
            assert parameters(name) & options == options_in(exceptions[name]), name
        else:
            assert options <= parameters(name), name


def test_the_family_lists_every_norm():
    text = (ROOT / "docs" / "family.md").read_text(encoding="utf-8")
    norms = {name for name in vars(jaxnorm) if name.endswith("_norm")}
    assert norms <= set(of_tables(text.split("## The list")[1].split("## Options")[0]))


def test_the_changelog_names_what_there_is():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (version,) = re.findall(r"^## (\S+)", text, re.M)
    assert version == jaxnorm.__version__
    places = (jaxnorm, jaxnorm.population, jaxnorm.linen, *OPTIONS_OF)
    options = {p for f in OPTIONS_OF for p in inspect.signature(f).parameters}
    for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text):
        assert any(hasattr(place, name) for place in places) or name in options | {"shard_map"}, name
    layers = {"BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "SpectralNorm", "WeightNorm"}
    assert layers <= set(re.findall(r"`(\w+)`", text))
