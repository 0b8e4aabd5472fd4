"""What normalization can do in six libraries: every cell is found out by a call, none is written by hand.

    pip install -e '.[peers]'
    python -m benchmarks.features

"-" stands for what does not arise: what happens under a mask, in a library whose batch norm takes none. "no"
in the last rows means that no public name of the library's normalization speaks of it.
"""

import inspect
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch
from flax import linen as nn
from jax import Array

import jaxnorm
import jaxnorm.convert
import jaxnorm.linen as jn
import jaxnorm.monitor

LIBRARIES = ("jaxnorm", "Flax", "Haiku", "Equinox", "Keras", "PyTorch")
FLAX = {"jaxnorm": jn, "Flax": nn}  # two libraries with the same interface
# Where a library would have a function for whole models, beside its norms.
PLACES: dict[str, list[ModuleType]] = {
    "Flax": [nn, nn.normalization],
    "Haiku": [hk],
    "Equinox": [eqx, eqx.nn],
    "Keras": [keras, keras.layers, keras.ops, keras.utils],
}


def yes(holds: Any) -> str:
    return "yes" if holds else "no"


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---------------------------------------------------------------- one call of a norm


def keras_norm(x: Array, **options: Any) -> tuple[Any, Callable[..., Any]]:
    """Keras's batch norm of x's features, built, and its training call without state."""
    layer = keras.layers.BatchNormalization(momentum=0.0, **options)
    layer.build(x.shape)
    values = [v.value for v in layer.trainable_variables], [v.value for v in layer.non_trainable_variables]
    return layer, lambda x, **call: layer.stateless_call(*values, x, training=True, **call)


def flax_norm(norms: Any, x: Array, **options: Any) -> Callable[..., Any]:
    """A linen batch norm's training call: y and the new statistics."""
    layer = norms.BatchNorm(use_running_average=False, momentum=0.0, **options)
    variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
    return lambda x, **call: layer.apply(variables, x, mutable=["batch_stats"], **call)


def batch_norm(library: str, x: Array) -> Array:
    """y of a library's batch norm of rows x, in training."""
    if library in FLAX:
        return flax_norm(FLAX[library], x, dtype=x.dtype)(x)[0]
    if library == "Haiku":
        norm = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.0)(x, is_training=True))
        return norm.apply(*norm.init(None, x), None, x)[0]
    if library == "Equinox":
        layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(x.shape[1], axis_name="rows", mode="batch")
        return jax.vmap(lambda x: layer(x, state)[0], axis_name="rows")(x)
    _, call = keras_norm(x, dtype=str(x.dtype))
    return call(x)[0]


def layer_norm(library: str, x: Array) -> Any:
    if library in FLAX:
        return FLAX[library].LayerNorm(use_bias=False, use_scale=False).apply({}, x)
    if library == "Haiku":
        norm = hk.transform(lambda x: hk.LayerNorm(-1, False, False)(x))
        return norm.apply({}, None, x)
    if library == "Equinox":
        return jax.vmap(eqx.nn.LayerNorm(x.shape[1]))(x)
    if library == "Keras":
        return keras.layers.LayerNormalization()(x)
    return torch.nn.functional.layer_norm(torch.tensor(np.asarray(x)), x.shape[1:]).numpy()


# ---------------------------------------------------------------- the rows


def large_mean(library: str) -> str:
    """Whether y has the standard deviation 1 where the mean is 10,000 times that of x."""
    x = jnp.asarray(rng().normal(1e4, 1, (4, 256)), jnp.float32)
    return yes(abs(np.asarray(layer_norm(library, x)).std() - 1) < 1e-2)


def residuals(library: str) -> str:
    x = jnp.asarray(rng().normal(size=(4096, 64)), jnp.bfloat16)
    if library != "PyTorch":
        stored = jax.tree.leaves(jax.vjp(lambda x: batch_norm(library, x), x)[1])
        return f"{sum(v.nbytes for v in stored) / x.nbytes:.1f}"
    saved: list[int] = []
    given = torch.tensor(np.asarray(x.astype(jnp.float32)), dtype=torch.bfloat16, requires_grad=True)

    def pack(v: torch.Tensor) -> torch.Tensor:
        saved.append(v.nbytes)
        return v

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        torch.nn.BatchNorm1d(64, dtype=torch.bfloat16)(given)
    return f"{sum(saved) / x.nbytes:.1f}"


def takes_a_mask(library: str) -> str:
    call = {
        "jaxnorm": jn.BatchNorm.__call__,
        "Flax": nn.BatchNorm.__call__,
        "Haiku": hk.BatchNorm.__call__,
        "Equinox": eqx.nn.BatchNorm.__call__,
        "Keras": keras.layers.BatchNormalization.call,
        "PyTorch": torch.nn.BatchNorm1d.forward,
    }[library]
    return yes("mask" in inspect.signature(call).parameters)


def nan_under_the_mask(library: str) -> str:
    """Whether the gradient is finite where x has a masked NaN."""
    if takes_a_mask(library) == "no":
        return "-"
    x = jnp.array([[[1.0, 2.0], [2.0, 5.0], [4.0, 6.0], [jnp.nan, jnp.nan]]])
    mask = jnp.isfinite(x[..., :1])

    def masked(x: Array) -> Any:
        if library == "Keras":
            return keras_norm(x)[1](x, mask=mask[..., 0])[0]
        return flax_norm(FLAX[library], x)(x, mask=mask)[0]

    return yes(jnp.isfinite(jax.grad(lambda x: jnp.where(mask, masked(x), 0).std())(x)).all())


