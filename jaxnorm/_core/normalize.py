"""Normalize: x standardized by its own moments, or by given ones. The formula is written once.

No derivative rule of a norm is in this library: JAX differentiates the formula. Three things make its
derivative as cheap as a rule written by hand.

1. With d = x - shift, where shift is a constant near the mean,
       mean = shift + E[d],  var = E[|d|^2] - |E[d]|^2,
       y = d * factor + term,  factor = scale / sqrt(var + epsilon),  term = bias - E[d] * factor.
   y does not depend on shift, so that stop_gradient(shift) is exact. x occurs in three places, two sums and
   y, and whatever is small is combined before it is broadcast against x. The transpose is therefore two sums
   in one read of x and dy, and one read of both that writes dx.
2. `jax.checkpoint` keeps the small sums, by name, and x in its own dtype. The rest is recomputed.
3. `Reads` tells XLA:CPU which reads of x are separate loops.
"""

from collections.abc import Callable, Hashable
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm._base import collectives as devices
from jaxnorm._base.arithmetic import choose, one_plus, plus, times, wide
from jaxnorm._base.collectives import AxisName
from jaxnorm._core.recompute import bounded, save_residuals
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.statistics import Statistics, statistics, usable
from jaxnorm._core.types import Moments
from jaxnorm._xla.reads import Read, Reads, materialize

P = ParamSpec("P")
R = TypeVar("R")

# (moments, epsilon, *others) -> (r, d), of y = (xhat * r + d) * scale + bias
Corrections = Callable[..., tuple[Array, Array]]


class Spec(NamedTuple):
    """What is static: hashable, as JAX keys the traces of a jitted function by it."""

    reduction: Reduction
    dtype: Any  # of y
    corrections: Corrections | None = None
    zero_centered_scale: bool = False  # scale is what is added to 1


def _traced_once(formula: Callable[P, R]) -> Callable[P, R]:
    """A formula of a static argument and of arrays, of which reverse mode keeps x and the residuals.

    It is jitted, so that a deep network traces equal norms once.
    """
    plain: Callable[..., R] = formula

    def call(static: Hashable, *arrays: Array) -> R:
        return save_residuals(partial(plain, static))(*arrays)

    return jax.jit(wraps(formula)(call), static_argnums=0)


@_traced_once
def _by_batch(
    spec: Spec,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    where: Array | None,
    epsilon: Array,
    shift: Array | None,
    guess: Array | None,
    others: tuple[Any, ...],
) -> tuple[Array, Moments]:
    """y and the moments of x, [*stats]: as many axes as x, reduced ones of size 1.

    Args:
      spec: what is static.
      x: floating or complex.
      scale, bias: arrays that broadcast to x, of as many axes; None is 1, and 0.
      where: a mask or weights >= 0, likewise; None is 1.
      epsilon: a scalar.
      shift: [*channels], a value near the mean that is known before x is; None: one is taken from x.
      guess: the same, but it may be far from the mean.
      others: further arguments of the corrections.
    """
    r, reads = spec.reduction, Reads(x, usable(x, where))
    s = statistics(r, reads, where, shift, guess)
    m = moments_of(s)
    if spec.zero_centered_scale:
        scale = one_plus(scale)
    # Without a mask `s.count` is a Python number, which decides here; with one, an array, used in `_output`.
    # One element is its own mean: y is the bias there, and its gradient 0, without rounding noise times rstd.
    alone = s.count == 1 if r.centered else False
    if where is None:
        factor = jnp.zeros_like(s.var) if alone or s.weight == 0 else _rstd(s.var, epsilon)
        at = mask = None
    else:
        has_weight = m.weight > 0
        factor = _rstd(s.var, epsilon, has_weight)
        # A masked NaN stays in y, but not in that of an empty sample, which is the bias.
        at = choose(r.expand(has_weight, x), x, reads.clean)
        mask = (where, r.expand(jnp.asarray(alone), x)) if r.centered else None
    shift, center, term = s.shift, None, None
    if s.shift is not None and s.offset is not None:
        # y = (x - shift) * factor + center, with center = -offset * factor, and not (x - mean) * factor: the
        # mean as one float32 would lose the digits of x - mean where the mean is large beside the deviation.
        # In a constant sample, though, shift + offset is x to the last bit, and y then is the bias to the
        # last bit, whatever 1 / sqrt(epsilon) would make of a rounding error.
        rest = lax.stop_gradient(choose(s.var == 0, s.offset, 0))
        shift, center = s.shift + rest, times(rest - s.offset, factor)
    if spec.corrections is not None:
        # constants of the derivative, as the paper of batch renorm has them
        ratio, term = lax.stop_gradient(spec.corrections(m, epsilon, *others))
        factor, center = times(factor, ratio), times(center, ratio)
    shift, factor, center, term = (r.expand(v, x) for v in (shift, factor, center, term))
    return _output(reads, Affine(shift, factor, center, term, scale, bias), spec.dtype, at, mask), m


