"""count_skipped: how many channels and batches were left out of the average, as they were not finite."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from jax.sharding import PartitionSpec as P
from layers import OURS, draw
from meshes import mesh_of
from test_family_layers import MOMENTS, REMEMBER, Row
from test_weights_of_statistics import Side, current

PLAIN = Row("BatchNorm", lambda: None, {}, {}, MOMENTS)
ROWS = (PLAIN, *REMEMBER)
both = pytest.mark.parametrize("api", ["linen", "nnx"])
every = pytest.mark.parametrize("row", ROWS, ids=str)
COUNTS = "skipped_channels", "skipped_batches"


def counts(side):
    return tuple(np.asarray(side.stats[name]).tolist() for name in COUNTS)


def rest(side):
    return {name: v for name, v in side.stats.items() if name not in COUNTS}


@both
@every
def test_every_layer_counts_what_it_leaves_out(api, row):
    side, plain = Side(api, row, count_skipped=True), Side(api, row)
    assert {v.dtype.name for name, v in side.stats.items() if name in COUNTS} == {"int32"}
    x = draw(row.shape)
    whole, part = x.at[...].set(jnp.nan), x.at[0, 0, 3].set(jnp.inf)
    mask = jnp.zeros((*row.shape[:-1], 1), bool)
    for s in (side, plain):
        s(x, train=True)
        s(part, train=True)
        s(whole, train=True)
        s(whole, train=True, mask=mask)  # nothing is there to be left out
        s(whole, train=False)
    chex.assert_trees_all_close(rest(side), plain.stats, rtol=1e-6)
    channels = current(side.stats, row)["skipped_channels"]
    if row.name == "DecorrelatedBatchNorm":
        assert channels.tolist() == [1, 2]  # by groups
    elif row.name == "IterNorm":
        assert channels.tolist() == [2]
    else:
        assert channels.tolist() == [1, 1, 1, 2]
    assert np.sum(side.stats["skipped_channels"]) == np.sum(channels)  # other states of a bank count nothing
    assert side.stats["skipped_batches"] == (2 if row.name == "IterNorm" else 1)


@both
def test_masks_and_weights(api):
    side, x = Side(api, PLAIN, count_skipped=True), draw((6, 5, 4)).at[0].set(jnp.nan)
    side(x, train=True, mask=(jnp.arange(6) > 0).reshape(6, 1, 1))  # the NaN is masked
    assert counts(side) == ([0] * 4, 0)
    side(x, train=True, weights=(jnp.arange(6) / 5).reshape(6, 1, 1))
    assert counts(side) == ([0] * 4, 0)
    side(
        x,
        train=True,
        weights=jnp.ones((6, 1, 1)),
        mask=jnp.asarray([True, True, False, True]).reshape(1, 1, 4),
    )
    assert counts(side) == ([1, 1, 0, 1], 1)  # all that is there is not finite


@both
@pytest.mark.parametrize("every_k", [1, 2])
def test_it_counts_beside_every_k_and_in_a_traced_mode(api, every_k):
    side = Side(api, PLAIN, count_skipped=True, every_k=every_k, momentum=lambda step: 0.5)
    bad, good = draw((6, 4)).at[0, 1].set(jnp.nan), draw((6, 4))
    for x, train in ((bad, True), (bad, False), (good, True), (bad, True), (good, False)):
        side(x, train=jnp.asarray(train))
    assert counts(side) == ([0, 2, 0, 0], 0)
    assert side.stats["step"] == (3 if every_k == 1 else 1)


@both
def test_off_it_keeps_nothing_and_it_may_be_switched_on(api):
    side = Side(api, PLAIN)
    assert not set(COUNTS) & side.stats.keys()
    side.change(count_skipped=True)
    side(draw((6, 4)).at[0].set(jnp.nan), train=True)
    assert counts(side) == ([1] * 4, 1)
    side.change(count_skipped=False)
    side(draw((6, 4)).at[0].set(jnp.nan), train=True)
    assert counts(side) == ([1] * 4, 1)  # kept, and not counted on


def test_scan_jit_and_bytes():
    layer = OURS["linen"].BatchNorm(use_running_average=False, count_skipped=True)
    x = draw((3, 6, 4)).at[1, 0, 2].set(jnp.nan)
    variables = layer.init(jax.random.key(0), x[0])

    @jax.jit
    def steps(variables):
        def step(stats, x):
            return layer.apply({**variables, "batch_stats": stats}, x, mutable=["batch_stats"])[1][
                "batch_stats"
            ], None

        return jax.lax.scan(step, variables["batch_stats"], x)[0]

    stats = steps(variables)
    assert stats["skipped_channels"].tolist() == [0, 0, 1, 0]
    loaded = serialization.from_bytes(variables["batch_stats"], serialization.to_bytes(stats))
    chex.assert_trees_all_equal(loaded, stats)
    norm = OURS["nnx"].BatchNorm(4, count_skipped=True, rngs=nnx.Rngs(0))
    nnx.scan(lambda norm, x: norm(x), in_axes=(nnx.StateAxes({...: nnx.Carry}), 0), out_axes=0)(norm, x)
    assert norm.skipped_channels[...].tolist() == [0, 0, 1, 0]


def test_devices_are_one_device():
    x = draw((8, 3, 4)).at[5, 0, 1].set(jnp.nan)
    mask = (jnp.arange(8) % 4 > 0).reshape(8, 1, 1)
    one, many = (
        OURS["linen"].BatchNorm(use_running_average=False, count_skipped=True, axis_name=name)
        for name in (None, "data")
    )
    variables = one.init(jax.random.key(0), x)
    mapped = jax.shard_map(
        lambda v, x, mask: many.apply(v, x, mask=mask, mutable=["batch_stats"])[1],
        mesh=mesh_of((4,), ("data",)),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    _, expected = one.apply(variables, x, mask=mask, mutable=["batch_stats"])
    found = jax.jit(mapped)(variables, x, mask)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found["batch_stats"]["skipped_channels"].tolist() == [0, 1, 0, 0]
    assert found["batch_stats"]["skipped_batches"] == 0


@pytest.mark.parametrize(
    "options", [{"count_skipped": True}, {"every_k": 4}, {"every_k": 4, "count_skipped": True}]
)
def test_the_options_read_x_no_more_often(options):
    """A compiled program takes the moments once, whatever is kept of them."""
    x = jnp.ones((2048, 256))

    def bytes_accessed(**options):
        layer = OURS["linen"].BatchNorm(use_running_average=False, **options)
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        step = jax.jit(lambda v, x: layer.apply(v, x, mutable=["batch_stats"]))
        return step.lower(variables, x).compile().cost_analysis()["bytes accessed"]

    assert bytes_accessed(**options) < bytes_accessed() + 0.2 * x.nbytes
