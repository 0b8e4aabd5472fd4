"""blend: evaluation by alpha * running + (1 - alpha) * batch, and the parameters that TENT adapts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec as P
from layers import OURS, draw
from meshes import mesh_of
from test_family_layers import MOMENTS, REMEMBER, Row
from test_weights_of_statistics import Side, loaded

import jaxnorm as jn

PLAIN = Row("BatchNorm", lambda: None, {}, {}, MOMENTS)
ROWS = (PLAIN, *(row for row in REMEMBER if row.name not in ("DecorrelatedBatchNorm", "IterNorm")))
both = pytest.mark.parametrize("api", ["linen", "nnx"])
every = pytest.mark.parametrize("row", ROWS, ids=str)
RUNNING = {"mean": jnp.asarray([5.0, -1, 0, 2]), "var": jnp.asarray([4.0, 1, 9, 2])}


def plain(api, **options):
    side = Side(api, PLAIN, **options)
    side.load(**RUNNING)
    return side


def by_numpy(x, alpha, where=None):
    x = np.asarray(x, np.float64)
    w = np.broadcast_to(1.0 if where is None else where, x.shape)
    mean = (w * x).sum((0, 1)) / w.sum((0, 1))
    var = (w * (x - mean) ** 2).sum((0, 1)) / w.sum((0, 1))
    mean, var = (
        alpha * np.asarray(RUNNING[name]) + (1 - alpha) * v for name, v in (("mean", mean), ("var", var))
    )
    return (x - mean) / np.sqrt(var + 1e-5)


@both
@every
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_a_layer_evaluates_by_the_blend_of_its_statistics(api, row, alpha):
    """Statistics of the batch, by a training call of momentum 0, are blended and stored, and evaluated by."""
    x = draw(row.shape, seed=3)
    side, batch, expected = (Side(api, row) for _ in range(3))
    for s in (side, batch, expected):
        s.load(**loaded(side) if s is side else loaded(s))
    batch.change(momentum=0.0)
    batch(x, train=True)
    both_of = {name: (side.stats[name], batch.stats[name]) for name in ("mean", "var")}
    expected.load(**{name: alpha * old + (1 - alpha) * new for name, (old, new) in both_of.items()})
    if row.options.get("unbiased"):
        return  # the batch's stored variance is another: the row without it says the same
    before = side.stats
    side.change(blend=alpha)
    chex.assert_trees_all_close(side(x, train=False), expected(x, train=False), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(side.stats, before)


@both
@pytest.mark.parametrize("alpha", [0.0, 0.75, jnp.float32(0.75), np.float64(1.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_formula(api, alpha, masked):
    side, x = plain(api, blend=alpha), draw((6, 5, 4))
    where = (np.arange(6) % 3 > 0)[:, None, None]
    brought = {"mask": jnp.asarray(where)} if masked else {}
    y = side(x, train=False, **brought)
    np.testing.assert_allclose(y, by_numpy(x, float(alpha), where if masked else None), rtol=1e-5, atol=1e-5)
    scale, bias = (jnp.ones(4), jnp.zeros(4))
    stats = jn.Moments(**RUNNING, weight=jnp.ones(4))
    options = {"where": brought["mask"]} if masked else {}
    expected = jn.blended_batch_norm(x, stats, alpha=alpha, scale=scale, bias=bias, **options)
    chex.assert_trees_all_close(y, expected, rtol=1e-6, atol=1e-6)


@both
def test_alpha_by_counts_and_by_channel(api):
    x, where = draw((6, 5, 4)), (np.arange(6) < 4)[:, None, None]
    by_counts = plain(api, blend=lambda n: 16 / (16 + n))
    np.testing.assert_allclose(by_counts(x, train=False), by_numpy(x, 16 / 22), rtol=1e-5, atol=1e-5)
    masked = by_counts(x, train=False, mask=jnp.asarray(where))
    np.testing.assert_allclose(masked, by_numpy(x, 16 / 20, where), rtol=1e-5, atol=1e-5)
    share = jnp.asarray([0.0, 0.25, 0.5, 1.0])
    found = plain(api, blend=share)(x, train=False)
    np.testing.assert_allclose(found, by_numpy(x, np.asarray(share)), rtol=1e-5, atol=1e-5)
    stats = jn.Moments(**RUNNING, weight=jnp.ones(4))
    chex.assert_trees_all_close(jn.blended_batch_norm(x, stats, alpha=share), found, rtol=1e-5, atol=1e-5)


@both
def test_alpha_may_be_traced_and_differentiated(api):
    x = draw((6, 4))

    @jax.jit
    @jax.value_and_grad
    def loss(alpha):
        return jnp.sum(plain(api, blend=alpha)(x, train=False) ** 2)

    def double(alpha):
        return np.sum(by_numpy(x[:, None], alpha) ** 2)

    value, slope = loss(0.5)
    np.testing.assert_allclose(value, double(0.5), rtol=1e-5)
    np.testing.assert_allclose(slope, (double(0.501) - double(0.499)) / 0.002, rtol=1e-3)


@both
def test_nothing_unmasked_is_evaluated_by_the_running_statistics(api):
    side, x = plain(api, blend=0.0), draw((6, 5, 4))
    found = side(x, train=False, mask=jnp.zeros((6, 5, 1), bool))
    np.testing.assert_allclose(found, by_numpy(x, 1.0), rtol=1e-5, atol=1e-5)


@both
def test_training_and_a_traced_mode(api):
    x = draw((6, 5, 4))
    side, without = plain(api, blend=0.25), plain(api)
    chex.assert_trees_all_close(side(x, train=True), without(x, train=True), rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(side.stats, without.stats)
    for train in (True, False):
        direct, traced = plain(api, blend=0.25), plain(api, blend=0.25)
        y = traced(x, train=jnp.asarray(train))
        chex.assert_trees_all_close(y, direct(x, train=train), rtol=1e-6, atol=1e-6)
        chex.assert_trees_all_close(traced.stats, direct.stats, rtol=1e-6)

        @jax.jit
        def call(variables, train):
            layer = OURS["linen"].BatchNorm(blend=0.25, momentum=0.5)
            return layer.apply(variables, x, jnp.logical_not(train), mutable=["batch_stats"])

        if api == "linen":
            y, new = call({**traced.variables, "batch_stats": RUNNING}, train)
            chex.assert_trees_all_close(y, plain(api, blend=0.25)(x, train=train), rtol=1e-5, atol=1e-5)
            chex.assert_trees_all_close(new["batch_stats"], direct.stats, rtol=1e-6)


@both
def test_broken_statistics_leave_the_batch_s(api):
    side, x = Side(api, PLAIN, blend=0.5), draw((6, 5, 4))
    side.load(mean=RUNNING["mean"].at[0].set(jnp.nan), var=RUNNING["var"].at[1].set(-1.0))
    y, batch = side(x, train=False), by_numpy(x, 0.0)
    np.testing.assert_allclose(y[..., :2], batch[..., :2], rtol=1e-5, atol=1e-5)


def test_devices_are_one_device():
    x, mask = draw((8, 3, 4)), (jnp.arange(8) % 5 > 0).reshape(8, 1, 1)
    one, many = (
        OURS["linen"].BatchNorm(use_running_average=True, blend=lambda n: 4 / (4 + n), axis_name=name)
        for name in (None, "data")
    )
    variables = {**one.init(jax.random.key(0), x), "batch_stats": RUNNING}
    chex.assert_trees_all_equal_structs(variables, many.init(jax.random.key(0), x))
    mapped = jax.shard_map(
        lambda v, x, mask: many.apply(v, x, mask=mask),
        mesh=mesh_of((4,), ("data",)),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P("data"),
    )
    expected = one.apply(variables, x, mask=mask)
    chex.assert_trees_all_close(jax.jit(mapped)(variables, x, mask), expected, rtol=1e-5, atol=1e-5)


def test_frozen_layers_blend_and_a_model_is_set_at_once():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(OURS["nnx"].BatchNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs), nnx.relu)
    norm, x = model.layers[0], draw((8, 4))
    model.set_attributes(OURS["nnx"].BatchNorm, blend=0.0)
    OURS["nnx"].freeze(model, ...)
    before = jax.tree.map(jnp.copy, nnx.state(model))
    np.testing.assert_allclose(norm(x).mean(0), 0, atol=1e-6)
    chex.assert_trees_all_equal(nnx.state(model), before)


@both
@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.5, "1.5"), (-0.1, "-0.1"), (jnp.float32(1.5), "1.5"), (jnp.asarray([0.5, 1.5] * 2), "float32[4]")],
)
def test_alpha_outside_of_its_range(api, value, shown):
    side = plain(api)
    if api == "nnx" and isinstance(value, jax.Array):
        value = nnx.data(value)  # Flax's rule for an array in place of a number
    side.change(blend=value)
    with pytest.raises(ValueError, match="blend") as raised:
        side(draw((6, 4)), train=False)
    assert str(raised.value) == (
        f"BatchNorm: blend={shown} is outside [0, 1]; it is the share of stats, 1 - blend that of the batch: "
        "choose, for example, 0.9."
    )


@both
@pytest.mark.parametrize("name", ["DecorrelatedBatchNorm", "IterNorm"])
def test_covariances_are_not_blended(api, name):
    row = next(row for row in REMEMBER if row.name == name)
    side = Side(api, row)
    side.change(blend=0.5)
    with pytest.raises(ValueError, match="blend") as raised:
        side(draw(row.shape), train=False)
    assert str(raised.value) == (
        f"{name}: blend is of a mean and a variance, and this layer stores covariances; choose blend=None."
    )
    side(draw(row.shape), train=True)


# ------------------------------------------------------------------------------------------------- TENT


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(OURS["linen"].BatchNorm(use_running_average=True, blend=0.0)(nn.Dense(8)(x)))
        return nn.Dense(3)(OURS["linen"].BatchNorm(use_running_average=True, blend=0.0)(x))


def entropy(logits):
    return -jnp.mean(jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), -1))


@pytest.mark.flexible  # optax, Flax's layers
def test_a_step_of_tent_changes_only_scale_and_bias_of_norms_in_linen():
    x = draw((16, 4))
    variables = Net().init(jax.random.key(0), x)
    params = variables["params"]
    optimizer = optax.multi_transform(
        {"norm": optax.adam(1e-2), "other": optax.set_to_zero()}, OURS["linen"].norm_labels
    )

    def loss(params):
        return entropy(Net().apply({**variables, "params": params}, x))

    before, grads = jax.value_and_grad(loss)(params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), new, params)
    changed = {
        "/".join(key.key for key in path)
        for path, differs in jax.tree_util.tree_leaves_with_path(differs)
        if differs
    }
    assert changed == {f"BatchNorm_{k}/{name}" for k in (0, 1) for name in ("scale", "bias")}
    assert loss(new) < before


@pytest.mark.flexible
def test_a_step_of_tent_changes_only_scale_and_bias_of_norms_in_nnx():
    rngs, ours = nnx.Rngs(0), OURS["nnx"]
    layers = [nnx.Linear(4, 8, rngs=rngs), ours.BatchNorm(8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)]
    model, x = nnx.Sequential(*layers), draw((16, 4))
    model.eval()
    model.set_attributes(ours.BatchNorm, blend=0.0)
    labels = ours.norm_labels(model)
    tx = optax.multi_transform({"norm": optax.adam(1e-2), "other": optax.set_to_zero()}, labels)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = jax.tree.map(jnp.copy, nnx.state(model))
    grads = nnx.grad(lambda model: entropy(model(x)))(model)
    optimizer.update(model, grads)
    after = dict(nnx.to_flat_state(nnx.state(model)))
    changed = {path for path, v in nnx.to_flat_state(before) if np.any(v[...] != after[path][...])}
    assert changed == {("layers", 1, "scale"), ("layers", 1, "bias")}
