"""A pivot: a value near the data, and the size of the data, from a thin sample of it.

Sums of squares about a pivot are as accurate as about the mean while (mean - pivot)^2 is not far above
the variance. The pivot is the median of the means of a thin slice at three places, of rows and of columns
the mean of one: near the data however large its mean, wherever a few outliers are. Means, not single
elements, so that an axis that is sharded is not sliced but summed; x is sliced and the slice converted,
since XLA writes out a copy that it slices. One slice for all places, as a GPU starts kernels for each.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm._arithmetic import HEADROOM, wide
from jaxnorm._over import Over
from jaxnorm._sharding import shards

_THIN = 64  # a slice is one part in so many of the sample, or less
_TILE = 128  # elements of the minor axis that a TPU reads at once
_PLACES = 3
_FEW = 24  # elements of an axis of unknown size
_RUN = 24  # the least number of elements whose mean is a pivot, where one of them may be an outlier


def pivot(x: Array, over: Over) -> tuple[Array, Array]:
    """A value near the data of each sample, and their size; the reduced axes keep size 1."""
    v, places = _slice(x, over.axes)
    v = v.astype(wide(x.dtype))
    others = tuple(a for a in over.axes if a != places)

    def at_places(reduce: Callable[..., Array], v: Array) -> Array:
        return over.per_group(reduce(v, axis=others, keepdims=True), x.shape, reduce)

    mean, size = at_places(jnp.mean, v * HEADROOM) / HEADROOM, at_places(jnp.max, jnp.abs(v))
    if places is None:
        return mean, size
    means, sizes = ([lax.index_in_dim(v, i, places) for i in range(_PLACES)] for v in (mean, size))
    if jnp.iscomplexobj(x):
        middle = lax.complex(_median(*(m.real for m in means)), _median(*(m.imag for m in means)))
    else:
        middle = _median(*means)
    # not by a reduction, which XLA would unite with that over the slice, in a kernel of its own
    return middle, functools.reduce(lax.max, sizes)


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


def _slice(x: Array, axes: tuple[int, ...]) -> tuple[Array, int | None]:
    """A thin slice of the sample, and the axis of three places that it is from, if it is.

    Of rows a run, as neighbours are read together. Else one axis, or a part of it, at places of the others. A
    TPU reads whole tiles of the two minor axes, so that the last axis is kept; but the batch, which may be
    sharded, is not cut where it is reduced.
    """
    pieces = shards(x)
    if axes == (x.ndim - 1,) and isinstance(x.shape[-1], int):
        n = x.shape[-1]
        size = min(max(_RUN, n // _THIN), n)
        # within what a TPU reads at once; a sharded axis is summed whole
        run = x if pieces[-1] > 1 else _cut(x, x.ndim - 1, min(n // 2 // _TILE * _TILE, n - size), size)
        return run, None
    kept = axes[0] if axes[0] == 0 else axes[-1]
    cut = [a for a in axes if a != kept and pieces[a] == 1]
    others = math.prod(x.shape[a] for a in cut)
    places = next((a for a in cut if not isinstance(x.shape[a], int) or x.shape[a] >= _PLACES), None)
    for a in (a for a in cut if a != places):  # the thinnest cuts first: XLA may write one out
        x = _cut(x, a, x.shape[a] // 2, 1)
    if places is not None:
        x = _at(x, places, _PLACES)
    if not isinstance(others, int):
        return x, places
    if kept not in (0, x.ndim - 1) and places is not None and isinstance(x.shape[kept], int):
        # neither batch nor lanes: three places are as thin as one, and each has its part of the least number
        thin = min(-(-_THIN * _PLACES // others), x.shape[kept] * _PLACES // _RUN)
        x = _every(x, kept, thin, pieces[kept])
    elif 2 * others <= _THIN:
        few = _PLACES if others == 1 else 1
        x = _every(x, kept, max(1, _THIN // others // few), pieces[kept])
    return x, places


def _cut(x: Array, axis: int, start: Any, size: int) -> Array:
    if isinstance(start, int):
        return lax.slice_in_dim(x, start, start + size, axis=axis)
    return lax.dynamic_slice_in_dim(x, start, size, axis)  # a symbolic shape


def _at(x: Array, axis: int, count: int) -> Array:
    """`count` elements of an axis, as far from each other as from its ends."""
    n = x.shape[axis]
    if not isinstance(n, int):
        return jnp.take(x, (2 * jnp.arange(count) + 1) * n // (2 * count), axis=axis)
    step = n // count
    return lax.slice_in_dim(x, step // 2, step // 2 + (count - 1) * step + 1, step, axis)


def _every(x: Array, axis: int, step: int, pieces: int) -> Array:
    """Every `step`-th element, or more of them, so that all pieces of the axis have the same."""
    n = x.shape[axis]
    if not isinstance(n, int):
        return _at(x, axis, _FEW)
    step = next((s for s in range(min(step, n), 1, -1) if n // s % pieces == 0), 1)
    return _at(x, axis, n // step)
