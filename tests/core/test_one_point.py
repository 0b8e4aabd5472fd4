"""A sample of one point does not deviate from its mean: y is the bias, and the gradient of x exactly 0.

Without care it is what rounding leaves of two equal numbers, times rsqrt(epsilon).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import mesh_of

import jaxnorm as jn

FEATURES, PLACES = 3, 6
SCALE, BIAS = jnp.float32([0.5, 2.0, 1.5]), jnp.float32([1.0, -2.0, 0.1])
AFFINE = {"scale": SCALE, "bias": BIAS, "epsilon": 1e-5}
STATS = jn.initial_stats(FEATURES)


def remembering(function, **options):
    return lambda x, **more: function(x, STATS, train=True, **AFFINE, **options, **more)[0]


# [samples, places, features]; whose samples are a channel's places
OF_A_CHANNEL = {
    "layer_norm": lambda x, **more: jn.layer_norm(x, axis=1, feature_axis=2, **AFFINE, **more),
    "instance_norm": lambda x, **more: jn.instance_norm(x, **AFFINE, **more),
    "group_norm": lambda x, **more: jn.group_norm(x, FEATURES, **AFFINE, **more),
    "reversible_norm": lambda x, **more: jn.reversible_norm(x, axis=1, **AFFINE, **more)[0],
    "batch_norm": remembering(jn.batch_norm),
    "batch_renorm": remembering(jn.batch_renorm, r_max=1.0, d_max=0.0),
}
OTHERS = {
    "group_norm of rows": (lambda x: jn.group_norm(x, FEATURES, **AFFINE), (4, FEATURES)),
    "layer_norm of one feature": (
        lambda x: jn.layer_norm(x, scale=SCALE[:1], bias=BIAS[:1], epsilon=1e-5),
        (4, 1),
    ),
    "ghost_batch_norm": (remembering(jn.ghost_batch_norm, num_ghosts=4), (4, 1, FEATURES)),
    "adaptive_layer_norm": (lambda x: jn.adaptive_layer_norm(x, SCALE[:1] - 1, BIAS[:1]), (4, 1)),
    "weight_standardize": (
        lambda x: jn.weight_standardize(x, scale=SCALE) + BIAS[None, None],
        (1, 1, FEATURES),
    ),
}


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(2, 3, shape), jnp.float32)


def pulled_back(function, x, seen=True):
    """y where it is seen, and the gradient of x for a direction that rounds, and that is 0 elsewhere."""
    y, pull = jax.vjp(function, x)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), y.dtype)
    return y, pull(jnp.where(seen, direction, jnp.zeros_like(direction)))[0]


def assert_still(function, x, seen=True):
    """y is the bias where it is seen, and nothing moves it. Masked places are normalized as others are."""
    y, slope = jax.jit(partial(pulled_back, function))(x, seen)
    bias = jnp.broadcast_to(BIAS[: x.shape[-1]].astype(y.dtype), y.shape)
    np.testing.assert_array_equal(jnp.where(seen, y, bias), bias)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", OF_A_CHANNEL)
def test_one_place(norm, dtype):
    assert_still(OF_A_CHANNEL[norm], draw(1, 1, FEATURES).astype(dtype))


@pytest.mark.parametrize("norm", OTHERS)
def test_one_point_a_sample(norm):
    function, shape = OTHERS[norm]
    assert_still(function, draw(*shape))


@pytest.mark.parametrize("weight", [True, 0.7], ids=str)
@pytest.mark.parametrize("norm", OF_A_CHANNEL)
def test_one_place_that_counts(norm, weight):
    """Of one element of weight > 0: also where the weights are the features' own."""
    seen = (jnp.arange(PLACES) == 2).reshape(1, -1, 1)
    where = seen if weight is True else jnp.where(seen, jnp.float32(weight), 0)
    for each in (where, jnp.broadcast_to(where, (1, PLACES, FEATURES))):
        assert_still(partial(OF_A_CHANNEL[norm], where=each), draw(1, PLACES, FEATURES), seen)


@pytest.mark.parametrize("norm", OF_A_CHANNEL)
def test_the_gradient_of_real_weights(norm):
    x, where = draw(1, PLACES, FEATURES), jnp.zeros((1, PLACES, 1)).at[0, 2].set(0.7)
    slope = jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(OF_A_CHANNEL[norm](x, where=w)[0, 2]))))(where)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("norm", OF_A_CHANNEL)
def test_two_places_are_not_one(norm):
    """Equal values have no variance, but a gradient: only their number tells."""
    function, x = OF_A_CHANNEL[norm], jnp.ones((1, 2, FEATURES))
    for where in (None, jnp.ones((1, 2, 1), bool), jnp.full((1, 2, 1), 0.5)):
        assert np.abs(pulled_back(partial(function, where=where), x)[1]).min() > 1


@pytest.mark.parametrize("weight", [True, 0.7], ids=str)
@pytest.mark.parametrize("norm", OF_A_CHANNEL)
def test_one_place_on_all_devices_together(norm, weight):
    """The other devices see nothing; then every device has one place."""
    seen = (jnp.arange(4) == 2).reshape(1, -1, 1)
    where = seen if weight is True else jnp.where(seen, jnp.float32(weight), 0)
    specs = {"in_specs": (P(None, "a"), P(None, "a")), "out_specs": P(None, "a")}
    norm = partial(OF_A_CHANNEL[norm], axis_name="a")
    mapped = jax.shard_map(lambda x, w: norm(x, where=w), mesh=mesh_of((4,), ("a",)), **specs)
    x = draw(1, 4, FEATURES)
    assert_still(lambda x: mapped(x, where), x, seen)
    _, slope = jax.jit(partial(pulled_back, lambda x: mapped(x, jnp.ones_like(where))))(x)
    assert np.abs(slope).min() > 0


def test_the_average_takes_its_mean_and_a_variance_of_0():
    x = draw(1, 1, FEATURES)
    _, state = jn.batch_norm(x, STATS, train=True, decay=0.75)
    np.testing.assert_allclose(state.mean, x[0, 0] / 4, rtol=1e-6)
    np.testing.assert_array_equal(state.var, 0.75)


def test_of_second_moments_one_point_is_a_sample_as_others_are():
    x = draw(4, 1)
    np.testing.assert_allclose(jn.rms_norm(x, epsilon=0.0), jnp.sign(x), rtol=1e-6)
