"""track_stats: batch norm without statistics, instance norm with them; axes and groups of other norms."""

import re
from contextlib import contextmanager
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from layers import OURS, draw
from test_family_layers import MOMENTS, REMEMBER, Row
from test_weights_of_statistics import Side

import jaxnorm as jn

PLAIN = Row("BatchNorm", lambda: None, {}, {}, MOMENTS)
NEED = {
    "BatchRenorm": "to correct the batch's towards",
    "DomainBatchNorm": "for every index",
    "RecurrentBatchNorm": "for every index",
    "InputNorm": "to normalize by all that was seen",
}
ROWS = (PLAIN, *(row for row in REMEMBER if row.name not in NEED))
INSTANCE = Row("InstanceNorm", lambda: None, {}, {"track_stats": True}, MOMENTS)
both = pytest.mark.parametrize("api", ["linen", "nnx"])
every = pytest.mark.parametrize("row", ROWS, ids=str)
X = draw((6, 5, 4))


def make(api, name, **options):
    """A layer as a function of x and the options of the call, and a function that gives its statistics."""
    if api == "nnx":
        layer = getattr(OURS[api], name)(4, rngs=nnx.Rngs(0), **options)
        return layer, lambda: nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))
    layer = getattr(OURS[api], name)(**options)
    variables = layer.init(jax.random.key(0), X)
    return lambda x, **call: layer.apply(variables, x, **call), lambda: variables.get("batch_stats", {})


@contextmanager
def refused(text):
    """A ValueError of exactly this text."""
    with pytest.raises(ValueError, match=re.escape(text)) as raised:
        yield
    assert str(raised.value) == text


# ------------------------------------------------------------------------------------------- batch norm


@both
@every
def test_without_statistics_the_batch_s_are_used_always(api, row):
    x, side = draw(row.shape, seed=1), Side(api, row)
    expected = side(x, train=True)
    if api == "nnx":
        options = {**row.options, "momentum": 0.5, "track_stats": False}
        layer = getattr(OURS[api], row.name)(*row.sizes, rngs=nnx.Rngs(0), **options)
        assert not nnx.state(layer, nnx.BatchStat)
        calls = [layer(x, *row.conditions)]
        layer.eval()
        calls.append(layer(x, *row.conditions))
        assert not nnx.state(layer, nnx.BatchStat)
    else:
        layer = getattr(OURS[api], row.name)(**row.options, track_stats=False)
        variables = layer.init(jax.random.key(0), x, *row.conditions)
        assert variables.keys() <= {"params"}
        calls = [layer.apply(variables, x, *row.conditions), layer.apply(variables, x, *row.conditions, True)]
        _, new = layer.apply(variables, x, *row.conditions, mutable=["batch_stats"])
        assert not new.get("batch_stats")
    for y in calls:
        chex.assert_trees_all_close(y, expected, rtol=1e-6, atol=1e-6)


@both
def test_masks_gradients_and_the_identity_of_nothing(api):
    layer, _ = make(api, "BatchNorm", track_stats=False)
    mask = jnp.arange(6).reshape(6, 1, 1) % 2 > 0
    expected = jn.batch_norm(X, jn.initial_stats(4), train=True, where=mask)[0]
    chex.assert_trees_all_close(layer(X, mask=mask), expected, rtol=1e-6, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(layer(x) ** 3))(X)
    direct = jax.grad(lambda x: jnp.sum(jn.batch_norm(x, jn.initial_stats(4), train=True)[0] ** 3))(X)
    chex.assert_trees_all_close(gradient, direct, rtol=1e-5, atol=1e-5)
    assert np.all(layer(X, mask=mask & False) == 0)


@both
def test_it_may_be_switched_on_a_built_model(api):
    side, x = Side(api, PLAIN), draw((6, 5, 4))
    trained = side(x, train=True)
    before = side.stats
    side.change(track_stats=False)
    chex.assert_trees_all_close(side(x, train=False), trained, rtol=1e-6)
    chex.assert_trees_all_equal(side.stats, before)  # they stay, for when it is switched back
    side.change(track_stats=True)
    assert np.any(side(x, train=False) != trained)
    if api == "nnx":
        layer = OURS["nnx"].BatchNorm(4, track_stats=False, momentum=0.5, rngs=nnx.Rngs(0))
        layer.set_attributes(track_stats=True)
        layer(x)
        expected = Side(api, PLAIN)
        expected(x, train=True)
        chex.assert_trees_all_close(layer.mean[...], expected.stats["mean"], rtol=1e-6)


