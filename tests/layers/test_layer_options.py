"""The options that Flax's layers lack, and what a newcomer reads: linen and nnx over one table."""

import inspect

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal
from flax import linen as nn
from flax import nnx
from layers import OURS, PLAIN, Case, draw, layer

import jaxnorm as jn

BATCH_NORM = Case("BatchNorm", (8, 4), 4)
X = draw((8, 4))

both = pytest.mark.parametrize("api", ["linen", "nnx"])
every_layer = pytest.mark.parametrize("case", PLAIN, ids=str)


def close(actual, expected, atol=1e-6):
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


def batch_norm(api, **options):
    side = layer(OURS, api, BATCH_NORM, **options)
    variables = side.init(X)
    _, known = side.call(variables, draw((8, 4), seed=1), update_stats=True)
    return side, known


# ------------------------------------------------------------------------------------ statistics


@both
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("update", [None, False, True])
@pytest.mark.parametrize("place", ["call", "constructor"])
def test_which_statistics_are_used_and_whether_they_are_updated(api, running, update, place):
    side, known = batch_norm(api, momentum=0.5)
    call = dict(use_running_average=running)
    if place == "call":
        call["update_stats"] = update
    else:
        side = layer(OURS, api, BATCH_NORM, momentum=0.5, update_stats=update)
    y, after = side.call(known, X, **call)
    stats = jn.Moments(**known["batch_stats"], weight=jnp.ones(4))
    expected, _ = jn.batch_norm(X, stats, train=not running)
    _, new = jn.batch_norm(X, stats, train=True, decay=0.5)
    close(y, expected)
    updated = not running if update is None else update
    wanted = {"mean": new.mean, "var": new.var} if updated else known["batch_stats"]
    assert_trees_all_equal(after["batch_stats"], wanted)


@both
@pytest.mark.parametrize("update", [None, False, True])
def test_a_traced_mode_and_an_update(api, update):
    side, known = batch_norm(api)
    step = jax.jit(lambda flag: side.call(known, X, use_running_average=flag, update_stats=update))
    for flag in (False, True):
        direct = side.call(known, X, use_running_average=flag, update_stats=update)
        assert_trees_all_close(step(flag), direct, atol=1e-6)


AVERAGES = {
    "debiased": (dict(debias=True, momentum=0.9), dict(decay=0.9)),
    "exact": (dict(momentum=None), dict(decay=None)),
    "unbiased": (dict(unbiased=True, debias=True), dict(unbiased=True)),
}


@both
@pytest.mark.parametrize("which", AVERAGES)
def test_averages_are_those_of_the_function(api, which):
    options, function = AVERAGES[which]
    side = layer(OURS, api, BATCH_NORM, **options)
    variables, stats = side.init(X), jn.initial_stats(4, weight=0.0)
    assert_trees_all_equal(variables["batch_stats"], stats._asdict())
    for seed in range(3):
        x = draw((8, 4), seed=seed)
        _, variables = side.call(variables, x)
        _, stats = jn.batch_norm(x, stats, train=True, **function)
    assert_trees_all_equal(variables["batch_stats"], stats._asdict())
    y, _ = side.call(variables, X, use_running_average=True)
    assert_trees_all_equal(y, jn.batch_norm(X, stats, train=False)[0])


@both
@pytest.mark.flexible  # of optax
def test_momentum_may_be_a_schedule(api):
    schedule = optax.linear_schedule(0.0, 0.9, transition_steps=2)
    side = layer(OURS, api, BATCH_NORM, momentum=schedule)
    variables = side.init(X)
    assert set(variables["batch_stats"]) == {"mean", "var", "step"}
    step, mean = jax.jit(side.call), np.zeros(4)
    for count, decay in enumerate((0.0, 0.45, 0.9, 0.9)):
        x = draw((8, 4), seed=count)
        _, variables = step(variables, x)
        mean = decay * mean + (1 - decay) * np.mean(np.asarray(x, np.float64), 0)
        close(variables["batch_stats"]["mean"], mean)
        assert variables["batch_stats"]["step"] == count + 1
    for quiet in (dict(use_running_average=True), dict(update_stats=False)):
        _, after = side.call(variables, X, **quiet)
        assert after["batch_stats"]["step"] == 4


