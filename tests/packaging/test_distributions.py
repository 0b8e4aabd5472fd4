"""Wheel and sdist: built twice alike, installed alone, and checked by others' type checkers."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from public import PACKAGES, public

import jaxnorm

REPOSITORY = Path(jaxnorm.__file__).parents[1]
PROGRAM = Path(__file__).with_name("uses_everything.py")
MODULES = (jaxnorm, jaxnorm.linen, jaxnorm.nnx, *PACKAGES)
EVERY_NAME = {f"{module.__name__}.{name}" for module in MODULES for name in public(module)}

# What is at the top of the sdist. A new file or folder belongs here, or into pyproject.toml's `exclude`.
SDIST = {
    *("benchmarks", "docs", "examples", "jaxnorm", "tests"),
    *(".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO", "README.md"),
    *("SECURITY.md", "conftest.py", "pyproject.toml"),
}

# pyright asks the network whether it is the newest, otherwise.
QUIET = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}


def run(*command, cwd, code=0, **environment):
    """What a command that ends with `code` prints. It sees this repository only if it runs there."""
    clean = {name: v for name, v in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def build(tree, folder, epoch="1700000000"):
    """The wheel and the sdist of the project in `tree`, as bytes by name."""
    command = (sys.executable, "-m", "hatchling", "build", "--directory", str(folder))
    run(*command, cwd=tree, SOURCE_DATE_EPOCH=epoch)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def dotted_names(source):
    """All `a.b.c` in a program."""
    attributes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return {ast.unparse(node) for node in attributes}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The folder with the wheel and the sdist, built once."""
    folder = tmp_path_factory.mktemp("distributions")
    build(REPOSITORY, folder)
    return folder


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """The Python of an environment where the wheel was installed, and what it needs."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    (wheel,) = distributions.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel), cwd=folder)
    return python


@pytest.fixture
def program(tmp_path):
    """The program in a folder of its own, where no file of this repository is found."""
    copy = tmp_path / PROGRAM.name
    copy.write_bytes(PROGRAM.read_bytes())
    return copy


def test_the_program_uses_every_public_name():
    unused = EVERY_NAME - dotted_names(PROGRAM.read_text(encoding="utf-8"))
    assert not unused, f"use them in {PROGRAM.name}"


@pytest.mark.slow
def test_two_builds_are_equal_and_so_is_one_of_the_sdist(distributions, tmp_path):
    """Bitwise, at another place, and with other times of the files."""
    first = {path.name: path.read_bytes() for path in distributions.iterdir()}
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert {member.mtime for member in archive} == {1700000000}
        archive.extractall(tmp_path, filter="data")
    tree = tmp_path / sdist.name.removesuffix(".tar.gz")
    (tree / "PKG-INFO").unlink()  # is written again
    for path in tree.rglob("*.py"):
        os.utime(path, (1, 1))
    assert build(tree, tmp_path / "second") == first
    # The date is in it: two builds were not equal for want of a date.
    assert build(tree, tmp_path / "later", epoch="1800000000") != first


@pytest.mark.slow
def test_the_sdist_holds_what_it_should(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [Path(*Path(member.name).parts[1:]) for member in archive]
    assert {name.parts[0] for name in names} == SDIST
    assert not [name for name in names if name.suffix in (".pyc", ".whl", ".npz") or "dist" in name.parts]


@pytest.mark.slow
def test_the_wheel_says_what_it_needs(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    needed = [
        line.split()[1] for line in text.splitlines() if line.startswith("Requires-Dist") and ";" not in line
    ]
    assert [name.partition(">=")[0] for name in needed] == ["flax", "jax", "jaxlib", "optax"]
    assert all(">=" in name for name in needed)
    for line in (
        f"Version: {jaxnorm.__version__}",
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
    ):
        assert line in text.splitlines()


@pytest.mark.slow
def test_it_is_installed_alone_and_every_name_works(installed, program):
    assert "No broken requirements found" in run(installed, "-m", "pip", "check", cwd=program.parent)
    where = run(installed, "-c", "import jaxnorm; print(jaxnorm.__file__)", cwd=program.parent)
    assert Path(where.strip()).is_relative_to(Path(installed).parents[1])
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    printed = run(installed, "-W", "error", program.name, cwd=program.parent, **quick)
    assert printed.endswith(f"jaxnorm {jaxnorm.__version__}: every public name was used\n")


@pytest.fixture(scope="module")
def checkers(installed, tmp_path_factory):
    """By name, the command that checks a program against the installed package."""
    cache = str(tmp_path_factory.mktemp("mypy"))
    mypy = ("--strict", "--config-file=", "--cache-dir", cache, "--python-executable", installed)
    return {
        "mypy": (sys.executable, "-m", "mypy", *mypy),
        "pyright": (sys.executable, "-m", "pyright", "--pythonpath", installed),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checker", "end"),
    [
        ("mypy", "Success: no issues found in 1 source file\n"),
        ("pyright", "0 errors, 0 warnings, 0 informations\n"),
    ],
)
def test_a_checker_accepts_the_program(checker, end, checkers, program):
    printed = run(*checkers[checker], program.name, cwd=program.parent, **QUIET)
    assert printed.endswith(end), printed


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_checker_refuses_a_wrong_program(checker, checkers, tmp_path):
    """Neither jaxnorm nor one of its packages is `Any` to it, and none accepts a misspelled name."""
    lines = [f"{module.__name__}.no_such_name" for module in MODULES]
    lines += ["text: str = jaxnorm.layer_norm(1.0)", "jaxnorm.nnx.BatchNorm(8)"]
    wrong = tmp_path / "wrong.py"
    wrong.write_text("\n".join(["import jaxnorm", *lines]))
    printed = run(*checkers[checker], wrong.name, cwd=tmp_path, code=1, **QUIET)
    found = {int(number) for number in re.findall(r"wrong\.py:(\d+):.*error: ", printed)}
    assert found == set(range(2, len(lines) + 2)), printed
