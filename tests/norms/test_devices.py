"""Several devices give what one gives: output, state and gradients, whatever each of them sees."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layers import OURS, Case, layer
from meshes import devices_of, mesh_of
from variants import assert_close, draw, named

import jaxnorm as jn

DEVICES, POINTS = 4, 3

# ------------------------------------------------------------------------------------ the modes


def mesh(*sizes, kind=AxisType.Auto):
    return mesh_of(sizes, ("a", "b")[: len(sizes)], kind)


def sharded(function, check_vma=True, kind=AxisType.Auto):
    def one(*args):
        return jax.tree.map(lambda v: v[None], function(*jax.tree.map(lambda v: v[0], args)))

    here = mesh(DEVICES, kind=kind)
    specs = {"in_specs": P("a"), "out_specs": P("a")}
    mapped = jax.shard_map(one, mesh=here, check_vma=check_vma, **specs)
    if kind == AxisType.Auto:
        return mapped
    there, back = NamedSharding(here, P("a")), NamedSharding(here, P())
    return lambda *args: jax.reshard(mapped(*jax.reshard(args, there)), back)


def scanned(function):
    def body(_, args):
        return None, jax.checkpoint(function)(*args)

    def steps(*args):  # one of them
        _, out = jax.lax.scan(body, None, jax.tree.map(lambda v: v[None], args))
        return jax.tree.map(lambda v: v[0], out)

    return sharded(steps)


def batched(function):
    def twice(*args):  # one of two independent samples
        out = jax.vmap(function)(*jax.tree.map(lambda v: jnp.stack([jnp.ones_like(v), v]), args))
        return jax.tree.map(lambda v: v[1], out)

    return sharded(twice)


def nested(function):
    inner = jax.vmap(function, axis_name="b")
    specs = {"in_specs": P("a"), "out_specs": P("a")}
    return jax.shard_map(inner, mesh=mesh(2), check_vma=False, **specs)


MODES = {
    "shard_map": sharded,
    "shard_map unchecked": partial(sharded, check_vma=False),
    "shard_map explicit": partial(sharded, kind=AxisType.Explicit),
    "remat in scan in shard_map": scanned,
    "vmap in shard_map": batched,
    "vmap and shard_map": nested,
    "pmap": partial(jax.pmap, axis_name="a", devices=devices_of(DEVICES)),
    "vmap": partial(jax.vmap, axis_name="a"),
}
over_modes = pytest.mark.parametrize("mode", MODES)
ALONE = ("shard_map", "shard_map unchecked", "pmap", "vmap")  # each in nothing else


def mapped(mode, function):
    """The function over [devices, ...], told the names of the devices' axes."""
    names = ("a", "b") if mode == "vmap and shard_map" else "a"
    return MODES[mode](partial(function, axis_name=names))


# ------------------------------------------------------------------------------------ the rows


def taken(x, scale, bias, where, stats, **options):
    """Moments, in the table of norms."""
    m = jn.moments(x, (0, 1), where=where, keepdims=True, **options)
    return jnp.broadcast_to(scale * m.mean + bias * m.var, x.shape), None


def a_layer(api):
    case = Case("BatchNorm", (6, 3, 4), 4, {"use_scale": False, "use_bias": False, "momentum": 0.75})

    def call(x, scale, bias, where, stats, **options):
        variables = {"batch_stats": {"mean": stats.mean, "var": stats.var}}
        y, new = layer(OURS, api, case, **options).call(variables, x, mask=where)
        return scale * y + bias, new

    return call


(BATCH,) = named("batch")
MOMENTS = BATCH._replace(name="moments", function=taken)
LAYERS = [BATCH._replace(name=f"{api} layer", function=a_layer(api)) for api in OURS]
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

CASES = [(v, "mask", "shard_map", "float32") for v in SAMPLED]
CASES += [(v, "mask", mode, "float32") for v in FEW for mode in ALONE]
CASES += [(BATCH, "mask", mode, "float32") for mode in MODES if mode not in ALONE]
CASES += [(v, "mask", mode, "float32") for v in LAYERS for mode in ("pmap", "vmap and shard_map")]
CASES += [(MOMENTS, "mask", mode, "float32") for mode in ("shard_map unchecked", "pmap", "vmap")]
CASES += [(v, w, "shard_map", "float64") for v in (*FEW, MOMENTS) for w in (None, "weights", "alone")]
CASES += [(v, "mask", "shard_map", data) for v in (BATCH, MOMENTS) for data in ("float64", "far")]
CASES += [(v, "mask", "shard_map", "far") for v in FEW[1:]]  # mean / std is 1e4
TOLERANCE = {"float32": 1e-6, "far": 1e-6, "float64": 1e-12}


