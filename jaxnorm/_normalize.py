"""Normalize: Moments and standardize as one op with one derivative rule. Every norm calls it."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxnorm import _checks as check
from jaxnorm import _devices as devices
from jaxnorm._arithmetic import Maybe, wide
from jaxnorm._law import Sample
from jaxnorm._moments import Moments
from jaxnorm._passes import copies
from jaxnorm._rule import with_tangent
from jaxnorm._standardize import Affine, apply, apply_tangent, gain, gain_tangent
from jaxnorm._statistics import Over, take, tangent, usable


class Spec(NamedTuple):
    """What is static: what the statistics are taken over, and the dtype of y."""

    over: Over
    dtype: Any


class _Normalized(NamedTuple):
    y: Array
    mean: Array
    low: Array
    var: Array
    gain: Array
    weight: Array


def _primal(spec: Spec, x: Array, scale: Any, bias: Any, where: Any, epsilon: Array) -> _Normalized:
    s = take(spec.over, x, where)
    g = gain(s.var, epsilon, s.tiny)
    seen = None
    if where is not None:  # an empty sample has no gain, and a NaN in it is not used: y = bias
        seen = s.weight > 0
        g = jnp.where(seen, g, jnp.zeros_like(g))
    y = apply(x, _affine(spec, s.mean, s.low, g, scale), bias, seen, spec.dtype)
    return _Normalized(y, s.mean, s.low, s.var, g, s.weight)


def _affine(spec: Spec, mean: Array, low: Array, gain: Array, scale: Maybe) -> Affine:
    centered = spec.over.centered
    return Affine(mean if centered else None, low if centered else None, gain, scale)


def _tangent(spec: Spec, args: Any, out: _Normalized) -> Any:
    def linear(kept: Any, dx: Any, dscale: Any, dbias: Any, dwhere: Any, _: Any) -> Any:
        x, scale, where, (mean, low, var, gain, weight) = kept
        # x's tangent is converted once: a cotangent of x that is rounded twice is 15 times less exact
        d, twice = None, None
        if dx is not None:
            d, *twice = copies(dx, 3, wide(x.dtype))
        s = Sample(mean, low, var, var, weight)
        dmean, dvar, dweight = tangent(spec.over, x, where, s, twice, dwhere)
        dgain = gain_tangent(gain, dvar)
        dy = apply_tangent(
            x,
            _affine(spec, mean, low, gain, scale),
            usable(x, where),
            spec.dtype,
            *(d, dmean, dgain, dscale, dbias),
        )
        return dy, dmean, None, dvar, dgain, dweight

    x, scale, _, where, _ = args
    return linear, (x, scale, where, out[1:])


_normalize = with_tangent(_primal, _tangent)


def normalize(
    function: str,
    x: Array,
    axes: tuple[int, ...],
    features: tuple[int, ...],
    *,
    centered: bool = True,
    scale: Any = None,
    bias: Any = None,
    epsilon: Any,
    where: Any = None,
    axis_name: Any = None,
    axis_index_groups: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """y and its Moments, with as many axes as x, for the public function of that name."""
    names = devices.bound(function, axis_name, axis_index_groups)
    args = (
        check.affine(function, "scale", scale, x, features),
        check.affine(function, "bias", bias, x, features),
        check.weights(function, where, x),
        check.epsilon(function, epsilon),
    )
    with devices.explained(function, names):
        out = _normalize(Spec(Over(axes, names, centered), jnp.dtype(dtype or x.dtype)), x, *args)
    return out.y, Moments(out.mean, out.var, out.weight)
