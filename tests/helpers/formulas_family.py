"""The formulas of the family, as their papers give them: numpy's or jax.numpy's float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from formulas import DECAY, EPSILON, along, batch, placed, pooled, standardized, updated

from jaxnorm import Covariance, Moments


def still(xp, v):
    """A constant of the derivative."""
    return jax.lax.stop_gradient(v) if xp is jnp else v


def renorm(xp, x, scale, bias, where, stats, *, features, r_max, d_max, train=True):
    if not train:
        return batch(xp, x, scale, bias, where, stats, features=features, train=False)
    m, _ = pooled(xp, x, reduced(x, features), where)
    old = Moments(*(along(xp, v, features, x.ndim) for v in stats))
    sigma, before = xp.sqrt(m.var + EPSILON), xp.sqrt(old.var + EPSILON)
    r = still(xp, xp.clip(sigma / before, 1 / r_max, r_max))
    d = still(xp, xp.clip((m.mean - old.mean) / before, -d_max, d_max))
    y = placed(xp, xp.where(m.weight > 0, (x - m.mean) / sigma * r + d, 0), scale, bias, features)
    return y, batch(xp, x, scale, bias, where, stats, features=features)[1]


def ghosts(xp, x, scale, bias, where, stats, *, features, parts, train=True):
    whole, state = batch(xp, x, scale, bias, where, stats, features=features, train=train)
    if not train:
        return whole, state
    weights = xp.broadcast_to(xp.ones(()) if where is None else where, x.shape)
    ys = [
        standardized(xp, part, pooled(xp, part, reduced(x, features), w)[0])
        for part, w in zip(xp.split(x, parts), xp.split(weights, parts), strict=True)
    ]
    return placed(xp, xp.concatenate(ys), scale, bias, features), state


def blended(xp, x, scale, bias, where, stats, *, features, alpha):
    m, _ = pooled(xp, x, reduced(x, features), where)
    old = Moments(*(along(xp, v, features, x.ndim) for v in stats))
    mixed = Moments(*(alpha * o + (1 - alpha) * n for o, n in zip(old, m, strict=True)))
    return placed(xp, (x - mixed.mean) / xp.sqrt(mixed.var + EPSILON), scale, bias, features), None


def reduced(x, features):
    return tuple(a for a in range(x.ndim) if a not in features)


def silu(xp, v):
    return v / (1 + xp.exp(-v))


def instances(xp, x, scale, bias, where, stats, *, train=True, unbiased=False):
    """The average takes the plain mean of the instances' means and variances."""
    if not train:
        return batch(xp, x, scale, bias, where, stats, features=(2,), train=False)
    m, places = pooled(xp, x, (1,), where)
    there = m.weight > 0
    var = m.var * xp.where(places > 1, places / xp.maximum(places - 1, 1), 1) if unbiased else m.var
    count = xp.sum(xp.where(there, 1.0, 0.0), (0, 1))
    new = (xp.sum(xp.where(there, v, 0), (0, 1)) / xp.maximum(count, 1) for v in (m.mean, var))
    y = placed(xp, standardized(xp, x, m), scale, bias, (2,))
    return y, updated(xp, stats, Moments(*new, count), None, DECAY, False)


def gated(xp, x, scale, bias, where, stats, *, gate, before, parts=1):
    opened = silu(xp, xp.asarray(gate, dtype=float)[None])
    z = x if before else x * opened
    w = xp.broadcast_to(xp.ones(()) if where is None else where, x.shape)
    pieces = zip(xp.split(z, parts, 2), xp.split(w, parts, 2), strict=True)
    y = xp.concatenate([standardized(xp, v, pooled(xp, v, (2,), u, centred=False)[0]) for v, u in pieces], 2)
    return placed(xp, y * opened if before else y, scale, None, (2,)), None


def part(xp, x, scale, bias, where, stats, *, first):
    weights = xp.ones(()) if where is None else where
    weights = xp.where(along(xp, xp.arange(x.shape[2]), (2,), 3) < first, weights, 0)
    m, _ = pooled(xp, x, (2,), weights, centred=False)
    return placed(xp, standardized(xp, x, m), scale, bias, (2,)), None


def length(xp, x, scale, bias, where, stats):
    squares = xp.real(x * xp.conj(x))
    return placed(xp, x / xp.sqrt(xp.sum(squares, 2, keepdims=True) + EPSILON), scale, None, (2,)), None


def squashed(xp, x, scale, bias, where, stats, *, squash, alpha, shift=0.0):
    return placed(xp, squash(xp, alpha * x + shift), scale, bias, (2,)), None


def tanh(xp, v):
    return xp.tanh(v)


def erf(xp, v):
    return jax.scipy.special.erf(v) if xp is jnp else np.vectorize(math.erf)(v)


def film(xp, x, scale, bias, where, stats):
    return placed(xp, x, scale, bias, (2,)), None


def styled(xp, x, scale, bias, where, stats, *, style):
    m, s = pooled(xp, x, (1,), where)[0], pooled(xp, xp.asarray(style, dtype=float), (1,), None)[0]
    return standardized(xp, x, m) * xp.sqrt(s.var + EPSILON) + s.mean, None


def by_label(xp, x, scale, bias, where, stats, *, tables, train=True):
    y, state = batch(xp, x, None, None, where, stats, features=(2,), train=train)
    of_class = xp.arange(x.shape[0]) % 2
    factor, shift = (xp.asarray(t, dtype=float)[of_class][:, None, :] for t in tables)
    return y * factor + shift, state


