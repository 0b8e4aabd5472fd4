"""What norms cost on a GPU: ratios, measured in turn, to a jitted copy of x; and what they cost in a network.

    python -m benchmarks.gpu --out gpu.json
    python -m benchmarks.gpu --work  # the network alone

The arrays are larger than the cache. Least times of a copy, which reads x once and writes it once: inference
1, forward 1.5 (rows, which fit on the chip: 1), step 3.5 (2.5).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import _programs
from benchmarks._peers import Work
from benchmarks._table import copied, printed
from benchmarks._timing import interleaved, steady

WORK = {
    f"{w.norm} {w.shape}": w
    for w in (
        Work("batch", (256, 56, 56, 64)),
        Work("batch", (512, 14, 14, 512)),
        Work("layer", (65536, 1024)),
        Work("layer", (16384, 4096)),
        Work("rms", (65536, 1024)),
        Work("rms", (16384, 4096)),
        Work("group", (256, 56, 56, 64), 32),
        Work("instance", (256, 56, 56, 64), 64),
    )
}
PEERS = ("jaxnorm", "jnp", "flax linen", "torch", "torch channels last")
BLOCKS = 4


def bandwidth() -> float:
    """Bytes a second that a copy of a gigabyte reads and writes."""
    x = jnp.ones(2**28, jnp.float32)
    copy = jax.jit(copied)
    return 2 * x.nbytes / interleaved({"copy": lambda: copy(x)}, 9)["copy"]


def blocks(dtype: str) -> dict[str, float]:
    """Milliseconds of the gradient of a block of convolution, batch norm and relu, and without the norm."""
    calls: dict[str, Callable[[], Any]] = {}
    for library in ("jaxnorm", "flax", "no norm"):
        case = _programs.case("jaxnorm" if library == "no norm" else library, "batch", "h100", dtype)
        if library == "no norm":
            case = case._replace(norm=lambda x, *_: (x, None))
        function, shapes = _programs.network(case, BLOCKS, scanned=False)
        draw = partial(jax.random.normal, jax.random.key(0))
        args = jax.tree.map(lambda s, draw=draw: draw(s.shape, s.dtype) / 24, shapes)  # 24^2: 3 * 3 * 64
        calls[library] = partial(jax.jit(function).lower(*args).compile(), *args)
    return {name: t / BLOCKS * 1e3 for name, t in interleaved(calls, 15).items()}


def main() -> None:
    if jax.default_backend() != "gpu":
        raise SystemExit(f"benchmarks.gpu: JAX finds no GPU, but {jax.default_backend()}; see benchmarks.cpu")
    steady("benchmarks.gpu")
    print(f"{jax.devices()[0].device_kind}, a copy moves {bandwidth() / 1e12:.2f} TB/s")
    for dtype in ("float32", "bfloat16"):
        found = blocks(dtype)
        print(f"block {dtype}: " + ", ".join(f"{name} {t:.3f} ms" for name, t in found.items()), flush=True)
    printed(__doc__, "benchmarks.gpu", WORK, PEERS)


if __name__ == "__main__":
    main()
