"""The README's table of features says what calls of the libraries say."""

from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.flexible
def test_the_table_of_features_is_that_of_the_readme():
    from benchmarks import features

    assert features.table() in README.read_text("utf-8")
