"""Normalize: Moments and standardize as one op with one derivative rule. Every norm calls it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm import _checks as check
from jaxnorm import _devices as devices
from jaxnorm._affine import Affine, apply, apply_tangent, gain, gain_tangent
from jaxnorm._arithmetic import Maybe, one_plus, plus, times, wide
from jaxnorm._moments import Moments
from jaxnorm._over import Over
from jaxnorm._passes import copies, written
from jaxnorm._rule import with_tangent
from jaxnorm._statistics import Taken, take, tangent, usable


class Spec(NamedTuple):
    """What is static: what the statistics are taken over, the dtype of y, and what else they decide."""

    over: Over
    dtype: Any
    corrections: Callable[..., tuple[Array, Array]] | None = None


class _Normalized(NamedTuple):
    y: Array
    mean: Array
    low: Array
    var: Array
    gain: Array
    weight: Array


def _primal(
    spec: Spec, x: Array, scale: Any, bias: Any, where: Any, epsilon: Array, near: Any, others: Any
) -> _Normalized:
    s = take(spec.over, x, where, near)
    g, var = written(gain(s.var, epsilon, s.unit)), s.variance()
    seen = None
    if where is not None:  # an empty sample has no gain, and a NaN in it is not used: y = bias
        seen = s.weight > 0
        g = jnp.where(seen, g, jnp.zeros_like(g))
        seen = spec.over.per_channel(seen, x.shape)
    r, d = _corrections(spec, s.mean + s.low, var, s.weight, epsilon, others)
    bias = bias if d is None else plus(_scaled(d, scale), bias)
    y = apply(x, _affine(spec, x, s.mean, s.low, g, _scaled(r, scale)), bias, seen, spec.dtype)
    return _Normalized(y, s.mean, s.low, var, g, s.weight)


def _corrections(
    spec: Spec, mean: Array, var: Array, weight: Array, epsilon: Array, others: Any
) -> tuple[Maybe, Maybe]:
    """r and d, without a gradient, of y = (xhat * r + d) * scale + bias; None is 1, and is 0."""
    if spec.corrections is None:
        return None, None
    return lax.stop_gradient(spec.corrections(Moments(mean, var, weight), epsilon, *others))


def _scaled(v: Maybe, scale: Maybe) -> Maybe:
    return scale if v is None else v if scale is None else times(v, scale)


def _affine(spec: Spec, x: Array, mean: Array, low: Array, gain: Array, scale: Maybe) -> Affine:
    mean, low, gain = (spec.over.per_channel(v, x.shape) for v in (mean, low, gain))
    return Affine(mean, low, gain, scale) if spec.over.centered else Affine(None, None, gain, scale)


def _tangent(spec: Spec, args: Any, out: _Normalized) -> Any:
    def linear(kept: Any, dx: Any, dscale: Any, dbias: Any, dwhere: Any, *_: Any) -> Any:
        x, scale, where, epsilon, others, (mean, low, var, gain, weight) = kept
        x = usable(x, where, spec.over.per_channel(mean, x.shape))
        # x's tangent is converted once: a cotangent of x that is rounded twice is 15 times less exact
        d, twice = None, None
        if dx is not None:
            d, *twice = copies(dx, 3, wide(x.dtype))
        s = Taken(mean, low, var, weight)
        dmean, dvar, dweight = tangent(spec.over, x, where, s, twice, dwhere)
        dgain = gain_tangent(gain, dvar)
        r, shift = _corrections(spec, mean + low, var, weight, epsilon, others)
        dbias = plus(dbias, times(dscale, shift))
        dscale = dscale if r is None else times(dscale, r)
        dy = apply_tangent(
            x,
            _affine(spec, x, mean, low, gain, _scaled(r, scale)),
            spec.dtype,
            *(d, *(spec.over.per_channel(v, x.shape) for v in (dmean, dgain)), dscale, dbias),
        )
        return dy, dmean, None, dvar, dgain, dweight

    x, scale, _, where, epsilon, _, others = args
    return linear, (x, scale, where, epsilon, others, out[1:])


_normalize = with_tangent(_primal, _tangent)


def normalize(
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
    corrections: Callable[..., tuple[Array, Array]] | None = None,
    others: Any = None,
    axis_name: Any = None,
    axis_index_groups: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """y and its Moments, with as many axes as x, for the public function of that name.

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
        lax.stop_gradient(others),
    )
    spec = Spec(Over(axes, names, centered, groups), jnp.dtype(dtype or x.dtype), corrections)
    with devices.explained(function, names):
        out = _normalize(spec, x, *args)
    return out.y, Moments(out.mean + lax.stop_gradient(out.low), out.var, out.weight)
