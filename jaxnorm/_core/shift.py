"""A shift: a value near the mean of x, known before the sums of x - shift and of its square are taken.

The relative error of a variance by these sums is some 3e-7 * (1 + (mean - shift)^2 / var). The mean of a thin
slice is near enough, even if it holds an outlier: with one of any size among k of n elements,
(mean - shift)^2 / var is n / k^2 at most. One element is not enough.
"""

import math

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm._base.arithmetic import wide
from jaxnorm._base.sharding import shards
from jaxnorm._core.reduction import Reduction

_THIN = 64  # a slice is one part in so many of the elements of a statistic,
_LEAST = 24  # but at least so many of them


def slice_mean(r: Reduction, x: Array) -> Array:
    """The mean of a thin slice of x: [*stats], over one device."""
    # The slice is converted, not x: XLA would write out a converted copy of x to slice it.
    v = _thin(x, r).astype(wide(x.dtype))
    return r.pool(r.sum(v), v.shape) / max(1, r.points(v.shape))


def rounded(shift: Array, dtype: DTypeLike) -> Array:
    """`shift` with so few bits that x of this dtype holds it, too, and that it is one number everywhere.

    XLA may contract x - total * (1 / n) to one operation, which does not round the product.
    """
    kind = jnp.finfo(dtype)
    bits = min(kind.nmant, jnp.finfo(shift.dtype).nmant - 3)

    def one(v: Array) -> Array:
        return lax.reduce_precision(v, exponent_bits=kind.nexp, mantissa_bits=bits)

    return lax.complex(one(shift.real), one(shift.imag)) if jnp.iscomplexobj(shift) else one(shift)


def _thin(x: Array, r: Reduction) -> Array:
    """A thin slice of x, in x's dtype: some places of each reduced axis.

    Axis 0 is not sliced if there are others, as a batch may be spread over devices; nor is an axis that
    is known to be sharded: it is summed.
    """
    pieces = shards(x)
    sliced = [a for a in r.axes if pieces[a] == 1 and (a > 0 or r.axes == (0,))]
    n = math.prod(x.shape[a] for a in r.axes)
    if not isinstance(n, int):  # symbolic sizes, of which no step is known
        for a in sliced:
            x = jnp.take(x, (2 * jnp.arange(_LEAST) + 1) * x.shape[a] // (2 * _LEAST), axis=a)
        return x
    wanted = min(n, max(_LEAST, n // _THIN))
    keep = wanted * math.prod(x.shape[a] for a in sliced) / max(1, n)  # places in what is sliced
    starts, stops, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
    for i, a in enumerate(sliced):
        places = min(x.shape[a], max(1, math.ceil(keep ** (1 / (len(sliced) - i)) - 1e-9)))
        keep /= max(1, places)
        steps[a] = max(1, x.shape[a] // max(1, places))
        starts[a] = steps[a] // 2
    # one slice: each is a kernel of its own on a GPU
    return lax.slice(x, starts, stops, steps)
