"""Normalize: Moments and standardize as one op with one derivative rule. Every norm calls it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm import _checks as check
from jaxnorm import _devices as devices
from jaxnorm._affine import (
    Affine,
    Pass,
    apply,
    apply_tangent,
    before,
    combined,
    gain,
    gain_tangent,
    split,
    split_tangents,
)
from jaxnorm._arithmetic import Maybe, choose, one_plus, plus, times, wide
from jaxnorm._law import Sample
from jaxnorm._moments import Moments
from jaxnorm._origin import Origin, origin
from jaxnorm._over import Over
from jaxnorm._passes import copies, together, written
from jaxnorm._rule import with_tangent
from jaxnorm._sharding import fitted
from jaxnorm._statistics import Taken, deviating, of_sums, points_of, take, tangent_sums, usable


class Spec(NamedTuple):
    """What is static: what the statistics are taken over, the dtype of y, and what else they decide."""

    over: Over
    dtype: Any
    corrections: Callable[..., tuple[Array, Array]] | None = None

    def behind(self) -> "Spec":
        """The same of arrays with one more axis in front."""
        return self._replace(over=self.over.behind())


class _Normalized(NamedTuple):
    y: Array
    mean: Array
    low: Array
    var: Array
    gain: Array
    weight: Array


def _primal(
    spec: Spec,
    x: Array,
    scale: Any,
    bias: Any,
    where: Any,
    epsilon: Array,
    near: Any,
    guess: Any,
    others: Any,
) -> _Normalized:
    s = take(spec.over, x, where, near, guess)
    scale, bias, outside = split(x, spec.over.channels(x.shape), scale, bias)
    weight = s.weights()
    seen = None if where is None else weight > 0
    crossed = outside.scale is not None
    at = origin(spec.over, s, where, crossed)
    arrays = at, deviating(spec.over, x, where, s), scale, bias, epsilon, others
    (mean, low, var), g, p = together(_before, s, *arrays, crossed=crossed, spec=spec, everywhere=True)
    # of groups one value each is kept for the derivative, not one for every channel
    kept = (spec.over.shared(v, x.shape) for v in (mean, low, var, g, weight))
    return _Normalized(apply(x, p, at, outside, seen, spec.dtype), *kept)


def _before(
    s: Sample,
    at: Origin,
    deviating: Maybe,
    scale: Maybe,
    bias: Maybe,
    epsilon: Array,
    others: Any,
    *,
    crossed: bool,
    spec: Spec,
) -> tuple[tuple[Array, Array, Array], Array, Pass]:
    """What is small, before y: mean, low and var, the gain, and what meets x."""
    g, var = gain(s.var, epsilon, s.unit), s.variance()
    if deviating is not None:  # without a gain y is the bias, and the gradient of x is 0
        g = choose(deviating, g, 0)
    r, d = _corrections(spec, Moments(s.mean + s.low, var, s.weights()), epsilon, others)
    bias = bias if d is None else plus(_scaled(d, scale), bias)
    a = _affine(spec.over, s.mean, s.low, g, _scaled(r, scale))
    return (s.mean, s.low, var), g, before(a, at, bias, crossed, s.mean.dtype)


def _corrections(spec: Spec, m: Moments, epsilon: Array, others: Any) -> tuple[Maybe, Maybe]:
    """r and d, without a gradient, of y = (xhat * r + d) * scale + bias; None is 1, and is 0."""
    if spec.corrections is None:
        return None, None
    return lax.stop_gradient(spec.corrections(m, epsilon, *others))


def _scaled(v: Maybe, scale: Maybe) -> Maybe:
    return scale if v is None else v if scale is None else times(v, scale)


def _tangent(spec: Spec, args: Any, out: _Normalized) -> Any:
    over, y = spec.over, jax.typeof(out.y)

    def linear(kept: Any, dx: Any, dscale: Any, dbias: Any, dwhere: Any, *_: Any) -> Any:
        x, scale, where, epsilon, others, statistics = kept
        if over.groups is not None:
            statistics = written(*(fitted(over.per_channel(v, x.shape), x) for v in statistics))
        mean, low, var, gain, weight = statistics
        x = usable(x, where, mean)
        # x's tangent is converted once: a cotangent of x that is rounded twice is 15 times less exact
        d, twice = None, None
        if dx is not None:
            d, *twice = copies(dx, 3, wide(x.dtype))
        s = Taken(mean, low, var, weight)
        r, shift = _corrections(spec, Moments(mean + low, var, weight), epsilon, others)
        channels = over.channels(x.shape)
        scale, _, outside = split(x, channels, scale, None)
        a = _affine(over, mean, low, gain, _scaled(r, scale))
        # of a batch norm the passes are apart by themselves; a mask would be written out with x
        last = over.centered and 0 not in over.axes and where is None
        first, second, dweight = tangent_sums(over, x, where, s, a.mean, twice, dwhere, last)
        dscale, dbias, outer = split_tangents(x, channels, outside, dscale, dbias)
        moved = first, second, dscale
        n = points_of(over, x, where, s)
        # behind a barrier: XLA would take a bias's sum of the samples' sums from dy itself, beside dx
        along, plain, dmean, dvar, dgain = together(
            _combined, dbias, low, gain, a, n, r, shift, moved=moved, everywhere=last
        )
        dy = apply_tangent(x, a, outside.scale, y, d, along, plain, outer, last, shift)
        return dy, *(over.shared(v, x.shape) for v in (dmean, None, dvar, dgain, dweight))

    x, scale, _, where, epsilon, _, _, others = args
    return linear, (x, scale, where, epsilon, others, out[1:])


def _affine(over: Over, mean: Array, low: Array, gain: Array, scale: Maybe) -> Affine:
    """What the passes over x share."""
    return Affine(mean, low, gain, scale) if over.centered else Affine(None, None, gain, scale)


def _combined(
    moved: Any, dbias: Maybe, low: Array, gain: Array, a: Affine, n: Any, r: Maybe, shift: Maybe
) -> tuple[Maybe, ...]:
    """What is small, in the tangent: what meets x, and the tangents of mean, var and gain."""
    *sums, dscale = moved
    dmean, dvar = of_sums(sums, low, n)
    dgain = gain_tangent(gain, dvar)
    dbias = plus(dbias, times(dscale, shift))
    dscale = dscale if r is None else times(dscale, r)
    return *combined(a, dmean, dgain, dscale, dbias, low.dtype), dmean, dvar, dgain


normalization = with_tangent(_primal, _tangent)


def normalize(*args: Any, **options: Any) -> tuple[Array, Moments]:
    """y and its Moments, with as many axes as x; of groups, each channel has its group's."""
    out = called(normalization, *args, **options)
    return out.y, Moments(out.mean + lax.stop_gradient(out.low), out.var, out.weight)


