"""The textbook formulas, with nothing of jaxnorm but the name of its state.

A formula takes the array module: numpy gives the float64 value; jax.numpy, differentiated, the
float64 derivative.
"""

from jaxnorm import Moments

EPSILON = 1e-3  # large enough to be seen in float32
DECAY = 0.75


def along(xp, v, features, ndim):
    """An array of the feature axes' sizes, made to meet x; other shapes broadcast."""
    if v is None or v.ndim != len(features):
        return v
    return xp.expand_dims(v, tuple(a for a in range(ndim) if a not in features))


def pooled(xp, x, axes, where, centred=True):
    """Weighted mean and variance, with the number of points that count."""
    w = xp.broadcast_to(xp.ones(()) if where is None else xp.asarray(where, dtype=float), x.shape)
    x = xp.where(w > 0, x, 0)  # a hidden NaN is no number to multiply by zero
    total = xp.sum(w, axes, keepdims=True)
    divisor = xp.where(total > 0, total, 1)
    mean = xp.sum(w * x, axes, keepdims=True) / divisor if centred else 0 * divisor
    apart = x - mean
    var = xp.sum(w * xp.real(apart * xp.conj(apart)), axes, keepdims=True) / divisor
    return Moments(mean, var, total), xp.sum(w > 0, axes, keepdims=True)


def standardized(xp, x, m):
    return xp.where(m.weight > 0, (x - m.mean) / xp.sqrt(m.var + EPSILON), 0)


def placed(xp, y, scale, bias, features):
    y = y if scale is None else y * along(xp, scale, features, y.ndim)
    return y if bias is None else y + along(xp, bias, features, y.ndim)


def own(xp, x, scale, bias, where, stats, *, axes, features, centred=True):
    m, _ = pooled(xp, x, axes, where, centred)
    return placed(xp, standardized(xp, x, m), scale, bias, features), None


def grouped(xp, x, scale, bias, where, stats, *, groups, feature):
    w = xp.broadcast_to(xp.ones(()) if where is None else where, x.shape)
    axes = tuple(range(1, x.ndim))
    ys = [
        standardized(xp, part, pooled(xp, part, axes, weights)[0])
        for part, weights in zip(xp.split(x, groups, feature), xp.split(w, groups, feature), strict=True)
    ]
    return placed(xp, xp.concatenate(ys, feature), scale, bias, (feature,)), None


def updated(xp, old, new, places, decay, unbiased):
    """The moving average of the statistics, or, without a decay, their union."""
    var = new.var * xp.where(places > 1, places / xp.maximum(places - 1, 1), 1) if unbiased else new.var
    if decay is None:
        weight = old.weight + new.weight
        part = new.weight / xp.where(weight > 0, weight, 1)
        apart = new.mean - old.mean
        spread = part * (1 - part) * xp.real(apart * xp.conj(apart))
        var = old.var + part * (var - old.var) + spread
    else:
        weight = decay * old.weight + (1 - decay)
        part = (1 - decay) / weight
        var = old.var + part * (var - old.var)
    mean = old.mean + part * (new.mean - old.mean)
    return Moments(*(xp.where(new.weight > 0, n, o) for n, o in zip((mean, var, weight), old, strict=True)))


def batch(xp, x, scale, bias, where, stats, *, features, train=True, decay=DECAY, unbiased=False):
    if not train:
        return given(xp, x, scale, bias, where, stats, features=features)[0], stats
    axes = tuple(a for a in range(x.ndim) if a not in features)
    old = Moments(*(along(xp, v, features, x.ndim) for v in stats))
    m, places = pooled(xp, x, axes, where)
    new = updated(xp, old, m, places, decay, unbiased)
    y = placed(xp, standardized(xp, x, m), scale, bias, features)
    return y, Moments(*(xp.squeeze(v, axes) for v in new))


def given(xp, x, scale, bias, where, stats, *, features):
    m = Moments(*(along(xp, v, features, x.ndim) for v in stats))
    return placed(xp, standardized(xp, x, m), scale, bias, features), None


def unit(xp, x, scale, bias, where, stats, *, axis, ord):
    length = xp.sum(xp.abs(x) ** ord, axis, keepdims=True) ** (1 / ord)
    return x / xp.maximum(length, 1e-12), None


def response(xp, x, scale, bias, where, stats, *, size, feature, alpha, beta, k):
    last = xp.moveaxis(x, feature, -1)
    before, after = size // 2, (size - 1) // 2
    energy = [xp.sum(last[..., max(c - before, 0) : c + after + 1] ** 2, -1) for c in range(last.shape[-1])]
    return xp.moveaxis(last / (k + alpha / size * xp.stack(energy, -1)) ** beta, -1, feature), None
