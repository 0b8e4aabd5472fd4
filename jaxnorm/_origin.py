"""Origin: what x is measured from, so that the difference of two finite numbers is finite."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnorm._arithmetic import HEADROOM, Maybe, choose, times
from jaxnorm._forms import Forms, chosen
from jaxnorm._law import Sample
from jaxnorm._over import Over

# 4 / the largest root mean square is a normal number, and a quarter of no scale that matters is subnormal.
_QUARTER = 0.25


class Origin(NamedTuple):
    """Of x - its mean: room * x - mean - low, of a mean and a low that are in this unit, too."""

    room: Array | float
    mean: Maybe = None
    low: Maybe = None
    gain_factor: Array | float = 1.0  # with it the gain, rstd / HEADROOM, meets what is in this unit
    scale_factor: Array | float = 1.0  # what is then missing, for a scale that meets x by itself


def origin(over: Over, s: Sample, where: Maybe, crossed: bool) -> Origin:
    """The mean, in units of 1 / HEADROOM; on a GPU in those of x, as an operation on x may cost a pass.

    XLA:GPU computes y again in the kernels that need but its sign, a relu's, if y is few operations.

    `crossed` is a scale that meets x by itself; the gain, without it and without a mean, must not be flushed.
    """
    if not over.centered:
        if not crossed:
            return Origin(1.0)
        forms = Forms(cpu=_quarter, gpu=_whole, tpu=_quarter, default=_quarter, tangent=_none)
        gain_factor, scale_factor = chosen(forms, over, (s.var.dtype,) * 2, s.var, s.var)
        return Origin(1.0, gain_factor=gain_factor, scale_factor=scale_factor)
    gpu = _bare if where is None else _with_room  # var tells of no point that is masked, or of little weight
    forms = Forms(cpu=_with_room, gpu=gpu, tpu=_with_room, default=_with_room, tangent=_tangent)
    var, unit = (jnp.broadcast_to(v, s.mean.shape) for v in (s.var, s.unit))
    dtypes = (var.dtype, s.mean.dtype, s.mean.dtype, var.dtype)
    return Origin(*chosen(forms, over, dtypes, s.mean, s.low, var, unit, s.weights()))


def _with_room(_: Any, mean: Array, low: Array, var: Array, *others: Any) -> list[Array]:
    one = jnp.ones_like(var)
    return [one * HEADROOM, mean * HEADROOM, low * HEADROOM, one]


def _bare(_: Any, mean: Array, low: Array, var: Array, unit: Array, weight: Array) -> list[Array]:
    """0 in place of the mean, and all of it in `low`, where x - mean might overflow: d^2 <= n var tells.

    Of such numbers mean * rstd is 2 sqrt(n) at most, and so are the roundings that y loses. A product of rstd
    and scale may be subnormal, of fewer digits; a GPU keeps it.
    """
    half = jnp.finfo(var.dtype).maxexp // 2
    # no squares: XLA takes the constant out of one, and the square of a small unit is 0
    far = jnp.sqrt(var) * jnp.sqrt(weight) * 2.0 ** (1 - half) >= unit * 2.0**half
    one = jnp.ones_like(var)
    return [one, choose(far, 0, mean), choose(far, mean, low), one * HEADROOM]


def _quarter(_: Any, like: Array, __: Any) -> list[Array]:
    return [jnp.full_like(like, HEADROOM / _QUARTER), jnp.full_like(like, _QUARTER)]


def _whole(_: Any, like: Array, __: Any) -> list[Array]:
    return [jnp.full_like(like, HEADROOM), jnp.ones_like(like)]


def _none(*_: Any) -> list[None]:
    return [None, None]


def _tangent(_: Any, args: Any, results: Any, dargs: Any) -> list[Maybe]:
    """Where JAX differentiates the forms and not the op: in remat in scan."""
    return [None, *(times(d, results[0]) for d in dargs[:2]), None]
