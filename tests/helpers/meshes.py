"""Several devices, wherever the tests run: accelerators, or the host's eight where these are too few."""

import math

import jax
from jax.sharding import AxisType, Mesh


def devices_of(count: int) -> list[jax.Device]:
    return (jax.devices() if len(jax.devices()) >= count else jax.devices("cpu"))[:count]


def mesh_of(sizes: tuple[int, ...], names: tuple[str, ...], kind: AxisType = AxisType.Auto) -> Mesh:
    types = (kind,) * len(sizes)
    return jax.make_mesh(sizes, names, axis_types=types, devices=devices_of(math.prod(sizes)))