@both
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"every_k": 2}, "every_k=2"),
        ({"blend": 0.5}, "blend=0.5"),
        ({"count_skipped": True}, "count_skipped=True"),
        ({"update_stats": True}, "update_stats=True"),
    ],
)
def test_what_needs_statistics_is_refused(api, options, shown):
    text = f"BatchNorm: {shown} needs stored statistics, and track_stats=False keeps none; "
    with refused(f"{text}leave out one of the two."):
        make(api, "BatchNorm", track_stats=False, **options)[0](X)


@both
@pytest.mark.parametrize("name", NEED)
def test_layers_that_cannot_do_without(api, name):
    row = next(row for row in REMEMBER if row.name == name)
    text = f"{name}: track_stats=False keeps no statistics, which are needed {NEED[name]}; choose BatchNorm."
    with refused(text):
        Side(api, row, track_stats=False)


def test_frozen_statistics_and_none():
    layer = OURS["nnx"].BatchNorm(4, rngs=nnx.Rngs(0))
    OURS["nnx"].freeze(layer, ...)
    layer.set_attributes(track_stats=False)
    text = "BatchNorm: a frozen layer needs stored statistics, and track_stats=False keeps none; "
    with refused(f"{text}leave out one of the two."):
        layer(X)
    untracked = OURS["nnx"].BatchNorm(4, track_stats=False, rngs=nnx.Rngs(0))
    text = "freeze: filter=Ellipsis chooses no batch norm; there is: none that keeps statistics."
    with refused(text):
        OURS["nnx"].freeze(untracked, ...)
    model = nnx.List([untracked, OURS["nnx"].BatchNorm(4, rngs=nnx.Rngs(0))])
    OURS["nnx"].freeze(nnx.Sequential(*model), ...)  # the one that has some


# ---------------------------------------------------------------------------------------- instance norm


