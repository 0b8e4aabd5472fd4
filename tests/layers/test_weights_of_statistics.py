"""The weight of statistics: what is stored is used, what is missing is created, what is broken heals."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from layers import OURS, draw
from test_family_layers import MOMENTS, REMEMBER, Row

import jaxnorm as jn

PLAIN = Row("BatchNorm", lambda: None, {}, {}, MOMENTS)
ROWS = (PLAIN, *REMEMBER)
both = pytest.mark.parametrize("api", ["linen", "nnx"])
SOME = tuple(row for row in ROWS if row.name in ("BatchNorm", "DomainBatchNorm", "InputNorm", "IterNorm"))
some = pytest.mark.parametrize("row", SOME, ids=str)
every = pytest.mark.parametrize("row", ROWS, ids=str)
SCHEDULE = jnp.asarray([0.5, 0.25, 0.25])
OPTIONS = {
    "cumulative": {"momentum": None},
    "debiased": {"debias": True, "momentum": 0.75},
    "schedule": {"momentum": lambda step: SCHEDULE[step]},
}


class Side:
    """One layer of either framework, whose options may change while its variables stay.

    Args:
      api: linen or nnx.
      row: which layer.
      options: of its constructor, before they change.
    """

    def __init__(self, api: str, row: Row, **options: Any) -> None:
        self.api, self.row = api, row
        options = {**row.options, "momentum": 0.5, **options}
        make = getattr(OURS[api], row.name)
        if api == "linen":
            self.layer = make(**options)
            init = jax.jit(
                lambda x: self.layer.init(jax.random.key(0), x, *row.conditions, use_running_average=True)
            )
            self.variables = init(draw(row.shape))
        else:
            self.layer = make(*row.sizes, rngs=nnx.Rngs(0), **options)

    def change(self, **options: Any) -> None:
        if self.api == "linen":
            self.layer = self.layer.clone(**options)
        else:
            self.layer.set_attributes(type(self.layer), **options)

    @property
    def stats(self) -> dict[str, Any]:
        if self.api == "linen":
            return dict(self.variables["batch_stats"])
        return dict(nnx.to_pure_dict(nnx.state(self.layer, nnx.BatchStat)))

    def load(self, **values: Any) -> None:
        """Stores statistics by name, as a checkpoint would; linen's may leave out a name: None."""
        if self.api == "linen":
            stats = {k: v for k, v in (self.stats | values).items() if v is not None}
            self.variables = {**self.variables, "batch_stats": stats}
            return
        for name, value in values.items():
            if value is None:
                delattr(self.layer, name)
            else:
                getattr(self.layer, name).set_value(value)

    def __call__(self, x: Any, *, train: Any, **options: Any) -> Any:
        options["use_running_average"] = not train
        if self.api == "nnx":
            return self.layer(x, *self.row.conditions, **options)
        y, new = self.layer.apply(self.variables, x, *self.row.conditions, **options, mutable=["batch_stats"])
        self.variables = {**self.variables, **new}
        return y


def loaded(side: Side) -> dict[str, Any]:
    """A mean of 5, and a variance or a covariance of 4, where the initial ones are 0 and 1."""
    return {"mean": side.stats["mean"] + 5, "var": side.stats["var"] * 4}


def names(stats: dict[str, Any]) -> set[str]:
    return set(stats)


def current(stats: dict[str, Any], row: Row) -> dict[str, Any]:
    """Of a bank the state of the call's index."""
    if row.name not in ("DomainBatchNorm", "RecurrentBatchNorm"):
        return stats
    index = min(int(row.conditions[0]), 2)
    return {name: v[index] if v.ndim else v for name, v in stats.items()}


@both
@every
def test_a_cumulative_average_without_a_weight_starts_with_the_next_batch(api, row):
    side = Side(api, row, momentum=0.5)
    side(draw(row.shape), train=True)
    side.change(momentum=None)
    for value in (0.0, 10.0, 20.0, 30.0):
        side(jnp.full(row.shape, value), train=True)
    stats = current(side.stats, row)
    np.testing.assert_allclose(stats["mean"], 15.0, rtol=1e-6)
    variance = jnp.diagonal(stats["var"], axis1=-2, axis2=-1) if stats["var"].ndim > 1 else stats["var"]
    if not row.options.get("unbiased"):
        np.testing.assert_allclose(variance, 125.0, rtol=1e-5)


