"""What norms cost besides their arithmetic: eager calls, tracing and compiling, against Flax.

python -m benchmarks.overhead
python -m benchmarks.overhead --sizes 4 5 6 7 8 --plot scaling.png
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

import jaxnorm as jn
from benchmarks import _peers
from benchmarks._timing import interleaved, steady

LAYERS = 50
REPEATS = 5  # of what is traced and compiled
EAGER = (8, 16)
COMPILED = [
    _peers.Work("batch", (32, 56, 56, 64)),
    _peers.Work("layer", (4096, 768)),
    _peers.Work("rms", (4096, 768)),
    _peers.Work("group", (32, 28, 28, 128), 32),
    _peers.Work("instance", (16, 64, 64, 64), 64),
]


class LinenVariables(nn.Module):
    """Reads and writes what a BatchNorm does, and computes nothing."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        self.param("scale", nn.initializers.ones, x.shape[-1:])
        self.param("bias", nn.initializers.zeros, x.shape[-1:])
        for name in ("mean", "var"):
            variable = self.variable("batch_stats", name, jnp.zeros, x.shape[-1:])
            if not self.is_initializing():
                variable.value = variable.value
        return x


class NnxVariables(nnx.Module):
    """The same in nnx, by default; or reads the parameters of another norm."""

    def __init__(
        self,
        features: int,
        parameters: tuple[str, ...] = ("scale", "bias"),
        stats: tuple[str, ...] = ("mean", "var"),
    ) -> None:
        self.parameters, self.stats = parameters, stats
        for names, kind in ((parameters, nnx.Param), (stats, nnx.BatchStat)):
            for name in names:
                setattr(self, name, kind(jnp.ones(features)))

    def __call__(self, x: Array) -> Array:
        for name in self.parameters:
            _ = getattr(self, name)[...]
        for name in self.stats:
            variable = getattr(self, name)
            variable[...] = variable[...]
        return x


def eager() -> dict[str, tuple[Callable[[], Any], str | None]]:
    """Calls that are not compiled by the caller, batch norm's in training, and what each is compared with."""
    from jaxnorm import linen
    from jaxnorm import nnx as ours

    x, channels = jnp.ones(EAGER), EAGER[-1]
    stats, vector = jn.initial_stats(channels), jnp.ones(channels)

    def applied(module: nn.Module) -> Callable[[], Any]:
        variables = jax.jit(module.init)(jax.random.key(0), x)
        return lambda: module.apply(variables, x, mutable=["batch_stats"])

    def called(module: Any) -> Callable[[], Any]:
        return lambda: module(x)

    rows: dict[str, tuple[Callable[[], Any], str | None]] = {
        "jaxnorm.batch_norm": (
            lambda: jn.batch_norm(x, stats, train=True, scale=vector, bias=vector),
            "flax.linen.BatchNorm",
        ),
        "linen variables alone": (applied(LinenVariables()), None),
        "nnx variables alone": (called(NnxVariables(channels)), None),
        "nnx parameters alone": (called(NnxVariables(channels, stats=())), None),
        "nnx scale alone": (called(NnxVariables(channels, ("scale",), ())), None),
    }
    for library, module in ("jaxnorm", linen), ("flax", nn):
        batch = module.BatchNorm(use_running_average=False)
        rows[f"{library}.linen.BatchNorm"] = applied(batch), "linen variables alone"
    for library, module in ("jaxnorm", ours), ("flax", nnx):
        for name, alone, options in (
            ("BatchNorm", "nnx variables alone", {}),
            ("LayerNorm", "nnx parameters alone", {}),
            ("RMSNorm", "nnx scale alone", {}),
            ("GroupNorm", "nnx parameters alone", {"num_groups": 4}),
            ("InstanceNorm", "nnx parameters alone", {}),
        ):
            layer = getattr(module, name)(channels, rngs=nnx.Rngs(0), **options)
            rows[f"{library}.nnx.{name}"] = called(layer), alone
    return rows


def network(library: str) -> tuple[Callable[..., Any], Any]:
    """The gradient of a network of dense layers and batch norms, and its arguments."""
    peer = _peers.JAX[library](_peers.Work("batch", (64, 128)), jnp.float32)
    kernel = jax.ShapeDtypeStruct((128, 128), jnp.float32)

    def loss(params: Any, state: Any, x: Array) -> tuple[Array, Any]:
        states = []
        for (kernel, own), old in zip(params, state, strict=True):
            x, new = peer.apply(own, old, x @ kernel, True)
            states.append(new)
            x = jax.nn.relu(x)
        return jnp.sum(x), states

    args = (
        [(kernel, peer.params)] * LAYERS,
        [peer.state] * LAYERS,
        jax.ShapeDtypeStruct((64, 128), jnp.float32),
    )
    return jax.value_and_grad(loss, has_aux=True), args


