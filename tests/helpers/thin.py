"""What `make test` leaves out of a table: `make test-all` takes every row."""

import pytest


def slow_but(rows, *names):
    """The rows, all but those of these names marked as slow."""
    assert set(names) <= {row.name for row in rows}
    return [row if row.name in names else pytest.param(row, marks=pytest.mark.slow) for row in rows]
