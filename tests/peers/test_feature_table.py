"""The README's table of features says what calls of the libraries say."""

import subprocess
import sys
from pathlib import Path

from test_peers import borrowed

REPOSITORY = Path(__file__).parents[2]


def test_the_table_of_features_is_that_of_the_readme():
    """In a process of its own: there Keras runs on JAX, and in the tests beside this one on PyTorch."""
    for library in ("equinox", "haiku", "keras", "torch"):
        borrowed(library)
    command = [sys.executable, "-m", "benchmarks.features"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = done.stdout.strip()
    assert table.count("\n") == 14
    assert table in (REPOSITORY / "README.md").read_text("utf-8")