@both
def test_defaults_add_no_variable(api):
    assert set(layer(OURS, api, BATCH_NORM).init(X)["batch_stats"]) == {"mean", "var"}


# ------------------------------------------------------------------------------------ scales


@both
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_a_zero_centred_scale_is_one_more(api, name):
    case = Case(name, (8, 4), 4)
    plain, centred = (layer(OURS, api, case, zero_centered_scale=z) for z in (False, True))
    variables = centred.init(X)
    assert not np.any(variables["params"]["scale"])
    close(centred.call(variables, X)[0], plain.call(plain.init(X), X)[0])
    given = layer(OURS, api, case, zero_centered_scale=True, scale_init=jax.nn.initializers.constant(0.5))
    scaled = jax.tree.map(lambda v: v + 1, given.init(X)["params"]["scale"])
    close(scaled, 1.5)
    # 1 + g in bfloat16 would be 1
    g = jnp.full(4, 2.0**-9, jnp.bfloat16)
    y, _ = centred.call({"params": variables["params"] | {"scale": g}}, X)
    ones = plain.init(X)["params"] | {"scale": jnp.full(4, 1 + 2.0**-9)}
    np.testing.assert_array_equal(y, plain.call({"params": ones}, X)[0])


@both
@every_layer
def test_a_call_may_bring_its_scale_and_bias(api, case):
    side, x = layer(OURS, api, case), draw(case.shape)
    variables = side.init(x)
    scale, bias = draw((case.features,), seed=1), draw((case.shape[0], *x.shape[1:]), seed=2)
    stored = {"scale": scale} if case.name == "RMSNorm" else {"scale": scale, "bias": jnp.zeros_like(scale)}
    expected, _ = side.call(variables | {"params": stored}, x)
    y, after = side.call(variables, x, scale=scale, bias=bias)
    close(y, expected + bias, atol=1e-5)
    assert_trees_all_equal(after["params"], variables["params"])


# ------------------------------------------------------------------------------------ freezing


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        for name in ("encoder", "head"):
            x = OURS["linen"].BatchNorm(use_running_average=not train, name=name)(x)
        return OURS["linen"].LayerNorm(name="last")(x)


def test_linen_statistics_stand_still():
    net = Net()
    step = jax.jit(lambda v, x: net.apply(v, x, mutable="batch_stats"))
    variables = net.init(jax.random.key(0), X)
    _, updated = step(variables, X)
    known = {**variables, **updated}
    frozen = OURS["linen"].freeze(known, nnx.PathContains("encoder"))
    y, updated = step(frozen, draw((8, 4), seed=1) + 3)
    stats, before = updated["batch_stats"], known["batch_stats"]
    assert_trees_all_equal({k: stats["encoder"][k] for k in ("mean", "var")}, before["encoder"])
    assert np.all(stats["head"]["mean"] != before["head"]["mean"])
    x = jn.batch_norm(
        draw((8, 4), seed=1) + 3, jn.Moments(**before["encoder"], weight=jnp.ones(4)), train=False
    )[0]
    x = jn.batch_norm(x, jn.initial_stats(4), train=True)[0]
    close(y, jn.layer_norm(x), atol=1e-5)

    again = OURS["linen"].unfreeze({**frozen, **updated}, ...)
    assert jax.tree.structure(again) == jax.tree.structure(known)
    _, updated = step(again, X)
    assert np.all(updated["batch_stats"]["encoder"]["mean"] != before["encoder"]["mean"])


