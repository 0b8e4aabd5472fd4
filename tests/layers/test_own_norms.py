"""A user's own norm that keeps statistics, and what the signatures of all layers show: linen and nnx."""

import inspect
from types import SimpleNamespace

import flax.linen
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal
from flax import nnx
from layers import OURS, Case, draw, layer, variables_of
from public import LAYERS
from test_family_layers import ROWS

import jaxnorm as jn

CASE = Case("BatchNorm", (8, 4), 4)
MASK = (jnp.arange(8) % 3 > 0)[:, None]
both = pytest.mark.parametrize("api", ["linen", "nnx"])


def limited(x, stats, slope, limit, *, train, **call):
    """Batch norm by the average with this batch in it, within limits."""
    _, stats = jn.batch_norm(x, stats, train=train, **call)
    y, _ = jn.batch_norm(x, stats, train=False, **call)
    return jnp.clip(y * slope[None], -limit, limit), stats


def own(base):
    class Limited(base):
        limit: float = 1.5
        slope_init: object = jax.nn.initializers.constant(2.0)

        schedules = ("momentum", "limit")

        def shapes(self, features):
            return {"slope": features, **super().shapes(features)}

        def normalize(self, x, stats, *, slope, **call):
            return limited(x, stats, slope, self.at_step(self.limit), **call)

    return Limited


LIMITED = {api: own(module.BatchNorm) for api, module in OURS.items()}
MODULES = {api: SimpleNamespace(BatchNorm=made) for api, made in LIMITED.items()}


def loss(y, x):
    return jnp.sum((y - x) ** 2)


def trained(side, variables, steps=2):
    """Two steps of gradient descent, masked."""

    @jax.jit
    def step(variables, x):
        def f(params):
            y, after = side.call({**variables, "params": params}, x, mask=MASK)
            return loss(y, x), after["batch_stats"]

        gradient, stats = jax.grad(f, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], gradient)
        return {"params": params, "batch_stats": stats}

    for seed in range(steps):
        variables = step(variables, draw((8, 4), seed=seed))
    return variables


