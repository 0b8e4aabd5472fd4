"""What norms cost on an H100 and on a TPU v5e, compiled for them with no chip at hand; nothing is timed.

    make aot
    .venv-aot/bin/python -m benchmarks.passes --chips h100 v5e --dtypes bfloat16 float32 --norms batch layer

A pass is the bytes that a program reads and writes in main memory, over the bytes of one activation; on a
TPU whole tiles. Least, where a sample does not fit on the chip: 3 forward, 5 backward, 7 in one jit.
`kept`: arrays of the activation's size that forward leaves for backward; x is x itself. `float32`: such
arrays that are written in float32 though x is not. `temp`: the most that any of the programs allocates.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks import _aot, _programs
from benchmarks._hlo import cost
from benchmarks._programs import Case, Program

DEVICES = 8
LAYERS = 16  # of the scan
SMALL = 16  # the scan's fraction of x, so that all its layers fit on a chip
HEADER = (
    *("norm", "chip", "dtype", "library", "forward", "forward, kept", "backward", "one jit"),
    *("kept", "float32", "temp", f"collectives on {DEVICES}: forward, then in all"),
)


class Measured(NamedTuple):
    """One compiled program."""

    passes: float
    float32: int  # activations that are written in float32
    at_once: int  # activations that one kernel writes
    temp: int  # bytes
    collectives: list[tuple[str, int]]  # their names and bytes

    def counted(self) -> str:
        """The collectives by name, with the bytes that each device sends."""
        names = Counter(name for name, _ in self.collectives)
        listed = ", ".join(f"{n} {name}" for name, n in names.items())
        return f"{listed or 'none'} ({sum(size for _, size in self.collectives)} B)"


def measure(c: Case, program: Program, chip: str, devices: int = 1) -> Measured:
    """The cost of a program around the norm of `c`."""
    executable = _aot.compiled(*program, _aot.mesh(chip, devices))
    text, memory = executable.as_text(), executable.memory_analysis()
    assert text is not None and memory is not None  # every compiler here gives both
    found = cost(text, large=9 * c.x.size // devices // 10)
    return Measured(
        found.nbytes / c.nbytes * devices,
        found.large.count("f32"),
        found.at_once,
        memory.temp_size_in_bytes,
        found.collectives,
    )


def rows(library: str, name: str, chip: str, dtype: str) -> Iterator[tuple[str, ...]]:
    """The table's rows for one norm; batch norm's with its surroundings."""
    c = _programs.case(library, name, chip, dtype)
    columns = [measure(c, p, chip) for p in _programs.programs(c).values()]
    yield (
        name,
        *(f"{m.passes:.2f}" for m in columns),
        ", ".join(_programs.residuals(c)),
        "" if dtype == "float32" else str(max(m.float32 for m in columns)),
        f"{max(m.temp for m in columns) / 1e6:.1f} MB",
        "",
    )
    if not name.startswith("batch"):
        return
    yield "conv, batch, relu", "", "", "", f"{passes_a_block(c, chip):.2f}", "", "", "", ""
    small = _programs.case(library, name, chip, dtype, fraction=SMALL)
    yield f"the same, scan of {LAYERS}", *[""] * 6, f"{temp_a_layer(small, chip):.2f} x a layer", ""
    for way, pair in _programs.on_devices(library, c, _aot.mesh(chip, DEVICES)).items():
        forward, both = (measure(c, p, chip, DEVICES) for p in pair)
        sent = f"{forward.counted()}, then {both.counted()}"
        yield f"batch, {way}", *[""] * 6, f"{both.temp / 1e6:.1f} MB", sent


def passes_a_block(c: Case, chip: str) -> float:
    """What one more block of convolution -> norm -> relu costs a network, forward and backward."""
    two, three = (measure(c, _programs.network(c, n, scanned=False), chip).passes for n in (2, 3))
    return three - two


def temp_a_layer(c: Case, chip: str) -> float:
    """What a network of such blocks in a `lax.scan` allocates, in activations a block."""
    return measure(c, _programs.network(c, LAYERS, scanned=True), chip).temp / c.nbytes / LAYERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="+", choices=_aot.CHIPS, default=list(_aot.CHIPS))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--norms", nargs="+", choices=_programs.NORMS, default=list(_programs.NORMS))
    options = parser.parse_args()
    for chip in options.chips:
        if reason := _aot.missing(chip):
            parser.error(reason)
    table = [HEADER]
    for name in options.norms:
        for chip in options.chips:
            for dtype in options.dtypes:
                for library in ("jaxnorm",) if name.endswith("pivot") else ("jaxnorm", "flax"):
                    for what, *cells in rows(library, name, chip, dtype):
                        table.append((what, chip, dtype, library, *cells))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
