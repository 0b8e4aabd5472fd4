"""What norms cost on this machine's CPU: ratios, measured in turn, to a jitted copy of x.

    pip install -e '.[bench]'
    python -m benchmarks.cpu --work "batch (32, 56, 56, 64)" --dtypes bfloat16 --plot cpu.png

Least times of a copy, which reads x once and writes it once: inference and forward 1, 1.5 (rows, which fit
into a cache: 1), step 4 (2.5).
"""

import jax

from benchmarks._peers import Work
from benchmarks._table import printed

WORK = {
    f"{w.norm} {w.shape}": w
    for w in (
        Work("batch", (32, 56, 56, 64)),
        Work("batch", (128, 16, 16, 128)),
        Work("batch", (32, 7, 7, 2048)),
        Work("batch", (4096, 512)),
        Work("layer", (4096, 768)),
        Work("layer", (64, 512, 1024)),
        Work("rms", (4096, 768)),
        Work("rms", (64, 512, 1024)),
        Work("group", (32, 28, 28, 128), 32),
        Work("instance", (16, 64, 64, 64), 64),
        Work("batch", (64, 512)),  # small arrays
        Work("layer", (64, 512)),
        Work("rms", (64, 512)),
        Work("group", (4, 8, 8, 128), 32),
        Work("instance", (4, 8, 8, 128), 128),
    )
}

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    printed(__doc__, "benchmarks.cpu", WORK)
