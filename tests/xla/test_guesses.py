"""The running mean as a guess: whatever it is, the statistics are the batch's, in each backend's form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import mesh_of

import jaxnorm as jn

pytestmark = [
    pytest.mark.usefixtures("form"),
    pytest.mark.parametrize("form", ["cpu form", "default form", "tpu form"], indirect=True, scope="module"),
]
N, CHANNELS = 64, 8
GUESSES = {
    "right": 1e3,
    "near": 1e3 + 1.5,
    "far": 0.0,
    "farther": -1e6,
    "nan": np.nan,
    "inf": -np.inf,
}
SAMPLES = {
    "plain": lambda x: x,
    "constant": lambda x: x * 0 + 7,
}


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(1e3, 1, (N, CHANNELS)), jnp.float32)


def trained(x, guess, **options):
    """y, dx and the batch's own statistics, which a state without a weight takes as they are."""
    stats = jn.initial_stats(CHANNELS, weight=0.0)._replace(mean=jnp.full(CHANNELS, guess, jnp.float32))

    def norm(x):
        return jn.batch_norm(x, stats, train=True, decay=0.9, **options)

    y, pullback, new = jax.vjp(norm, x, has_aux=True)
    return y, pullback(jnp.sign(jnp.nan_to_num(y)))[0], new


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("guess", GUESSES)
def test_the_statistics_are_the_batchs(x, guess, sample):
    x = SAMPLES[sample](x)
    y, dx, new = jax.jit(trained)(x, GUESSES[guess])
    wide = np.asarray(x, np.float64)
    var = wide.var(0)
    np.testing.assert_allclose(new.mean, wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(new.var, var, rtol=5e-6)
    hat = (wide - wide.mean(0)) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y, hat, atol=4e-6 * max(1, np.abs(hat).max()))
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("guess", ["right", "far", "nan"])
def test_masked(x, guess):
    mask = np.random.default_rng(1).random((N, 1)) < 0.5
    filled = jnp.where(mask, x, jnp.nan)
    y, dx, new = jax.jit(lambda x: trained(x, GUESSES[guess], where=jnp.asarray(mask)))(filled)
    seen = np.asarray(x, np.float64)[mask[:, 0]]
    np.testing.assert_allclose(new.mean, seen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(new.var, seen.var(0), rtol=5e-6)
    assert np.isfinite(dx).all() and np.isfinite(np.asarray(y)[mask[:, 0]]).all()


@pytest.mark.parametrize("guess", ["right", "far"])
@pytest.mark.parametrize("check", [True, False])
def test_in_shard_map(x, guess, check):
    mesh = mesh_of((8,), ("data",))
    large = jnp.concatenate([x + i for i in range(8)])

    def on_devices(x):
        return trained(x, GUESSES[guess], axis_name="data")

    spread = jax.shard_map(
        on_devices, mesh=mesh, in_specs=P("data"), out_specs=(P("data"), P("data"), P()), check_vma=check
    )
    for actual, expected in zip(
        jax.tree.leaves(jax.jit(spread)(large)),
        jax.tree.leaves(jax.jit(trained)(large, GUESSES[guess])),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=4e-6, atol=4e-6)


def test_each_of_a_vmap_has_its_own(x):
    guesses = jnp.asarray([1e3, 0.0, jnp.nan])
    many = jax.vmap(trained, (None, 0))(x, guesses)
    for i, guess in enumerate(guesses):
        one = trained(x, guess)
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=4e-6, atol=4e-6)
