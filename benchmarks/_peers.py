"""Norms of several libraries by one interface: `apply(params, state, x, train) -> (y, new state)`."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

EPSILON, MOMENTUM = 1e-5, 0.9
MODES = ("inference", "forward", "step")


class Work(NamedTuple):
    """A norm and the shape of x, channels last."""

    norm: str
    shape: tuple[int, ...]
    groups: int = 1


class Peer(NamedTuple):
    """A library's norm."""

    params: Any
    state: Any
    apply: Callable[..., tuple[Array, Any]]
    channels_first: bool = False


def affine(norm: str, channels: int) -> dict[str, Array]:
    random = np.random.default_rng(7)
    scale = jnp.asarray(1 + random.standard_normal(channels) / 10, jnp.float32)
    bias = jnp.asarray(random.standard_normal(channels) / 10, jnp.float32)
    return {"scale": scale} if norm == "rms" else {"scale": scale, "bias": bias}


def plain(w: Work, dtype: Any) -> Peer:
    """The textbook in jnp, in float32."""

    def apply(params: Any, state: Any, x: Array, train: bool) -> tuple[Array, Any]:
        wide = x.astype(jnp.float32)
        axes: tuple[int, ...] = (x.ndim - 1,)
        if w.norm in ("group", "instance"):
            axes = (1, 3)
            wide = wide.reshape(x.shape[0], -1, w.groups, x.shape[-1] // w.groups)
        elif w.norm == "batch":
            axes = tuple(range(x.ndim - 1))
        if w.norm == "rms":
            root = jnp.sqrt(jnp.square(wide).mean(axes, keepdims=True) + EPSILON)
            return (wide / root * params["scale"]).astype(x.dtype), state
        if w.norm == "batch" and not train:
            mean, var = state["mean"], state["var"]
        else:
            mean, var = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
        if w.norm == "batch" and train:
            new = {"mean": mean.ravel(), "var": var.ravel()}
            state = {k: MOMENTUM * v + (1 - MOMENTUM) * lax.stop_gradient(new[k]) for k, v in state.items()}
        y = ((wide - mean) / jnp.sqrt(var + EPSILON)).reshape(x.shape) * params["scale"] + params["bias"]
        return y.astype(x.dtype), state

    return Peer(affine(w.norm, w.shape[-1]), _stats(w), apply)


def _stats(w: Work) -> dict[str, Array]:
    channels = w.shape[-1]
    return {"mean": jnp.zeros(channels), "var": jnp.ones(channels)} if w.norm == "batch" else {}


LAYERS = {
    "batch": "BatchNorm",
    "layer": "LayerNorm",
    "rms": "RMSNorm",
    "group": "GroupNorm",
    "instance": "InstanceNorm",
}


def _options(w: Work) -> dict[str, Any]:
    options: dict[str, Any] = {"epsilon": EPSILON}
    if w.norm == "batch":
        options["momentum"] = MOMENTUM
    if w.norm == "group":
        options["num_groups"] = w.groups
    return options


def linen(w: Work, dtype: Any, library: str) -> Peer:
    """A layer of `flax.linen` or of `jaxnorm.linen`."""
    make = getattr(importlib.import_module(f"{library}.linen"), LAYERS[w.norm])
    layer = make(dtype=dtype, **_options(w))

    def apply(params: Any, state: Any, x: Array, train: bool) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": state}
        if w.norm != "batch":
            return layer.apply(variables, x), state
        y, new = layer.apply(variables, x, use_running_average=not train, mutable=["batch_stats"])
        return y, new["batch_stats"]

    return Peer(affine(w.norm, w.shape[-1]), _stats(w), apply)


def from_nnx(w: Work, dtype: Any, library: str) -> Peer:
    """A layer of `flax.nnx` or of `jaxnorm.nnx`."""
    make = getattr(importlib.import_module(f"{library}.nnx"), LAYERS[w.norm])
    layer = make(w.shape[-1], dtype=dtype, rngs=nnx.Rngs(0), **_options(w))
    graph, *states = nnx.split(layer, nnx.Param, nnx.Not(nnx.Param))
    params, state = states

    def apply(params: Any, state: Any, x: Array, train: bool) -> tuple[Array, Any]:
        module = nnx.merge(graph, params, state, copy=True)
        y = module(x, use_running_average=not train) if w.norm == "batch" else module(x)
        return y, nnx.state(module, nnx.Not(nnx.Param))

    return Peer(params, state, apply)


def haiku(w: Work, dtype: Any) -> Peer:
    hk = importlib.import_module("haiku")

    def call(x: Array, train: bool) -> Array:
        if w.norm == "batch":
            return hk.BatchNorm(True, True, MOMENTUM, eps=EPSILON)(x, train)
        if w.norm == "rms":
            return hk.RMSNorm(-1, eps=EPSILON)(x)
        if w.norm == "group":
            return hk.GroupNorm(w.groups, True, True, eps=EPSILON)(x)
        if w.norm == "instance":
            return hk.InstanceNorm(True, True, eps=EPSILON)(x)
        return hk.LayerNorm(-1, True, True, eps=EPSILON)(x)

    module = hk.without_apply_rng(hk.transform_with_state(call))
    params, state = module.init(jax.random.key(0), jnp.zeros((2, *w.shape[1:]), dtype), True)
    return Peer(params, state, module.apply)


def equinox(w: Work, dtype: Any) -> Peer:
    eqx = importlib.import_module("equinox")
    channels, state = w.shape[-1], None
    if w.norm == "batch":
        make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
        module, state = make(channels, axis_name="batch", eps=EPSILON, momentum=MOMENTUM, mode="batch")
    elif w.norm == "layer":
        module = eqx.nn.LayerNorm(channels, eps=EPSILON)
    elif w.norm == "rms":
        module = eqx.nn.RMSNorm(channels, eps=EPSILON, use_bias=False)
    else:
        module = eqx.nn.GroupNorm(channels if w.norm == "instance" else w.groups, channels, eps=EPSILON)
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def apply(params: Any, state: Any, x: Array, train: bool) -> tuple[Array, Any]:
        layer = eqx.combine(params, static)
        if w.norm == "batch":
            layer = layer if train else eqx.nn.inference_mode(layer)
            y, state = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
            return y.astype(x.dtype), state
        for _ in range(x.ndim - 1 if w.norm in ("layer", "rms") else 1):
            layer = jax.vmap(layer)
        return layer(x).astype(x.dtype), state

    return Peer(params, state, apply, channels_first=w.norm not in ("layer", "rms"))


JAX: dict[str, Callable[[Work, Any], Peer]] = {
    "jaxnorm": partial(linen, library="jaxnorm"),
    "jaxnorm nnx": partial(from_nnx, library="jaxnorm"),
    "jnp": plain,
    "flax linen": partial(linen, library="flax"),
    "flax nnx": partial(from_nnx, library="flax"),
    "haiku": haiku,
    "equinox": equinox,
}
TORCH = ("torch", "torch channels last")
PEERS = (*JAX, *TORCH)
