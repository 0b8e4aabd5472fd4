"""benchmarks.size counts code and comments, and nothing else."""

from benchmarks.size import PACKAGE, Size, main, size

SOURCE = '''"""A docstring
of two lines."""

# A comment of
# two lines.


class A:
    """Another."""

    text = """not a
    docstring"""  # a comment behind code


def f(
    x,
):
    """One more."""
    return x
'''


def test_docstrings_comments_and_blank_lines_are_no_code():
    assert size(SOURCE) == Size(code=7, comments=3)
    assert size("") == Size(0, 0)


def test_the_parts_add_up(capsys):
    main()
    _, *rows, whole = (line.split() for line in capsys.readouterr().out.splitlines())
    assert {row[0] for row in rows} >= {"__init__.py", "linen", "nnx"}
    assert sum(int(row[1]) for row in rows) == int(whole[2])
    assert all((PACKAGE / row[0]).exists() for row in rows)