def test_linen_freezes_a_stack():
    stack = nn.scan(
        Step,
        length=3,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
    )()
    variables = stack.init(jax.random.key(0), X, None)
    _, updated = stack.apply(OURS["linen"].freeze(variables, ...), X, None, mutable="batch_stats")
    after = OURS["linen"].unfreeze(updated, ...)
    assert_trees_all_equal(after["batch_stats"], variables["batch_stats"])


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return OURS["linen"].BatchNorm(use_running_average=False)(x), None


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.encoder, self.head = (OURS["nnx"].BatchNorm(4, rngs=rngs) for _ in range(2))
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.last = OURS["nnx"].WeightNorm(nnx.Linear(4, 2, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.last(self.dense(self.head(self.encoder(x))))


@pytest.mark.flexible  # of nnx.Linear
def test_nnx_statistics_stand_still():
    model = Model()
    model(X)
    mean, head = model.encoder.mean[...], model.head.mean[...]
    OURS["nnx"].freeze(model, nnx.PathContains("encoder"))
    model.train()
    nnx.jit(lambda model, x: model(x))(model, X + 3)
    assert_trees_all_equal(model.encoder.mean[...], mean)
    assert np.all(model.head.mean[...] != head)
    frozen = model.encoder(X, use_running_average=False)
    OURS["nnx"].unfreeze(model, ...)
    close(frozen, model.encoder(X, use_running_average=True))
    model(X + 3)
    assert np.all(model.encoder.mean[...] != mean)


def test_nnx_view_takes_update_stats():
    norm = OURS["nnx"].BatchNorm(4, rngs=nnx.Rngs(0))
    nnx.view(norm, update_stats=False)(X)
    assert not np.any(norm.mean[...])
    nnx.view(norm, update_stats=True, use_running_average=True)(X)
    assert np.all(norm.mean[...])


@pytest.mark.flexible  # of optax
def test_linen_norms_are_told_apart_for_optax():
    params = {
        "Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "bn_init": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "block": {"norm": {"scale": jnp.ones(2)}, "Conv_0": {"kernel": jnp.ones((1, 2, 2))}},
        "WeightNorm_0": {"Dense_1/kernel/scale": jnp.ones(2)},
    }
    labels = OURS["linen"].norm_labels(params, norm="frozen", other="trained")
    assert labels == {
        "Dense_0": {"kernel": "trained", "bias": "trained"},
        "bn_init": {"scale": "frozen", "bias": "frozen"},
        "block": {"norm": {"scale": "frozen"}, "Conv_0": {"kernel": "trained"}},
        "WeightNorm_0": {"Dense_1/kernel/scale": "frozen"},
    }
    transforms = {"trained": optax.sgd(1.0), "frozen": optax.set_to_zero()}
    optimizer = optax.multi_transform(transforms, labels)
    updates, _ = optimizer.update(params, optimizer.init(params))
    moved = jax.tree.map(lambda u: bool(np.all(u != 0)), updates)
    assert moved == jax.tree.map(lambda label: label == "trained", labels)
    some = OURS["linen"].norm_labels(params, filter=nnx.PathContains("block"), norm=1, other=0)
    assert sum(jax.tree.leaves(some)) == 1


@pytest.mark.flexible
def test_nnx_norms_do_not_decay():
    model = Model()
    mask = OURS["nnx"].norm_labels(model, norm=False, other=True)
    before = nnx.to_pure_dict(jax.tree.map(jnp.copy, nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, optax.add_decayed_weights(-0.5, mask=mask), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    kept = {"encoder", "head"}
    assert_trees_all_equal({k: after[k] for k in kept}, {k: before[k] for k in kept})
    assert_trees_all_equal(after["last"]["scales"], before["last"]["scales"])
    close(after["dense"]["kernel"], before["dense"]["kernel"] / 2)
    close(after["last"]["layer_instance"]["kernel"], before["last"]["layer_instance"]["kernel"] / 2)


# ------------------------------------------------------------------------------------ what a newcomer reads

NORM = OURS["linen"].BatchNorm(use_running_average=False)


def known(n=4):
    variables = NORM.init(jax.random.key(0), draw((8, n)))
    return {**variables, "batch_stats": {"mean": jnp.ones(n), "var": jnp.ones(n)}}


NOTES = {
    "statistics that may not change": (
        lambda: NORM.apply(known(), X),
        flax.errors.ModifyScopeVariableError,
        'BatchNorm: training updates the statistics; call apply(..., mutable=["batch_stats"]), which returns '
        "y and the new ones, or evaluate with use_running_average=True, or pass update_stats=False.",
    ),
    "statistics left behind": (
        lambda: NORM.apply({"params": known()["params"]}, X),
        flax.errors.ScopeCollectionNotFound,
        "BatchNorm: the statistics are in the collection batch_stats that init returned; pass it to apply "
        'with the parameters: {"params": params, "batch_stats": batch_stats}.',
    ),
    "no mode": (
        lambda: OURS["linen"].BatchNorm().init(jax.random.key(0), X),
        ValueError,
        "BatchNorm: say which statistics normalize, those of the batch in training "
        "(use_running_average=False) or the stored ones in evaluation (True), once: in the constructor or in "
        "the call.",
    ),
    "other channels": (
        lambda: NORM.apply(known(), draw((8, 5)), mutable="batch_stats"),
        flax.errors.ScopeParamShapeError,
        "BatchNorm: 4 stored features do not fit axis -1 of x, shape (8, 5); choose a layer of 5 features.",
    ),
}


@pytest.mark.parametrize("wrong", NOTES)
def test_flax_s_errors_say_what_to_do(wrong):
    call, kind, note = NOTES[wrong]
    with pytest.raises(kind) as found:
        call()
    assert found.value.__notes__[0] == note


def test_linen_traces_an_initializer_only_where_shapes_differ():
    shapes = []

    def ones(key, shape, dtype):
        shapes.append(shape)
        return jnp.ones(shape, dtype)

    norm = OURS["linen"].LayerNorm(scale_init=ones)
    variables = norm.init(jax.random.key(0), X)
    norm.apply(variables, X)
    assert shapes == [(4,)]
    with pytest.raises(flax.errors.ScopeParamShapeError):
        norm.apply(variables, draw((8, 5)))
    assert shapes == [(4,), (5,)]


def test_linen_of_other_channels_without_parameters():
    norm = OURS["linen"].BatchNorm(use_running_average=False, use_scale=False, use_bias=False)
    with pytest.raises(ValueError, match="features") as found:
        norm.apply({"batch_stats": known()["batch_stats"]}, draw((8, 5)), mutable="batch_stats")
    assert str(found.value) == NOTES["other channels"][2]


def test_nnx_without_a_mode():
    norm = OURS["nnx"].BatchNorm(4, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="use_running_average") as found:
        norm(X)
    assert str(found.value) == (
        "BatchNorm: No `use_running_average` argument was provided to BatchNorm. Pass it to the constructor "
        "or to the call, or set it with train(), eval() or nnx.view."
    )


def freeze_errors():
    model, variables = Model(), {"batch_stats": {"a": {"norm": {"mean": 0.0, "var": 1.0}}}}
    yield (
        lambda: OURS["nnx"].freeze(model, nnx.PathContains("x")),
        "PathContains('x', exact=True)",
        "encoder, head",
    )
    yield lambda: OURS["linen"].freeze(variables, False), "False", "a/norm"
    yield lambda: OURS["linen"].freeze({"params": {}}, ...), "Ellipsis", "none that keeps statistics"


@pytest.mark.parametrize("number", range(3))
def test_freezing_nothing_is_an_error(number):
    call, shown, there = list(freeze_errors())[number]
    with pytest.raises(ValueError, match="chooses no batch norm") as found:
        call()
    assert str(found.value) == f"freeze: filter={shown} chooses no batch norm; there is: {there}."


# ------------------------------------------------------------------------------------ signatures


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm", "RMSNorm", "WeightNorm"])
def test_nnx_shows_its_own_options_after_flax_s(name):
    new = {
        "BatchNorm": [
            "update_stats",
            "debias",
            "unbiased",
            "every_k",
            "blend",
            "track_stats",
            "count_skipped",
        ],
        "RMSNorm": ["zero_centered_scale", "use_bias", "bias_init"],
        "WeightNorm": ["scale_from_weights"],
    }.get(name, ["zero_centered_scale"])
    assert list(inspect.signature(getattr(OURS["nnx"], name).__init__).parameters)[-len(new) :] == new
