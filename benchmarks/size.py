"""Lines of code of the package, and comments beside them: `python -m benchmarks.size`.

Counted for each folder or file at the top of `jaxnorm/`, and in all:

- code: lines other than docstrings, comments and blank lines. A line of code with a comment behind it counts.
- comments: every `#`, alone on its line or behind code. Of a comment of several lines each line counts.
- per 100: comments for each 100 lines of code.
"""

import ast
import io
import tokenize
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "jaxnorm"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


class Size(NamedTuple):
    """What was counted."""

    code: int
    comments: int

    def __str__(self) -> str:
        return f"{self.code:6} {self.comments:9} {100 * self.comments / max(1, self.code):8.1f}"


def size(source: str) -> Size:
    """The size of one file, given its text."""
    documented = docstring_lines(source)
    lines: set[int] = set()
    comments = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += 1
        elif token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return Size(len(lines - documented), comments)


def docstring_lines(source: str) -> set[int]:
    """The lines of every docstring: of the module, its classes and its functions."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def total(paths: list[Path]) -> Size:
    """The size of several files together."""
    sizes = [size(path.read_text(encoding="utf-8")) for path in paths]
    return Size(sum(s.code for s in sizes), sum(s.comments for s in sizes))


def main() -> None:
    """Print the table."""
    print(f"{'':28} {'code':>6} {'comments':>9} {'per 100':>8}")
    files = sorted(PACKAGE.rglob("*.py"))
    for name in sorted({path.relative_to(PACKAGE).parts[0] for path in files}):
        print(f"{name:28} {total([p for p in files if p.relative_to(PACKAGE).parts[0] == name])}")
    print(f"{'in all':28} {total(files)}")


if __name__ == "__main__":
    main()
