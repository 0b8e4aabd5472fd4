"""every_k: the moments of k microbatches enter the average once, as those of the one large batch."""

from typing import Any

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, serialization
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layers import OURS, draw
from meshes import mesh_of
from test_family_layers import MOMENTS, REMEMBER, Row
from test_weights_of_statistics import Side

import jaxnorm as jn
from jaxnorm import population
from jaxnorm._layers import state

PLAIN = Row("BatchNorm", lambda: None, {}, {}, MOMENTS)
ROWS = (PLAIN, *REMEMBER)
both = pytest.mark.parametrize("api", ["linen", "nnx"])
every = pytest.mark.parametrize("row", ROWS, ids=str)
PENDING = {"pending_mean", "pending_var", "pending_weight", "pending_calls", "pending_places"}
X = draw((12, 3, 4))


def large(row: Row) -> Row:
    """The row for two batches side by side."""
    conditions = [jnp.concatenate([c, c]) if jnp.ndim(c) else c for c in row.conditions]
    return row._replace(conditions=tuple(conditions), shape=(2 * row.shape[0], *row.shape[1:]))


def average(stats: Any) -> dict[str, Any]:
    return {name: v for name, v in stats.items() if name not in PENDING}


def close(found: Any, expected: Any) -> None:
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------- the law, for every layer


@both
@every
def test_two_microbatches_are_the_large_batch(api, row):
    parts = [draw(row.shape, seed=seed) * (1 + seed) for seed in (1, 2)]
    side, plain, whole = Side(api, row, every_k=2), Side(api, row), Side(api, large(row))
    assert side.stats.keys() >= PENDING and not PENDING & plain.stats.keys()
    before = average(side.stats)
    for number, x in enumerate(parts):
        plain.load(**average(side.stats))
        y = side(x, train=True)
        chex.assert_trees_all_close(y, plain(x, train=True), rtol=1e-6, atol=1e-6)  # of the microbatch
        if number == 0:
            chex.assert_trees_all_equal(average(side.stats), before)
    whole(jnp.concatenate(parts), train=True)
    close(average(side.stats), whole.stats)
    assert not any(np.any(side.stats[name]) for name in PENDING)
    chex.assert_trees_all_equal(  # evaluation knows nothing of it
        side(parts[0], train=False), (plain.load(**average(side.stats)), plain(parts[0], train=False))[1]
    )


OPTIONS = {
    "moving": {"momentum": 0.75},
    "unbiased": {"momentum": 0.75, "unbiased": True},
    "debiased": {"momentum": 0.75, "debias": True, "unbiased": True},
    "cumulative": {"momentum": None, "unbiased": True},
}
WEIGHTS = np.asarray(jax.random.uniform(jax.random.key(5), (12, 3, 4))) * (np.arange(12) > 3)[:, None, None]


@both
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["mask", "weights", "both"])
def test_k_microbatches_are_numpy_s_moments_of_all_of_them(api, option, kind):
    options = OPTIONS[option]
    side = Side(api, PLAIN, every_k=4, **options)
    w = np.where(WEIGHTS > 0, 1.0, 0.0) if kind == "mask" else WEIGHTS.astype(np.float64)
    brought = {"mask": jnp.asarray(WEIGHTS > 0)} if kind != "weights" else {}
    if kind != "mask":
        brought["weights"] = jnp.asarray(WEIGHTS)
    x = np.asarray(X, np.float64) * 3 + 50
    for k in range(4):
        rows = slice(3 * k, 3 * k + 3)  # the first is masked whole
        here = {name: v[rows] for name, v in brought.items()}
        side(jnp.asarray(x[rows], jnp.float32), train=True, **here)
    mean, total, places = ((w * x).sum((0, 1)) / w.sum((0, 1)), w.sum((0, 1)), (w > 0).sum((0, 1)))
    var = (w * (x - mean) ** 2).sum((0, 1)) / total
    if options.get("unbiased"):
        var = var * places / (places - 1)
    if option == "moving" or option == "unbiased":
        mean, var = 0.25 * mean, 0.75 + 0.25 * var
    np.testing.assert_allclose(side.stats["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(side.stats["var"], var, rtol=1e-6)
    if option == "cumulative":
        np.testing.assert_allclose(side.stats["weight"], total, rtol=1e-6)


@both
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, "masked"])
def test_what_adds_nothing_counts_as_a_call(api, value):
    side, plain = Side(api, PLAIN, every_k=3), Side(api, PLAIN)
    masked = {"mask": jnp.zeros((6, 5, 1), bool)} if value == "masked" else {}
    bad = draw((6, 5, 4)) if masked else draw((6, 5, 4)).at[0].set(value)
    x = draw((6, 5, 4), seed=1)
    for _ in range(2):
        side(bad, train=True, **masked)
    assert np.all(side.stats["pending_calls"] == 2) and not np.any(side.stats["pending_weight"])
    side(x, train=True)
    plain(x, train=True)
    close(average(side.stats), plain.stats)
    before = side.stats
    for _ in range(3):  # all three: the average stays, bitwise, and the next three start anew
        side(bad, train=True, **masked)
    chex.assert_trees_all_equal(side.stats, before)


