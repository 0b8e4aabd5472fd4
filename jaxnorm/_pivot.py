"""A pivot: a value near the data, and the size of the data, from a thin sample of it.

Sums of squares about a pivot are as accurate as about the mean while (mean - pivot)^2 is not far above
the variance. The pivot is the mean of a thin slice. A part p of the sample whose mean is d off makes the
variance p * d^2 or more: (mean - pivot)^2 is at most 1 / p variances, some 20, whatever is in the slice, and
n / m^2 for an outlier in a slice of m out of n points. A mean, and not one element, also so that an axis that
is sharded is not sliced but summed; x is sliced and the slice converted, since XLA writes out a copy that it
slices. One slice, as a GPU starts kernels for each.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxnorm._arithmetic import HEADROOM, wide
from jaxnorm._over import Over

_THIN = 64  # a slice is one part in so many of the sample, or less
_TILE = 128  # elements of the minor axis that a TPU reads at once
_PLACES = 3
_FEW = 24  # elements of an axis of unknown size
_RUN = 24  # the least number of elements whose mean is a pivot, where one of them may be an outlier


def pivot(x: Array, over: Over) -> tuple[Array, Array]:
    """A value near the data of each sample, and their size; the reduced axes keep size 1."""

    def reduced(reduce: Callable[..., Array], v: Array) -> Array:
        return over.per_group(reduce(v, axis=over.axes, keepdims=True), x.shape, reduce)

    v = _slice(x, over.axes).astype(wide(x.dtype))
    return reduced(jnp.mean, v * HEADROOM) / HEADROOM, reduced(jnp.max, jnp.abs(v))


def unit(size: Array) -> tuple[Array, Array]:
    """A power of two that brings data of this size near 1, and its inverse.

    1 for smaller data: rare points may be large.

    In such units the square of no finite number overflows that is less than 10^19 times `size`.
    """
    info = jnp.finfo(size.dtype)
    exponent = lax.reduce_precision(size, exponent_bits=info.nexp, mantissa_bits=0)
    back = jnp.clip(exponent, 1, 2.0 ** (info.maxexp - 28)).astype(size.dtype)
    return 1 / back, back


def _slice(x: Array, axes: tuple[int, ...]) -> Array:
    """A thin slice of the sample: of rows a run, as neighbours are read together; else from three places.

    One axis, or a part of it, at places of the other axes. A TPU reads whole tiles of the two minor axes, so
    that the last axis is kept; but the batch, which may be sharded, is not cut where it is reduced.
    """
    pieces = shards(x)
    if axes == (x.ndim - 1,) and isinstance(x.shape[-1], int):
        n = x.shape[-1]
        size = min(max(_RUN, n // _THIN), n)
        # within what a TPU reads at once; a sharded axis is summed whole
        return x if pieces[-1] > 1 else _cut(x, x.ndim - 1, min(n // 2 // _TILE * _TILE, n - size), size)
    kept = axes[0] if axes[0] == 0 else axes[-1]
    cut = [a for a in axes if a != kept and pieces[a] == 1]
    others = math.prod(x.shape[a] for a in cut)
    for a in cut[1:]:  # the thinnest cuts first: XLA may write one out
        x = _cut(x, a, x.shape[a] // 2, 1)
    if cut:
        x = _places(x, cut[0], _PLACES)
    if isinstance(others, int) and 2 * others <= _THIN:
        places = _PLACES if others == 1 else 1
        x = _every(x, kept, max(1, _THIN // others // places), pieces[kept])
    return x


def _cut(x: Array, axis: int, start: Any, size: int) -> Array:
    if isinstance(start, int):
        return lax.slice_in_dim(x, start, start + size, axis=axis)
    return lax.dynamic_slice_in_dim(x, start, size, axis)  # a symbolic shape


def _places(x: Array, axis: int, count: int) -> Array:
    """`count` elements of an axis, as far from each other as from its ends."""
    n = x.shape[axis]
    if not isinstance(n, int):
        return jnp.take(x, (2 * jnp.arange(count) + 1) * n // (2 * count), axis=axis)
    return _every(x, axis, max(1, n // count), 1)


def _every(x: Array, axis: int, step: int, pieces: int) -> Array:
    """Every `step`-th element, or more of them, so that all pieces of the axis have the same."""
    n = x.shape[axis]
    if not isinstance(n, int):
        return _places(x, axis, _FEW)
    step = next((s for s in range(min(step, n), 1, -1) if n // s % pieces == 0), 1)
    start, size = step // 2, n // step
    return lax.slice_in_dim(x, start, start + (size - 1) * step + 1, step, axis)


def shards(x: Array) -> list[int]:
    """Into how many pieces each axis is cut, as far as tracing knows: it may not be sliced."""
    sharding = jax.typeof(x).sharding
    names = [() if s is None else s if isinstance(s, tuple) else (s,) for s in sharding.spec]
    names += [()] * (x.ndim - len(names))
    return [math.prod(sharding.mesh.shape[name] for name in axis) for axis in names]