def uneven(kind):
    """Weights of the points on each device: the last device sees nothing, or all but one."""
    most = np.arange(POINTS, POINTS - DEVICES, -1) if kind != "alone" else np.array([0, POINTS, 0, 0])
    seen = np.arange(POINTS) < most[:, None]
    return seen if kind != "weights" else seen * np.random.default_rng(5).uniform(0.5, 2, seen.shape)


def spread(v, axis):
    """[..., devices * points, ...] -> [devices, ..., points, ...]"""
    return jnp.stack(jnp.split(v, DEVICES, axis))


def gathered(v, axis):
    return jnp.concatenate(list(v), axis)


def large(variant, where, data):
    """The row's arguments with points for every device; scale and bias at every element."""
    shape = list(variant.shape)
    shape[variant.sample] = DEVICES * POINTS
    dtype = jnp.float64 if data == "float64" else jnp.float32
    inputs = draw(variant._replace(shape=tuple(shape)), dtype)
    line = [n if a == variant.sample else 1 for a, n in enumerate(shape)]
    if where is not None:
        where = jnp.asarray(uneven(where)).reshape(line)
        where = where if where.dtype == bool else where.astype(dtype)
    rng = np.random.default_rng(6)
    scale, bias, ct = (jnp.asarray(v, dtype) for v in rng.uniform(0.5, 2, (3, *shape)))
    x = inputs.x + 2e4 if data == "far" else inputs.x
    return inputs._replace(x=x, scale=scale, bias=bias, where=where), ct


def results(function, free, fixed, ct):
    """y, the state, and the gradients of everything that is differentiable."""

    def loss(free):
        y, state = function(free, fixed)
        return jnp.sum(y * ct), (y, state)

    (_, out), grads = jax.value_and_grad(loss, has_aux=True)(free)
    return out, grads


@cache
def alone(variant, where, data):
    """The row's arguments, and what one device makes of them."""
    inputs, ct = large(variant, where, data)
    free = {"x": inputs.x, "scale": inputs.scale, "bias": inputs.bias}
    fixed = {"where": inputs.where, "stats": inputs.stats}
    if where == "weights":
        free["where"] = fixed.pop("where")

    def function(free, fixed, **options):
        return variant.function(**free, **fixed, **options)

    return function, free, fixed, ct, jax.jit(partial(results, function))(free, fixed, ct)


@pytest.mark.parametrize(("variant", "where", "mode", "data"), CASES, ids=lambda v: str(v or "full"))
def test_devices_are_one_device(variant, where, mode, data):
    with jax.enable_x64(data == "float64"):
        function, free, fixed, ct, (expected, slopes) = alone(variant, where, data)
        axis = variant.sample
        stats = jax.tree.map(lambda v: jnp.stack([v] * DEVICES), fixed["stats"])
        local, places, ct = jax.tree.map(
            lambda v: spread(v, axis), (free, {k: v for k, v in fixed.items() if k == "where"}, ct)
        )
        step = jax.jit(partial(results, mapped(mode, function)))
        (y, state), grads = step(local, {**places, "stats": stats}, ct)
        y, grads = jax.tree.map(lambda v: gathered(v, axis), (y, grads))
        first = jax.tree.map(lambda v: v[0], state)
        tolerance = TOLERANCE[data]
        assert_close(y, expected[0], tolerance)
        assert_close(grads, slopes, tolerance)
        assert_close(first, expected[1], tolerance)
        jax.tree.map(lambda v: np.testing.assert_array_equal(v, np.broadcast_to(v[:1], v.shape)), state)


CURVED = [pytest.param(BATCH, mode, marks=() if mode in ALONE else pytest.mark.slow) for mode in MODES]
CURVED += [(MOMENTS, "shard_map")]