@both
def test_it_trains_as_its_function(api):
    side = layer(MODULES, api, CASE, momentum=0.5, limit=lambda step: 1.5 + step, debias=True)
    start = side.init(draw((8, 4)))
    shapes = {"slope": (4,), "scale": (4,), "bias": (4,)}
    assert jax.tree.map(jnp.shape, start["params"]) == shapes
    assert set(start["batch_stats"]) == {"mean", "var", "weight", "step"}
    assert_trees_all_equal(start["params"]["slope"], jnp.full(4, 2.0))
    params, stats = start["params"], jn.initial_stats(4, weight=0.0)
    for step in range(2):
        x = draw((8, 4), seed=step)

        def f(p, x=x, stats=stats, step=step):
            y, new = limited(x, stats, **p, limit=1.5 + step, train=True, decay=0.5, where=MASK)
            return loss(y, x), new

        gradient, stats = jax.grad(f, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
    after = trained(side, start)
    assert after["batch_stats"].pop("step") == 2
    assert_trees_all_close(after, {"params": params, "batch_stats": stats._asdict()}, atol=1e-5)


@both
def test_its_modes_are_those_of_batch_norm(api):
    side, x = layer(MODULES, api, CASE), draw((8, 4), seed=3)
    known = trained(side, side.init(x))
    stats = jn.Moments(**known["batch_stats"], weight=jnp.ones(4))
    y, after = side.call(known, x, use_running_average=True)
    assert_trees_all_equal(after["batch_stats"], known["batch_stats"])
    expected, _ = limited(x, stats, **known["params"], limit=1.5, train=False)
    assert_trees_all_close(y, expected, atol=1e-6)
    traced = jax.jit(lambda flag: side.call(known, x, use_running_average=flag))
    for flag in (False, True):
        assert_trees_all_close(traced(flag), side.call(known, x, use_running_average=flag), atol=1e-6)
    _, after = side.call(known, x, update_stats=False)
    assert_trees_all_equal(after["batch_stats"], known["batch_stats"])


def test_linen_freezes_and_stores_it():
    norm, x = LIMITED["linen"](use_running_average=False), draw((8, 4))
    start = norm.init(jax.random.key(0), x)
    known = {**start, **norm.apply(start, x, mutable="batch_stats")[1]}
    loaded = flax.serialization.from_bytes(start, flax.serialization.to_bytes(known))
    again, before = (norm.apply(v, x * 2, mutable="batch_stats") for v in (loaded, known))
    assert_trees_all_equal(again, before)
    frozen = OURS["linen"].freeze(known, ...)
    y, after = norm.apply(frozen, x, mutable="batch_stats")
    assert_trees_all_equal(after["batch_stats"], frozen["batch_stats"])
    assert_trees_all_equal(y, norm.clone(use_running_average=True).apply(known, x))


def test_nnx_freezes_and_stores_it():
    norm, copy = (LIMITED["nnx"](4, rngs=nnx.Rngs(0)) for _ in range(2))
    x = draw((8, 4))
    norm(x)
    nnx.update(copy, nnx.state(norm))
    assert_trees_all_equal(copy(x * 2), norm(x * 2))
    assert_trees_all_equal(variables_of(copy), variables_of(norm))
    OURS["nnx"].freeze(norm, ...)
    before = variables_of(norm)
    frozen = norm(x)
    assert_trees_all_equal(variables_of(norm), before)
    OURS["nnx"].unfreeze(norm, ...)
    assert_trees_all_equal(frozen, norm(x, use_running_average=True))


class Constructed(OURS["nnx"].BatchNorm):
    """With a constructor, as nnx's modules have them."""

    def __init__(self, num_features, *, rngs, factor=2.0, **options):
        super().__init__(num_features, rngs=rngs, **options)
        self.factor = factor

    def normalize(self, x, stats, **call):
        y, stats = super().normalize(x, stats, **call)
        return self.factor * y, stats


class Derived(Constructed):
    pass


@pytest.mark.parametrize("made", [Constructed, Derived])
def test_nnx_constructors_may_be_written(made):
    x, plain = draw((8, 4)), OURS["nnx"].BatchNorm(4, rngs=nnx.Rngs(0))
    norm = made(4, rngs=nnx.Rngs(0), factor=3.0, momentum=0.5)
    assert norm.momentum == 0.5
    assert_trees_all_close(norm(x), 3 * plain(x), atol=1e-6)
    assert "factor" in inspect.signature(made).parameters


@both
def test_a_schedule_is_declared(api):
    class Forgotten(LIMITED[api]):
        schedules = ("momentum",)

    side = layer({api: SimpleNamespace(BatchNorm=Forgotten)}, api, CASE, limit=lambda step: 1.0)
    with pytest.raises(ValueError, match="schedule") as found:
        side.call(side.init(draw((8, 4))), draw((8, 4)))
    assert str(found.value) == (
        "Forgotten: a schedule needs the number of updates, which is not counted; name the field that holds "
        "it in `schedules`, now ('momentum',)."
    )


# ------------------------------------------------------------------------------------ signatures

OPEN = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
WRAPPERS = ("WeightNorm", "SpectralNorm")  # which hand on what the wrapped layer takes


@pytest.mark.parametrize(("module", "name"), LAYERS, ids=lambda v: getattr(v, "__name__", v))
def test_a_signature_names_every_argument(module, name):
    made = getattr(module, name)
    for shown in (made, made.__init__, *([] if name in WRAPPERS else [made.__call__])):
        kinds = {p.kind for p in inspect.signature(shown).parameters.values()}
        assert not kinds & OPEN, inspect.signature(shown)


@both
def test_what_a_relative_of_batch_norm_shows(api):
    made = OURS[api].BatchRenorm
    call = ["self", "x", "use_running_average", "mask", "weights", "scale", "bias", "update_stats"]
    assert list(inspect.signature(made.__call__).parameters) == call
    shown = inspect.signature(made).parameters
    assert shown["r_max"].default == 3.0 and shown["d_max"].default == 5.0
    theirs = getattr(flax, api).BatchNorm.__init__
    flax_s = {k: p for k, p in inspect.signature(theirs).parameters.items() if k != "self"}
    assert {k: shown[k].default for k in flax_s} == {k: p.default for k, p in flax_s.items()}
    condition = list(inspect.signature(OURS[api].DomainBatchNorm.__call__).parameters)
    assert condition[:4] == ["self", "x", "index", "use_running_average"]


def test_a_layer_of_nnx_shows_its_call():
    norm = OURS["nnx"].BatchNorm(4, rngs=nnx.Rngs(0))
    assert inspect.signature(norm) == inspect.signature(norm.__call__)


# Flax's table has no place for the Moments that RevIN returns
TABLES = [row for row in ROWS if row.name != "RevIN"]


@pytest.mark.parametrize("row", TABLES, ids=str)
@pytest.mark.flexible
def test_nnx_has_a_table_of_every_layer(row):
    norm = getattr(OURS["nnx"], row.name)(*row.sizes, rngs=nnx.Rngs(0), **row.options)
    assert row.name in nnx.tabulate(norm, draw(row.shape), *row.conditions)


def test_hooks_of_nnx_are_documented():
    norm = OURS["nnx"].BatchNorm
    assert norm.normalize.__doc__.startswith("y and the new statistics")
    assert list(inspect.signature(norm.normalize).parameters) == ["self", "x", "stats", "call"]
    np.testing.assert_equal([base.__name__ for base in norm.__mro__[1:3]], ["Stateful", "Layer"])
