"""The programs whose cost is compared: layers of `jaxnorm.linen` and of `flax.linen`, by one code."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm

Sizes = dict[str, tuple[int, ...]]  # of x on each chip

# The TPU's are larger than the 128 MiB of memory on its chip, and fill its 128 lanes: no padding.
IMAGES: Sizes = {"h100": (256, 56, 56, 64), "v5e": (512, 56, 56, 128), "cpu": (32, 28, 28, 128)}
ROWS: Sizes = {"h100": (8192, 1024), "v5e": (131072, 1024), "cpu": (4096, 768)}
NORMS = {
    "batch": ("BatchNorm", IMAGES),
    "batch, pivot": ("BatchNorm", IMAGES),
    "masked batch": ("BatchNorm", IMAGES),
    "layer": ("LayerNorm", ROWS),
    "rms": ("RMSNorm", ROWS),
    "group": ("GroupNorm", IMAGES),
    "instance": ("InstanceNorm", IMAGES),
}
Struct = jax.ShapeDtypeStruct
Program = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and the shapes of its arguments
Norm = Callable[..., tuple[Array, Any]]  # (x, scale, bias, mean, var[, mask]) -> y, new state


class Case(NamedTuple):
    """A norm and its arguments."""

    norm: Norm
    x: Struct
    vectors: tuple[Struct, ...]  # scale, bias, mean, var
    masks: tuple[Struct, ...] = ()

    @property
    def nbytes(self) -> int:
        """Of x: what one pass moves."""
        return self.x.size * self.x.dtype.itemsize


def case(library: str, name: str, chip: str, dtype: str, fraction: int = 1, mask: str | None = None) -> Case:
    """The norm of that name, at a size that fills the chip or a fraction of it, with a mask of that dtype."""
    layer, shapes = NORMS[name]
    n, *others = shapes[chip]
    x = Struct((n // fraction, *others), jnp.dtype(dtype))
    if name.endswith("pivot"):
        return Case(_by_state, x, (Struct(x.shape[-1:], jnp.float32),) * 4)
    mask = mask or ("bool" if name.startswith("masked") else None)
    masks = (Struct((*x.shape[:-1], 1), jnp.dtype(mask)),) if mask else ()
    return Case(_layer(library, layer), x, (Struct(x.shape[-1:], jnp.float32),) * 4, masks)


def _layer(library: str, layer: str, **options: Any) -> Norm:
    make = getattr(importlib.import_module(f"{library}.linen"), layer)
    if layer == "BatchNorm":
        options["use_running_average"] = False

    def norm(x: Array, scale: Array, bias: Array, mean: Array, var: Array, *mask: Array) -> Any:
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
        named = {}
        if mask:
            named["mask" if mask[0].dtype == jnp.bool_ else "weights"] = mask[0]
        return make(dtype=x.dtype, **options).apply(variables, x, mutable=["batch_stats"], **named)

    return norm


def _by_state(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, axis_name: str | None = None
) -> Any:
    """Batch norm whose pivot is the running mean."""
    stats = jaxnorm.Moments(mean, var, jnp.ones_like(var))
    return jaxnorm.batch_norm(x, stats, train=True, scale=scale, bias=bias, pivot=mean, axis_name=axis_name)


def differentiated(norm: Norm, args: tuple[Any, ...]) -> Any:
    """y, the map from dy to (dx, dscale, dbias), and the new state."""
    return jax.vjp(lambda *trained: norm(*trained, *args[3:]), *args[:3], has_aux=True)


def one_jit(norm: Norm) -> Callable[..., Any]:
    """(args, dy) -> y, new state, (dx, dscale, dbias)"""

    def step(args: tuple[Any, ...], dy: Array) -> Any:
        y, pull, state = differentiated(norm, args)
        return y, state, pull(dy)

    return step


def programs(c: Case) -> dict[str, Program]:
    """Four ways to run a norm; a forward pass keeps for the backward one what is not an argument anyway."""
    args = (c.x, *c.vectors, *c.masks)
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda *a: differentiated(c.norm, a)[1], *args))
    new = [i for i, argument in enumerate(_arguments(c, args)) if argument is None]

    def forward_kept(*args: Array) -> Any:
        y, pull, state = differentiated(c.norm, args)
        residuals = jax.tree.leaves(pull)
        return y, state, [residuals[i] for i in new]

    def backward(residuals: Any, dy: Array) -> Any:
        return jax.tree.unflatten(tree, residuals)(dy)

    return {
        "forward": (c.norm, args),
        "forward, kept": (forward_kept, args),
        "backward": (backward, (leaves, c.x)),
        "one jit": (one_jit(c.norm), (args, c.x)),
    }


def residuals(c: Case) -> list[str]:
    """The arrays of x's size that a backward pass needs: their dtypes, or "x" for x itself."""
    args = (c.x, *c.vectors, *c.masks)
    leaves = jax.tree.leaves(jax.eval_shape(lambda *a: differentiated(c.norm, a)[1], *args))
    held = zip(leaves, _arguments(c, args), strict=True)
    return ["x" if argument == 0 else str(v.dtype) for v, argument in held if v.size >= c.x.size]


def _arguments(c: Case, args: tuple[Struct, ...]) -> list[int | None]:
    """Which argument each residual is, if it is one."""
    jaxpr = jax.make_jaxpr(lambda *a: jax.tree.leaves(differentiated(c.norm, a)[1]))(*args).jaxpr
    return [next((i for i, v in enumerate(jaxpr.invars) if v is out), None) for out in jaxpr.outvars]


# ---------------------------------------------------------------- batch norm in its surroundings


def network(c: Case, layers: int, *, scanned: bool) -> Program:
    """The gradient of blocks of convolution -> norm -> relu: in a `lax.scan`, or one after the other."""

    def gradient(trained: Any, x: Array, dy: Array) -> Any:
        def forward(trained: Any, x: Array) -> Array:
            def block(x: Array, weights: Any) -> tuple[Array, None]:
                return _block(c.norm, x, *weights), None

            if scanned:
                return lax.scan(block, x, trained)[0]
            for i in range(layers):
                x, _ = block(x, [v[i] for v in trained])
            return x

        return jax.vjp(forward, trained, x)[1](dy)

    kernel = Struct((3, 3, c.x.shape[-1], c.x.shape[-1]), c.x.dtype)
    trained = [Struct((layers, *v.shape), v.dtype) for v in (kernel, *c.vectors)]
    return gradient, (trained, c.x, c.x)


def _block(norm: Norm, x: Array, kernel: Array, *vectors: Array) -> Array:
    z = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(norm(z, *vectors)[0])


def on_devices(library: str, c: Case, on: Mesh) -> dict[str, tuple[Program, Program]]:
    """Forward, and one jit, of batch norm with x sharded along the batch: in shard_map, and in plain jit."""
    x = Struct(c.x.shape, c.x.dtype, sharding=NamedSharding(on, P("data")))
    local = (
        partial(c.norm, axis_name="data")
        if c.norm is _by_state
        else _layer(library, "BatchNorm", axis_name="data")
    )
    mapped = jax.shard_map(
        local,
        mesh=on,
        in_specs=(P("data"), *(P(),) * 4),
        out_specs=(P("data"), P()),
    )
    args = (x, *c.vectors)
    return {
        name: ((norm, args), (one_jit(norm), (args, x)))
        for name, norm in (("shard_map", mapped), ("jit", c.norm))
    }
