"""Compile for a chip that is not here: XLA needs its description, and neither a driver nor a network."""

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

CHIPS = {"h100": "H100", "v5e": "TPU v5e"}

for _name, _value in {
    "TPU_SKIP_MDS_QUERY": "1",  # libtpu asks a cloud's metadata server otherwise, and waits for it
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock: several processes may compile
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # compiling needs none of CUDA's libraries
}.items():
    os.environ.setdefault(_name, _value)


def missing(chip: str) -> str | None:
    """Why nothing can be compiled for `chip` here; None where it can."""
    needed = {"h100": ("jax_plugins", "jax_cuda12_plugin", "nvidia"), "v5e": ("libtpu",)}[chip]
    absent = [name for name in needed if find_spec(name) is None]
    return f"{CHIPS[chip]}: {', '.join(absent)} not installed; `make aot` installs it" if absent else None


def mesh(chip: str, devices: int = 1) -> Mesh:
    """A mesh of one axis, "data"."""
    return Mesh(np.array(_devices(chip, devices)), ("data",))


@cache
def _devices(chip: str, count: int) -> list[Any]:
    if chip == "cpu":
        return jax.devices("cpu")[:count]
    if chip == "h100":
        described = (Path(__file__).parent / "_h100.txtpb").read_text()
        found = topologies.get_topology_desc(
            "", platform="cuda", target_config=described, topology=f"1x1x{count}"
        )
    elif count == 1:
        found = topologies.get_topology_desc("v5e:1x1", platform="tpu", chips_per_host_bounds=(1, 1, 1))
    else:
        found = topologies.get_topology_desc(f"v5e:2x{count // 2}", platform="tpu")
    return list(found.devices)


def compiled(f: Callable[..., Any], args: Any, on: Mesh) -> jax.stages.Compiled:
    """`f(*args)` for the mesh's chips; what has no sharding of its own is replicated."""

    def placed(v: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding or NamedSharding(on, P()))

    return jax.jit(f).lower(*jax.tree.map(placed, args)).compile()