@both
@pytest.mark.parametrize("unbiased", [False, True])
def test_instance_norm_averages_the_moments_of_instances(api, unbiased):
    side = Side(api, INSTANCE, momentum=0.75, unbiased=unbiased)
    x = np.asarray(X, np.float64)
    y = side(X, train=True)
    own = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, own, rtol=1e-5, atol=1e-5)
    mean, var = 0.25 * x.mean(1).mean(0), 0.75 + 0.25 * x.var(1, ddof=int(unbiased)).mean(0)
    np.testing.assert_allclose(side.stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(side.stats["var"], var, rtol=1e-5)
    np.testing.assert_allclose(side(X, train=False), (x - mean) / np.sqrt(var + 1e-6), rtol=1e-5, atol=1e-5)
    before = side.stats
    side(X, train=True, update_stats=False)
    side(X.at[0, 0].set(jnp.nan), train=True)  # whose channels are not finite
    side(X, train=True, mask=jnp.zeros((6, 5, 1), bool))
    chex.assert_trees_all_equal(side.stats, before)


@both
def test_instance_norm_leaves_out_what_is_masked_whole(api):
    side, some = Side(api, INSTANCE), Side(api, INSTANCE)
    side(X, train=True, mask=(jnp.arange(6) > 1).reshape(6, 1, 1))
    some(X[2:], train=True)
    chex.assert_trees_all_close(side.stats, some.stats, rtol=1e-6)


@both
def test_instance_norm_without_statistics_is_flax_s(api):
    layer, stats = make(api, "InstanceNorm")
    assert not stats()
    y = layer(X)
    chex.assert_trees_all_close(y, jn.instance_norm(X), rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(layer(X, use_running_average=True), y)


def test_instance_norm_has_batch_norm_s_modes():
    ours = OURS["nnx"]
    model = nnx.Sequential(ours.InstanceNorm(4, track_stats=True, rngs=nnx.Rngs(0)), nnx.relu)
    norm = model.layers[0]
    model(X)
    model.eval()
    evaluated = model(X)
    by_own = nnx.view(model, use_running_average=False, update_stats=False)(X)
    chex.assert_trees_all_equal(by_own, nnx.relu(jn.instance_norm(X)))
    model.train()
    ours.freeze(model, ...)
    chex.assert_trees_all_equal(model(X), evaluated)
    ours.unfreeze(model, ...)
    before = norm.mean[...]
    model(X)
    assert np.any(norm.mean[...] != before)

    layer = OURS["linen"].InstanceNorm(track_stats=True)
    with pytest.raises(ValueError, match="use_running_average") as raised:
        layer.init(jax.random.key(0), X)
    note, *_ = raised.value.__notes__
    assert note.startswith("InstanceNorm: say which statistics normalize, those of the batch in training ")
    variables = layer.init(jax.random.key(0), X, use_running_average=True)
    _, new = layer.apply(variables, X, use_running_average=False, mutable=["batch_stats"])
    loaded = serialization.from_bytes(variables["batch_stats"], serialization.to_bytes(new["batch_stats"]))
    chex.assert_trees_all_equal(loaded, new["batch_stats"])


@both
def test_a_cumulative_average_of_instances_is_refused(api):
    text = (
        "InstanceNorm: momentum=None is a cumulative average, which this norm does not keep; choose the "
        "fraction of the OLD average that is kept, as 0.9."
    )
    with pytest.raises(ValueError, match="momentum") as raised:
        Side(api, INSTANCE, momentum=None)(X, train=True)
    assert str(raised.value) == text


# ------------------------------------------------------------------------- axes and groups of other norms


@both
@pytest.mark.parametrize("groups", [{"num_groups": 2}, {"num_groups": None, "group_size": 1}])
def test_group_norm_of_another_feature_axis(api, groups):
    x, mask = draw((6, 5, 4)), jnp.arange(5).reshape(1, 5, 1) > 1
    if api == "linen":
        first, last = (OURS[api].GroupNorm(**groups, **more) for more in ({"feature_axis": 1}, {}))
        variables = first.init(jax.random.key(0), x.swapaxes(1, 2))
        assert variables["params"]["scale"].shape == (4,)
        first, last = (partial(layer.apply, variables) for layer in (first, last))
    else:
        first, last = (make(api, "GroupNorm", **groups, **more)[0] for more in ({"feature_axis": 1}, {}))
    chex.assert_trees_all_close(first(x.swapaxes(1, 2)).swapaxes(1, 2), last(x), rtol=1e-6, atol=1e-6)
    masked = first(x.swapaxes(1, 2), mask=mask.swapaxes(1, 2)).swapaxes(1, 2)
    chex.assert_trees_all_close(masked, last(x, mask=mask), rtol=1e-6, atol=1e-6)


@both
def test_errors_of_group_norm_s_axis(api):
    options = {"num_groups": 2, "feature_axis": 1, "reduction_axes": (-1,)}
    text = "GroupNorm: The reduction axes must include feature_axis=1. Got reduction_axes=(-1,) for x, shape "
    with pytest.raises(ValueError, match="reduction axes") as raised:
        make(api, "GroupNorm", **options)[0](draw((3, 4, 5)))
    assert str(raised.value) in (f"{text}(3, 4, 5): add 1.", f"{text}(6, 5, 4): add 1.")
    wrong = make(api, "GroupNorm", num_groups=2)[0] if api == "nnx" else None
    if wrong is not None:
        with pytest.raises(ValueError, match="stored features"):
            wrong(draw((3, 4, 5)))


@both
@pytest.mark.parametrize("before", [True, False])
def test_gated_rms_norm_in_groups(api, before):
    x, gate = draw((3, 5, 4)), draw((3, 5, 4), seed=1)
    options = {"group_size": 2, "norm_before_gate": before}
    if api == "linen":
        layer = OURS[api].GatedRMSNorm(**options)
        variables = layer.init(jax.random.key(0), x, gate)
        assert variables["params"]["scale"].shape == (4,)
        y = layer.apply(variables, x, gate)
    else:
        y = OURS[api].GatedRMSNorm(4, rngs=nnx.Rngs(0), **options)(x, gate)
    v, g = np.asarray(x, np.float64), np.asarray(gate, np.float64)
    silu = g / (1 + np.exp(-g))
    parts = (v if before else v * silu).reshape(3, 5, 2, 2)
    expected = (parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-6)).reshape(3, 5, 4)
    np.testing.assert_allclose(y, expected * silu if before else expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"group_size": 3},
            "gated_rms_norm: group_size=3 does not divide axis 2 of x, shape (3, 5, 4); choose a divisor "
            "of 4.",
        ),
        (
            {"group_size": 2, "axis": (1, 2)},
            "gated_rms_norm: group_size=2 splits one axis, and axis=(1, 2) are 2; choose one axis.",
        ),
    ],
)
def test_errors_of_groups(options, text):
    x = draw((3, 5, 4))
    with pytest.raises(ValueError, match="group_size") as raised:
        jn.gated_rms_norm(x, x, **options)
    assert str(raised.value) == text
