"""Norms of several libraries, timed in turn on this machine's device: a table of ratios to a copy of x.

inference: y by stored statistics. forward: y and the new statistics. step: these, and the gradients of x,
scale and bias. `memory`: the temporary bytes of the compiled step, times those of x; it is exact.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks._peers import JAX, MODES, PEERS, Work
from benchmarks._timing import interleaved, steady

PACKAGES = {"haiku": "haiku", "equinox": "equinox", "torch": "torch", "torch channels last": "torch"}
Row = dict[str, float]


def copied(x: Array) -> Array:
    """What everything is measured by: as little as a pass over x can do."""
    return (x.astype(jnp.float32) * 1.5 + 0.5).astype(x.dtype)


def drawn(w: Work, dtype: str, seed: int) -> Array:
    return jax.random.normal(jax.random.key(seed), w.shape, jnp.dtype(dtype))


def programs(name: str, w: Work, dtype: str) -> tuple[dict[str, Callable[[], Any]], float]:
    """The compiled calls of a JAX library, and the temporary memory of its step."""
    peer = JAX[name](w, jnp.dtype(dtype))
    x, dy = (drawn(w, dtype, seed) for seed in range(2))
    if peer.channels_first:
        x, dy = (jnp.moveaxis(v, -1, 1).copy() for v in (x, dy))

    def step(params: Any, state: Any, x: Array, dy: Array) -> Any:
        y, pull, new = jax.vjp(lambda x, p: peer.apply(p, state, x, True), x, params, has_aux=True)
        return y, pull(dy.astype(y.dtype)), new

    functions: dict[str, tuple[Callable[..., Any], tuple[Array, ...]]] = {
        "inference": (lambda p, s, x: peer.apply(p, s, x, False)[0], (x,)),
        "forward": (lambda p, s, x: peer.apply(p, s, x, True), (x,)),
        "step": (step, (x, dy)),
    }
    calls: dict[str, Callable[[], Any]] = {}
    memory = 0.0
    for mode, (function, arrays) in functions.items():
        args = (peer.params, peer.state, *arrays)
        compiled = jax.jit(function).lower(*args).compile()
        calls[mode] = partial(compiled, *args)
        analysis = compiled.memory_analysis()
        memory = analysis.temp_size_in_bytes / x.nbytes if analysis else float("nan")
    return calls, memory


def measure(w: Work, dtype: str, peers: list[str], repetitions: int) -> dict[str, Row]:
    """For each of the modes, and for memory, the libraries' ratios."""
    calls: dict[str, dict[str, Callable[[], Any]]] = {}
    memory: Row = {}
    for name in peers:
        if (name == "torch channels last" and len(w.shape) == 2) or (
            w.norm in ("layer", "rms") and name == PEERS[-1]
        ):
            continue  # the same as torch
        if name.startswith("torch"):
            from benchmarks import _torch

            device = "cpu" if jax.default_backend() == "cpu" else "cuda"
            calls[name] = _torch.calls(w, dtype, name.endswith("last"), device)
        else:
            calls[name], memory[name] = programs(name, w, dtype)
    x = drawn(w, dtype, 2)
    copy = jax.jit(copied)
    found: dict[str, Row] = {}
    for mode in MODES:
        times = interleaved({"copy": lambda: copy(x), **{n: c[mode] for n, c in calls.items()}}, repetitions)
        found[mode] = {n: t / times["copy"] for n, t in times.items()}
    return {**found, "memory": memory}


def plotted(results: dict[str, dict[str, Row]], path: Path) -> None:
    """Bars of the step's time, a panel for each work."""
    import matplotlib.pyplot as plt

    columns = 4
    rows = -(-len(results) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(4 * columns, 2.4 * rows), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(results) :]:
        panel.axis("off")
    for panel, (title, found) in zip(panels.flat, results.items(), strict=False):
        row = {n: t for n, t in found["step"].items() if n != "copy"}
        bars = panel.barh(
            list(row), list(row.values()), color=["C0" if "jaxnorm" in n else "0.75" for n in row]
        )
        panel.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        panel.set_title(title, fontsize=9)
        panel.invert_yaxis()
        panel.tick_params(labelsize=8)
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("A layer's step (y, gradients, statistics), times a copy of x: shorter is better")
    figure.savefig(path, dpi=120)


def printed(doc: str, module: str, works: Mapping[str, Work], peers: tuple[str, ...] = PEERS) -> None:
    """The table, as the command line asks for it."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--work", nargs="*", choices=works, default=list(works))
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(peers))
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--out", type=Path, help="a JSON file, to which the results are added")
    parser.add_argument("--plot", type=Path, help="a PNG of the steps")
    options = parser.parse_args()
    for name in options.peers:
        if name in PACKAGES and find_spec(PACKAGES[name]) is None:
            parser.error(f"{name} is not installed: pip install -e '.[bench]', or leave it out of --peers")
    steady(module)
    results: dict[str, dict[str, Row]] = {}
    if options.out and options.out.exists():
        results = json.loads(options.out.read_text())
    columns = ["work", "", *options.peers]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for name in options.work:
        for dtype in options.dtypes:
            title = f"{name} {dtype}"
            results[title] = measure(works[name], dtype, options.peers, options.repetitions)
            for mode, row in results[title].items():
                cells = (f"{row[n]:.2f}" if n in row else "" for n in options.peers)
                print(f"| {title} | {mode} | " + " | ".join(cells) + " |", flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1))
    if options.plot:
        plotted(results, options.plot)
