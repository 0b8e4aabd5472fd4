"""Alone: y and no moments, as most norms want it. Rows, if nothing is differentiated: one kernel on a GPU.

The derivative is that of the op that gives both, which reverse mode makes keep the moments.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax import Array

from jaxnorm import _devices as devices
from jaxnorm import _rows as rows
from jaxnorm._arithmetic import Maybe
from jaxnorm._forms import Forms, chosen
from jaxnorm._normalize import Spec, called, normalization
from jaxnorm._rule import absent
from jaxnorm._sharding import alike


def normalized(*args: Any, **options: Any) -> Array:
    """The y of `normalize`, and of the same arguments."""
    return called(_y, *args, **options)


def _y(spec: Spec, x: Array, scale: Any, bias: Any, where: Any, epsilon: Array, *others: Any) -> Array:
    """y alone. Of rows, where nothing is differentiated, what a GPU computes in one kernel."""
    if where is None and rows.stay_on_chip(x, spec.over):
        return _of_rows(spec, x, scale, bias, epsilon)
    return normalization(spec, x, scale, bias, where, epsilon, *others).y


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _of_rows(spec: Spec, *args: Any) -> Array:
    """Of x, scale, bias and epsilon."""
    x, scale, bias, epsilon = args
    forms = Forms(_kept, gpu=_on_chip, tpu=_kept, default=_kept, tangent=_kept_tangent)
    like, *_ = alike(*(v for v in (x, scale, bias) if v is not None))
    like = devices.vary(like, devices.varying(*args))
    return chosen(forms, spec, (spec.dtype,), like, x, scale, bias, epsilon.reshape((1,) * x.ndim))[0]


@partial(_of_rows.defjvp, symbolic_zeros=True)
def _of_rows_jvp(spec: Spec, args: Any, dargs: Any) -> Any:
    """By the op that keeps the moments."""
    (y,), (dy,) = _moved(partial(_kept, spec, None), args, [absent(d) for d in dargs])
    return y, dy


def _on_chip(spec: Spec, _: Any, x: Array, scale: Maybe, bias: Maybe, epsilon: Array) -> list[Array]:
    return [rows.normalized(x, scale, bias, epsilon, centered=spec.over.centered, dtype=spec.dtype)]


@partial(jax.jit, static_argnums=0, inline=True)
def _kept(spec: Spec, _: Any, x: Array, scale: Maybe, bias: Maybe, epsilon: Array) -> list[Array]:
    epsilon = epsilon.reshape(()) if epsilon.size == 1 else epsilon
    return [normalization(spec, x, scale, bias, None, epsilon, None, None, None).y]


def _kept_tangent(spec: Spec, args: Any, _: Any, dargs: Any) -> list[Array]:
    """Where JAX differentiates the forms and not the op: in remat in scan."""
    return _moved(partial(_kept, spec), args, dargs)[1]


def _moved(f: Callable[..., Any], args: Sequence[Any], dargs: Sequence[Any]) -> Any:
    """f(*args) and its tangent, of tangents that are None where they are absent."""
    moving = [i for i, d in enumerate(dargs) if d is not None]

    def of(*moved: Any) -> Any:
        given = dict(zip(moving, moved, strict=True))
        return f(*(given.get(i, v) for i, v in enumerate(args)))

    return jax.jvp(of, [args[i] for i in moving], [dargs[i] for i in moving])