@both
def test_a_channel_that_is_not_finite_is_left_out_alone(api):
    side, plain = Side(api, PLAIN, every_k=2), Side(api, PLAIN)
    x = draw((12, 5, 4))
    side(x[:6].at[0, 0, 1].set(jnp.nan), train=True)
    side(x[6:], train=True)
    plain(x, train=True)
    expected = Side(api, PLAIN)
    expected(x[6:], train=True)
    finite = np.asarray([0, 2, 3])
    for name in ("mean", "var"):
        close(side.stats[name][finite], plain.stats[name][finite])
        close(side.stats[name][1], expected.stats[name][1])


@both
def test_evaluation_and_calls_without_an_update_do_not_count(api):
    side = Side(api, PLAIN, every_k=2)
    side(X, train=True)
    before = side.stats
    side(X, train=False)
    side(X, train=True, update_stats=False)
    chex.assert_trees_all_equal(side.stats, before)
    side(X, train=False, update_stats=True)  # which counts
    assert not np.any(side.stats["pending_calls"]) and np.any(side.stats["mean"])


@both
def test_a_traced_mode_counts_where_it_trains(api):
    side, direct = Side(api, PLAIN, every_k=2), Side(api, PLAIN, every_k=2)
    for seed, train in enumerate((True, False, True, True, False)):
        side(draw((6, 5, 4), seed=seed), train=jnp.asarray(train))
        direct(draw((6, 5, 4), seed=seed), train=train)
        chex.assert_trees_all_close(side.stats, direct.stats, rtol=1e-6, atol=1e-7)

    @jax.jit
    def step(train):
        layer = OURS["linen"].BatchNorm(every_k=2)
        variables = layer.init(jax.random.key(0), X, True)
        return layer.apply(variables, X, jnp.logical_not(train), mutable=["batch_stats"])[1]

    assert np.all(step(True)["batch_stats"]["pending_calls"] == 1)
    assert not np.any(step(False)["batch_stats"]["pending_calls"])


# ------------------------------------------------------------------------------------- steps and states


@both
def test_a_schedule_counts_updates_of_the_average(api):
    def schedule(step):
        return jnp.asarray([0.5, 0.25, 0.125])[step]

    side = Side(api, PLAIN, every_k=2, momentum=schedule)
    whole = Side(api, large(PLAIN), momentum=schedule)
    for seed in range(3):
        x = draw((12, 5, 4), seed=seed)
        side(x[:6], train=True)
        assert side.stats["step"] == seed
        side(x[6:], train=True)
        whole(x, train=True)
    close(average(side.stats), whole.stats)
    assert side.stats["step"] == 3


@both
def test_states_of_a_bank_count_their_own_calls(api):
    row = next(row for row in REMEMBER if row.name == "DomainBatchNorm")
    side, one = Side(api, row, every_k=2), Side(api, row._replace(conditions=(2,)), every_k=2)
    other = side.row._replace(conditions=(2,))
    x = draw((4, *row.shape))
    side(x[0], train=True)  # domain 1
    side.row = other
    side(x[1], train=True)
    assert side.stats["pending_calls"].tolist() == [[0] * 4, [1] * 4, [1] * 4]
    side(x[2], train=True)
    assert side.stats["pending_calls"].tolist() == [[0] * 4, [1] * 4, [0] * 4]
    one(x[1], train=True)
    one(x[2], train=True)
    close(side.stats["mean"][2], one.stats["mean"][2])
    assert not np.any(side.stats["mean"][:2])


