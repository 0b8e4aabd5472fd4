"""Print the lowest version that pyproject.toml allows of each package it names, as pip constraints."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
# `aot` names the exact compilers of the newest jax, and `peers` one torch: they have no floors to test
groups = [project["dependencies"], *(extras[name] for name in extras if name not in ("aot", "peers"))]
for requirement in sorted({requirement for group in groups for requirement in group}):
    name, floor = re.fullmatch(r"([\w-]+)(?:\[\w+\])?[>~]=([\w.]+)", requirement).groups()
    print(f"{name}=={floor}")
