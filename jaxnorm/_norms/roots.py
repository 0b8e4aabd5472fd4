"""Inverse square roots of covariances."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnorm._base.arithmetic import divide
from jaxnorm._core.recompute import root

einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def newton_root(cov: Array, eye: Array, iterations: int) -> Array:
    """cov^(-1/2) by Newton's iteration, p' = (3 p - p^3 cov / trace) / 2, over sqrt(trace).

    r = cov p / trace is updated as well, and not computed from p: rounding errors then do not grow
    (Higham 1997).
    """
    trace = jnp.trace(cov, axis1=-2, axis2=-1)[..., None, None]
    p, r = jnp.broadcast_to(eye, cov.shape), divide(cov, trace)  # a constant sample has no trace
    for _ in range(iterations):
        step = 1.5 * eye - 0.5 * einsum("gij,gjk->gik", p, r)
        p, r = einsum("gij,gjk->gik", step, p), einsum("gij,gjk->gik", r, step)
    return divide(p, root(trace))


@jax.custom_jvp
def inverse_root(cov: Array, least: Array) -> Array:
    """cov^(-1/2), symmetric, of matrices whose eigenvalues are at least `least`; that of 0 is 0."""
    values, vectors = jnp.linalg.eigh(cov)
    values = jnp.maximum(values, least.astype(values.dtype))  # rounding may have left less
    inverse = jnp.where(values > 0, lax.rsqrt(values), jnp.zeros_like(values))
    return einsum("gij,gj,gkj->gik", vectors, inverse, vectors)


@inverse_root.defjvp
def _inverse_root_jvp(primals: Any, tangents: Any) -> Any:
    """dw = -w dr w, where r dr + dr r = dcov and r = cov w.

    This is finite where two eigenvalues are equal, at which the derivative of eigenvectors is not.
    """
    cov, least = primals
    w = inverse_root(cov, least)
    r = einsum("gij,gjk->gik", cov, w)
    r = (r + jnp.matrix_transpose(r)) / 2

    def both_sides(v: Array) -> Array:
        return einsum("gij,gjk->gik", r, v) + einsum("gij,gjk->gik", v, r)

    def solve(_: Any, v: Array) -> Array:
        values, q = jnp.linalg.eigh(lax.stop_gradient(r))
        inside = divide(einsum("gji,gjk,gkl->gil", q, v, q), values[..., :, None] + values[..., None, :])
        return einsum("gij,gjk,glk->gil", q, inside, q)

    dr = lax.custom_linear_solve(both_sides, tangents[0], solve, symmetric=True)
    return w, -einsum("gij,gjk,gkl->gil", w, dr, w)
