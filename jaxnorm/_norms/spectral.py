"""Spectral norm: a matrix and what is remembered of its largest singular value."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import abs2, choose, divide, wide
from jaxnorm._base.exported import exportable
from jaxnorm._base.messages import error, public
from jaxnorm._base.sharding import replicated, state_as, whole
from jaxnorm._core.recompute import remat, residual, root
from jaxnorm._norms.trees import Select, mapped


@exportable
class SpectralStats(NamedTuple):
    """What `spectral_norm` remembers of a matrix: its largest singular value, and a vector to it.

    >>> import jax, jaxnorm as jn
    >>> jn.initial_spectral_stats(jax.numpy.ones((3, 2)), jax.random.key(0)).u.shape
    (1, 2)
    """

    u: Array  # [1, columns] the right singular vector
    sigma: Array  # [] the singular value


@public
def initial_spectral_stats(params: Any, key: Array, *, select: Select = None) -> Any:
    """The state of `spectral_norm` before training: random vectors, and sigma 1.

    Args:
      params: a tree of arrays. One of more than two axes counts as a matrix whose columns are the last.
      key: of `jax.random`.
      select: `(path, value) -> bool`, which leaves are normalized; by default those of two axes or more.

    Returns:
      A tree like params: `SpectralStats` in the leaf's dtype, float32 or wider, and None for what is not
      normalized.

    Raises:
      ValueError: a scalar that is selected.
      TypeError: not numeric.

    >>> import jax, jaxnorm as jn
    >>> params = {"kernel": jax.numpy.ones((3, 2)), "bias": jax.numpy.ones(2)}
    >>> stats = jn.initial_spectral_stats(params, jax.random.key(0))
    >>> stats["bias"], stats["kernel"].u.shape, float(stats["kernel"].sigma)
    (None, (1, 2), 1.0)
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.tree.unflatten(structure, jax.random.split(key, len(leaves)))

    def start(v: Array, key: Array) -> SpectralStats:
        (columns,) = check.axes((-1,), v)
        dtype = wide(v.dtype)
        u = jax.random.normal(key, (1, v.shape[columns]), dtype)
        return SpectralStats(u, jnp.ones((), jnp.finfo(dtype).dtype))

    return mapped(start, params, keys, select, otherwise=lambda _: None)


@public
def spectral_norm(
    params: Any,
    stats: Any,
    *,
    n_steps: int = 1,
    epsilon: float | Array = 1e-12,
    dtype: DTypeLike | None = None,
) -> tuple[Any, Any]:
    """Spectral norm: every matrix divided by its largest singular value.

    w = v / sigma, with sigma = left v u^H and singular vectors from `n_steps` of power iteration,
    left = u v^H / ||u v^H|| and u = left v / ||left v||, which starts at the u of the last call.

    Arithmetic is float32 or wider; w has v's dtype. sigma differentiates through v, with the singular
    vectors held fixed; the new state carries no gradient. In evaluation, drop the new state: the same
    state gives the same w. Miyato, Kataoka, Koyama, Yoshida 2018, arXiv:1802.05957.

    Args:
      params: a tree of arrays. One of more than two axes counts as a matrix whose columns are the last.
      stats: the state, `initial_spectral_stats(params, key)` at first. Where it is None, w is v.
      n_steps: 1 or more.
      epsilon: added to the squares of the lengths; >= 0.
      dtype: of w; by default v's.

    Returns:
      w, a tree like params, and the new state, of the same type, shapes and dtypes as `stats`. A weight
      of zeros stays as it is, and so does its u.

    Raises:
      ValueError: n_steps below 1; a negative epsilon; a u of another size.
      TypeError: not numeric; only one of v and u complex.

    >>> import jax, jaxnorm as jn
    >>> v = jax.numpy.array([[3.0, 0.0], [0.0, 1.0]])
    >>> w, stats = jn.spectral_norm(v, jn.initial_spectral_stats(v, jax.random.key(0)), n_steps=9)
    >>> print(stats.sigma.round(3), w.round(3).tolist())
    3.0 [[1.0, 0.0], [0.0, 0.333]]
    """
    n_steps = check.integer("n_steps", n_steps, least=1, remedy="choose 1 or more")
    least = check.epsilon(epsilon)
    # a few rows against a matrix: exact products cost nothing, and sigma is their sum
    einsum = partial(jnp.einsum, precision="highest")

    def to_length_1(row: Array) -> Array:
        square = jnp.sum(abs2(row))
        return divide(row, root(square + least.astype(square.dtype)))  # 0 / 0 is 0: epsilon may be 0

    def divided(v: Array, s: SpectralStats) -> tuple[Array, SpectralStats]:
        _check_spectral(v, s)
        if not v.size:  # without a singular value
            return v.astype(dtype or v.dtype), s

        @remat
        def by_sigma(matrix: Array, start: Array) -> tuple[Array, Array, Array]:
            """w, u and sigma. The matrix's rows are all axes but the last."""
            fixed, start = lax.stop_gradient((matrix, whole(start.astype(matrix.dtype), 1)[0]))
            everywhere = replicated(matrix)
            u = start
            for _ in range(n_steps):
                left = to_length_1(einsum("c,...c->...", u, fixed.conj()))
                u = to_length_1(einsum("...,...c->c", left, fixed, out_sharding=everywhere))
            u = choose(jnp.any(u != 0), u, start)  # a weight of zeros turns no vector to 0 for ever
            left, u = residual((left, u))
            along = einsum("...,...c->c", left, matrix, out_sharding=everywhere)
            sigma = residual(einsum("c,c->", along, u.conj()).real)
            return divide(matrix, sigma).astype(dtype or v.dtype), u[None], sigma

        w, u, sigma = by_sigma(v, s.u)
        new = SpectralStats(u.astype(s.u.dtype), sigma.astype(s.sigma.dtype))
        return w, state_as(lax.stop_gradient(new), s)

    def each(v: Array, s: SpectralStats | None) -> tuple[Array, SpectralStats | None]:
        return (v, None) if s is None else divided(v, s)

    both = mapped(each, params, stats, lambda *_: True)
    w, new = (jax.tree.map(lambda _, pair, i=i: pair[i], params, both) for i in (0, 1))
    return w, new


def _check_spectral(v: Array, s: SpectralStats) -> None:
    """The state fits the weight."""
    remedy = "start from initial_spectral_stats(params, key)"
    if s.u.shape != (1, *v.shape[-1:]):
        problem = f"u has shape {s.u.shape}, but a weight of shape {v.shape} needs {(1, *v.shape[-1:])}"
        raise error(ValueError, problem, remedy)
    if jnp.iscomplexobj(v) != jnp.iscomplexobj(s.u):
        raise error(TypeError, f"a weight is {v.dtype} but its u is {s.u.dtype}", remedy)
