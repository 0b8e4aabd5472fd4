"""What `import jaxnorm` brings along, and what the wheel does."""

import ast
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import jaxnorm

PACKAGE = Path(jaxnorm.__file__).parent
REPOSITORY = PACKAGE.parent

ALONE = """
import sys
import jax
before = set(sys.modules)
import jaxnorm
brought = {name.partition(".")[0] for name in set(sys.modules) - before}
assert brought - sys.stdlib_module_names <= {"jax", "jaxlib", "jaxnorm"}, brought  # jax.extend
assert jaxnorm.population.fold_scale  # imported when it is asked for
assert not {"flax", "optax"} & set(sys.modules)
jax.config.update("jax_num_cpu_devices", 3)  # raises once a backend runs, as it does for any array
assert len(jax.devices("cpu")) == 3
"""


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_brings_no_framework_and_creates_no_array():
    run("-W", "error", "-c", ALONE)


def test_public_names_are_reexported_by_name():
    module = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)


def test_packages_on_demand_are_named_for_people_and_for_type_checkers():
    packages = {f.parent.name for f in PACKAGE.glob("[a-z]*/__init__.py")}
    assert packages <= set(dir(jaxnorm)), "add it to _ON_DEMAND"
    typed = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imports = {
        alias.asname
        for node in ast.walk(typed)
        if isinstance(node, ast.ImportFrom) and node.module == "jaxnorm"
        for alias in node.names
    }
    assert imports == packages, "import it under TYPE_CHECKING"
    for name in packages:
        assert getattr(jaxnorm, name).__name__ == f"jaxnorm.{name}"
    message = "module 'jaxnorm' has no attribute 'layernorm'"
    with pytest.raises(AttributeError, match=message):
        _ = jaxnorm.layernorm


def test_the_wheel_holds_the_package_and_its_types_and_nothing_else(tmp_path):
    run("-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    info = f"jaxnorm-{jaxnorm.__version__}.dist-info"
    files = {f.relative_to(REPOSITORY).as_posix() for f in PACKAGE.rglob("*.py")}
    files |= {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        assert sorted(archive.namelist()) == sorted(files | {"jaxnorm/py.typed"})


def test_the_changelog_begins_with_this_version():
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    first = next(line for line in changes.splitlines() if line.startswith("## "))
    assert first.split()[1] == jaxnorm.__version__ == version("jaxnorm")