@pytest.mark.parametrize(("variant", "mode"), CURVED, ids=str)
def test_forward_mode_and_second_order(variant, mode):
    with jax.enable_x64(True):
        inputs, _ = large(variant, "mask", "float64")

        def function(x, where, **options):
            options |= {"scale": jnp.ones(()), "bias": jnp.ones(()), "stats": inputs.stats}
            return variant.function(x, where=where, **options)[0]

        def derivatives(function, x, where, u):
            def loss(x):
                return jnp.sum(jnp.sin(function(x, where)))

            tangent = jax.jvp(lambda x: function(x, where), (x,), (u,))[1]
            return tangent, jax.jvp(jax.grad(loss), (x,), (u,))[1]

        args = inputs.x, inputs.where, jnp.cos(inputs.x)
        expected = jax.jit(partial(derivatives, function))(*args)
        step = jax.jit(partial(derivatives, mapped(mode, function)))
        actual = step(*(spread(v, variant.sample) for v in args))
        assert_close(tuple(gathered(v, variant.sample) for v in actual), expected, 1e-12)


@pytest.mark.parametrize("mode", ALONE)
def test_statistics_are_accurate_however_the_devices_differ(mode):
    x = np.random.default_rng(0).normal(1e4, 1, (DEVICES, 256, 3)).astype(np.float32)
    x[1] += 10
    where = np.ones((DEVICES, 256, 1), bool)
    where[0, 3:] = where[3] = False

    def both(x, where, **options):
        return jn.moments(x, 0, **options), jn.moments(x, 0, where=where, **options)

    for actual, seen in zip(
        jax.jit(mapped(mode, both))(x, where), (x.reshape(-1, 3), x[where[..., 0]]), strict=True
    ):
        seen = seen.astype(np.float64)
        np.testing.assert_allclose(actual.var[0], seen.var(0), rtol=5e-6)
        np.testing.assert_allclose(actual.mean[-1], seen.mean(0), rtol=1e-6)
        np.testing.assert_array_equal(actual.weight[1], len(seen))


@pytest.mark.parametrize("mode", ALONE)
def test_no_device_sees_anything(mode):
    x, nothing = jnp.full((DEVICES, 2, 3), jnp.nan), jnp.zeros((DEVICES, 2, 1), bool)
    stats, bias = jn.initial_stats((3,)), jnp.float32([1, 2, 3])
    norm = partial(jn.batch_norm, stats=stats, train=True, bias=bias)
    y, state = jax.jit(mapped(mode, lambda x, w, **options: norm(x, where=w, **options)))(x, nothing)
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


def test_a_mesh_axis_along_which_all_devices_see_the_same():
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (4, 3, 2)), jnp.float32)
    scale = jnp.float32([1, 2])

    def loss(x, scale, **options):
        return jnp.sum(jnp.sin(jn.layer_norm(x, axis=0, scale=scale, feature_axis=2, **options)))

    def across(x, scale):
        return jax.lax.psum(loss(x, scale, axis_name=("a", "b")), "a")

    mapped = jax.shard_map(across, mesh=mesh(2, 4), in_specs=(P("a"), P()), out_specs=P())
    step = jax.jit(jax.value_and_grad(mapped, argnums=(0, 1)))
    assert_close(step(x, scale), jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, scale), 2e-6)


GROUPED = {
    "pmap": partial(jax.pmap, axis_name="a", devices=devices_of(DEVICES)),
    "shard_map unchecked": partial(sharded, check_vma=False),
    "one mesh axis of two": lambda function: jax.shard_map(
        jax.vmap(function), mesh=mesh(2, 2), in_specs=P(("a", "b")), out_specs=P(("a", "b"))
    ),
}


@pytest.mark.parametrize("way", GROUPED)
def test_groups_of_devices(way):
    """Device i is (i // 2, i % 2) of the mesh of two axes: along "a" 0 and 2 are one group, 1 and 3."""
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (DEVICES, 2, 3)), jnp.float32)
    stats, groups = jn.initial_stats((3,)), [[0, 2], [1, 3]]
    name = "a" if way == "one mesh axis of two" else jn.InGroups("a", groups)

    def local(x):
        m = jn.combine(jn.moments(x, 0), axis_name=name)
        return jn.batch_norm(x, stats, train=True, axis_name=name), m

    (y, state), m = jax.jit(GROUPED[way](local))(x)
    for group in groups:
        index = np.asarray(group)
        expected, remembered = jn.batch_norm(x[index].reshape(4, 3), stats, train=True)
        assert_close(y[index].reshape(4, 3), expected, 1e-6)
        for device in group:
            found = jax.tree.map(lambda v, d=device: v[d], (state, m))
            assert_close(found, (remembered, jn.moments(x[index], (0, 1))), 1e-6)


