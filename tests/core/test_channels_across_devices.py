"""Group norm of channels that are spread over devices: the groups are those of all channels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import mesh_of
from variants import assert_close

import jaxnorm as jn

CHANNELS = 8
NAMES = ("places", "channels")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(2, 3, shape), jnp.float32)


def group_norm(x, scale, where, **options):
    return jn.group_norm(x, scale=scale, where=where, **options)


def evonorm_s0(x, scale, where, **options):
    return jn.evonorm_s0(x, scale, scale=scale, where=where, **options)


FUNCTIONS = {"group_norm": group_norm, "evonorm_s0": evonorm_s0}


def spread(function, check_vma=True):
    """`function(x, scale, where)` of places over 2 devices and channels over 2."""
    specs = {"in_specs": (P(None, *NAMES), P("channels"), P(None, "places")), "out_specs": P(None, *NAMES)}
    return jax.shard_map(function, mesh=mesh_of((2, 2), NAMES), check_vma=check_vma, **specs)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
    "groups", [{"num_groups": 4}, {"group_size": 1}, {"num_groups": 2}, {"num_groups": 1}]
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_gradients_are_one_device_s(name, groups, check_vma):
    x, scale = draw(2, 10, CHANNELS), draw(CHANNELS, seed=1)
    where = (jnp.arange(10) % 4 != 2).reshape(1, -1, 1)
    local = partial(FUNCTIONS[name], axis_name="places", channel_axis_name="channels", **groups)

    def results(function, x, scale):
        def loss(x, scale):
            y = function(x, scale, where)
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(loss, (0, 1), has_aux=True)(x, scale)

    actual = jax.jit(partial(results, spread(local, check_vma)))(x, scale)
    expected = jax.jit(partial(results, partial(FUNCTIONS[name], **groups)))(x, scale)
    assert_close(jax.device_get(actual), jax.device_get(expected), 1e-5)


def test_vmap_and_a_name_that_may_be_missing():
    x = draw(2, 3, CHANNELS)
    parts = jnp.stack(jnp.split(x, 4, axis=-1))
    norm = partial(jn.group_norm, num_groups=4, channel_axis_name=jn.IfBound("channels"))
    y = jax.vmap(norm, axis_name="channels")(parts)
    assert_close(jnp.concatenate(list(y), -1), jn.group_norm(x, 4), 2e-6)
    assert_close(norm(x), jn.group_norm(x, 4), 0)


def called(**options):
    """Group norm of 2 channels on each of 4 devices."""
    norm = partial(jn.group_norm, axis_name=options.pop("axis_name", None), **options)
    jax.vmap(norm, axis_name="a")(jnp.ones((4, 3, 5, 2)))


ERRORS = {
    "a group lies across devices": (
        {"num_groups": 2, "channel_axis_name": "a"},
        "group_norm: 2 groups of channels do not fall on 4 devices of channel_axis_name='a' as whole groups; "
        "choose a multiple of 4, or 1, or make that mesh axis two, one across groups and one within, and "
        "call group_norm with num_groups=1 and the inner one in axis_name.",
    ),
    "groups that do not divide all channels": (
        {"num_groups": 3, "channel_axis_name": "a"},
        "group_norm: num_groups=3 does not divide axis -1 of x, shape (3, 5, 2) on each of 4 devices; choose "
        "a divisor of 8.",
    ),
    "a name in both": (
        {"num_groups": 4, "channel_axis_name": "a", "axis_name": ("a",)},
        "group_norm: 'a' is in axis_name=('a',) and in channel_axis_name='a'; name it once: as axis_name if "
        "places are spread over it, as channel_axis_name if channels are.",
    ),
    "a name that is not bound": (
        {"num_groups": 4, "channel_axis_name": "b"},
        "group_norm: channel_axis_name='b' is not bound here; call it inside jax.shard_map, jax.pmap or "
        "jax.vmap with that axis name, leave channel_axis_name out (plain jit with sharded arrays needs "
        "none), or give IfBound('b'), which is local where the name is missing.",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    options, text = ERRORS[case]
    with pytest.raises(ValueError, match=r"^group_norm: ") as raised:
        called(**options)
    assert str(raised.value) == text


def test_the_remedy_of_a_group_across_devices():
    x = draw(2, 3, CHANNELS)
    names = ("across", "within")
    norm = partial(jn.group_norm, num_groups=1, axis_name="within")
    specs = {"in_specs": P(None, None, names), "out_specs": P(None, None, names)}
    mapped = jax.shard_map(norm, mesh=mesh_of((2, 2), names), **specs)
    assert_close(jax.device_get(jax.jit(mapped)(x)), jax.device_get(jn.group_norm(x, 2)), 2e-6)
