"""Whitening: batch norm by a covariance in place of variances."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base import collectives as devices
from jaxnorm._base.arithmetic import choose, divide, plus, times, wide
from jaxnorm._base.compilation import compiled
from jaxnorm._base.exported import exportable
from jaxnorm._base.messages import error, option, public
from jaxnorm._base.sharding import gathered, replicated, sharded_as, state_as, whole
from jaxnorm._core.average import ema
from jaxnorm._core.moments import moments
from jaxnorm._core.recompute import bias_if_empty, remat, residual
from jaxnorm._core.statistics import usable
from jaxnorm._norms.arguments import arguments
from jaxnorm._norms.batch import either
from jaxnorm._norms.roots import einsum, inverse_root, newton_root


@exportable
class Covariance(NamedTuple):
    """Mean, covariance and weight of groups of features: the state of a whitening norm.

    It is a state as Moments are, and `ema` averages it. A weight of 0 is the empty sample.

    >>> import jaxnorm as jn
    >>> stats = jn.initial_covariance(3)
    >>> jn.ema(stats, stats, decay=0.9).cov.shape
    (1, 3, 3)
    """

    mean: Array  # [groups, size]
    cov: Array  # [groups, size, size]
    weight: Array  # [groups] 0 is the empty sample


@public
def initial_covariance(
    features: int, *, group_size: int | None = None, weight: float = 1.0, dtype: DTypeLike = jnp.float32
) -> Covariance:
    """The state of a whitening norm before training: mean 0, covariance 1, so that it is the identity.

    Args:
      features: how many.
      group_size: features that are whitened together, a divisor of `features`; None: all.
      weight: the strength of this prior, >= 0: 1 is the moving average of the paper, 0 the debiased one.
      dtype: float32 or wider.

    Raises:
      ValueError: a group_size that does not divide; a negative weight.
      TypeError: a dtype narrower than float32.

    >>> import jaxnorm as jn
    >>> [v.shape for v in jn.initial_covariance(6, group_size=3)]
    [(2, 3), (2, 3, 3), (2,)]
    """
    dtype = check.wide_dtype("dtype", dtype)
    check.at_least("weight", weight, 0)
    features = check.integer("features", features, least=0, remedy="choose 0 or more")
    size = features if group_size is None else group_size
    groups = check.groups(None, size, 0, jnp.zeros(features))
    identity = jnp.broadcast_to(jnp.eye(size, dtype=dtype), (groups, size, size))
    return Covariance(jnp.zeros((groups, size), dtype), identity, jnp.full(groups, weight, dtype))


@compiled
def decorrelated_batch_norm(
    x: ArrayLike,
    stats: Covariance,
    *,
    train: bool | Array,
    iterations: int | None = None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int = -1,
    epsilon: float | Array = 1e-5,
    decay: float | Array | None = 0.99,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Covariance]:
    """Decorrelated batch norm: the features of a group uncorrelated and of variance 1.

    y = (cov + epsilon * 1)^(-1/2) (x - mean) * scale + bias, with mean and covariance of the batch (`train`),
    or from `stats`, whose groups are the groups.

    The root is symmetric (ZCA): exact, Huang, Yang, Lang, Deng 2018, arXiv:1804.08450, or by Newton's
    iteration, IterNorm, Huang, Zhou, Zhu, Liu, Shao 2019, arXiv:1904.03441, which takes matrix products alone
    and whitens the less the fewer `iterations` it has. The state is the average of the covariance, of which
    evaluation takes the root: the papers' average is that of the root. Real x. Derivatives of every order,
    also where eigenvalues coincide. A masked NaN gives 0 * scale + bias. The dtypes and errors, and the
    arguments that are not listed, are those of `batch_norm`.

    Args:
      stats: the state, `initial_covariance(features)` at first.
      iterations: of Newton; the paper takes 5. None: exact.
      decay: the fraction of the OLD state that is kept; also a traced scalar; None: cumulative, all batches
        weigh by their size (start from weight 0).
      where: boolean mask, or weights >= 0, that broadcasts to x and is alike for all its features.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[1.0, 1.0], [-1.0, -1.0], [2.0, -2.0], [-2.0, 2.0]])
    >>> y, stats = jn.decorrelated_batch_norm(x, jn.initial_covariance(2), train=True)
    >>> jnp.abs(y.T @ y / 4).round(3)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    a = arguments(x, (feature_axis,), scale, bias, epsilon, where, axis_name, dtype)
    (f,) = a.features
    _check(stats, a.x, f, a.where)
    if decay is not None:
        check.decay(decay)
    if iterations is not None:
        iterations = check.integer("iterations", iterations, least=0, remedy="choose 0 or more")
    old = Covariance(*map(jnp.asarray, stats))
    names = devices.bound(axis_name)

    def covariance(x: Array, where: Any) -> Covariance:
        m = moments(x, a.axes, where=where, axis_name=axis_name)
        mean, weight = m.mean.reshape(old.mean.shape), m.weight.reshape(old.mean.shape)[:, 0]
        c = _grouped(usable(x, where), f, mean)
        w = jnp.ones((), c.dtype) if where is None else jnp.moveaxis(where, f, -1)[..., None].astype(c.dtype)
        weighed = choose(w != 0, c, 0) * w
        total = einsum("...gi,...gj->gij", weighed, c, out_sharding=replicated(c))
        (total,) = devices.psum(names, [total])
        return Covariance(mean, divide(total, weight[:, None, None]), weight)

    @remat
    def whitened(x: Array, scale: Any, bias: Any, where: Any, m: Any) -> tuple[Array, Covariance]:
        kind, x = jax.typeof(x), whole(x, f)  # every feature of y takes all of x's
        m = residual(covariance(x, where)) if m is None else m
        eye = jnp.eye(m.cov.shape[-1], dtype=m.cov.dtype)[None]
        cov = m.cov + a.epsilon.astype(eye.dtype) * eye
        root = residual(
            inverse_root(cov, a.epsilon) if iterations is None else newton_root(cov, eye, iterations)
        )
        c = _grouped(usable(x, where), f, m.mean)
        y = einsum("...gi,gij->...gj", c, root.astype(c.dtype))
        y = sharded_as(jnp.moveaxis(y.reshape(*y.shape[:-2], x.shape[f]), -1, f), kind)
        y = plus(y if scale is None else times(y, scale), bias).astype(a.dtype)
        return bias_if_empty(y, m.weight[0], bias, where), m

    def training() -> tuple[Array, Covariance]:
        y, m = whitened(a.x, a.scale, a.bias, a.where, None)
        return y, remember_covariance(old, lax.stop_gradient(m), decay)

    def evaluation() -> tuple[Array, Covariance]:
        stored = Covariance(*map(gathered, _sound(old)._replace(weight=jnp.ones_like(old.weight))))
        return whitened(a.x, a.scale, a.bias, a.where, stored)[0], old

    values = a.x, old, a.where, a.scale, a.bias
    return either(train, training, evaluation, values, axis_name)