@both
def test_nothing_pending_is_lost_when_every_k_changes(api):
    side, whole = Side(api, PLAIN, every_k=4), Side(api, PLAIN)
    x = draw((18, 5, 4))
    side(x[:6], train=True)
    side(x[6:12], train=True)
    side.change(every_k=1)
    side(x[:6], train=False)  # evaluation changes nothing
    assert np.all(side.stats["pending_calls"] == 2)
    side(x[12:], train=True)  # takes the two that wait with it
    whole(x, train=True)
    close(average(side.stats), whole.stats)
    assert not any(np.any(side.stats[name]) for name in PENDING)
    for s in (side, whole):
        s(x[:6], train=True)
    close(average(side.stats), whole.stats)


@both
@pytest.mark.parametrize("row", ROWS[:1] + ROWS[-1:], ids=str)
def test_a_checkpoint_without_an_accumulator_starts_one(api, row):
    side = Side(api, row)
    side.change(every_k=2)
    x = draw((2 * row.shape[0], *row.shape[1:]))
    side(x[: row.shape[0]], train=False)
    assert not PENDING & side.stats.keys()
    side(x[: row.shape[0]], train=True)
    side(x[row.shape[0] :], train=True)
    whole = Side(api, large(row))
    whole(x, train=True)
    close(average(side.stats), whole.stats)


def test_linen_checkpoints_resume_bitwise():
    layer = OURS["linen"].BatchNorm(use_running_average=False, every_k=3)

    def step(variables, x):
        return {**variables, **layer.apply(variables, x, mutable=["batch_stats"])[1]}

    start = layer.init(jax.random.key(0), X)
    middle = step(step(start, X[:4]), X[4:8])
    loaded = serialization.from_bytes(start, serialization.to_bytes(middle))
    chex.assert_trees_all_equal(step(loaded, X[8:]), step(middle, X[8:]))
    frozen = step(flax.core.freeze(middle), X[8:])
    chex.assert_trees_all_equal(dict(frozen["batch_stats"]), step(middle, X[8:])["batch_stats"])


def test_nnx_states_resume_bitwise():
    def make():
        return OURS["nnx"].BatchNorm(4, every_k=3, rngs=nnx.Rngs(0))

    one, other = make(), make()
    one(X[:4])
    one(X[4:8])
    nnx.update(other, nnx.state(one))
    copy = nnx.clone(one)
    for layer in (one, other, copy):
        layer(X[8:])
    for layer in (other, copy):
        chex.assert_trees_all_equal(nnx.state(layer), nnx.state(one))
    leaves = jax.tree.leaves(nnx.state(make()))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)  # so that all can be donated


@both
def test_frozen_layers_gather_nothing(api):
    if api == "linen":
        layer = OURS[api].BatchNorm(use_running_average=False, every_k=2)
        frozen = OURS[api].freeze(layer.init(jax.random.key(0), X), ...)
        _, after = layer.apply(frozen, X, mutable=["batch_stats"])
        chex.assert_trees_all_equal(dict(after["batch_stats"]), dict(frozen["batch_stats"]))
        return
    layer = OURS[api].BatchNorm(4, every_k=2, rngs=nnx.Rngs(0))
    OURS[api].freeze(layer, ...)
    before = jax.tree.map(jnp.copy, nnx.state(layer))
    layer(X)
    chex.assert_trees_all_equal(nnx.state(layer), before)


def test_one_place_clears_what_is_pending():
    layer = OURS["linen"].BatchNorm(use_running_average=False, every_k=3)
    variables = layer.init(jax.random.key(0), X)
    _, new = layer.apply(variables, X, mutable=["batch_stats"])
    cleared = state.without_pending(new["batch_stats"])
    assert cleared.keys() == new["batch_stats"].keys()
    assert not any(np.any(cleared[name]) for name in state.PENDING)
    chex.assert_trees_all_equal(average(cleared), average(new["batch_stats"]))


# --------------------------------------------------------------------------------------- transformations