@pytest.mark.parametrize("way", ["pmap", "shard_map unchecked"])
def test_groups_are_given_as_an_axis_name_or_as_flax_gives_them(way):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (DEVICES, 2, 3)), jnp.float32)
    stats, groups = jn.initial_stats((3,)), [[0, 2], [1, 3]]

    def local(x):
        functions = (jn.batch_norm, jn.batch_renorm, partial(jn.ghost_batch_norm, num_ghosts=2))
        flax_s = {"axis_name": "a", "axis_index_groups": groups}
        ours = {"axis_name": jn.InGroups("a", groups)}
        return [[f(x, stats, train=True, **names) for f in functions] for names in (flax_s, ours)]

    flax_s, ours = jax.jit(GROUPED[way](local))(x)
    jax.tree.map(np.testing.assert_array_equal, flax_s, ours)
    mean = x.reshape(2, 2, 2, 3).mean((0, 2))
    np.testing.assert_allclose(ours[0][1].mean[:2], 0.01 * mean, rtol=1e-5)


def test_groups_of_one_axis_beside_another_axis():
    """Sums within groups of "a" and over all of "b", or within groups of both: the axes count together."""
    x = jnp.arange(8.0).reshape(2, 4)
    means = {
        "b in pairs": (jn.InGroups("b", [[0, 1], [2, 3]]), [[0.5, 0.5, 2.5, 2.5], [4.5, 4.5, 6.5, 6.5]]),
        "and a": ((jn.InGroups("b", [[0, 1], [2, 3]]), "a"), [[2.5, 2.5, 4.5, 4.5]] * 2),
        "of both": (
            jn.InGroups(("a", "b"), [[0, 1, 2, 7], [3, 4, 5, 6]]),
            [[2.5] * 3 + [4.5], [4.5] * 3 + [2.5]],
        ),
        "missing": (jn.InGroups(jn.IfBound("c"), [[0, 1]]), x),
        "missing and a": ((jn.InGroups(jn.IfBound("c"), [[0, 1]]), "a"), [[2.0, 3.0, 4.0, 5.0]] * 2),
    }
    spec = P("a", "b")
    for name, expected in means.values():
        mean = partial(jn.moments, axis=(), axis_name=name)
        mapped = jax.shard_map(
            lambda x, mean=mean: mean(x).mean, mesh=mesh(2, 4), in_specs=spec, out_specs=spec, check_vma=False
        )
        np.testing.assert_allclose(mapped(x), expected)


@pytest.mark.parametrize("api", [*OURS])
def test_groups_of_a_layer_are_flax_s(api):
    x = jnp.arange(32.0).reshape(4, 2, 4)
    layer = partial(apply, api, axis_name="a", axis_index_groups=[[0, 1], [2, 3]])
    y = jax.pmap(layer, axis_name="a", devices=devices_of(DEVICES))(x)[0]
    np.testing.assert_allclose(y[:2], y[2:], rtol=1e-4)
    np.testing.assert_allclose(y[:2].mean((0, 1)), 0, atol=1e-6)


SHARDED = (8, 2, 4)  # over 8 devices; the last three see nothing


@cache
def layers_under_jit():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(2, 3, SHARDED), jnp.float32)
    where = jnp.arange(8)[:, None, None] < 5

    def loss(x, where):
        y, state = jn.batch_norm(x, jn.initial_stats((4,)), train=True, where=where)
        y = jn.group_norm(jn.layer_norm(y), 2)
        return jnp.sum(jnp.sin(y)), (y, state)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return step, (x, where), step(x, where)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays_under_jit_need_no_name(kind):
    step, args, expected = layers_under_jit()
    here = mesh(8, kind=kind)
    with jax.set_mesh(here):
        actual = step(*jax.device_put(args, NamedSharding(here, P("a"))))
    assert_close(jax.device_get(actual), expected, 2e-6)


# ------------------------------------------------------------------------------------ reconciled