def filtered(xp, x, scale, bias, where, stats):
    m, _ = pooled(xp, x, (1,), where, centred=False)
    factor, shift = along(xp, scale, (2,), 3), along(xp, bias, (2,), 3)
    y = x / xp.sqrt(m.var + EPSILON + xp.abs(factor / 10)) * factor
    return xp.maximum(xp.where(m.weight > 0, y, 0) + shift, shift - factor / 2), None


def competing(xp, x, scale, bias, where, stats):
    w = xp.broadcast_to(xp.ones(()) if where is None else where, x.shape)
    g = xp.sqrt(xp.sum(w * xp.where(w > 0, x, 0) ** 2, 1, keepdims=True))
    return x + placed(xp, x * g / (xp.mean(g, 2, keepdims=True) + EPSILON), scale, bias, (2,)), None


def evo_b0(xp, x, scale, bias, where, stats, *, train=True):
    own, _ = pooled(xp, x, (1,), where)
    m, _ = pooled(xp, x, (0, 1), where)
    _, state = batch(xp, x, None, None, where, stats, features=(2,), train=train)
    var = m.var if train else along(xp, stats.var, (2,), 3)
    slope = along(xp, scale, (2,), 3)
    y = x / xp.maximum(xp.sqrt(var + EPSILON), slope * x + xp.sqrt(own.var + EPSILON))
    return placed(xp, xp.where(m.weight > 0, y, 0) if train else y, scale, bias, (2,)), state


def evo_s0(xp, x, scale, bias, where, stats, *, groups):
    w = xp.broadcast_to(xp.ones(()) if where is None else where, x.shape)
    parts = zip(xp.split(x, groups, 2), xp.split(w, groups, 2), strict=True)
    spreads = [
        xp.broadcast_to(xp.where(m.weight > 0, 1 / xp.sqrt(m.var + EPSILON), 0), v.shape)
        for v, m in ((v, pooled(xp, v, (1, 2), u)[0]) for v, u in parts)
    ]
    swish = x / (1 + xp.exp(-along(xp, scale, (2,), 3) * x))
    return placed(xp, swish * xp.concatenate(spreads, 2), scale, bias, (2,)), None


def pixels(xp, x, scale, bias, where, stats):
    return standardized(xp, x, pooled(xp, x, (2,), where, centred=False)[0]), None


def observed(xp, x, scale, bias, where, stats, *, clip, train=True):
    state = batch(xp, x, None, None, where, stats, features=(2,), decay=None, train=train)[1]
    seen = Moments(*(still(xp, along(xp, v, (2,), 3)) for v in state))
    return xp.clip((x - seen.mean) / xp.sqrt(seen.var + EPSILON), -clip, clip), state


def switched(xp, x, scale, bias, where, stats, *, train=True):
    kinds = [pooled(xp, x, axes, where)[0] for axes in ((1,), (1, 2), (0, 1))]
    m = kinds[-1]
    _, state = batch(xp, x, None, None, where, stats, features=(2,), train=train)
    if not train:
        kinds[-1] = Moments(*(along(xp, v, (2,), 3) for v in stats))

    def mixture(field, logits):
        shares = xp.exp(xp.asarray(logits))
        return sum(s / xp.sum(shares) * getattr(k, field) for s, k in zip(shares, kinds, strict=True))

    y = (x - mixture("mean", MEAN_LOGITS)) / xp.sqrt(mixture("var", VAR_LOGITS) + EPSILON)
    return placed(xp, xp.where(m.weight > 0, y, 0) if train else y, scale, bias, (2,)), state


MEAN_LOGITS, VAR_LOGITS = (0.1, -0.2, 0.3), (0.2, 0.1, -0.1)


def whitened(xp, x, scale, bias, where, stats, *, iterations=None, train=True):
    """Of channels last; the groups are those of the state."""
    where = None if where is None else where[..., :1]
    groups, size = stats.mean.shape
    ys, means, covs = [], [], []
    w = xp.broadcast_to(xp.ones(()) if where is None else xp.asarray(where, dtype=float), (*x.shape[:-1], 1))
    total = xp.sum(w)
    for g in range(groups):
        v = x[..., g * size : (g + 1) * size]
        v = xp.where(w > 0, v, 0)
        mean, cov = stats.mean[g], stats.cov[g]
        if train:
            divisor = xp.where(total > 0, total, 1)
            mean = xp.sum(w * v, (0, 1)) / divisor
            apart = v - along(xp, mean, (2,), 3)
            cov = xp.einsum("abi,abj->ij", w * apart, apart) / divisor
        means.append(mean)
        covs.append(cov)
        apart = x[..., g * size : (g + 1) * size] - along(xp, mean, (2,), 3)
        ys.append(apart @ root(xp, cov + EPSILON * xp.eye(size), iterations))
    y = xp.concatenate(ys, -1)
    y = placed(xp, xp.where(total > 0, y, 0) if train else y, scale, bias, (2,))
    if not train:
        return y, stats
    weight = DECAY * stats.weight + (1 - DECAY)
    step = xp.where(total > 0, (1 - DECAY) / weight, 0)
    new = stats.mean + step[:, None] * (xp.stack(means) - stats.mean)
    cov = stats.cov + step[:, None, None] * (xp.stack(covs) - stats.cov)
    return y, Covariance(new, cov, xp.where(total > 0, weight, stats.weight))


def root(xp, cov, iterations):
    if iterations is None:
        values, vectors = xp.linalg.eigh(cov)
        return vectors * (values**-0.5)[None] @ vectors.T
    trace = xp.trace(cov)
    p = xp.eye(cov.shape[0])
    for _ in range(iterations):
        p = (3 * p - p @ p @ p @ cov / trace) / 2
    return p / xp.sqrt(trace)
