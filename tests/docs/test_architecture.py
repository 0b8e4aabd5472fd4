"""The house of jaxnorm: its floors, signatures and documented names; its layers compute nothing."""

import ast
import inspect
import re
import sys
import tokenize
from pathlib import Path

import flax.linen
import jax.numpy as jnp
import pytest
from public import AFTER_TRAINING, DOCUMENTED, FUNCTIONS, LAYERS

import jaxnorm

ROOT = Path(jaxnorm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LAYER_FILES = [path for path in FILES if path.relative_to(ROOT).parts[0] in ("linen", "nnx")]

# A folder imports lower floors only.
FLOORS = [
    {"_base"},
    {"_xla"},
    {"_core"},
    {"_norms"},
    {"population"},
    {"_layers", "convert", "monitor"},
    {"__init__"},
    {"linen", "nnx"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """The dotted names that a file imports, each as deep as its text tells."""
    package = ("jaxnorm", *path.relative_to(ROOT).parts[:-1])
    module = tree(path)
    checked = [
        n for n in ast.walk(module) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    ]
    never_run = {id(inner) for node in checked for inner in ast.walk(node)}
    for node in ast.walk(module):
        if id(node) in never_run:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*parents, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def place(path):
    """Which of the house's names a file belongs to, and its own dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts
    return parts[0], ".".join(name)


def neighbours(path):
    """The files of jaxnorm that a file imports: `_moments`, or `_batch.ghost` in a folder."""
    known = {place(file)[1] for file in FILES}
    for name in imports(path):
        root, *rest = name.split(".")
        if root == "jaxnorm":
            found = [".".join(rest[:n]) for n in range(len(rest), 0, -1)]
            yield next((f for f in found if f in known), "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_imports_lower_floors_only(path):
    home, name = place(path)
    for other in neighbours(path):
        folder = other.split(".")[0]
        assert folder == home or FLOOR[folder] < FLOOR[home], (
            f"{name} imports {other}, which is not on a lower floor. "
            f"The floors are {' < '.join('|'.join(sorted(f)) for f in FLOORS)}: "
            "move what both need to the lower of the two folders, or hand it in as an argument."
        )


def test_every_folder_has_a_floor_and_a_map():
    """The first lines of a folder's `__init__` name each of its files."""
    folders = {path.relative_to(ROOT).parts[0] for path in FILES if path.parent != ROOT}
    assert folders <= FLOOR.keys(), "add the folder to FLOORS, and to docs/architecture.md"
    for folder in folders - {"linen", "nnx"}:
        listed = (ROOT / folder / "__init__.py").read_text(encoding="utf-8")
        for path in (ROOT / folder).glob("*.py"):
            line = rf"^{path.stem}\b"
            assert path.stem == "__init__" or re.search(line, listed, re.M), (
                f"name {path.stem} in {folder}'s map"
            )


def test_no_import_cycle():
    graph = {place(path)[1]: set(neighbours(path)) for path in FILES}
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"a cycle among {sorted(graph)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_top_floor_knows_a_framework(path):
    foreign = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
    allowed = {"jax", "numpy", "jaxnorm"}
    assert foreign <= allowed or place(path)[0] in ("linen", "nnx", "convert", "monitor")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420


# One as in jnp.sum; the other is left out only where group_size stands for it.
POSITIONAL_DEFAULTS = {("combine", "axis"), ("group_norm", "num_groups")}


@pytest.mark.parametrize("name", FUNCTIONS | AFTER_TRAINING)
def test_what_has_a_default_is_keyword_only(name):
    for p in inspect.signature((FUNCTIONS | AFTER_TRAINING)[name]).parameters.values():
        keyword_only = p.kind is inspect.Parameter.KEYWORD_ONLY
        assert p.default is p.empty or keyword_only or (name, p.name) in POSITIONAL_DEFAULTS


def test_what_comes_first_is_positional():
    for name, function in (FUNCTIONS | AFTER_TRAINING).items():
        first = next(iter(inspect.signature(function).parameters.values()))
        assert first.kind is first.POSITIONAL_OR_KEYWORD and first.default is first.empty, name


@pytest.mark.parametrize("path", LAYER_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_layer_file_computes_nothing(path):
    module = tree(path)
    annotations = [
        part
        for node in ast.walk(module)
        for name in ("annotation", "returns")
        if (part := getattr(node, name, None)) is not None
    ]
    types = {id(inner) for part in annotations for inner in ast.walk(part)}
    for node in ast.walk(module):
        arithmetic = isinstance(node, ast.BinOp | ast.AugAssign) and id(node) not in types
        assert not arithmetic, f"line {node.lineno}: {ast.unparse(node)}"
        named = getattr(node, "attr", getattr(node, "id", getattr(node, "name", None)))
        assert named != "lax", f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "jnp" or is_a_type(node.attr), f"line {node.lineno}: {node.attr}"


def is_a_type(name):
    """A dtype, or a question about dtypes: all that a layer may want of jax.numpy."""
    value = getattr(jnp, name)
    return name in ("dtype", "issubdtype", "result_type") or isinstance(value, type | type(jnp.float32))


# Flax's names for the functions' options. num_groups is left out: 32 is Flax's own choice.
RENAMED = {"momentum": "decay", "mask": "where", "reduction_axes": "axis", "feature_axes": "feature_axis"}
OPTIONS = {
    "BatchNorm": {"epsilon", "decay", "where", "axis_name", "axis_index_groups", "dtype", "unbiased"},
    "LayerNorm": {"epsilon", "where", "axis", "axis_name", "dtype"},
    "RMSNorm": {"epsilon", "where", "axis", "axis_name", "dtype"},
    "GroupNorm": {"epsilon", "where", "reduction_axes", "axis_name", "dtype"},
    "InstanceNorm": {"epsilon", "where", "axis_name", "dtype"},
    "SpectralNorm": {"epsilon", "n_steps", "dtype"},
    "WeightNorm": {"epsilon", "feature_axis", "dtype"},
}


# Those of the family: tests/layers/test_family_layers.py.
FLAX_S = [(module, name) for module, name in LAYERS if hasattr(flax.linen, name)]


@pytest.mark.parametrize(("module", "name"), FLAX_S, ids=lambda v: getattr(v, "__name__", v))
def test_a_default_of_a_layer_is_the_function_s(module, name):
    function = getattr(jaxnorm, re.sub(r"(?<=[a-z])N|(?<=RMS)N", "_n", name).lower())
    layer = getattr(module, name)
    ours = inspect.signature(function).parameters
    made, called = (inspect.signature(f).parameters for f in (layer.__init__, layer.__call__))
    compared = set()
    for option, parameter in (made | called).items():
        same = option if option in ours else RENAMED.get(option)
        if same in OPTIONS[name]:
            assert parameter.default == ours[same].default, option
            compared.add(same)
    assert compared == OPTIONS[name]


@pytest.mark.parametrize(("module", "name"), DOCUMENTED, ids=lambda v: getattr(v, "__name__", v))
def test_a_public_name_has_a_summary_and_an_example(module, name):
    summary, *rest = getattr(module, name).__doc__.splitlines()
    assert summary.strip() and rest[0].strip() == ""
    assert any(line.strip().startswith(">>> ") for line in rest)


def test_nothing_is_suppressed():
    silence = re.compile(r"type:\s*ignore|noqa|pylint:|pyright:|mypy:|fmt:|ruff:|pragma", re.I)
    repository = ROOT.parent
    for folder in ("jaxnorm", "examples", "tests", ".ci"):
        for path in (repository / folder).rglob("*.py"):
            with tokenize.open(path) as file:
                for token in tokenize.generate_tokens(file.readline):
                    silent = token.type == tokenize.COMMENT and silence.search(token.string)
                    assert not silent, f"{path.name}:{token.start[0]}: {token.string}"
