"""float32 on hard data, against float64: large means, outliers, constants, the largest numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

pytestmark = [
    pytest.mark.usefixtures("form"),
    pytest.mark.parametrize("form", ["cpu form", "default form"], indirect=True, scope="module"),
]

ROWS, CHANNELS = 4096, 3
VALUE, DX, DPARAMETER = 5e-6, 2e-5, 1e-5
LARGEST = 1e18  # of |x - mean|: beyond it the square, or the sum of squares, overflows


def normal(mean, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, (ROWS, CHANNELS))


def edited(x, row, value):
    x[row] = value
    return x


HARD = {
    "mean/std 1": normal(1),
    "mean/std 1e2": normal(1e2),
    "mean/std -1e2": normal(-1e2),
    "mean/std 1e4": normal(1e4),
    "mean/std 1e6": normal(1e6),
    "outlier first": edited(normal(0), 0, 1e5),
    "outlier in the middle": edited(normal(0), ROWS // 2, 1e5),
    "outlier last": edited(normal(0), -1, -1e5),
    "zeros first": edited(normal(1e4), 0, 0),
    "zeros first and last": edited(normal(1e4), [0, -1], 0),
    "half far away": edited(normal(1e4), slice(ROWS // 2), normal(-1e4)[: ROWS // 2]),
    "std 1e-6": normal(3) * 1e-6,
    "std 1e16": normal(3) * 1e16,
    "a constant but for one": edited(np.full((ROWS, CHANNELS), 7.0), 5, 8.0),
}
HARD = {name: x.astype(np.float32) for name, x in HARD.items()}
hard = pytest.mark.parametrize("x", HARD.values(), ids=HARD)
layouts = pytest.mark.parametrize("axis", [0, 1], ids=["columns", "rows"])
masks = pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])


def laid_out(x, axis, masked):
    """x with its samples along an axis, and a mask that hides every fifth point."""
    keep = np.arange(ROWS) % 5 != 2
    x, keep = (x, keep[:, None]) if axis == 0 else (x.T, keep[None])
    return jnp.asarray(x), jnp.asarray(keep) if masked else None


def norm(x, scale, bias, *, axis, where, epsilon):
    """A normalizer of columns, and one of rows, with scale and bias for each sample."""
    if axis == 0:
        stats = jn.initial_stats(scale.shape)
        options = {"scale": scale, "bias": bias, "epsilon": epsilon, "where": where}
        return jn.batch_norm(x, stats, train=True, **options)[0]
    per_row = {"scale": scale[:, None], "bias": bias[:, None]}
    return jn.layer_norm(x, epsilon=epsilon, where=where, **per_row)


def exact(x, scale, bias, ct, axis, where, epsilon):
    """mean, var, y, dx, dscale, dbias in float64."""
    x, ct = np.asarray(x, np.float64), np.asarray(ct, np.float64)
    w = np.ones_like(x) if where is None else np.broadcast_to(where, x.shape).astype(np.float64)
    scale, bias = (np.expand_dims(np.asarray(v, np.float64), axis) for v in (scale, bias))
    n = w.sum(axis, keepdims=True)
    mean = (w * x).sum(axis, keepdims=True) / n
    var = (w * (x - mean) ** 2).sum(axis, keepdims=True) / n
    rstd = 1 / np.sqrt(var + epsilon)
    hat = (x - mean) * rstd
    g = ct * scale
    pulled = g.sum(axis, keepdims=True) + hat * (g * hat).sum(axis, keepdims=True)
    dx = rstd * (g - w / n * pulled)
    return mean, var, hat * scale + bias, dx, (ct * hat).sum(axis), ct.sum(axis)


def error(actual, expected, axis):
    """Largest error of each sample, relative to the largest value in it."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    assert np.isfinite(actual).all()
    return (np.abs(actual - expected).max(axis) / np.abs(expected).max(axis)).max()


def relative(actual, expected):
    actual = np.asarray(actual, np.float64)
    return np.abs(actual / np.asarray(expected).reshape(actual.shape) - 1).max()


@masks
@layouts
@hard
def test_statistics(x, axis, masked):
    x, where = laid_out(x, axis, masked)
    m = jn.moments(x, axis, where=where)
    mean, var, *_ = exact(x, np.ones(CHANNELS), np.ones(CHANNELS), x, axis, where, 0)
    assert relative(m.var, var) <= VALUE
    spread = np.sqrt(np.squeeze(var, axis)) + np.abs(np.squeeze(mean, axis))
    assert (np.abs(np.asarray(m.mean, np.float64) - np.squeeze(mean, axis)) / spread).max() <= 1e-6