def empty_batch(library: str) -> str:
    """Whether a batch that is all masked leaves mean 0 and variance 1."""
    if takes_a_mask(library) == "no":
        return "-"
    x, mask = jnp.ones((1, 4, 2)), jnp.zeros((1, 4, 1), bool)
    if library == "Keras":
        _, call = keras_norm(x)
        mean, var = call(x, mask=mask[..., 0])[1]
    else:
        stats = flax_norm(FLAX[library], x)(x, mask=mask)[1]["batch_stats"]
        mean, var = stats["mean"], stats["var"]
    return yes((np.asarray(mean) == 0).all() and (np.asarray(var) == 1).all())


def across_devices(library: str) -> str:
    made = {
        "jaxnorm": jn.BatchNorm,
        "Flax": nn.BatchNorm,
        "Haiku": hk.BatchNorm,
        "Equinox": eqx.nn.BatchNorm,
        "Keras": keras.layers.BatchNormalization,
        "PyTorch": torch.nn.SyncBatchNorm,
    }[library]
    options = {"axis_name", "cross_replica_axis", "synchronized", "process_group"}
    return yes(options & set(inspect.signature(made).parameters))


def uneven_devices(library: str) -> str:
    """Whether the mean over four devices with 3, 4, 1 and 2 unmasked rows is that of the ten rows."""
    if library not in FLAX:
        return "-"
    x = jnp.asarray(rng().normal(size=(4, 4, 1)), jnp.float32)
    mask = jnp.arange(4)[None, :, None] < jnp.array([3, 4, 1, 2])[:, None, None]
    norm = flax_norm(FLAX[library], x, axis_name="devices")
    stats = jax.vmap(lambda x, m: norm(x, mask=m)[1]["batch_stats"], axis_name="devices")(x, mask)
    return yes(abs(stats["mean"][0, 0] - x[mask].mean()) < 1e-6)


def recalibrated(library: str) -> str:
    """Whether statistics over two batches of different means are those of all rows."""
    batches = [jnp.asarray(rng().normal(size=(8, 3)) + 4 * i, jnp.float32) for i in range(2)]
    expected = np.concatenate(batches).var(0)
    if library == "jaxnorm":
        norm = jn.BatchNorm(use_running_average=False)
        variables = jn.recalibrate(norm, norm.init(jax.random.key(0), batches[0]), batches)
        return yes(np.allclose(variables["batch_stats"]["var"], expected, rtol=1e-5))
    if library == "PyTorch":
        layer = torch.nn.BatchNorm1d(3)
        torch.optim.swa_utils.update_bn([torch.tensor(np.asarray(b)) for b in batches], layer)
        exact = np.allclose(layer.running_var.numpy(), expected * 16 / 15, rtol=1e-2)
        return "yes" if exact else "not exactly"
    return named(library, "recalibrat", "update_bn", "precise")


def named(library: str, *words: str) -> str:
    """Whether a public name in the places of a library has one of these words in it."""
    names = {name.lower() for place in PLACES[library] for name in dir(place) if name[0] != "_"}
    return yes(any(word in name for word in words for name in names))


def for_models(ours: object, theirs: object, *words: str) -> Callable[[str], str]:
    """A row of what is there for whole models: ours, PyTorch's or None, and words to look for elsewhere."""
    has = {"jaxnorm": ours, "PyTorch": theirs}
    return lambda library: yes(has[library] is not None) if library in has else named(library, *words)


def option(name: str, *words: str) -> Callable[[str], str]:
    """A row of what is an option of batch norm: its name here, and words to look for elsewhere."""
    layers = {
        "jaxnorm": jn.BatchNorm,
        "Flax": nn.BatchNorm,
        "Haiku": hk.BatchNorm,
        "Equinox": eqx.nn.BatchNorm,
        "Keras": keras.layers.BatchNormalization,
        "PyTorch": torch.nn.BatchNorm2d,
    }
    wanted = {name, *words}
    return lambda library: yes(wanted & set(inspect.signature(layers[library]).parameters))


ROWS: dict[str, Callable[[str], str]] = {
    "layer norm is right where the mean is 10,000 deviations": large_mean,
    "bfloat16 batch norm: stored for the backward pass, in bytes of x": residuals,
    "masks in batch norm": takes_a_mask,
    "a masked NaN reaches no gradient": nan_under_the_mask,
    "a batch that is all masked leaves the statistics": empty_batch,
    "statistics across devices": across_devices,
    "exact with unevenly masked devices": uneven_devices,
    "exact population statistics over a data set": recalibrated,
    "microbatches that count as one batch": option("every_k", "accumulation_steps", "accumulate"),
    "evaluation between stored and batch statistics": option("blend", "alpha"),
    "folding into the layer before": for_models(
        jn.fold, torch.nn.utils.fuse_conv_bn_eval, "fold_batch", "fold_norm", "fuse_conv", "fuse_batch"
    ),
    "PyTorch's norms and statistics": for_models(
        jaxnorm.convert.from_torch, torch.nn.BatchNorm2d, "from_torch", "load_torch"
    ),
    "a report on a net's statistics": for_models(jn.diagnose, None, "diagnos", "monitor"),
}


def table() -> str:
    """The table, in Markdown."""
    lines = ["| | " + " | ".join(LIBRARIES) + " |", "|---" * (len(LIBRARIES) + 1) + "|"]
    for name, row in ROWS.items():
        lines.append(f"| {name} | " + " | ".join(map(row, LIBRARIES)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