@over_modes
def test_local_statistics_combine_by_the_law(mode):
    """Counts and masses alike: the mean is pooled, and the spread of the means enters the variance."""
    rng = np.random.default_rng(0)
    mean, var = rng.normal(1e4, 3, (DEVICES, 5)), rng.uniform(0.5, 2, (DEVICES, 5))
    weight = np.float64([7, 0.5, 0, 1])[:, None] * np.ones(5)
    mean[2] = var[2] = np.nan  # of nothing
    live = [0, 1, 3]
    middle = np.average(mean[live], 0, weight[live])
    total = np.average(var[live] + (mean[live] - middle) ** 2, 0, weight[live])
    with jax.enable_x64(True):
        local = jax.tree.map(jnp.asarray, jn.Moments(mean, var, weight))
        m = jax.jit(mapped(mode, jn.combine))(local)
        assert_close(jax.tree.map(lambda v: v[0], m), jn.Moments(middle, total, weight.sum(0)), 1e-12)
        jax.tree.map(lambda v: np.testing.assert_array_equal(v, np.broadcast_to(v[:1], v.shape)), m)


def test_training_apart_and_reconciling_is_training_together():
    """Twice two local steps, reconciled after each two; the last device never sees anything."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(1e4, 1, (4, DEVICES * POINTS, 3)))
        where = jnp.asarray(uneven("mask")).reshape(-1, 1)
        start = jn.initial_stats((3,), weight=0.0, dtype=jnp.float64)

        def remembered(state, x, where):
            def step(state, x):
                return jn.batch_norm(x, state, train=True, decay=None, where=where)[1], None

            return jax.lax.scan(step, state, x)[0]

        def apart(x, where):
            def period(total, x):
                local = remembered(jax.lax.pcast(start, "a", to="varying"), x, where)
                return jn.merge(total, jn.combine(local, axis_name="a")), None

            return jax.lax.scan(period, start, x.reshape(2, 2, *x.shape[1:]))[0]

        # out_specs P(): that it is the same on all devices, JAX checks
        specs = {"in_specs": (P(None, "a"), P("a")), "out_specs": P()}
        total = jax.jit(jax.shard_map(apart, mesh=mesh(DEVICES), **specs))(x, where)
        assert_close(total, jax.jit(remembered)(start, x, where), 1e-12)


def test_axes_with_and_without_a_name_are_combined_at_once():
    parts = jn.moments(jnp.asarray(np.random.default_rng(0).normal(2, 3, (4, 2, 3, 5)), jnp.float32), 3)
    m = jax.jit(jax.vmap(partial(jn.combine, axis=0, axis_name="a"), axis_name="a"))(parts)
    assert_close(jax.tree.map(lambda v: v[2], m), jn.combine(parts, (0, 1)), 1e-6)


# ------------------------------------------------------------------------------------ local if unbound


def apply(api, x, axis_name, **groups):
    if api == "pure":
        return jn.batch_norm(x, jn.initial_stats((4,)), train=True, axis_name=axis_name)
    variables = {"batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}
    affine = {"use_scale": False, "use_bias": False}
    made = layer(OURS, api, Case("BatchNorm", x.shape, 4, affine), axis_name=axis_name, **groups)
    return made.call(variables, x)


@pytest.mark.parametrize("api", ["pure", *OURS])
def test_a_name_that_may_be_missing(api):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (2, 6, 4)), jnp.float32)
    names = jn.IfBound("a"), ("a", jn.IfBound("missing"))

    def across(axis_name):
        return jax.jit(jax.vmap(partial(apply, api, axis_name=axis_name), axis_name="a"))(x)

    def on_one(axis_name):
        return jax.jit(partial(apply, api, axis_name=axis_name))(x[0])

    together, local = across("a"), on_one(None)
    for name in names:
        jax.tree.map(np.testing.assert_array_equal, across(name), together)
    jax.tree.map(np.testing.assert_array_equal, on_one(jn.IfBound("a")), local)
    assert not np.allclose(local[0], together[0][0], atol=0.1)


def test_groups_of_a_name_that_is_missing():
    x, groups = jnp.ones((2, 4)), [[0, 1], [2, 3]]
    m = jn.moments(x, 0, axis_name=jn.InGroups(jn.IfBound("a"), groups))
    np.testing.assert_array_equal(m.weight, 2)


def test_an_nnx_model_is_traced_by_its_name_that_may_be_missing():
    """As a static attribute it is compared and hashed by its value."""
    traces = []

    @nnx.jit
    def run(model, x):
        traces.append(x)
        return model(x)

    for _ in range(2):
        norm = OURS["nnx"].BatchNorm(4, axis_name=jn.IfBound("a"), rngs=nnx.Rngs(0))
        run(norm, jnp.ones((2, 4)))
    assert len(traces) == 1