def step(library: str, w: _peers.Work, dtype: str) -> tuple[Callable[..., Any], Any]:
    """The step of one norm, and its arguments."""
    peer = _peers.JAX[library](w, jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct(w.shape, jnp.dtype(dtype))

    def run(params: Any, state: Any, x: Array, dy: Array) -> Any:
        y, pull, new = jax.vjp(lambda x, p: peer.apply(p, state, x, True), x, params, has_aux=True)
        return y, pull(dy.astype(y.dtype)), new

    return run, (peer.params, peer.state, x, x)


STAGES = ("traced", "lowered", "compiled", "in all")


def prepared(programs: dict[str, tuple[Callable[..., Any], Any]]) -> dict[str, list[float]]:
    """The least seconds of processor time that each of the stages takes, in turn."""
    found: dict[str, list[list[float]]] = {name: [] for name in programs}
    for _ in range(REPEATS):
        for name, (function, args) in programs.items():
            jax.clear_caches()
            moments = [time.process_time()]
            traced = jax.jit(lambda *a, function=function: function(*a)).trace(*args)
            moments.append(time.process_time())
            lowered = traced.lower()
            moments.append(time.process_time())
            lowered.compile()
            moments.append(time.process_time())
            stages = [end - start for start, end in itertools.pairwise(moments)]
            found[name].append([*stages, moments[-1] - moments[0]])
    return {name: [min(times) for times in zip(*rows, strict=True)] for name, rows in found.items()}


def scaling(exponents: list[int], path: Path | None) -> None:
    """Time per element of a step, by the size of x."""
    libraries = ("jaxnorm", "flax linen")
    rows: dict[str, list[float]] = {name: [] for name in libraries}
    for exponent in exponents:
        shape = (10**exponent // 100, 100)
        calls = {}
        for name in libraries:
            function, (params, state, *_) = step(name, _peers.Work("batch", shape), "float32")
            args = params, state, jnp.ones(shape), jnp.ones(shape)
            compiled = jax.jit(function).lower(*args).compile()
            calls[name] = lambda compiled=compiled, args=args: compiled(*args)
        times = interleaved(calls, 7)
        for name in libraries:
            rows[name].append(times[name] / 10**exponent * 1e9)
        print(
            f"10^{exponent} elements: "
            + ", ".join(f"{n} {t[-1]:.2f} ns an element" for n, t in rows.items()),
            flush=True,
        )
    if path:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
        for name, values in rows.items():
            axes.loglog([10**e for e in exponents], values, marker="o", label=name)
        axes.set(xlabel="elements of x", ylabel="ns an element", title="Batch norm, a step in float32")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", nargs="+", type=int, help="only time a step at these powers of ten of elements"
    )
    parser.add_argument("--plot", type=Path, help="a PNG of these times")
    options = parser.parse_args()
    steady("benchmarks.overhead")
    if options.sizes:
        scaling(options.sizes, options.plot)
        return
    rows = eager()
    calls = {name: call for name, (call, _) in rows.items()}
    waited, busy = interleaved(calls, 15), interleaved(calls, 15, time.thread_time)
    for name, (_, other) in rows.items():
        ratios = [f", {t[name] / t[other]:.2f} x {other}" if other else "" for t in (waited, busy)]
        print(
            f"eager {name}: {waited[name] * 1e6:.0f} us{ratios[0]}; "
            f"of the calling thread {busy[name] * 1e6:.0f} us{ratios[1]}",
            flush=True,
        )
    for title, programs in {
        f"{LAYERS} batch norms": {name: network(name) for name in ("jaxnorm", "flax linen")},
        **{
            f"{w.norm} {dtype}": {name: step(name, w, dtype) for name in ("jaxnorm", "flax linen")}
            for w in COMPILED
            for dtype in ("float32", "bfloat16")
        },
    }.items():
        times = prepared(programs)
        ours, theirs = times["jaxnorm"], times["flax linen"]
        stages = (
            f"{stage} {one * 1e3:.0f} ms, {one / other:.2f} x Flax"
            for stage, one, other in zip(STAGES, ours, theirs, strict=True)
        )
        print(f"{title}: {'; '.join(stages)}", flush=True)


if __name__ == "__main__":
    main()