def test_a_scan_over_microbatches():
    layer = OURS["linen"].BatchNorm(use_running_average=False, every_k=4, momentum=0.5)
    plain = layer.clone(every_k=1)
    x = draw((4, 6, 4))
    variables, start = layer.init(jax.random.key(0), x[0]), plain.init(jax.random.key(0), x[0])

    @jax.jit
    def steps(variables, x):
        def step(stats, x):
            y, new = layer.apply({**variables, "batch_stats": stats}, x, mutable=["batch_stats"])
            return new["batch_stats"], y

        return jax.lax.scan(step, variables["batch_stats"], x)

    stats, _ = steps(variables, x)
    _, expected = plain.apply(start, x.reshape(24, 4), mutable=["batch_stats"])
    close(average(stats), expected["batch_stats"])
    assert jax.tree.map(jax.typeof, stats) == jax.tree.map(jax.typeof, variables["batch_stats"])

    norm = OURS["nnx"].BatchNorm(4, every_k=4, momentum=0.5, rngs=nnx.Rngs(0))
    nnx.scan(lambda norm, x: norm(x), in_axes=(nnx.StateAxes({...: nnx.Carry}), 0), out_axes=0)(norm, x)
    close(norm.mean[...], stats["mean"])


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return OURS["linen"].BatchNorm(use_running_average=False, every_k=2, name="norm")(x), None


def test_stacked_and_mapped_layers():
    x = draw((2, 6, 4))
    lifted = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
    for lift in (nn.scan(Stack, length=2, **lifted), nn.vmap(Stack, in_axes=(0, None), **lifted)):
        stack = lift()
        given = x if "Vmap" in type(stack).__name__ else x[0]
        variables = stack.init(jax.random.key(0), given, None)
        for _ in range(2):
            _, new = jax.jit(lambda v, s=stack, x=given: s.apply(v, x, None, mutable=["batch_stats"]))(
                variables
            )
            variables = {**variables, **new}
        single = OURS["linen"].BatchNorm(use_running_average=False)
        _, expected = single.apply(single.init(jax.random.key(0), x[0]), x[0], mutable=["batch_stats"])
        first = jax.tree.map(lambda v: v[0], variables["batch_stats"]["norm"])
        close(average(first), expected["batch_stats"])


def test_a_layer_called_several_times_counts_each_call():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = OURS["linen"].BatchNorm(
                use_running_average=False, every_k=4, use_scale=False, use_bias=False
            )
            return norm(norm(x) + x)

    model, x = Twice(), draw((2, 6, 4))
    variables = model.init(jax.random.key(0), x[0])
    for k in range(2):
        _, new = model.apply(variables, x[k], mutable=["batch_stats"])
        variables = {**variables, **new}
    own = [(v - v.mean(0)) / np.sqrt(v.var(0) + 1e-5) for v in np.asarray(x, np.float64)]
    seen = np.concatenate(
        [v for x, y in zip(np.asarray(x, np.float64), own, strict=True) for v in (x, y + x)]
    )
    stats = variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.01 * seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.99 + 0.01 * seen.var(0), rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_devices_are_one_device(masked):
    x, mask = draw((2, 8, 3, 4)), jnp.arange(8).reshape(8, 1, 1) % 5 > 0
    brought = {"mask": mask} if masked else {}
    options = {"use_running_average": False, "every_k": 2, "unbiased": True}
    one, many = (OURS["linen"].BatchNorm(**options, axis_name=name) for name in (None, "data"))
    variables = one.init(jax.random.key(0), x[0])

    def steps(layer, variables, x, brought):
        for k in range(2):
            _, new = layer.apply(variables, x[k], mutable=["batch_stats"], **brought)
            variables = {**variables, **new}
        return variables["batch_stats"]

    mesh = mesh_of((4,), ("data",))
    mapped = jax.shard_map(
        lambda *args: steps(many, *args), mesh=mesh, in_specs=(P(), P(None, "data"), P("data")), out_specs=P()
    )
    close(jax.jit(mapped)(variables, x, brought), steps(one, variables, x, brought))


@pytest.mark.parametrize("spec", [P(None, "data"), P(None, None, None, "data")], ids=str)
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_sharded_arrays_scan(kind, spec):
    x = draw((2, 8, 3, 4))
    layer = OURS["linen"].BatchNorm(use_running_average=False, every_k=2, unbiased=True, count_skipped=True)
    plain = layer.clone(every_k=1)
    variables = plain.init(jax.random.key(0), x[0])
    _, expected = plain.apply(variables, x.reshape(16, 3, 4), mutable=["batch_stats"])
    mesh = mesh_of((4,), ("data",), kind)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, spec))
        variables = jax.jit(layer.init)(jax.random.key(0), x[0])

        def step(stats, x):
            _, new = layer.apply({**variables, "batch_stats": stats}, x, mutable=["batch_stats"])
            return new["batch_stats"], None

        stats, _ = jax.jit(lambda stats, x: jax.lax.scan(step, stats, x))(variables["batch_stats"], x)
    close(jax.device_get(average(stats)), jax.device_get(expected["batch_stats"]))