@masks
@layouts
@hard
def test_y_and_gradients(x, axis, masked):
    x, where = laid_out(x, axis, masked)
    rng = np.random.default_rng(1)
    scale, bias = (jnp.asarray(v, jnp.float32) for v in rng.uniform(0.5, 2, (2, CHANNELS)))
    ct = jnp.asarray(rng.normal(0.5, 1, x.shape), jnp.float32)
    epsilon = 1e-5 if np.asarray(x, np.float64).std() > 1e-3 else 1e-12
    y, pullback = jax.vjp(lambda *args: norm(*args, axis=axis, where=where, epsilon=epsilon), x, scale, bias)
    dx, dscale, dbias = pullback(ct)
    _, _, *expected = exact(x, scale, bias, ct, axis, where, epsilon)
    assert error(y, expected[0], axis) <= VALUE
    assert error(dx, expected[1], axis) <= DX
    # a sum of 4096 products of either sign: relative to what is summed
    size = np.abs(np.asarray(ct) * np.asarray(expected[0])).sum(axis)
    assert (np.abs(np.asarray(dscale, np.float64) - expected[2]) / size).max() <= DPARAMETER
    assert relative(dbias, expected[3]) <= DPARAMETER


@pytest.mark.parametrize("value", [0.0, 0.1, 7.3, -1e4 / 3, LARGEST])
@layouts
@masks
def test_a_constant_has_no_variance_and_gives_bias(value, axis, masked):
    x, where = laid_out(np.full((ROWS, CHANNELS), value, np.float32), axis, masked)
    np.testing.assert_array_equal(jn.moments(x, axis, where=where).var, 0)
    bias = jnp.float32([1, -2, 3])
    for epsilon in (0.0, 1e-5):
        y, pullback = jax.vjp(
            lambda x, e=epsilon: norm(x, bias * 2, bias, axis=axis, where=where, epsilon=e), x
        )
        np.testing.assert_array_equal(y, np.broadcast_to(np.expand_dims(bias, axis), x.shape))
        assert np.isfinite(pullback(jnp.cos(x))[0]).all()


@layouts
@masks
def test_the_largest_numbers(axis, masked):
    rng, most = np.random.default_rng(0), LARGEST / 2
    x = rng.uniform(-most, most, (ROWS, CHANNELS)).astype(np.float32)
    x[0], x[1] = most, -most
    x, where = laid_out(x, axis, masked)
    ones = jnp.ones(CHANNELS, jnp.float32)
    y, pullback = jax.vjp(lambda x: norm(x, ones, ones, axis=axis, where=where, epsilon=1e-5), x)
    ct = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    *_, expected, _, _, _ = exact(x, ones, ones, ct, axis, where, 1e-5)
    assert error(y, expected, axis) <= VALUE
    assert np.isfinite(pullback(ct)[0]).all()
    m = jn.moments(x, axis, where=where)
    assert np.isfinite(m.mean).all()


@pytest.mark.parametrize("scale", [None, 1.0])
def test_rms_norm_of_the_largest_numbers(scale):
    x = jnp.asarray(np.random.default_rng(0).uniform(-LARGEST, LARGEST, (4, 512)), jnp.float32)
    wide = np.asarray(x, np.float64)
    y = jn.rms_norm(x, scale=None if scale is None else jnp.full(512, scale))
    assert error(y, wide / np.sqrt((wide**2).mean(-1, keepdims=True)), 1) <= VALUE


def test_one_overflowing_channel_leaves_the_others_alone():
    x = normal(1).astype(np.float32)
    huge = x.copy()
    huge[:, 1] *= 5e37
    stats = jn.initial_stats((CHANNELS,))
    (y, state), (y1, state1) = (jn.batch_norm(v, stats, train=True) for v in (x, huge))
    for a, b in zip((y, *state), (y1, *state1), strict=True):
        np.testing.assert_allclose(a[..., [0, 2]], b[..., [0, 2]], rtol=2e-6, atol=2e-6)
    for v, old in zip(state1, stats, strict=True):
        np.testing.assert_array_equal(v[1], old[1])  # its variance is beyond float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_are_as_accurate_as_their_rounding(dtype):
    x = jnp.asarray(normal(3), dtype)
    y, state = jn.batch_norm(x, jn.initial_stats((CHANNELS,)), train=True, decay=0.0)
    wide = np.asarray(x).astype(np.float64)
    assert relative(state.var, wide.var(0)) <= VALUE
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    unit = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(np.asarray(y).astype(np.float64), expected, rtol=1.01 * unit, atol=1e-6)
