"""A pivot: a value near the data, and the size of the data, from a thin sample of it.

Sums of squares about a pivot are as accurate as about the mean while (mean - pivot)^2 is not far above
the variance. The pivot is the median of the means of three thin slices, of rows the mean of one: near the
data however large its mean, wherever a few outliers are. Means, not single elements, so that an axis that
is sharded is not sliced but summed; x is sliced and the slice converted, since XLA writes out a copy that
it slices.
"""

import functools
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
_FEW = 8  # elements of an axis of unknown size
_RUN = 24  # the least number of elements whose mean is a pivot, where one of them may be an outlier


def pivot(x: Array, over: Over) -> tuple[Array, Array]:
    """A value near the data of each sample, and their size; the reduced axes keep size 1."""

    def reduced(reduce: Callable[..., Array], v: Array) -> Array:
        return over.per_group(reduce(v, axis=over.axes, keepdims=True), x.shape, reduce)

    parts = [v.astype(wide(x.dtype)) for v in _slices(x, over.axes)]
    means = [reduced(jnp.mean, v * HEADROOM) / HEADROOM for v in parts]
    sizes = [reduced(jnp.max, jnp.abs(v)) for v in parts]
    if len(parts) == 1:
        return means[0], sizes[0]
    if jnp.iscomplexobj(x):
        middle = lax.complex(_median(*(m.real for m in means)), _median(*(m.imag for m in means)))
    else:
        middle = _median(*means)
    return middle, functools.reduce(jnp.maximum, sizes)


def unit(size: Array) -> tuple[Array, Array]:
    """A power of two that brings data of this size near 1, and its inverse.

    1 for smaller data: rare points may be large.

    In such units the square of no finite number overflows that is less than 10^19 times `size`.
    """
    info = jnp.finfo(size.dtype)
    exponent = lax.reduce_precision(size, exponent_bits=info.nexp, mantissa_bits=0)
    back = jnp.clip(exponent, 1, 2.0 ** (info.maxexp - 28)).astype(size.dtype)
    return 1 / back, back


def _median(a: Array, b: Array, c: Array) -> Array:
    return lax.max(lax.min(a, b), lax.min(lax.max(a, b), c))


def _slices(x: Array, axes: tuple[int, ...]) -> list[Array]:
    """Thin slices of the sample: of rows one run, as neighbours are read together, and of others three."""
    if axes == (x.ndim - 1,) and isinstance(x.shape[-1], int):
        n = x.shape[-1]
        size = min(max(_RUN, n // _THIN), n)
        # within what a TPU reads at once; a sharded axis is summed whole
        return [x if shards(x)[-1] > 1 else _cut(x, x.ndim - 1, min(n // 2 // _TILE * _TILE, n - size), size)]
    return [_slice(x, axes, i) for i in range(3)]


def _slice(x: Array, axes: tuple[int, ...], i: int) -> Array:
    """The i-th of three thin slices: one axis, or a part of it, at one place of the other axes.

    A TPU reads whole tiles of the two minor axes, so that the last axis is kept; but the batch, which may be
    sharded, is not cut where it is reduced.
    """
    pieces = shards(x)
    kept = axes[0] if axes[0] == 0 else axes[-1]
    cut = [a for a in axes if a != kept]
    others = math.prod(x.shape[a] for a in cut if pieces[a] == 1)
    for a in (a for a in cut if pieces[a] == 1):  # the thinnest cuts first: XLA may write one out
        x = _cut(x, a, (2 * i + 1) * x.shape[a] // 6, 1)
    if isinstance(others, int) and 2 * others <= _THIN:
        x = _every(x, kept, _THIN // others, i, pieces[kept])
    return x


def _cut(x: Array, axis: int, start: Any, size: int) -> Array:
    if isinstance(start, int):
        return lax.slice_in_dim(x, start, start + size, axis=axis)
    return lax.dynamic_slice_in_dim(x, start, size, axis)  # a symbolic shape


def _every(x: Array, axis: int, step: int, i: int, pieces: int) -> Array:
    """Every `step`-th element, the i-th of three interleaved choices of them."""
    n = x.shape[axis]
    if not isinstance(n, int):
        return jnp.take(x, (jnp.arange(_FEW) * 3 + i) * n // (3 * _FEW), axis=axis)
    step = next((s for s in range(min(step, n), 1, -1) if n // s % pieces == 0), 1)
    start, size = (2 * i + 1) * step // 6, n // step
    return lax.slice_in_dim(x, start, start + (size - 1) * step + 1, step, axis)


def shards(x: Array) -> list[int]:
    """Into how many pieces each axis is cut, as far as tracing knows: it may not be sliced."""
    sharding = jax.typeof(x).sharding
    names = [() if s is None else s if isinstance(s, tuple) else (s,) for s in sharding.spec]
    names += [()] * (x.ndim - len(names))
    return [math.prod(sharding.mesh.shape[name] for name in axis) for axis in names]
