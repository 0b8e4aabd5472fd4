"""Ratios of times on a shared machine: every contender in turn, many times over, in one process.

An accelerator has its calls in a queue, and is waited for once a sample: what is timed is it, not its driver.
"""

import gc
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

# glibc keeps freed memory: otherwise a sample pays for pages, depending on what its neighbour freed. And
# OpenMP's threads, which are torch's, sleep when they have nothing to do.
STEADY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
SAMPLE, QUEUED = 0.003, 0.02  # seconds, at least
GAP = 0.0015  # seconds, after which another framework's threads sleep


def steady(module: str) -> None:
    """Start the module again in an environment that allocates steadily."""
    if not STEADY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **STEADY})


def interleaved(
    calls: Mapping[str, Callable[[], Any]], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The median of the seconds that each call takes, by a clock."""
    repeats, samples = {}, {name: list[float]() for name in calls}
    for name, call in calls.items():
        for _ in range(2):
            wait(call())
        sample = SAMPLE if jax.default_backend() == "cpu" else QUEUED
        repeats[name] = max(1, min(200, int(sample / _seconds(call, 1, clock))))
    order, shuffle = list(calls), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for _ in range(repetitions):
            shuffle(order)  # a rotation would leave everyone the same neighbour
            for name in order:
                time.sleep(GAP)
                wait(calls[name]())  # its own caches and threads
                samples[name].append(_seconds(calls[name], repeats[name], clock))
    finally:
        gc.enable()
    return {name: statistics.median(found) for name, found in samples.items()}


def wait(result: Any) -> None:
    """Until a result of JAX, or of torch, is there."""
    jax.block_until_ready(result)
    if "torch" in sys.modules and jax.default_backend() == "gpu":
        sys.modules["torch"].cuda.synchronize()


def _seconds(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    result, each = None, jax.default_backend() == "cpu"
    start = clock()
    for _ in range(repeats):
        result = call()
        if each:
            jax.block_until_ready(result)
    wait(result)
    return (clock() - start) / repeats