@both
@every
@pytest.mark.parametrize("option", ["cumulative", "debiased"])
def test_evaluation_is_by_what_is_stored_whatever_its_weight(api, row, option):
    side, plain = Side(api, row, **OPTIONS[option]), Side(api, row)
    assert not np.any(side.stats["weight"])
    x = draw(row.shape, seed=1)
    for s in (side, plain):
        s.load(**loaded(s))
    y = plain(x, train=False)
    chex.assert_trees_all_equal(side(x, train=False), y)
    if api == "linen":
        side.load(weight=None)
        before = names(side.stats)
        chex.assert_trees_all_equal(side(x, train=False), y)
        assert names(side.stats) == before  # nothing is created, though it might be
        side.layer.apply(side.variables, x, *row.conditions, True)  # nor must it be possible


@both
@pytest.mark.parametrize("option", ["cumulative", "debiased"])
def test_a_traced_mode_is_by_what_is_stored_too(api, option):
    direct, side = Side(api, PLAIN, **OPTIONS[option]), Side(api, PLAIN, **OPTIONS[option])
    for s in (direct, side):
        s.load(**loaded(s))
    x = draw(PLAIN.shape, seed=1)

    def linen_call(variables, train):
        return side.layer.apply(variables, x, jnp.logical_not(train), mutable=["batch_stats"])

    def nnx_call(layer, train):
        return layer(x, use_running_average=jnp.logical_not(train))

    for train in (False, True):
        if api == "linen":
            y, new = jax.jit(linen_call)(side.variables, train)
            side.variables = {**side.variables, **new}
        else:
            y = nnx.jit(nnx_call)(side.layer, train)
        chex.assert_trees_all_close(y, direct(x, train=train), atol=1e-6)
        chex.assert_trees_all_close(side.stats, direct.stats, atol=1e-6)


@both
def test_the_example_of_the_report(api):
    for option in ("cumulative", "debiased"):
        side = Side(api, PLAIN, **OPTIONS[option], epsilon=0.0)
        side.load(mean=jnp.full(4, 5.0), var=jnp.full(4, 4.0))
        np.testing.assert_array_equal(side(jnp.full((6, 5, 4), 7.0), train=False), 1.0)


