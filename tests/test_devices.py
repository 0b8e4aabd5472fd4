"""Several devices give what one gives: output, state and gradients, whatever each of them sees."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from variants import assert_close, draw, named

import jaxnorm as jn

DEVICES, POINTS = 4, 3
SAMPLED = named(
    "batch several feature axes",
    "batch unbiased",
    "batch cumulative",
    "layer several axes",
    "layer per channel",
    "rms",
    "group channels first",
    "instance",
)
FEW = named("batch", "layer", "group")


def mesh(*sizes, kind=AxisType.Auto):
    return jax.make_mesh(sizes, ("a", "b")[: len(sizes)], axis_types=(kind,) * len(sizes))


def sharded(function, check_vma):
    def one(*args):
        return jax.tree.map(lambda v: v[None], function(*jax.tree.map(lambda v: v[0], args)))

    specs = {"in_specs": P("a"), "out_specs": P("a")}
    return jax.shard_map(one, mesh=mesh(DEVICES), check_vma=check_vma, **specs)


MODES = {
    "shard_map": partial(sharded, check_vma=True),
    "shard_map unchecked": partial(sharded, check_vma=False),
    "pmap": partial(jax.pmap, axis_name="a"),
    "vmap": partial(jax.vmap, axis_name="a"),
}
over_modes = pytest.mark.parametrize("mode", MODES)


def uneven(kind):
    """Weights of the points on each device: the last device sees nothing."""
    seen = np.arange(POINTS) < np.arange(POINTS, POINTS - DEVICES, -1)[:, None]
    return seen if kind == "mask" else (seen * np.random.default_rng(5).uniform(0.5, 2, seen.shape))


def spread(v, axis):
    """[..., devices * points, ...] -> [devices, ..., points, ...]"""
    return jnp.stack(jnp.split(v, DEVICES, axis))


def gathered(v, axis):
    return jnp.concatenate(list(v), axis)


def large(variant, where):
    """The row's arguments with points for every device; scale and bias at every element."""
    shape = list(variant.shape)
    shape[variant.sample] = DEVICES * POINTS
    inputs = draw(variant._replace(shape=tuple(shape)))
    line = [n if a == variant.sample else 1 for a, n in enumerate(shape)]
    if where is not None:
        where = jnp.asarray(uneven(where)).reshape(line)
        where = where if where.dtype == bool else where.astype(jnp.float32)
    rng = np.random.default_rng(6)
    scale, bias, ct = (jnp.asarray(v, jnp.float32) for v in rng.uniform(0.5, 2, (3, *shape)))
    return inputs._replace(scale=scale, bias=bias, where=where), ct


def results(function, free, fixed, ct):
    """y, the state, and the gradients of everything that is differentiable."""

    def loss(free):
        y, state = function(free, fixed)
        return jnp.sum(y * ct), (y, state)

    (_, out), grads = jax.value_and_grad(loss, has_aux=True)(free)
    return out, grads


CASES = [(v, "mask", "shard_map") for v in SAMPLED]
CASES += [(v, "mask", mode) for v in FEW for mode in MODES]
CASES += [(v, where, "shard_map") for v in FEW for where in (None, "weights")]


@pytest.mark.parametrize(("variant", "where", "mode"), CASES, ids=lambda v: str(v or "full"))
def test_devices_are_one_device(variant, where, mode):
    inputs, ct = large(variant, where)
    axis = variant.sample
    free = {"x": inputs.x, "scale": inputs.scale, "bias": inputs.bias}
    fixed = {"where": inputs.where, "stats": inputs.stats}
    if where == "weights":
        free["where"] = fixed.pop("where")

    def function(free, fixed, **options):
        return variant.function(**free, **fixed, **options)

    expected, slopes = jax.jit(partial(results, function))(free, fixed, ct)
    local = jax.tree.map(lambda v: spread(v, axis), {**free, "where": inputs.where})
    where = {} if "where" in free else {"where": local.pop("where")}
    stats = jax.tree.map(lambda v: jnp.stack([v] * DEVICES), inputs.stats)
    mapped = MODES[mode](partial(function, axis_name="a"))
    (y, state), grads = jax.jit(partial(results, mapped))(local, {**where, "stats": stats}, spread(ct, axis))
    assert_close(gathered(y, axis), expected[0], 1e-6)
    assert_close(jax.tree.map(lambda v: gathered(v, axis), grads), slopes, 1e-6)
    for device in range(DEVICES):
        assert_close(jax.tree.map(lambda v, d=device: v[d], state), expected[1], 1e-6)


@over_modes
def test_forward_mode_and_second_order(mode):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (DEVICES * POINTS, 3)), jnp.float32)
    where = jnp.asarray(uneven("mask")).reshape(-1, 1)
    stats = jn.initial_stats((3,))

    def layer(x, where, **options):
        return jn.batch_norm(x, stats, train=True, where=where, **options)[0]

    def derivatives(function, x, where, u):
        def loss(x):
            return jnp.sum(jnp.sin(function(x, where)))

        tangent = jax.jvp(lambda x: function(x, where), (x,), (u,))[1]
        return tangent, jax.jvp(jax.grad(loss), (x,), (u,))[1]

    expected = jax.jit(partial(derivatives, layer))(x, where, jnp.cos(x))
    mapped = MODES[mode](partial(layer, axis_name="a"))
    actual = jax.jit(partial(derivatives, mapped))(*(spread(v, 0) for v in (x, where, jnp.cos(x))))
    assert_close(tuple(gathered(v, 0) for v in actual), expected, 2e-6)


