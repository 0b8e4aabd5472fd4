"""The measures, against float64 numpy, and the flags of single channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm import Moments, monitor
from jaxnorm._layers.watching import counts
from jaxnorm.monitor import measures


def random_moments(seed, size=50):
    generator = np.random.default_rng(seed)
    mean, var = generator.normal(size=size), np.exp(generator.normal(size=size))
    return mean, var, Moments(*(jnp.asarray(v, jnp.float32) for v in (mean, var, np.ones(size))))


def test_shift_and_divergence_are_those_of_the_gaussians():
    (mean_b, var_b, batch), (mean_s, var_s, stored) = random_moments(0), random_moments(1)
    x = np.linspace(-60, 60, 200_001)[:, None]

    def density(mean, var):
        return np.exp(-((x - mean) ** 2) / (2 * var)) / np.sqrt(2 * np.pi * var)

    p, q = density(mean_b, var_b), density(mean_s, var_s)
    integrand = p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300)))
    expected = integrand.sum(0) * (x[1] - x[0])
    np.testing.assert_allclose(monitor.divergence(batch, stored, epsilon=0.0), expected, rtol=1e-4, atol=1e-6)
    expected = np.abs(mean_b - mean_s) / np.sqrt(var_s + 1e-3)
    np.testing.assert_allclose(monitor.shift(batch, stored, epsilon=1e-3), expected, rtol=1e-5)


def test_a_distribution_has_no_shift_from_itself():
    _, _, m = random_moments(0)
    assert float(monitor.divergence(m, m).max()) == 0
    assert float(monitor.shift(m, m).max()) == 0


def test_standard_errors_are_those_of_many_samples():
    x = np.random.default_rng(0).normal(3.0, 2.0, (20_000, 16))
    mean, var = monitor.standard_errors(16)
    assert float(mean) == pytest.approx(x.mean(1).std() / 2, rel=0.02)
    assert float(var) == pytest.approx(x.var(1, ddof=1).std() / 4, rel=0.02)


def test_an_average_holds_the_batches_whose_weights_add_up():
    weights = 0.1 * 0.9 ** np.arange(1000)
    assert float(monitor.batches_held(0.9)) == pytest.approx(1 / weights[0], rel=1e-5)
    assert np.isinf(monitor.batches_held(1.0))


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_the_effective_count_is_that_of_the_noise_of_the_mean(alike):
    """Values of a sample share a part of their variance."""
    generator = np.random.default_rng(0)

    def batch():
        own, shared = generator.normal(size=(64, 10, 30)), generator.normal(size=(64, 1, 30))
        return (np.sqrt(1 - alike) * own + np.sqrt(alike) * shared).astype(np.float32)

    found = [jax.jit(lambda x: counts(x, None, (0, 1)))(jnp.asarray(batch())) for _ in range(20)]
    variance = np.mean([batch().mean((0, 1)) ** 2 for _ in range(200)])
    effective = np.mean([float(f["effective"]) for f in found])
    assert effective == pytest.approx(1 / variance, rel=0.15)
    assert all(f["samples"] == 64 for f in found)


@pytest.mark.parametrize("axes", [(0,), (0, 1), (1,), (0, 1, 2), ()])
def test_counts_are_between_the_samples_and_the_values(axes):
    x = jax.random.normal(jax.random.key(0), (6, 5, 4))
    found = counts(x, None, axes)
    samples = x.shape[axes[0]] if axes else 6
    assert found["samples"] == samples
    assert samples <= float(found["effective"]) <= max(samples, np.prod([x.shape[a] for a in axes]))


def test_counts_leave_out_what_is_masked():
    x = jax.random.normal(jax.random.key(0), (8, 3, 4)).at[5:].set(jnp.nan)
    found = counts(x, jnp.arange(8)[:, None, None] < 5, (0, 1))
    assert found["samples"] == 5
    assert found == counts(x[:5], None, (0, 1))


def one(mean=0.5, var=1.0, weight=1.0):
    return Moments(*(jnp.asarray([v], jnp.float32) for v in (mean, var, weight)))


def names(found):
    return {name for name, flag in found._asdict().items() if flag.any()}


@pytest.mark.parametrize(
    ("stored", "batch", "expected"),
    [
        (one(), None, set()),
        (one(), one(), set()),
        (one(0.0, 1.0), None, {"never_updated"}),
        (one(weight=0.0), None, {"never_updated"}),
        (one(0.0, 1.0), one(50.0), {"never_updated"}),
        (one(jnp.nan), None, {"non_finite"}),
        (one(var=jnp.inf), None, {"non_finite"}),
        (one(var=-1.0), None, {"non_finite"}),
        (one(), one(jnp.nan), {"non_finite"}),
        (one(2e4), None, {"exploding"}),
        (one(-2e4), None, {"exploding"}),
        (one(var=2e8), None, {"exploding"}),
        (one(), one(var=2e8), {"exploding"}),
        (one(var=0.0), None, {"dead"}),
        (one(), one(var=0.0), {"dead"}),
        (one(var=1e-6), None, {"small_variance"}),
        (one(), one(1.1), set()),
        (one(), one(2.0), {"shifted"}),
        (one(), one(0.5, 3.0), {"shifted"}),
        (one(), one(0.5, 0.3), {"shifted"}),
        (one(), one(5.0), {"shifted", "far"}),
        (one(), one(5.0, weight=0.0), set()),
        (one(0.5, 1e-6), one(0.5, 1.0), {"shifted"}),
    ],
    ids=str,
)
def test_flags_of_a_channel(stored, batch, expected):
    found = jax.jit(monitor.flags)(stored, batch=batch, samples=1000.0)
    assert names(found) == expected


def test_a_channel_is_dead_beside_others():
    """All alike small: the input is small. One far below the others: it is dead."""
    small = Moments(jnp.full(3, 0.1), jnp.asarray([1e-10, 1e-10, 2e-10]), jnp.ones(3))
    assert names(monitor.flags(small)) == {"small_variance"}
    found = monitor.flags(small._replace(var=jnp.asarray([1e-10, 1.0, 1.0])))
    assert found.dead.tolist() == [True, False, False]
    assert not found.small_variance.any()
    assert monitor.flags(one(), scale=jnp.zeros(1)).dead.all()


def test_a_small_batch_says_nothing_of_channels():
    batch = one(9.0, 0.0)
    assert names(monitor.flags(one(), batch=batch, samples=7)) == set()
    assert names(monitor.flags(one(), batch=batch, samples=8)) == {"dead"}
    assert names(monitor.flags(one(), batch=one(jnp.inf), samples=2)) == {"non_finite"}


def test_noise_is_no_shift():
    """Batches of one distribution, of whatever size, against an average that is as noisy as its batches."""
    generator = np.random.default_rng(0)
    for size in (8, 16, 64, 1024):
        x = jnp.asarray(generator.normal(1.0, 2.0, (20, size, 2000)), jnp.float32)
        stored = jaxnorm.initial_stats(2000, weight=0.0)
        for batch in x[:-1]:
            stored = jaxnorm.ema(stored, jaxnorm.moments(batch, 0), decay=0.5)
        found = monitor.flags(stored, batch=jaxnorm.moments(x[-1], 0), samples=size, decay=0.5)
        assert float(found.shifted.mean()) < measures.SHARE / 10
        assert not found.far.any()


def test_a_rare_feature_is_no_shift():
    """A pixel that is on once in 500 samples, and now once in a batch of 64."""
    stored = Moments(jnp.asarray([1 / 500]), jnp.asarray([1 / 500]), jnp.ones(1))
    x = jnp.zeros((64, 1)).at[0].set(1.0)
    found = monitor.flags(stored, batch=jaxnorm.moments(x, 0))
    assert float(monitor.shift(jaxnorm.moments(x, 0), stored)[0]) > 0.3
    assert not found.far.any()


def test_complex_statistics():
    x = jax.random.normal(jax.random.key(0), (256, 3), jnp.complex64)
    batch = jaxnorm.moments(x, 0)
    stored = batch._replace(mean=batch.mean + 3j)
    np.testing.assert_allclose(monitor.shift(batch, stored), 3 / jnp.sqrt(batch.var + 1e-5), rtol=1e-5)
    assert monitor.flags(stored, batch=batch).far.all()
    assert not jnp.iscomplexobj(monitor.divergence(batch, stored))
