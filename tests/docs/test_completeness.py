"""Every public norm has a row in the table of norms, layers, and a row in the documentation; or a reason."""

import ast
import re
from pathlib import Path

import pytest
from public import FUNCTIONS

REPOSITORY = Path(__file__).parents[2]

# What norms are made of, and states before training.
NO_NORMS = {
    *("moments", "merge", "combine", "ema", "unstandardize", "weight_lengths"),
    *("initial_stats", "initial_covariance", "initial_spectral_stats"),
}
NORMS = sorted(FUNCTIONS.keys() - NO_NORMS)

# The tables have rows of x -> y. These take other arguments, and have tests of their own.
NO_ROW = {
    "pop_art": "targets come in, a kernel and a bias go out: tests/norms/test_family_laws.py",
    "weight_norm": "a tree of weights: tests/norms/test_weights.py",
    "weight_standardize": "a tree of weights: tests/norms/test_weights.py",
    "weight_demodulate": "a kernel and a style: tests/norms/test_family_laws.py",
    "spectral_norm": "a tree of weights: tests/norms/test_weights.py",
}

# Layers are for what has parameters or a state.
NO_LAYER = {
    "adaptive_instance_norm": "without parameters and state: its style is an argument",
    "blended_batch_norm": "an evaluation of a state that another norm keeps",
    "local_response_norm": "without parameters and state",
    "pixel_norm": "without parameters and state",
    "unit_norm": "without parameters and state",
    "weight_demodulate": "inside of a convolution, which has the kernel",
    "weight_standardize": "without parameters and state: a function of the kernels",
}


def read(path):
    return (REPOSITORY / path).read_text(encoding="utf-8")


def referenced(source):
    """The names of jaxnorm's functions in the source of a table."""
    return set(re.findall(r"\bjaxnorm\.(\w+)", source))


def called(folder):
    """The names of jaxnorm's functions in the code of a folder of layers."""
    found = set()
    for path in (REPOSITORY / "jaxnorm" / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found.add(node.attr)
    return found & FUNCTIONS.keys()


def documented(source):
    """The names in the first cells of the rows of a page's tables of functions."""
    rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", source, re.M)
    return set(re.findall(r"\b([a-z]\w+)", " ".join(rows)))


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_has_a_row_in_a_table(name):
    tables = read("tests/helpers/variants.py") + read("tests/helpers/variants_family.py")
    there = name in referenced(tables)
    assert there != (name in NO_ROW), "add a row to tests/helpers/variants_family.py, or a reason to NO_ROW"
    for path in re.findall(r"tests/\S+\.py", NO_ROW.get(name, "")):
        assert re.search(rf"\b{name}\b", read(path)), f"{path} does not name it"


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_norm_has_a_layer(api, name):
    used = called(api) | called("_layers")
    assert (name in used) != (name in NO_LAYER), f"add a layer to jaxnorm/{api}, or a reason to NO_LAYER"


def test_the_lists_name_what_exists():
    assert FUNCTIONS.keys() >= NO_NORMS
    assert NO_ROW.keys() | NO_LAYER.keys() <= set(NORMS)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_function_is_documented(name):
    """In a row of a table of docs/idea.md or of docs/family.md, and with its paper or its formula."""
    assert name in documented(read("docs/idea.md")) | documented(read("docs/family.md"))


def test_the_recipe_names_files_that_exist():
    """Adding a norm touches at most eight files."""
    recipe = re.search(r"\*\*Adding a norm.*?\n\n(.*?)\n\n", read("CONTRIBUTING.md"), re.S).group(1)
    steps = re.findall(r"^\d+\. `([^`]+)`", recipe, re.M)
    assert 1 < len(steps) <= 8
    for path in re.findall(r"`((?:jaxnorm|tests|docs)/[\w/.]*)`", recipe):
        assert (REPOSITORY / path).exists(), path