def called(
    op: Callable[..., Any],
    function: str,
    x: Array,
    axes: tuple[int, ...],
    features: tuple[int, ...],
    *,
    centered: bool = True,
    groups: tuple[int, int] | None = None,
    scale: Any = None,
    zero_centered_scale: bool = False,
    bias: Any = None,
    epsilon: Any,
    where: Any = None,
    pivot: Any = None,
    guess: Any = None,
    corrections: Callable[..., tuple[Array, Array]] | None = None,
    others: Any = None,
    axis_name: Any = None,
    axis_index_groups: Any = None,
    dtype: DTypeLike | None = None,
) -> Any:
    """`op` of its arguments, checked for the public function of that name.

    `pivot`, with as many axes, too, is a value near the mean that is known beforehand on every device.
    `corrections(m, epsilon, *others)` gives r and d of y = (xhat * r + d) * scale + bias.
    """
    names = devices.bound(function, axis_name, axis_index_groups)
    factor = check.affine(function, "scale", scale, x, features)
    args = (
        one_plus(factor) if zero_centered_scale else factor,
        check.affine(function, "bias", bias, x, features),
        check.weights(function, where, x),
        check.epsilon(function, epsilon),
        None if pivot is None else lax.stop_gradient(pivot),
        None if guess is None else lax.stop_gradient(guess),
        lax.stop_gradient(others),
    )
    spec = Spec(Over(axes, names, centered, groups), jnp.dtype(dtype or x.dtype), corrections)
    with devices.explained(function, names):
        return op(spec, x, *args)
