"""Statistics: weighted sums of x - shift and of its square, in one read of x, and the moments they make."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm._base import collectives as devices
from jaxnorm._base.arithmetic import abs2, choose, divide, times
from jaxnorm._base.sharding import as_sums
from jaxnorm._core.recompute import residual
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.shift import rounded, slice_mean
from jaxnorm._xla.guess import sums_about_a_guess
from jaxnorm._xla.reads import Read, Reads, materialize, materialize_cotangents

# Everything is right for |x - mean| up to this number in float32: its square is finite.
LARGEST = 1e18


class Statistics(NamedTuple):
    """The moments of x while they are computed with: [*stats], as many axes as x, reduced ones of size 1."""

    shift: Array | None  # a constant near the mean; None is 0
    offset: Array | None  # mean - shift; None is 0
    var: Array
    weight: Any  # of the sample: a Python number without `where`
    count: Any  # how many elements have a weight above 0; likewise


def statistics(
    r: Reduction, reads: Reads, where: Array | None, shift: Array | None, guess: Array | None = None
) -> Statistics:
    """mean = shift + E[d], var = E[|d|^2] - |E[d]|^2, with d = x - shift.

    Args:
      r: what they are taken over.
      reads: of x.
      where: None, or a mask or weights >= 0, of as many axes as x, each of x's size or 1.
      shift: [*channels], a value near the mean that is known before x is; by default one is taken from x.
      guess: the same, but it may be far from the mean or not finite. A TPU tries it, one device, unmasked.
    """
    shape = reads.x.shape
    values: dict[Read, Array] = {}
    # On an Explicit mesh x - shift has to be sharded as x is: a state that is sharded otherwise follows x.
    shift, guess = (None if v is None else as_sums(v, reads.x, r.axes) for v in (shift, guess))
    # Across devices each would take its own branch, and masked sums need the masked mean as their shift.
    if guess is not None and shift is None and where is None and not r.names.names:
        shift, values = _about_a_guess(r, reads, guess)
    weight, count, shift = _weight_and_shift(r, reads, where, shift)
    mask = where if where is not None and where.dtype == jnp.bool_ else None
    if mask is not None and shift is not None:  # it stands in for masked elements, in x's dtype
        shift = rounded(shift, reads.x.dtype)
    # One number wherever it is used: if one of two sums rounded it otherwise, it would be another shift.
    (shift,) = materialize(shift)
    s = r.expand(shift, reads.x)
    if mask is not None and s is not None:
        # Plain sums of x - shift with shift in place of what is masked: XLA:CPU adds up products one by one,
        # and rounds each time. The derivatives are those of the weighted sums.
        filled = lax.stop_gradient(choose(mask, reads.x, s.astype(reads.x.dtype)))
        values = _sums(r, Reads(filled, filled), s, None, {})
    sums = materialize_cotangents(*_sums(r, reads, s, where, values).values())
    # Pooled and summed over devices first: the residuals are of the size of the statistics, and the backward
    # pass, which has them, needs no collective to compute them again.
    *first, second = residual_stats(r, *r.across_devices(*(r.pool(v, shape) for v in sums)))
    offset = divide(first[0], weight) if r.centered else None
    second = divide(second, weight) / _unit(r, shape) ** 2
    return Statistics(shift, offset, variance(second, offset), weight, count)


def _sums(
    r: Reduction, reads: Reads, shift: Array | None, where: Array | None, values: dict[Read, Array]
) -> dict[Read, Array]:
    """The weighted sums of d (where r is centered) and of |d|^2 over one device: [*channels].

    Args:
      r, reads, where: as in `statistics`.
      shift: [*channels], of d = x - shift.
      values: these sums, where they are known. They are then differentiated, and not computed.
    """
    unit = _unit(r, reads.x.shape)

    # Two sums, each a read of its own on a CPU, as XLA:CPU fuses one sum at a time. A GPU and a TPU fuse the
    # two into one read of x.
    def first(x: Array, s: Array | None, w: Array | None) -> Array:
        return r.sum(_weighed(w, _minus(x, s)))

    def second(x: Array, s: Array | None, w: Array | None) -> Array:
        return r.sum(_weighed(w, abs2(_minus(x, s)))) * unit**2

    def second_in_units(x: Array, s: Array | None, w: Array | None) -> Array:
        return r.sum(_weighed(w, abs2(_minus(x, s) * unit)))

    wanted = {Read.SUM: first, Read.SQUARES: second} if r.centered else {Read.SQUARES: second}
    if unit != 1 and Read.SQUARES not in values:
        # The value is taken in units, so that it does not overflow. The derivative needs none: the backward
        # pass multiplies no element of x by a unit.
        x = lax.stop_gradient(reads.clean)
        value = Reads(x, x)(Read.SQUARES, second_in_units, shift, lax.stop_gradient(where))
        values = {**values, Read.SQUARES: value}
    return {read: reads(read, f, shift, where, value=values.get(read)) for read, f in wanted.items()}


def _about_a_guess(r: Reduction, reads: Reads, guess: Array) -> tuple[Array, dict[Read, Array]]:
    """A shift and the sums about it, without a derivative: about `guess` on a TPU if that is near enough."""
    shape, n = reads.x.shape, r.points(reads.x.shape)
    x, guess = lax.stop_gradient(reads.x), guess.astype(reads.dtype)

    def sums(x: Array, shift: Array) -> list[Array]:
        return list(_sums(r, Reads(x, x), shift, None, {}).values())

    def near(x: Array) -> Array:
        return materialize(slice_mean(r, x))[0]

    def good(guess: Array, found: list[Array]) -> Array:
        # The relative error of var is some 3e-7 * (1 + |offset|^2 / var): here 1.5e-6 at most. A NaN is not
        # good, as no comparison with it holds.
        first, second = (divide(v, n) for v in found)
        return jnp.all(variance(second / _unit(r, shape) ** 2, first) >= abs2(first) / 4)

    finite = choose(jnp.abs(guess) <= LARGEST, guess, 0)
    shift, first, second = lax.stop_gradient(sums_about_a_guess(sums, near, good, x, finite))
    return residual_stats(r, shift)[0], {Read.SUM: first, Read.SQUARES: second}


def _unit(r: Reduction, shape: Sequence[Any]) -> float:
    """A power of two that keeps the sum of squares finite where each |x - shift| is 1e18 at most in float32.

    1e36 is 256 times smaller than the largest float32: 1 for sums of up to 256 elements.
    """
    n = r.points(shape) * devices.size(r.names)
    return 2.0 ** -max(0, (math.ceil(math.log2(n)) - 7) // 2) if isinstance(n, int) and n > 0 else 1.0


def _weight_and_shift(r: Reduction, reads: Reads, where: Array | None, shift: Array | None) -> Any:
    """The weight of the sample, how many elements it has, and the shift.

    With a mask the shift is the masked mean, rounded: a slice may be masked as a whole.
    """
    x = reads.x
    has_shift = shift is not None or not r.centered
    if where is None:
        count = r.points(x.shape) * devices.size(r.names)
        if not has_shift:
            # Every device has a slice of its own. Their average is one shift for all, so that the sums about
            # it may be added: one collective more than with a shift that is known before x is.
            (total,) = r.across_devices(slice_mean(r, lax.stop_gradient(x)))
            (shift,) = residual_stats(r, lax.stop_gradient(total / devices.size(r.names)))
        return count, count, shift if r.centered else None
    real = jnp.finfo(reads.dtype).dtype
    masks = [where] if where.dtype == jnp.bool_ else [where, positive(where)]
    totals = [_sum_of_mask(r, m, x.shape, real) for m in masks]
    if not has_shift:  # the sum of x goes into the collective of the weights
        totals.append(r.pool(reads(Read.SHIFT, lambda x, w: r.sum(_weighed(w, x)), where), x.shape))
    totals = r.across_devices(*totals)
    if not has_shift:
        (shift,) = residual_stats(r, lax.stop_gradient(divide(totals.pop(), totals[0])))
    return totals[0], totals[-1], shift if r.centered else None


def _sum_of_mask(r: Reduction, where: Array, shape: Sequence[int], dtype: DTypeLike) -> Array:
    """The sum of weights over the elements of x, of this shape, that they are broadcast to: [*stats]."""
    # A mask of one value a row, say, is summed as it is, and not after it is broadcast to the size of x.
    repeats = math.prod(shape[a] for a in r.axes if where.shape[a] == 1)
    return r.pool(r.sum(where.astype(dtype)) * repeats, shape)


def usable(x: Array, where: Array | None) -> Array:
    """x, with 0 in place of masked values that may be multiplied by 0, but not squared or differentiated.

    These are NaN, Inf and numbers whose square overflows. 0 * NaN is NaN.
    """
    if where is None:
        return x
    largest = min(LARGEST, float(jnp.finfo(x.dtype).max))
    return choose(positive(where) | (jnp.abs(x) <= largest), x, 0)


def positive(where: Array) -> Array:
    """The mask of what has a weight above 0."""
    return where if where.dtype == jnp.bool_ else where > 0


def residual_stats(r: Reduction, *vs: Array) -> list[Array]:
    """Small arrays, [*stats], kept for the backward pass without axes of size 1, which a TPU pads."""
    return [jnp.expand_dims(residual(jnp.squeeze(v, r.axes)), r.axes) for v in vs]


def variance(second: Array, offset: Array | None) -> Array:
    """E|d|^2 - |E[d]|^2; 0 where rounding alone is left, so that a constant has no variance at all."""
    if offset is None:
        return second
    square = abs2(offset)
    var = second - square
    # Each of the two is rounded, by some 2^-24 of itself: less than 2^-22 of them is nothing but rounding.
    return choose(var <= 2.0**-22 * square, 0, var)


def _minus(x: Array, shift: Array | None) -> Array:
    return x if shift is None else x - shift


def _weighed(where: Array | None, v: Array) -> Array:
    return v if where is None else times(v, where)