def remember_covariance(old: Covariance, new: Covariance, decay: float | Array | None) -> Covariance:
    """The state after one more batch, of which a group that is not finite counts as not seen.

    Args:
      old: the state before.
      new: mean and covariance of the batch.
      decay: the fraction of the old state that is kept; None: the two are merged.
    """
    start, new = _sound(old), _sound(new)
    state = merge_covariances(start, state_as(new, old)) if decay is None else ema(start, new, decay=decay)
    # a group that was never seen stays bitwise as it was
    return state_as(_where(state.weight > 0, state, old), old)


def _where(there: Array, a: Covariance, b: Covariance) -> Covariance:
    """The groups of a, or of b where not `there`, [groups]."""
    return Covariance(
        *(choose(there.reshape(-1, *(1,) * (u.ndim - 1)), u, v) for u, v in zip(a, b, strict=True))
    )


def _sound(stats: Covariance) -> Covariance:
    """The state, where it can be used: a group that is not finite, or of negative variance, was not seen.

    What was not seen has weight 0, mean 0 and covariance 1.
    """
    mean, cov, weight = stats
    good = jnp.isfinite(mean).all(-1) & jnp.isfinite(cov).all((-1, -2)) & jnp.isfinite(weight) & (weight > 0)
    eye = jnp.broadcast_to(jnp.eye(cov.shape[-1], dtype=cov.dtype), cov.shape)
    good &= (cov * eye >= 0).all((-1, -2))  # the diagonal: a gather of it would not know its sharding
    return _where(good, stats, Covariance(jnp.zeros_like(mean), eye, jnp.zeros_like(weight)))


def merge_covariances(a: Covariance, b: Covariance) -> Covariance:
    """The covariance of both samples together: its law is that of the variance."""
    weight = a.weight + b.weight.astype(a.weight.dtype)
    share = divide(b.weight.astype(a.weight.dtype), weight)[:, None]

    def there(m: Covariance) -> tuple[Array, Array]:  # of what has no weight nothing is used
        known = m.weight[:, None] > 0
        mean, cov = choose(known, m.mean, 0), choose(known[..., None], m.cov, 0)
        return mean.astype(a.mean.dtype), cov.astype(a.cov.dtype)

    (mean, cov), (new, spread) = there(a), there(b)
    d, part = new - mean, share[..., None]
    cov = cov + part * (spread - cov) + part * (1 - part) * d[:, :, None] * d[:, None, :]
    return Covariance(mean + share * d, cov, weight)


def _grouped(x: Array, f: int, mean: Array) -> Array:
    """x - mean, [..., groups, size]."""
    x = jnp.moveaxis(x, f, -1)
    x = x.reshape(*x.shape[:-1], *mean.shape)
    dtype = wide(x.dtype)
    return x.astype(dtype) - mean.astype(dtype)[(None,) * (x.ndim - 2)]


def _check(stats: Any, x: Array, f: int, where: Any) -> None:
    """The state fits x, x is real, and `where` is the same for all features, on axis f."""
    start = f"start from initial_covariance({x.shape[f]})"
    if not isinstance(stats, Covariance):
        raise error(TypeError, f"stats must be a Covariance, got {type(stats).__name__}", start)
    shape = jnp.shape(stats.mean)
    if shape[:1] != jnp.shape(stats.weight) or shape[0] * shape[1] != x.shape[f]:
        problem = f"stats.mean has shape {shape}, but x, shape {x.shape}, has {x.shape[f]} features"
        raise error(ValueError, problem, start)
    check.real(x)
    if where is not None and where.shape[f] != 1:
        problem = f"{option('where')} of shape {where.shape} differs between features, which a covariance "
        problem += "cannot have"
        raise error(ValueError, problem, f"give it size 1 on axis {f}")