@over_modes
def test_statistics_are_accurate_however_the_devices_differ(mode):
    x = np.random.default_rng(0).normal(1e4, 1, (DEVICES, 256, 3)).astype(np.float32)
    x[1] += 10
    where = np.ones((DEVICES, 256, 1), bool)
    where[0, 3:] = where[3] = False
    m = jax.jit(MODES[mode](partial(jn.moments, axis=0, axis_name="a")))(x)
    masked = jax.jit(MODES[mode](lambda x, w: jn.moments(x, 0, where=w, axis_name="a")))(x, where)
    for actual, seen in ((m, x.reshape(-1, 3)), (masked, x[where[..., 0]])):
        seen = seen.astype(np.float64)
        np.testing.assert_allclose(actual.var[0], seen.var(0), rtol=5e-6)
        np.testing.assert_allclose(actual.mean[-1], seen.mean(0), rtol=1e-6)
        np.testing.assert_array_equal(actual.weight[1], len(seen))


@over_modes
def test_no_device_sees_anything(mode):
    x, nothing = jnp.full((DEVICES, 2, 3), jnp.nan), jnp.zeros((DEVICES, 2, 1), bool)
    stats, bias = jn.initial_stats((3,)), jnp.float32([1, 2, 3])
    layer = partial(jn.batch_norm, train=True, bias=bias, axis_name="a")
    y, state = jax.jit(MODES[mode](lambda x, w: layer(x, stats, where=w)))(x, nothing)
    np.testing.assert_array_equal(y, jnp.broadcast_to(bias[None, None], y.shape))
    for device in range(DEVICES):
        jax.tree.map(lambda v, old, d=device: np.testing.assert_array_equal(v[d], old), state, stats)


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_of_shared_parameters_taken_inside(check_vma):
    """Checked, JAX sums the gradients of what the devices share; unchecked, the caller does."""
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (DEVICES * POINTS, 3)), jnp.float32)
    where = jnp.asarray(uneven("mask")).reshape(-1, 1)
    scale, bias = jnp.float32([1, 2, 3]), jnp.float32([3, 2, 1])

    def loss(scale, bias, x, where, **options):
        stats = jn.initial_stats((3,))
        options |= {"scale": scale, "bias": bias, "where": where}
        return jnp.sum(jnp.sin(jn.batch_norm(x, stats, train=True, **options)[0]))

    def inside(scale, bias, x, where):
        grads = jax.grad(loss, argnums=(0, 1))(scale, bias, x, where, axis_name="a")
        return grads if check_vma else jax.lax.psum(grads, "a")

    specs = {"in_specs": (P(), P(), P("a"), P("a")), "out_specs": P()}
    mapped = jax.shard_map(inside, mesh=mesh(DEVICES), check_vma=check_vma, **specs)
    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(scale, bias, x, where)
    assert_close(jax.jit(mapped)(scale, bias, x, where), expected, 2e-6)


def test_the_state_scans_inside_shard_map():
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (5, DEVICES * POINTS, 3)), jnp.float32)

    def train(state, x, **options):
        def step(state, batch):
            return jn.batch_norm(batch, state, train=True, **options)[::-1]

        return jax.lax.scan(step, state, x)

    specs = {"in_specs": (P(), P(None, "a")), "out_specs": (P(), P(None, "a"))}
    mapped = jax.shard_map(partial(train, axis_name="a"), mesh=mesh(DEVICES), **specs)
    start = jn.initial_stats((3,), weight=0.0)
    assert_close(jax.jit(mapped)(start, x), train(start, x), 2e-6)


@pytest.mark.parametrize("names", ["a", "b", ("a", "b")])
def test_one_axis_of_two_or_both(names):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 2, 3)), jnp.float32)

    def local(x):
        return jn.instance_norm(x, axis_name=names)

    def together(x):  # the devices of one group beside each other, as one longer sample
        x = x.reshape(2, 4, 2, 3)
        order, sizes = {"a": ((1, 0), (4, 4, 3)), "b": ((0, 1), (2, 8, 3))}.get(names, ((0, 1), (1, 16, 3)))
        y = jn.instance_norm(x.transpose(*order, 2, 3).reshape(sizes))
        parts = y.reshape(x.shape[order[0]], x.shape[order[1]], 2, 3)
        return parts.transpose(*np.argsort(order), 2, 3).reshape(8, 2, 3)

    mapped = jax.shard_map(local, mesh=mesh(2, 4), in_specs=P(("a", "b")), out_specs=P(("a", "b")))
    assert_close(jax.jit(mapped)(x), together(x), 1e-6)


def test_groups_of_devices():
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (4, 2, 3)), jnp.float32)
    groups = [[0, 2], [1, 3]]

    def local(x):
        stats = jn.initial_stats((3,))
        return jn.batch_norm(x, stats, train=True, axis_name="a", axis_index_groups=groups)

    y, state = MODES["pmap"](local)(x)
    for group in groups:
        index = np.asarray(group)
        pair = x[index].reshape(4, 3)
        expected, remembered = jn.batch_norm(pair, jn.initial_stats((3,)), train=True)
        assert_close(y[index].reshape(4, 3), expected, 1e-6)
        for device in group:
            assert_close(jax.tree.map(lambda v, d=device: v[d], state), remembered, 1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays_under_jit_need_no_name(kind):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5, 4)), jnp.float32)

    def layers(x):
        y, state = jn.batch_norm(x, jn.initial_stats((4,)), train=True)
        return jn.group_norm(jn.layer_norm(y), 2), state

    def loss(x):
        return jnp.sum(jnp.sin(layers(x)[0]))

    here = mesh(8, kind=kind)
    with jax.set_mesh(here):
        placed = jax.device_put(x, NamedSharding(here, P("a")))
        actual = jax.jit(layers)(placed), jax.jit(jax.grad(loss))(placed)
    assert_close(jax.device_get(actual), (layers(x), jax.jit(jax.grad(loss))(x)), 2e-6)
