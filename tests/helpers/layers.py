"""The table of layers, and one face for all of them: linen and nnx, Flax's and ours.

A `Layer` holds no arrays: `init` gives variables as linen has them, `{"params": ..., "batch_stats": ...}`,
and a call takes and returns them, for nnx too.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp

import jaxnorm.linen
import jaxnorm.nnx

OURS = {"linen": jaxnorm.linen, "nnx": jaxnorm.nnx}
FLAX = {"linen": flax.linen, "nnx": flax.nnx}


class Case(NamedTuple):
    name: str  # of the class
    shape: tuple[int, ...]  # of x
    features: int  # nnx's num_features
    options: Mapping[str, Any] = MappingProxyType({})
    flax: str = "linen nnx"  # where Flax's own layer can do it

    def __str__(self):
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])


CASES = (
    Case("BatchNorm", (12, 3, 4), 4),
    Case("BatchNorm", (12, 4, 3), 4, dict(axis=1, momentum=0.9, epsilon=1e-2)),
    Case("BatchNorm", (12, 2, 3, 4), 8, dict(axis=(-1, 1)), flax="linen"),
    Case("BatchNorm", (12, 4), 4, dict(use_scale=False)),
    Case("BatchNorm", (12, 4), 4, dict(use_bias=False)),
    Case("LayerNorm", (3, 5, 8), 8),
    Case(
        "LayerNorm",
        (3, 5, 4),
        20,
        dict(reduction_axes=(-1, 1), feature_axes=(-1, 1), epsilon=1e-2),
    ),
    Case(
        "LayerNorm",
        (3, 5, 4),
        5,
        dict(reduction_axes=(1, 2), feature_axes=1, use_bias=False),
    ),
    Case("LayerNorm", (3, 9, 4), 4, dict(reduction_axes=1, use_scale=False)),
    Case("RMSNorm", (3, 5, 4), 4),
    Case("RMSNorm", (3, 5, 4), 4, dict(reduction_axes=(1, 2), epsilon=1e-2)),
    Case("RMSNorm", (3, 5, 4), 4, dict(use_scale=False)),
    Case("GroupNorm", (3, 5, 4), 4, dict(num_groups=2)),
    Case("GroupNorm", (3, 2, 2, 6), 6, dict(num_groups=None, group_size=2, epsilon=1e-2)),
    Case(
        "GroupNorm",
        (3, 5, 16),
        16,
        dict(num_groups=2, reduction_axes=(-1,)),
        flax="linen",
    ),
    Case("InstanceNorm", (3, 9, 4), 4),
    Case("InstanceNorm", (3, 4, 3, 3), 4, dict(feature_axes=1, epsilon=1e-2)),
)
# each class once
PLAIN = tuple({case.name: case for case in reversed(CASES)}.values())


class Layer(NamedTuple):
    init: Callable[..., Any]  # (x) -> variables
    call: Callable[..., Any]  # (variables, x, **call) -> (y, variables)


def layer(modules: dict[str, Any], api: str, case: Case, **options: Any) -> Layer:
    """The layer of a case, Flax's or ours. BatchNorm trains unless a call says otherwise."""
    known = {"use_running_average": False} if case.name == "BatchNorm" else {}
    make = partial(getattr(modules[api], case.name), **case.options | options)
    if api == "linen":
        return _linen(make(), known)
    # a fresh stream each time: a layer that is made again draws the same parameters
    return _nnx(lambda: make(case.features, rngs=flax.nnx.Rngs(0)), known)


def _linen(module, known):
    def call(variables, x, **more):
        y, updates = module.apply(variables, x, **known | more, mutable="batch_stats")
        return y, variables | updates

    # compiled, so that only the parameters are computed
    return Layer(jax.jit(lambda x: module.init(jax.random.key(0), x, **known)), call)


def _nnx(make, known):
    def call(variables, x, **more):
        module = make()
        for collection in variables.values():
            for name, value in collection.items():
                getattr(module, name).set_value(value)
        return module(x, **known | more), variables_of(module)

    return Layer(lambda x: variables_of(make()), call)


def variables_of(module) -> dict[str, Any]:
    kinds = {"params": flax.nnx.Param, "batch_stats": flax.nnx.BatchStat}
    found = {c: flax.nnx.to_pure_dict(flax.nnx.state(module, kind)) for c, kind in kinds.items()}
    return {collection: values for collection, values in found.items() if values}


def draw(shape, dtype=jnp.float32, seed=0):
    """Data with a mean other than 0 and a deviation other than 1."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.random.normal(jax.random.key(seed), shape, dtype) * 2 + (1.5 - 1j)
    return (jax.random.normal(jax.random.key(seed), shape) * 2 + 1.5).astype(dtype)