@_traced_once
def _by_moments(
    dtype: DTypeLike,
    x: Array,
    mean: Array,
    var: Array,
    scale: Array | None,
    bias: Array | None,
    epsilon: Array,
    where: Array | None,
) -> Array:
    """y, of that dtype, by a mean and a variance that broadcast to x and that it is differentiable in.

    `where` hides masked values that are not finite from the derivatives, and nothing else.
    """
    mean, var = mean.astype(wide(x.dtype)), var.astype(jnp.finfo(wide(x.dtype)).dtype)
    factor = _rstd(var, epsilon)
    # The mean that is broadcast against x is a constant. The derivative by the mean goes through the small
    # `center`, which is 0.
    shift = lax.stop_gradient(mean)
    a = Affine(shift, factor, times(shift - mean, factor), None, scale, bias)
    return _output(Reads(x, usable(x, where)), a, dtype, x, None)


class Affine(NamedTuple):
    """y = ((x - shift) * factor + center + term) * scale + bias. None is 0, and a scale of 1."""

    shift: Array | None
    factor: Array
    center: Array | None
    term: Array | None
    scale: Array | None
    bias: Array | None

    def combined(self, dtype: DTypeLike) -> "Affine":
        """The same, in that dtype, with scale and bias in the other arrays."""
        scale, bias = (None if v is None else _converted(v, dtype) for v in (self.scale, self.bias))
        factor, center, term = self.factor, self.center, self.term
        if scale is not None:
            factor, center, term = times(factor, scale), times(center, scale), times(term, scale)
        return Affine(self.shift, factor, center, plus(term, bias), None, None)


def _output(
    reads: Reads, a: Affine, dtype: DTypeLike, at: Array | None, mask: tuple[Array, Array] | None
) -> Array:
    """y, of that dtype, in one read of x.

    Args:
      reads: of x.
      a: arrays that broadcast to x. Those that are smaller than x together are combined beforehand.
      dtype: of y.
      at: x where y is evaluated; None: where the derivatives are.
      mask: (where, alone): weights, and where only one element of a sample has a weight above 0. That
        element's (x - shift) * factor + center is 0, and so is its derivative.
    """
    shape, small = reads.x.shape, a.factor.shape
    if small != shape:
        # A scale of one value a feature and statistics of one value a row would make arrays as large as x:
        # then they stay apart, and the loop over x multiplies twice.
        if all(v is None or jnp.broadcast_shapes(v.shape, small) != shape for v in (a.scale, a.bias)):
            a = a.combined(reads.dtype)
        if mask is None:  # with a mask, `center` is multiplied by it, and `term` is not
            a = a._replace(center=None, term=plus(a.center, a.term))
        shift, factor, center, term = materialize(a.shift, a.factor, a.center, a.term)
        a = Affine(shift, factor, center, term, a.scale, a.bias)

    def standardized(
        x: Array,
        shift: Array | None,
        factor: Array,
        center: Array | None,
        term: Array | None,
        scale: Array | None,
        bias: Array | None,
        where: Array | None,
        alone: Array | None,
    ) -> Array:
        y = plus(times(x if shift is None else x - shift, factor), center)
        if where is not None and alone is not None:  # a product, as XLA:CPU writes out what it selects
            y = times(y, 1 - alone * jnp.sign(where))
        y = plus(y, term)
        return plus(y if scale is None else times(y, scale), bias)

    return reads(Read.OUTPUT, standardized, *a, *(mask or (None, None)), at=at, dtype=dtype)