@pytest.mark.flexible  # optax
@both
def test_multi_steps_of_optax(api):
    """Accumulated gradients and accumulated statistics: the step that the large batch takes, for one norm."""
    x, y = draw((8, 4)), draw((8, 4), seed=1)
    make = OURS[api].BatchNorm

    def loss(out, y):
        return jnp.mean((out - y) ** 2)

    def train(every_k, parts):
        optimizer = optax.MultiSteps(optax.sgd(0.1), every_k_schedule=every_k)
        if api == "nnx":
            norm = make(4, every_k=every_k, rngs=nnx.Rngs(0))
            opt = nnx.Optimizer(norm, optimizer, wrt=nnx.Param)
            for x_, y_ in parts:
                grads = nnx.grad(lambda norm, x_=x_, y_=y_: loss(norm(x_), y_))(norm)
                opt.update(norm, grads)
            return norm.mean[...], norm.var[...], norm.scale[...]
        norm = make(use_running_average=False, every_k=every_k)
        variables = norm.init(jax.random.key(0), x)
        params, stats = variables["params"], variables["batch_stats"]
        state = optimizer.init(params)
        for x_, y_ in parts:

            def of(params, stats=stats, x_=x_, y_=y_):
                out, new = norm.apply({"params": params, "batch_stats": stats}, x_, mutable=["batch_stats"])
                return loss(out, y_), new["batch_stats"]

            grads, stats = jax.grad(of, has_aux=True)(params)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return stats["mean"], stats["var"], params["scale"]

    mean, var, scale = train(2, [(x[:4], y[:4]), (x[4:], y[4:])])
    whole = train(1, [(x, y)])
    close((mean, var), whole[:2])
    assert np.any(scale != 1)


# ------------------------------------------------------------------------------------ the pure function


def test_accumulate_is_merge_and_ema():
    x = draw((5, 6, 4))
    stats, plain = jn.initial_stats(4), jn.initial_stats(4)
    pending = population.initial_pending(stats)
    for k in range(5):
        batch = jn.moments(x[k], 0)
        new, left = population.accumulate(stats, pending, batch, every_k=5, decay=0.5)
        assert jax.tree.map(jax.typeof, (new, left)) == jax.tree.map(jax.typeof, (stats, pending))
        stats, pending = new, left
    close(stats, jn.ema(plain, jn.moments(x.reshape(30, 4), 0), decay=0.5))
    chex.assert_trees_all_equal(pending, population.initial_pending(stats))


def test_accumulate_scans_and_takes_covariances():
    x = draw((3, 6, 4))
    start = jn.initial_covariance(4, weight=0.0)

    def step(carry, x):
        _, batch = jn.decorrelated_batch_norm(x, start, train=True, decay=None)
        return population.accumulate(*carry, batch, every_k=3, decay=0.5), None

    (stats, _), _ = jax.lax.scan(step, (start, population.initial_pending(start)), x)
    flat = np.asarray(x, np.float64).reshape(18, 4)
    np.testing.assert_allclose(stats.mean[0], flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.cov[0], np.cov(flat.T, bias=True), rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------- mistakes


@both
@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0, ValueError, "BatchNorm: every_k=0 is too small; choose 1 or more."),
        (1.5, TypeError, "BatchNorm: every_k must be an int, got 1.5; choose 1 or more."),
    ],
)
def test_errors(api, value, kind, text):
    with pytest.raises(kind) as raised:
        Side(api, PLAIN, every_k=value)
    assert str(raised.value) == text


def test_errors_of_the_function():
    stats = jn.initial_stats(4)
    with pytest.raises(ValueError, match="every_k") as raised:
        population.accumulate(stats, population.initial_pending(stats), stats, every_k=0)
    assert str(raised.value) == "accumulate: every_k=0 is too small; choose 1 or more."
