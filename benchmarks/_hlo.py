"""The bytes that a compiled program moves, read from its HLO text.

Every instruction of the entry computation that is not merely a name for a value is executed: it reads its
operands from main memory and writes its results there. A fusion reads of an operand only what it slices.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

ITEMSIZE = {
    **dict.fromkeys(("pred", "s8", "u8"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
# They name values, or wait for them.
FREE = {
    *("parameter", "constant", "iota", "bitcast", "tuple", "get-tuple-element", "after-all"),
    *("opt-barrier", "add-dependency", "partition-id", "replica-id", "async-update"),
}
SLICES = ("slice", "dynamic-slice")
COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)

_COMPUTATION = re.compile(r"(ENTRY )?%([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)")
_BUFFER = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*):?([^}]*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Buffer(NamedTuple):
    """An array in memory."""

    dtype: str
    size: int
    tiled: int  # bytes, with the padding of a TPU's tiles
    on_chip: bool  # in a memory of the TPU that is not its main memory

    @property
    def nbytes(self) -> int:
        """What it takes in main memory."""
        return 0 if self.on_chip else self.tiled


class Instruction(NamedTuple):
    """One line of HLO."""

    op: str
    results: list[Buffer]
    operands: list[str]
    arguments: str
    attributes: str


class Step(NamedTuple):
    """One executed instruction."""

    op: str
    reads: int  # bytes
    writes: list[Buffer]
    payload: int  # bytes of the operands, wherever they are: what a collective sends
    times: int


class Cost(NamedTuple):
    """What a program moves."""

    nbytes: int  # read and written
    large: list[str]  # dtypes of the arrays it writes that are not small
    at_once: int  # how many of these one kernel writes, at most
    collectives: list[tuple[str, int]]  # their names and bytes


Computation = dict[str, Instruction]


def cost(text: str, large: int) -> Cost:
    """The cost of a program, where arrays of `large` elements or more are not small."""
    steps = list(_steps(text))
    written = [(s.times, [b.dtype for b in s.writes if b.size >= large and b.nbytes]) for s in steps]
    return Cost(
        sum(s.times * (s.reads + sum(b.nbytes for b in s.writes)) for s in steps),
        [dtype for times, dtypes in written for _ in range(times) for dtype in dtypes],
        max((len(dtypes) for _, dtypes in written), default=0),
        [
            (kind, s.payload)
            for s in steps
            for _ in range(s.times)
            if (kind := s.op.removesuffix("-start")) in COLLECTIVES
        ],
    )


def _steps(text: str) -> Iterator[Step]:
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            computations[name] = {}
            entry = name if found[1] else entry
        elif found := _INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line)):
            computations[name][found[1]] = Instruction(
                found[3], _buffers(found[2]), re.findall(r"%([\w.-]+)", found[4]), found[4], found[5]
            )
    yield from _executed(computations, entry, 1)


def _integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _buffers(text: str) -> list[Buffer]:
    out = []
    for dtype, dims, order, layout in _BUFFER.findall(text):
        shape = _integers(dims)
        physical = [shape[a] for a in reversed(_integers(order))] if order else list(shape)
        if tile := _TILE.search(layout):
            for k, n in enumerate(reversed(_integers(tile[1])), 1):
                if k <= len(physical):
                    physical[-k] = -(-physical[-k] // n) * n
        tiled = math.prod(physical) * ITEMSIZE.get(dtype, 0)
        out.append(Buffer(dtype, math.prod(shape), tiled, bool(_ON_CHIP.search(layout))))
    return out


def _executed(computations: dict[str, Computation], name: str, times: int) -> Iterator[Step]:
    computation = computations[name]
    for i in computation.values():
        if i.op in FREE or i.op.endswith("-done"):
            continue
        called = [c for group in _CALLED.findall(i.attributes) for c in re.findall(r"%([\w.-]+)", group)]
        asynchronous = i.op.endswith("-start") and "calls=" in i.attributes
        if i.op in ("call", "while", "conditional") or asynchronous:
            if i.op == "conditional":  # the usual branch is that which does less
                branches = (list(_executed(computations, c, times)) for c in called)
                yield from min(branches, key=lambda steps: sum(s.reads for s in steps))
                continue
            trips = _TRIPS.search(i.attributes)
            for c in called:
                yield from _executed(computations, c, times * (int(trips[1]) if trips else 1))
            continue
        operands = [sum(b.nbytes for b in computation[o].results) for o in i.operands]
        reads = operands
        if i.op == "fusion":
            used = _used(computations[called[0]])
            reads = [min(n, used[k]) for k, n in enumerate(operands)]
        elif i.op in SLICES:
            reads = [min(operands[0], i.results[0].tiled)]
        elif i.op == "slice-start":
            reads = [min(operands[0], i.results[1].tiled)]
        # these give a tuple of the copy, the original and a token, the second one in another order
        result = {"copy-start": 0, "slice-start": 1}.get(i.op)
        writes = i.results if result is None else [i.results[result]]
        sent = sum(b.size * ITEMSIZE.get(b.dtype, 0) for o in i.operands for b in computation[o].results)
        yield Step(i.op, sum(reads), writes, sent, times)


def _used(fusion: Computation) -> dict[int, int]:
    """The bytes of each parameter that a fusion reads."""

    def read(name: str) -> int:
        total, whole = 0, fusion[name].results[0].tiled
        for v, user in fusion.items():
            if name not in user.operands:
                continue
            if user.op == "bitcast":
                total += read(v)
            elif user.op in SLICES and user.operands[0] == name:
                total += min(user.results[0].tiled, read(v))
            else:
                return whole
        return min(total, whole)

    return {int(i.arguments): read(name) for name, i in fusion.items() if i.op == "parameter"}
