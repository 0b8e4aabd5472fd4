"""Arrays that are sharded over a mesh, whose axes are Explicit unless one says otherwise, under plain jit.

Value, state and gradients are those of one device. y is sharded as `x * scale` is, the new state as the old
one, and a gradient as what it is of.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sharded import AFFINE, FEATURES, ROWS, STATS, kinds, mesh, observations, quickly
from variants import assert_close

import jaxnorm as jn

# x's sharding, and that of the features of parameters and state
SHARDINGS = {
    "batch": (P("data", None, None), None),
    "batch, features of parameters": (P("data", None, None), "model"),
    "batch, parameters over the same axis": (P("data", None, None), "data"),
    "sequence": (P(None, "data", None), "model"),
    "features": (P(None, None, "model"), None),
    "features, and of parameters": (P(None, None, "model"), "model"),
    "features, and of parameters over another axis": (P(None, None, "model"), "data"),
    "batch and features": (P("data", None, "model"), "model"),
    "features over both": (P(None, None, ("data", "model")), None),
}
# `x * scale` is an error: the parameters are gathered where x leaves no room for how they are sharded
REFUSED_BY_JAX = ("batch, parameters over the same axis", "features, and of parameters over another axis")
# every function has its value under one of them, the next function under the next
VALUES = tuple(SHARDINGS)[1:]


def spread(tree, features, here):
    """What has FEATURES on its last axis, sharded there; all else on every device."""

    def one(v):
        v = jnp.asarray(v)
        of_features = v.ndim and v.shape[-1] == FEATURES
        spec = P(*[None] * (v.ndim - 1), features) if of_features else P()
        return jax.device_put(v, NamedSharding(here, spec))

    return jax.tree.map(one, tree)


def arguments(row, sharding, here):
    spec, features = SHARDINGS[sharding]
    x = jax.device_put(observations(), NamedSharding(here, spec))
    return x, spread(row.params, features, here), spread(row.state, features, here)


def results(call, x, params, state):
    """What comes out, the new state, and the gradients of x and of the parameters."""

    def loss(x, params):
        out, new = call(x, params, state)
        return sum((jnp.sum(jnp.sin(v)) for v in jax.tree.leaves(out)), jnp.zeros(())), (out, new)

    grads, (out, new) = jax.grad(loss, (0, 1), has_aux=True)(x, params)
    return out, new, grads


@cache
def alone(name):
    """The results of the row of that name, on one device."""
    (row,) = (row for row in ROWS if row.name == name)
    return jax.device_get(quickly(partial(results, row.call))(observations(), row.params, row.state))


FEW = [row for row in ROWS if row.name in ("batch_norm", "layer_norm", "group_norm", "batch_renorm")]
few = pytest.mark.parametrize("row", FEW, ids=str)

MESHES = [((4, 2), sharding) for sharding in SHARDINGS] + [((1, 1), "batch and features")]


@pytest.mark.parametrize("where", MESHES, ids=str)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_everything_is_sharded_as_what_it_belongs_to(row, where):
    sizes, sharding = where
    here = mesh(sizes)
    with jax.set_mesh(here):

        def check(x, params, state):
            out, new, (dx, dparams) = results(row.call, x, params, state)
            if new is not None:
                assert kinds(new) == kinds(state)
            assert kinds((dx, dparams)) == kinds((x, params))
            if out is not None and row.scaled:
                scale = jnp.expand_dims(params["scale"], (0, 1))
                y = x if sharding in REFUSED_BY_JAX else x * scale
                assert kinds(out)[0] == kinds(y)[0]

        jax.eval_shape(check, *arguments(row, sharding, here))


@pytest.mark.parametrize(
    ("row", "sharding"),
    [
        pytest.param(row, VALUES[k % len(VALUES)], marks=() if row in FEW else pytest.mark.slow)
        for k, row in enumerate(ROWS)
    ],
    ids=str,
)
def test_values_are_those_of_one_device(row, sharding):
    here = mesh((4, 2))
    with jax.set_mesh(here):
        actual = quickly(partial(results, row.call))(*arguments(row, sharding, here))
    assert_close(jax.device_get(actual), alone(row.name), 5e-6)


@pytest.mark.parametrize("sharding", ["batch, features of parameters", "features"])
@few
def test_on_auto_axes(row, sharding):
    here = mesh((4, 2), AxisType.Auto)
    with jax.set_mesh(here):
        actual = quickly(partial(results, row.call))(*arguments(row, sharding, here))
    assert_close(jax.device_get(actual), alone(row.name), 5e-6)


@few
def test_eagerly_with_and_without_a_mesh_in_the_context(row):
    here = mesh((4, 2))
    args = arguments(row, "batch, features of parameters", here)
    expected = alone(row.name)[:2]
    assert_close(jax.device_get(row.call(*args)), expected, 5e-6)
    with jax.set_mesh(here):
        out, new = row.call(*args)
    assert_close(jax.device_get((out, new)), expected, 5e-6)
    assert new is None or kinds(new) == kinds(args[2])


@few
def test_what_is_closed_over_is_on_no_mesh(row):
    here = mesh((4, 2))
    with jax.set_mesh(here):
        x = jax.device_put(observations(), NamedSharding(here, P("data", None, "model")))
        actual = quickly(lambda x: row.call(x, row.params, row.state))(x)
    assert_close(jax.device_get(actual), alone(row.name)[:2], 5e-6)


@few
def test_inside_of_shard_map_over_one_axis(row):
    """The other axis of the mesh is Explicit there."""
    here = mesh((4, 2))

    def local(x, params, state):
        return row.call(x, params, state, **({} if row.state is None else {"axis_name": "data"}))

    with jax.set_mesh(here):
        x, params, state = arguments(row, "batch and features", here)
        specs = {"in_specs": (P("data"), P(), P()), "out_specs": (P("data"), P()), "axis_names": {"data"}}
        actual = quickly(partial(results, jax.shard_map(local, **specs)))(x, params, state)
    assert_close(jax.device_get(actual), alone(row.name), 5e-6)


@pytest.mark.parametrize("features", [None, "model", "data"])
@pytest.mark.parametrize("decay", [0.75, None])
def test_a_state_scans(features, decay):
    here = mesh((4, 2))
    x = jnp.stack([observations(), observations() + 1])

    def train(state, x):
        def step(state, x):
            return jn.batch_norm(x, state, train=True, decay=decay)[::-1]

        return jax.lax.scan(step, state, x)

    with jax.set_mesh(here):
        spec = NamedSharding(here, P(None, "data", None, "model"))
        args = spread(STATS, features, here), jax.device_put(x, spec)
        state, y = quickly(train)(*args)
        assert kinds(state) == kinds(args[0])
    assert_close(jax.device_get((state, y)), quickly(train)(STATS, x), 5e-6)


@pytest.mark.parametrize("features", ["model", "data"])
def test_a_switch_that_is_traced(features):
    """Both branches give y and the state in one sharding."""
    here = mesh((4, 2))

    def either(x, state, train):
        return jn.batch_norm(x, state, train=train, **AFFINE)

    with jax.set_mesh(here):
        x = jax.device_put(observations(), NamedSharding(here, P("data")))
        state = spread(STATS, features, here)
        for train in (True, False):
            y, new = quickly(either)(x, state, jnp.asarray(train))
            assert kinds(new) == kinds(state)
            expected = jn.batch_norm(observations(), STATS, train=train, **AFFINE)
            assert_close(jax.device_get((y, new)), jax.device_get(expected), 5e-6)


@few
def test_programs_for_other_backends(row):
    """What only they run is traced while it is lowered."""
    here = mesh((4, 2))
    with jax.set_mesh(here):
        for sharding in ("batch, features of parameters", "features, and of parameters over another axis"):
            traced = jax.jit(partial(results, row.call)).trace(*arguments(row, sharding, here))
            assert traced.lower(lowering_platforms=("tpu", "cuda")).as_text()


# ------------------------------------------------------------------------------------ groups across devices


@pytest.mark.parametrize("features", ["data", ("data", "model")])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_group_whose_channels_are_spread_over_devices(groups, features):
    here, x = mesh((4, 2)), observations()

    def norm(x):
        return results(lambda x, *_: (jn.group_norm(x, groups), None), x, {}, None)

    with jax.set_mesh(here):
        actual = quickly(norm)(jax.device_put(x, NamedSharding(here, P(None, None, features))))
    assert_close(jax.device_get(actual), jax.device_get(quickly(norm)(x)), 5e-6)


@pytest.mark.parametrize(
    ("spec", "call"),
    [
        (P(None, None, "data"), lambda x: jn.group_norm(x, 2, reduction_axes=-1)),
        (P(None, None, "data"), lambda x: jn.evonorm_s0(x, jnp.ones(FEATURES), num_groups=2)),
        (P("data"), lambda x: jn.ghost_batch_norm(x, STATS, train=True, num_ghosts=2)),
        (
            P(),
            lambda x: (
                x[0, 0] * jax.reshard(AFFINE["scale"], P("data")) + jax.reshard(AFFINE["bias"], P("model"))
            ),
        ),
        (
            P(),
            lambda x: jn.layer_norm(
                x,
                scale=jax.reshard(AFFINE["scale"], P("data")),
                bias=jax.reshard(AFFINE["bias"], P("model")),
            ),
        ),
    ],
    ids=["group_norm", "evonorm_s0", "ghost_batch_norm", "x * scale + bias", "layer_norm"],
)
def test_what_jax_refuses_is_an_error(spec, call):
    """A reshape of an axis whose parts are cut, and a scale and a bias over different axes."""
    here = mesh((4, 2))
    with jax.set_mesh(here):
        x = jax.device_put(observations(), NamedSharding(here, spec))
        with pytest.raises(Exception, match=r"reshape is not supported|incompatible shardings"):
            call(x)
