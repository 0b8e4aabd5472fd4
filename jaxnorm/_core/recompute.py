"""What reverse mode keeps of a norm, and what it recomputes; and derivatives at corners."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxnorm._base.arithmetic import choose, wide

Values = TypeVar("Values")

# The residuals of a norm, besides its arguments: small sums and statistics have this name.
SUMS = "jaxnorm_sums"


def save_residuals(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of which reverse mode keeps its arguments and each `residual`, and recomputes the rest."""
    policy = jax.checkpoint_policies.save_only_these_names(SUMS)
    # prevent_cse=False: no barrier, which would cut the fusion of the backward pass with its neighbours
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


def remat(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(x, ...)` in float32 or wider; reverse mode keeps x, in its own dtype, and each `residual`.

    All parts of x's cotangent are then summed before they are rounded, once.
    """

    def of_narrow(x: Array, *args: Any) -> Any:
        return function(widened(x), *args)

    return save_residuals(of_narrow)


def residual(values: Values) -> Values:
    """Small values, a tree of arrays, that reverse mode keeps for the backward pass."""

    def one(v: Array) -> Array:
        if jnp.iscomplexobj(v):  # JAX cannot keep a complex value by name
            return lax.complex(one(v.real), one(v.imag))
        return checkpoint_name(v, SUMS)

    return jax.tree.map(one, values)


def bias_if_empty(y: Array, weight: Array, bias: Array | None, where: Array | None) -> Array:
    """y, but the bias, or 0, in samples whose `weight` is 0, which a mask has left without any element."""
    if where is None:  # without a mask a sample is empty only if x is
        return y
    return choose(weight > 0, y, 0 if bias is None else bias.astype(y.dtype))


def widened(x: Array) -> Array:
    """x in float32 or wider; its cotangent is bounded before it is rounded to x's dtype."""
    return bounded(x.astype(wide(x.dtype)), x.dtype)


def bounded(x: Array, dtype: DTypeLike | None = None) -> Array:
    """x, whose cotangent is clamped to the finite numbers of `dtype`, by default x's.

    The derivative of x / length at a zero vector is 1 / epsilon, which float16 and float8 cannot hold. Types
    with the exponents of float32 are left alone.
    """
    dtype = jnp.dtype(dtype or x.dtype)
    if jnp.finfo(dtype).maxexp >= jnp.finfo(jnp.float32).maxexp:
        return x
    return _bounded(float(jnp.finfo(dtype).max), x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _bounded(largest: float, x: Array) -> Array:
    return x


@_bounded.defjvp
def _bounded_jvp(largest: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The tangent solves I t = dx, because a linear solve may be given its own transpose: the clamp."""

    def clamp(_: object, dy: Array) -> Array:
        limit = jnp.asarray(largest, dy.dtype)
        return lax.clamp(-limit, dy, limit)

    # A custom_vjp would clamp, too, but refuses forward mode; JAX transposes this one as it is told.
    tangent = lax.custom_linear_solve(lambda v: v, tangents[0], lambda _, v: v, transpose_solve=clamp)
    return primals[0], tangent


def root(v: Array) -> Array:
    """sqrt(v), whose derivative at 0 is 0."""
    # The inner `where` keeps 0 from the derivative of sqrt, 1 / 0, which times 0 is NaN.
    positive = v > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, v, jnp.ones_like(v))), jnp.zeros_like(v))