@both
@some
def test_with_debias_what_was_loaded_is_a_whole_average(api, row):
    side, plain = Side(api, row, debias=True), Side(api, row)
    x = draw(row.shape, seed=1)
    for s in (side, plain):
        s.load(**loaded(s))
        s(x, train=True)
    after = side.stats
    for name in ("mean", "var"):
        chex.assert_trees_all_close(after[name], plain.stats[name], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(current(after, row)["weight"], 1.0)


@both
@some
def test_with_debias_a_start_is_left_out(api, row):
    side, x = Side(api, row, debias=True), draw(row.shape, seed=1)
    side(x, train=True)
    exact = Side(api, row, momentum=0.0)
    exact(x, train=True)
    for name in ("mean", "var"):
        chex.assert_trees_all_close(side.stats[name], exact.stats[name], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(current(side.stats, row)["weight"], 0.5)


@both
def test_with_debias_every_channel_is_asked_by_itself(api):
    side, x = Side(api, PLAIN, debias=True), draw((6, 5, 4), seed=1)
    side.load(mean=jnp.asarray([0.0, 5, 0, 0]), var=jnp.asarray([1.0, 1, 2, 1]))
    side(x, train=True)
    np.testing.assert_array_equal(side.stats["weight"], [0.5, 1, 1, 0.5])


@both
@some
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_may_change_on_a_built_layer(api, row, option):
    changed, built = Side(api, row), Side(api, row, **OPTIONS[option])
    changed.change(**OPTIONS[option])
    assert names(changed.stats) == {"mean", "var"}
    for seed in (1, 2):
        x = draw(row.shape, seed=seed)
        chex.assert_trees_all_close(changed(x, train=True), built(x, train=True), atol=1e-5)
    chex.assert_trees_all_close(changed.stats, built.stats, atol=1e-5, rtol=1e-5)
    assert names(changed.stats) - {"mean", "var"} == ({"step"} if option == "schedule" else {"weight"})
    # and back: what the options no longer need stays as it is, unused
    kept = {name: v for name, v in changed.stats.items() if name in ("weight", "step")}
    plain = Side(api, row)
    plain.load(**{name: changed.stats[name] for name in ("mean", "var")})
    changed.change(momentum=0.5, debias=False)
    x = draw(row.shape, seed=3)
    chex.assert_trees_all_close(changed(x, train=True), plain(x, train=True), atol=1e-5)
    assert names(changed.stats) == {"mean", "var", *kept}
    chex.assert_trees_all_equal({name: changed.stats[name] for name in kept}, kept)


@both
def test_limits_of_batch_renorm_may_become_schedules(api):
    (row,) = (row for row in ROWS if row.name == "BatchRenorm")
    side, built = Side(api, row), Side(api, row, r_max=lambda step: 1.0 + step, d_max=lambda step: 0.5 * step)
    side.change(r_max=lambda step: 1.0 + step, d_max=lambda step: 0.5 * step)
    for seed in (1, 2):
        chex.assert_trees_all_close(*(s(draw(row.shape, seed=seed), train=True) for s in (side, built)))
    assert side.stats["step"] == 2


@both
def test_a_count_of_batches_becomes_a_whole_average(api):
    side = Side(api, PLAIN, momentum=None)
    for seed in range(3):
        side(draw((6, 5, 4), seed=seed), train=True)
    assert np.all(side.stats["weight"] == 90)
    plain = Side(api, PLAIN)
    plain.load(mean=side.stats["mean"], var=side.stats["var"])
    side.change(momentum=0.5, debias=True)
    for s in (side, plain):
        s(draw((6, 5, 4), seed=4), train=True)
    chex.assert_trees_all_close(side.stats["mean"], plain.stats["mean"], rtol=1e-6)
    np.testing.assert_array_equal(side.stats["weight"], 1.0)


# ------------------------------------------------------------------------------------ transformations


@pytest.mark.parametrize("option", OPTIONS)
def test_nnx_creates_what_is_missing_under_its_transformations(option):
    x = draw((2, 8, 4))

    def fresh(seed: Any = 0) -> Any:
        return OURS["nnx"].BatchNorm(4, rngs=nnx.Rngs(seed))

    def stack() -> Any:
        layers = nnx.vmap(fresh, in_axes=0)(jax.random.split(jax.random.key(0), 2))
        layers.set_attributes(**OPTIONS[option])
        return layers

    def alone() -> Any:
        layer = fresh()
        layer.set_attributes(**OPTIONS[option])
        return layer

    expected = alone()
    expected(x[0])
    created = names(nnx.to_pure_dict(nnx.state(expected, nnx.BatchStat)))
    assert len(created) == 3
    for transform in (nnx.jit, nnx.remat):
        layer = alone()
        transform(lambda layer, x: layer(x))(layer, x[0])
        chex.assert_trees_all_close(nnx.state(layer), nnx.state(expected), atol=1e-6)
    layer = alone()
    nnx.grad(lambda layer, x: layer(x).sum())(layer, x[0])
    chex.assert_trees_all_close(nnx.state(layer), nnx.state(expected), atol=1e-6)
    mapped, scanned = stack(), stack()
    nnx.vmap(lambda layer, x: layer(x))(mapped, x)
    nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x[0], scanned)
    for layers in (mapped, scanned):
        first = jax.tree.map(lambda v: v[0], nnx.to_pure_dict(nnx.state(layers)))
        chex.assert_trees_all_close(first, nnx.to_pure_dict(nnx.state(expected)), atol=1e-5)


class Step(nn.Module):
    options: Any

    @nn.compact
    def __call__(self, x, _):
        return OURS["linen"].BatchNorm(use_running_average=False, name="norm", **dict(self.options))(x), None


@pytest.mark.flexible  # of Flax's norm
@pytest.mark.parametrize("option", OPTIONS)
def test_linen_creates_what_is_missing_in_a_stack(option):
    x = draw((8, 4))
    flax = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
    single = OURS["linen"].BatchNorm(use_running_average=False, **OPTIONS[option])
    _, expected = single.apply(flax, x, mutable=["batch_stats"])
    variables = jax.tree.map(lambda v: jnp.stack([v, v]), {k: {"norm": v} for k, v in flax.items()})
    lifted = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
    stack = nn.scan(Step, length=2, **lifted)(tuple(OPTIONS[option].items()))
    _, updated = jax.jit(lambda v: stack.apply(v, x, None, mutable=["batch_stats"]))(variables)
    first = jax.tree.map(lambda v: v[0], updated["batch_stats"]["norm"])
    chex.assert_trees_all_close(first, expected["batch_stats"], atol=1e-6)


# ------------------------------------------------------------------------------------ what is broken


def broken(side: Side) -> dict[str, Any]:
    """Statistics that no batch leaves, of the first channel or, in a bank, of every first one."""
    stats = loaded(side)
    if stats["var"].ndim > stats["mean"].ndim:  # a covariance
        return stats | {"var": stats["var"].at[..., 0, 1].set(jnp.nan)}
    bad = stats["var"].at[..., 0].set(-2.0).at[..., 1].set(jnp.inf)
    return {"mean": stats["mean"].at[..., 2].set(jnp.nan), "var": bad}


def mended(side: Side) -> dict[str, Any]:
    """The same with what evaluation takes instead, 0 and 1."""
    stats = loaded(side)
    if stats["var"].ndim > stats["mean"].ndim:
        return {"mean": stats["mean"] - 5, "var": stats["var"] / 4}
    mean, var = (stats[name].at[..., :3].set(v) for name, v in (("mean", 0.0), ("var", 1.0)))
    return {"mean": mean, "var": var}


@both
@every
def test_what_is_broken_evaluates_as_the_identity_and_heals(api, row):
    side, good, new = (Side(api, row) for _ in range(3))
    side.load(**broken(side))
    good.load(**mended(good))
    x = draw(row.shape, seed=1)
    y = side(x, train=False)
    chex.assert_trees_all_close(y, good(x, train=False), atol=1e-5)
    assert np.all(np.isfinite(y))
    if row.name == "DecorrelatedBatchNorm":
        return  # its second group was whole: see the function's test
    assert np.all(np.isfinite(side(x, train=True)))
    new.change(momentum=0.0)
    new(x, train=True)
    healed, batch = current(side.stats, row), current(new.stats, row)
    for name in ("mean", "var"):
        chex.assert_trees_all_close(healed[name][..., :3], batch[name][..., :3], atol=1e-5, rtol=1e-5)


@both
@some
def test_an_empty_batch_leaves_what_is_broken_bitwise(api, row):
    side = Side(api, row)
    before = broken(side)
    side.load(**before)
    mask = jnp.zeros((*row.shape[:-1], 1), bool)
    assert np.all(np.isfinite(side(draw(row.shape), train=True, mask=mask)))
    after = side.stats
    for name in ("mean", "var"):
        np.testing.assert_array_equal(after[name], before[name])


BAD = jn.Moments(jnp.asarray([jnp.nan, 1, 1, 1]), jnp.asarray([1.0, -2, jnp.inf, 4]), jnp.ones(4))
GOOD = jn.Moments(jnp.asarray([0.0, 0, 0, 1]), jnp.asarray([1.0, 1, 1, 4]), jnp.asarray([0.0, 0, 0, 1]))
THREE, FOUR = jnp.ones(3), jnp.ones(4)
FUNCTIONS = {
    "batch_norm": jn.batch_norm,
    "batch_renorm": jn.batch_renorm,
    "ghost_batch_norm": lambda x, s, **o: jn.ghost_batch_norm(x, s, num_ghosts=2, **o),
    "input_norm": jn.input_norm,
    "switchable_norm": lambda x, s, **o: jn.switchable_norm(x, s, THREE, THREE, **o),
    "evonorm_b0": lambda x, s, **o: jn.evonorm_b0(x, s, FOUR, **o),
    "spade": lambda x, s, **o: jn.spade(x, s, jnp.zeros_like(x), jnp.zeros_like(x), **o),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("decay", [0.9, None, 1.0])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_count_what_is_broken_as_not_seen(function, decay, train):
    f, x = FUNCTIONS[function], draw((8, 3, 4))
    (y, new), (expected, healed) = (f(x, s, train=train, decay=decay) for s in (BAD, GOOD))
    chex.assert_trees_all_close(y, expected, atol=1e-6)
    assert np.all(np.isfinite(y))
    unchanged = not train or decay == 1
    chex.assert_trees_all_close(new, BAD if unchanged else healed, rtol=1e-6)
    _, same = f(x, BAD, train=train, decay=decay, where=jnp.zeros((8, 3, 1), bool))
    chex.assert_trees_all_equal(same, BAD)
    flag = jax.jit(lambda train: f(x, BAD, train=train, decay=decay))(train)
    chex.assert_trees_all_close(flag, (y, new), rtol=1e-5, atol=1e-5)


def test_a_blend_and_pop_art_count_what_is_broken_as_not_seen():
    x = draw((8, 4))
    chex.assert_trees_all_close(*(jn.blended_batch_norm(x, s, alpha=0.3) for s in (BAD, GOOD)))
    chex.assert_trees_all_close(*(jn.pop_art(jnp.ones((2, 4)), FOUR, s, x) for s in (BAD, GOOD)))
    bank = jax.tree.map(lambda v: v[None], BAD)
    chex.assert_trees_all_close(
        jn.bank_norm(x, bank, 0, train=True)[0], jn.batch_norm(x, GOOD, train=True)[0], rtol=1e-6
    )


@pytest.mark.parametrize("iterations", [None, 5])
@pytest.mark.parametrize("wrong", ["not finite", "negative"])
def test_a_broken_covariance_is_not_seen(iterations, wrong):
    start = jn.initial_covariance(4, group_size=2)
    start = start._replace(mean=start.mean + 1)
    place, value = {"not finite": ((0, 0, 1), jnp.nan), "negative": ((0, 0, 0), -1.0)}[wrong]
    bad = start._replace(cov=start.cov.at[place].set(value))
    good = start._replace(mean=start.mean.at[0].set(0), weight=jnp.asarray([0.0, 1]))
    x = draw((12, 4))
    for train in (True, False):
        (y, new), (expected, healed) = (
            jn.decorrelated_batch_norm(x, s, train=train, iterations=iterations) for s in (bad, good)
        )
        chex.assert_trees_all_close(y, expected, atol=1e-6)
        chex.assert_trees_all_close(new, healed if train else bad, rtol=1e-6)
    _, same = jn.decorrelated_batch_norm(x, bad, train=True, where=jnp.zeros((12, 1), bool))
    chex.assert_trees_all_equal(same, bad)


@both
def test_pop_art_uses_what_is_stored(api):
    make = OURS[api].PopArt
    if api == "linen":
        head = make(2, epsilon=0.0)
        variables = head.init(jax.random.key(0), draw((6, 5)))

        def denormalize(stats):
            return head.apply({**variables, "batch_stats": stats}, jnp.ones((1, 2)), method="denormalize")
    else:
        head = make(5, 2, epsilon=0.0, rngs=nnx.Rngs(0))

        def denormalize(stats):
            for name, value in stats.items():
                getattr(head, name).set_value(value)
            return head.denormalize(jnp.ones((1, 2)))

    stats = {"mean": jnp.full(2, 5.0), "var": jnp.full(2, 4.0), "weight": jnp.zeros(2)}
    np.testing.assert_allclose(denormalize(stats), 7.0)
    np.testing.assert_allclose(denormalize(stats | {"var": jnp.asarray([-1.0, 4])}), [[1.0, 7]])


# ------------------------------------------------------------------------------------ dtypes


@pytest.mark.flexible  # of Flax's norm
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("param_dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "int32"])
def test_linen_s_statistics_start_in_flax_s_dtype(bits, forced, param_dtype, dtype):
    if bits == 32 and "float64" in (param_dtype, dtype):
        return
    with jax.enable_x64(bits == 64):
        x = jnp.ones((4, 3), dtype)
        options = {
            "use_running_average": True,
            "param_dtype": jnp.dtype(param_dtype),
            "force_float32_reductions": forced,
        }
        theirs, ours = (
            modules.BatchNorm(**options).init(jax.random.key(0), x)["batch_stats"]
            for modules in (nn, OURS["linen"])
        )
        for name, value in ours.items():
            assert value.dtype == jnp.promote_types(theirs[name].dtype, jnp.float32), name


@both
@some
def test_a_state_in_float32_stays_so_under_float64(api, row):
    with jax.enable_x64(True):
        side = Side(api, row)
        side.change(debias=True)
        side(draw(row.shape).astype(jnp.float64), train=True)
        assert {v.dtype.name for v in side.stats.values()} == {"float32"}
