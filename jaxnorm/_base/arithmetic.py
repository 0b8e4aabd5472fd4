"""Arithmetic in float32 or wider, real and complex alike, in which a term or a factor may be absent."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base.sharding import alike

# Integers of few bits, and floats that lack a sign or almost every number: as x they count as float32.
TINY = {
    jnp.dtype(getattr(jnp, name))
    for name in ("int2", "uint2", "int4", "uint4", "float4_e2m1fn", "float8_e8m0fnu")
    if hasattr(jnp, name)
}


@functools.cache
def promoted(*dtypes: DTypeLike) -> np.dtype[Any]:
    """The dtype that arrays of these dtypes promote to, also where the user has made promotion an error.

    JAX does not promote the tiny dtypes nor the floats of 8 bits; here they give way to any other float.
    """
    found = {jnp.dtype(jnp.int8) if jnp.dtype(d) in TINY else jnp.dtype(d) for d in dtypes}
    wider = {d for d in found if not is_float8(d)}
    if len(found) > 1 and wider != found:
        found = wider if any(jnp.issubdtype(d, jnp.inexact) for d in wider) else {jnp.dtype(jnp.float32)}
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, found)


def is_float8(dtype: DTypeLike) -> bool:
    """Whether it is one of the floats of 8 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits == 8


def wide(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype of statistics and of all arithmetic on arrays of this dtype: float32 or wider."""
    return promoted(jnp.dtype(dtype), jnp.float32)


def indices(v: Array) -> Array:
    """Integers in int32 or wider: int8 cannot be compared with 200 classes."""
    return v.astype(jnp.int32) if v.dtype.itemsize < 4 else v


def choose(condition: Array, a: Array | complex, b: Array | complex) -> Array:
    """a where `condition` holds, else b; a number takes the dtype of the other, which is an array."""
    kind = a if isinstance(a, Array) else b
    a, b = (v if isinstance(v, Array) else jnp.full_like(kind, v) for v in (a, b))
    condition, a, b = alike(condition, a, b)
    # where the shapes allow it not jnp.where, a jitted function, which is one more call in the jaxpr
    same = condition.shape == a.shape == b.shape
    return lax.select(condition, a, b) if same else jnp.where(condition, a, b)


def abs2(v: Array) -> Array:
    """|v|^2, real."""
    return v.real * v.real + v.imag * v.imag if jnp.iscomplexobj(v) else times(v, v)


def divide(total: Array, weight: Array | int) -> Array:
    """total / weight, where 0 / 0 is 0: an empty sample has no average."""
    if not isinstance(weight, Array):
        return total / jnp.asarray(weight, total.dtype) if weight != 0 else jnp.zeros_like(total)
    return total / choose(weight == 0, 1, weight).astype(total.dtype)


def common(*values: ArrayLike) -> list[Array]:
    """The values as arrays of one dtype, that which they promote to."""
    arrays = [jnp.asarray(v) for v in values]
    dtype = promoted(*(v.dtype for v in arrays))
    return [v.astype(dtype) for v in arrays]


def times(v: Array | None, *factors: Array | float | None) -> Any:
    """The product; None if any factor is None, which stands for 0."""
    for f in factors:
        if v is None or f is None:
            return None
        if not isinstance(f, float):
            v = _broadcasting(lax.mul, operator.mul, v, f)
        elif f != 1:
            v = lax.mul(v, v.dtype.type(f))  # in v's dtype: a Python number may become a float64
    return v


def plus(a: Array | None, b: Array | None) -> Any:
    """The sum; None stands for 0."""
    return b if a is None else a if b is None else _broadcasting(lax.add, operator.add, a, b)


def one_plus(v: Array | None) -> Any:
    """1 + v, in float32 or wider, as bfloat16 would round a small v away. None stays None."""
    return None if v is None else v.astype(wide(v.dtype)) + 1


def _broadcasting(same: Callable[..., Array], other: Callable[..., Array], *values: ArrayLike) -> Array:
    """An operation on two arrays: `same`, of jax.lax, for equal shapes, else `other`.

    JAX traces an operation of jax.numpy again for each shape, as each is a jitted function.
    """
    a, b = common(*values)
    return same(a, b) if a.shape == b.shape else other(a, b)
