"""States are arguments and results of functions that `jax.export` writes and reads."""

import importlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxnorm as jn
from jaxnorm._core import moments as _moments

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (6, 4)), jnp.float32)


def batch_norm(x, stats):
    return jn.batch_norm(x, stats, train=True)


def whitening(x, stats):
    return jn.decorrelated_batch_norm(x, stats, train=True)


STEPS = {
    "Moments": (batch_norm, jn.initial_stats(4)),
    "Covariance": (whitening, jn.initial_covariance(4)),
    "SpectralStats": (jn.spectral_norm, jn.initial_spectral_stats(X, jax.random.key(0))),
}


@pytest.mark.parametrize("state", STEPS)
def test_a_step_is_written_and_read(state):
    pytest.importorskip("flatbuffers")
    step, stats = STEPS[state]
    written = export.export(jax.jit(step))(X, stats).serialize()
    y, new = export.deserialize(written).call(X, stats)
    assert type(new) is type(stats) is getattr(jn, state)
    expected = jax.jit(step)(X, stats)
    jax.tree.map(np.testing.assert_array_equal, (y, new), expected)


@pytest.mark.parametrize("state", STEPS)
def test_a_state_is_registered(state):
    with pytest.raises(ValueError, match="Duplicate serialization registration"):
        export.register_namedtuple_serialization(getattr(jn, state), serialized_name="another")


@pytest.mark.parametrize("state", STEPS)
def test_a_state_is_pickled(state):
    _, stats = STEPS[state]
    jax.tree.map(np.testing.assert_array_equal, pickle.loads(pickle.dumps(stats)), stats)


def test_a_module_that_is_loaded_again():
    kept = dict(vars(_moments))
    try:
        importlib.reload(_moments)
    finally:
        vars(_moments).update(kept)