def _rstd(var: Array, epsilon: Array, has_weight: Array | bool = True) -> Array:
    """1 / sqrt(var + epsilon); 0 where there is no spread, or where the sample has no weight."""
    spread = var + epsilon.astype(var.dtype)
    positive = (spread > 0) & has_weight
    # Not rsqrt: its derivative -1/2 rsqrt(v) / v underflows at deviations of 1e13.
    return choose(positive, 1 / jnp.sqrt(choose(positive, spread, 1)), 0)


def _converted(v: Array, dtype: DTypeLike) -> Array:
    """A scale or a bias in the dtype of the arithmetic; a real one stays real."""
    return v.astype(dtype if jnp.iscomplexobj(v) else jnp.finfo(dtype).dtype)


def moments_of(s: Statistics) -> Moments:
    """The moments: mean = shift + offset, and 0 for moments about 0."""
    mean = jnp.zeros_like(s.var) if s.offset is None else s.offset if s.shift is None else s.shift + s.offset
    return Moments(mean, s.var, jnp.broadcast_to(jnp.asarray(s.weight, s.var.dtype), s.var.shape))


# ---------------------------------------------------------------- the calls of the norms


def normalize(
    x: Array,
    axes: tuple[int, ...],
    scale: Array | None,
    bias: Array | None,
    epsilon: Array,
    where: Array | None,
    axis_name: AxisName,
    dtype: DTypeLike,
    *,
    centered: bool = True,
    groups: tuple[int, int] | None = None,
    zero_centered_scale: bool = False,
    pivot: Array | None = None,
    guess: Array | None = None,
    corrections: Corrections | None = None,
    others: tuple[Any, ...] = (),
) -> tuple[Array, Moments]:
    """y and the Moments of x, [*stats].

    Args:
      x: floating or complex.
      axes: of x, that the moments are taken over.
      scale, bias, where: arrays that broadcast to x, of as many axes, or None.
      epsilon: a scalar.
      axis_name: mapped axes that the moments are taken over, too.
      dtype: of y.
      centered: False: no mean is subtracted, as in RMS norm.
      groups: an axis of channels, none of `axes`, and how many groups it holds. Moments are a group's.
      pivot: a value near the mean that is known beforehand on every device, with as many axes as x.
      guess: the same, but it may be far from the mean.
      corrections, others: `corrections(moments, epsilon, *others)` gives r and d of
        y = (xhat * r + d) * scale + bias.
    """
    r = Reduction(axes, devices.bound(axis_name), centered, groups)
    spec = Spec(r, jnp.dtype(dtype), corrections, zero_centered_scale)
    pivot, guess, others = lax.stop_gradient((pivot, guess, others))
    return _by_batch(spec, bounded(x), scale, bias, where, epsilon, pivot, guess, others)


def normalize_by(
    x: Array,
    m: Moments,
    scale: Array | None,
    bias: Array | None,
    epsilon: Array,
    *,
    dtype: DTypeLike | None,
    where: Array | None = None,
) -> Array:
    """y by Moments of as many axes as x. `where` masks nothing but a NaN in x from the derivatives."""
    return _by_moments(jnp.dtype(dtype or x.dtype), bounded(x), *mean_and_var(m), scale, bias, epsilon, where)


def mean_and_var(m: Moments) -> tuple[Array, Array]:
    """mean and var; those of weight 0 are ignored, whatever they hold, and 0 and 1 are the identity."""
    has_weight = m.weight > 0
    return choose(has_weight, m.mean, 0), choose(has_weight, m.var, 1)
