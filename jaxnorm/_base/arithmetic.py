"""Arithmetic: in float32 or wider, real and complex alike, where a value may be absent."""

import functools
import operator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm._base.sharding import alike

# An array, or None: an absent value, which is 0 and costs nothing.
Maybe: TypeAlias = Any

# x and its mean are multiplied by this power of two before they are subtracted and summed. It is exact,
# and neither the difference of the largest finite numbers overflows, nor a sum of 2^30 of them.
HEADROOM = 2.0**-32


# Integers of few bits, and floats that lack a sign or almost every number: as x they count as float32.
TINY = {
    jnp.dtype(getattr(jnp, name))
    for name in ("int2", "uint2", "int4", "uint4", "float4_e2m1fn", "float8_e8m0fnu")
    if hasattr(jnp, name)
}


@functools.cache
def promoted(*dtypes: Any) -> Any:
    """The dtype that holds them all, also where the user forbids to promote implicitly: it is meant.

    JAX does not promote the tiny dtypes nor the floats of 8 bits; here they give way to any other float.
    """
    given = {jnp.dtype(jnp.int8) if jnp.dtype(d) in TINY else jnp.dtype(d) for d in dtypes}
    wider = {d for d in given if not is_float8(d)}
    if len(given) > 1 and wider != given:
        given = wider if any(jnp.issubdtype(d, jnp.inexact) for d in wider) else {jnp.dtype(jnp.float32)}
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, given)


def is_float8(dtype: Any) -> bool:
    """Whether it is one of the floats of 8 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits == 8


def wide(dtype: Any) -> Any:
    """The dtype of statistics and of all arithmetic: float32 or wider."""
    return promoted(dtype, jnp.float32)


def shrink(dtype: DTypeLike) -> float:
    """Power of two that keeps 2^29 squares of the largest finite numbers from overflowing in `dtype`."""
    return 2.0 ** -(jnp.finfo(dtype).maxexp // 2 + 16)


def indices(v: Array) -> Array:
    """Integers in int32 or wider: int8 cannot be compared with 200 classes."""
    return v.astype(jnp.int32) if v.dtype.itemsize < 4 else v


def choose(keep: Array, a: Any, b: Any) -> Array:
    """a where `keep`, else b; numbers are of the other's dtype. Of one shape without `jnp.where`, a call."""
    kind = a if isinstance(a, Array) else b
    a, b = (v if isinstance(v, Array) else jnp.full_like(kind, v) for v in (a, b))
    keep, a, b = alike(keep, a, b)
    return lax.select(keep, a, b) if keep.shape == a.shape == b.shape else jnp.where(keep, a, b)


def center(x: Array, mean: Maybe, keep: Maybe = None, unit: float | Array = 1.0) -> Array:
    """unit * (x - mean), with a power of two as unit; 0 where not `keep`."""
    c = times(x, unit) if mean is None else times(x, unit) - times(mean, unit)
    return c if keep is None else choose(keep, c, 0)


def dot(a: Array, b: Array) -> Array:
    """Re(conj(a) * b): the real inner product, the derivative of |a|^2 / 2 along b."""
    if not jnp.iscomplexobj(a):
        return times(a, b)
    return a.real * b.real + a.imag * b.imag


def abs2(v: Array) -> Array:
    """|v|^2, real."""
    return dot(v, v)


def divide(total: Array, weight: Any, unit: float = 1.0) -> Array:
    """total / weight / unit, a power of two; an empty sample has no average, so 0 / 0 is 0."""
    if not isinstance(weight, Array):
        return total / (weight * unit) if weight else jnp.zeros_like(total)
    average = total / choose(weight == 0, 1, weight).astype(total.dtype)
    return average if unit == 1 else average / unit  # not before: the sum overflows where it does not


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """fl(a + b) and its exact error."""
    high = a + b
    t = high - a
    return high, (a - (high - t)) + (b - t)


def common(*values: Any) -> list[Array]:
    """The values in the dtype that holds them all."""
    arrays = [jnp.asarray(v) for v in values]
    dtype = promoted(*(v.dtype for v in arrays))
    return [v.astype(dtype) for v in arrays]


def times(v: Maybe, *factors: Maybe) -> Any:
    """The product; an absent factor is 0, and so is the product."""
    for f in factors:
        if v is None or f is None:
            return None
        if not isinstance(f, float):
            v = _of_two(lax.mul, operator.mul, v, f)
        elif f != 1:
            v = lax.mul(v, v.dtype.type(f))  # a Python number may be a float64
    return v


def plus(a: Maybe, b: Maybe) -> Any:
    """The sum; absent terms are 0."""
    return b if a is None else a if b is None else _of_two(lax.add, operator.add, a, b)


def one_plus(v: Maybe) -> Any:
    """1 + v, in float32 or wider: bfloat16 would lose what a small v says."""
    return None if v is None else v.astype(wide(v.dtype)) + 1


def minus(v: Maybe) -> Any:
    """The negative, absent if v is."""
    return None if v is None else lax.neg(v)


def _of_two(op: Any, broadcasting: Any, *values: Any) -> Any:
    """An operation: of one shape not by jax.numpy, which JAX traces again for each shape that it meets."""
    a, b = common(*values)
    return op(a, b) if a.shape == b.shape else broadcasting(a, b)
