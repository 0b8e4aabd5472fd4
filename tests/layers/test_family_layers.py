"""The family's layers: each is its function, in linen and in nnx, by its own parameters and statistics."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import OURS, draw
from public import LAYERS

import jaxnorm as jn

NOTHING = MappingProxyType({})
C = {"scale": (4,), "bias": (4,)}


class Row(NamedTuple):
    name: str
    function: Callable[..., Any]  # (parameters, x, conditions, **mask) -> y; with a state: see `remember`
    shapes: Mapping[str, tuple[int, ...]]  # of the parameters
    options: Mapping[str, Any] = NOTHING
    stats: Mapping[str, tuple[int, ...]] = NOTHING
    conditions: tuple[Any, ...] = ()
    sizes: tuple[int, ...] = (4,)  # nnx's first arguments
    shape: tuple[int, ...] = (6, 5, 4)
    masked: bool = True

    def __str__(self):
        return self.name


def moments(s):
    return jn.Moments(s["mean"], s["var"], s.get("weight", jnp.ones_like(s["var"])))


def covariance(s):
    return jn.Covariance(s["mean"], s["var"], jnp.ones(s["mean"].shape[:1]))


def plain(function, *learned, **options):
    """A function of x, of the parameters that it takes before its options, and of all others by name."""

    def call(p, x, *conditions, **mask):
        rest = {name: v for name, v in p.items() if name not in learned}
        return function(x, *conditions, *(p[name] for name in learned), **rest, **options, **mask)

    return call


def remember(function, *learned, kind=moments, **options):
    def call(p, x, *conditions, stats, train, **mask):
        rest = {name: v for name, v in p.items() if name not in learned}
        first = (*conditions, *(p[name] for name in learned))
        chosen = {"train": train, "decay": 0.9} | options | rest | mask
        y, new = function(x, kind(stats), *first, **chosen)
        return y, dict(zip(("mean", "var", "weight"), new, strict=True))

    return call


def dense(p, condition, parts):
    values = condition @ p["projection"]["kernel"] + p["projection"]["bias"][None]
    return [values[:, 4 * k : 4 * k + 4] for k in range(parts)]


def film(p, x, condition):
    scale, bias = dense(p, condition, 2)
    return x * (1 + scale)[:, None] + bias[:, None]


def adaptive(p, x, condition, **mask):
    return jn.adaptive_layer_norm(x, *dense(p, jax.nn.silu(condition), 2), **mask)


def adaptive_zero(p, x, condition, **mask):
    scale, bias, gate = dense(p, jax.nn.silu(condition), 3)
    return jn.adaptive_layer_norm(x, scale, bias, **mask), gate[:, None]


def spade(p, x, segmentation, *, stats, train, **mask):
    def convolved(name, v):
        padded, kernel = jnp.pad(v, ((0, 0), (1, 1), (0, 0))), p[name]["kernel"]
        return sum(padded[:, k : k + 4] @ kernel[k] for k in range(3)) + p[name]["bias"][None, None]

    full = jnp.repeat(segmentation, 2, 1)
    maps = convolved("projection", jax.nn.relu(convolved("shared", full)))
    y, new = jn.spade(x, moments(stats), maps[..., :4], maps[..., 4:], train=train, decay=0.9, **mask)
    return y, new._asdict()


MOMENTS = {"mean": (4,), "var": (4,)}
BANK = {"mean": (3, 4), "var": (3, 4)}
CONDITION = draw((6, 3), seed=5)
PROJECTED = {"projection.kernel": (3, 8), "projection.bias": (8,)}
TABLES = {"scale": (5, 4), "bias": (5, 4)}
LABELS = jnp.asarray([0, 4, 1, 1, 0, 2])

FORGET = (
    Row("DynamicTanh", plain(jn.dynamic_tanh, "alpha"), {"alpha": (), **C}, masked=False),
    Row("Derf", plain(jn.dynamic_erf, "alpha", "shift"), {"alpha": (), "shift": (), **C}, masked=False),
    Row("ScaleNorm", plain(jn.scale_norm), {"scale": ()}, masked=False),
    Row("GatedRMSNorm", plain(jn.gated_rms_norm), {"scale": (4,)}, conditions=(draw((6, 5, 4), seed=1),)),
    Row("PartialRMSNorm", plain(jn.partial_rms_norm, num_features=2), {"scale": (4,)}, {"fraction": 0.5}),
    Row(
        "QKNorm",
        plain(jn.qk_norm, norm=jn.layer_norm),
        {"query_scale": (4,), "key_scale": (4,)},
        {"norm": jn.layer_norm},
        conditions=(draw((6, 1, 4), seed=1),),  # fewer heads
        masked=False,
    ),
    Row(
        "FilterResponseNorm",
        plain(jn.filter_response_norm, feature_axis=1),
        {"scale": (5,), "bias": (5,), "threshold": (5,), "learned_epsilon": (5,)},
        {"use_learned_epsilon": True, "feature_axes": 1},
        sizes=(5,),
    ),
    Row("GlobalResponseNorm", plain(jn.global_response_norm), C),
    Row("EvoNormS0", plain(jn.evonorm_s0, "slope", num_groups=2), {"slope": (4,), **C}, {"num_groups": 2}),
    Row("RevIN", plain(jn.reversible_norm, axis=1), C),
    Row("FiLM", film, PROJECTED, conditions=(CONDITION,), sizes=(4, 3), masked=False),
    Row("AdaLayerNorm", adaptive, PROJECTED, conditions=(CONDITION,), sizes=(4, 3)),
    Row(
        "AdaLayerNormZero",
        adaptive_zero,
        {"projection.kernel": (3, 12), "projection.bias": (12,)},
        conditions=(CONDITION,),
        sizes=(4, 3),
    ),
)
REMEMBER = (
    Row(
        "BatchRenorm",
        remember(jn.batch_renorm, r_max=1.5, d_max=0.5),
        C,
        {"r_max": 1.5, "d_max": 0.5},
        MOMENTS,
    ),
    Row("GhostBatchNorm", remember(jn.ghost_batch_norm, num_ghosts=3), C, {"num_ghosts": 3}, MOMENTS),
    Row("DomainBatchNorm", remember(jn.bank_norm), C, {"num_domains": 3}, BANK, (1,)),
    Row("RecurrentBatchNorm", remember(jn.bank_norm), C, {"max_length": 3}, BANK, (jnp.int32(7),)),
    Row(
        "ConditionalBatchNorm",
        remember(jn.conditional_batch_norm),
        TABLES,
        {"num_classes": 5},
        MOMENTS,
        (LABELS,),
    ),
    Row(
        "SPADE",
        spade,
        {
            "shared.kernel": (3, 2, 2),
            "shared.bias": (2,),
            "projection.kernel": (3, 2, 8),
            "projection.bias": (8,),
        },
        {"hidden": 2, "kernel_size": (3,)},
        MOMENTS,
        (draw((2, 2, 2), seed=3),),
        sizes=(4, 2),
        shape=(2, 4, 4),
    ),
    Row("EvoNormB0", remember(jn.evonorm_b0, "slope"), {"slope": (4,), **C}, NOTHING, MOMENTS),
    Row(
        "SwitchableNorm",
        remember(jn.switchable_norm, "mean_logits", "var_logits", unbiased=True),
        {"mean_logits": (3,), "var_logits": (3,), **C},
        {"unbiased": True},
        MOMENTS,
    ),
    Row(
        "InputNorm",
        remember(jn.input_norm, decay=None, clip=1.0),
        {},
        {"clip": 1.0, "momentum": None},
        {**MOMENTS, "weight": (4,)},
    ),
    Row(
        "DecorrelatedBatchNorm",
        remember(jn.decorrelated_batch_norm, kind=covariance),
        C,
        {"group_size": 2},
        {"mean": (2, 2), "var": (2, 2, 2)},
    ),
    Row(
        "IterNorm",
        remember(jn.decorrelated_batch_norm, kind=covariance, iterations=5),
        C,
        NOTHING,
        {"mean": (1, 4), "var": (1, 4, 4)},
    ),
)
ROWS = FORGET + REMEMBER

both = pytest.mark.parametrize("api", ["linen", "nnx"])
every = pytest.mark.parametrize("row", ROWS, ids=str)


class Side(NamedTuple):
    """linen and nnx behind one face, variables as linen has them."""

    init: Callable[[Any], Any]
    call: Callable[..., Any]  # (variables, x, *conditions, **options) -> y, variables


def side(api, row, **more):
    options = dict(row.options) | more
    if row.stats:
        options = {"momentum": 0.9, **options}
        options.setdefault("use_running_average", None)
    make = getattr(OURS[api], row.name)
    first = {"use_running_average": False} if row.stats and options["use_running_average"] is None else {}
    if api == "linen":
        module = make(**options)

        def call(variables, x, *args, **kwargs):
            y, new = module.apply(variables, x, *args, **first | kwargs, mutable="batch_stats")
            return y, {**variables, **new}

        # compiled, so that only the parameters are computed
        return Side(jax.jit(lambda x: module.init(jax.random.key(0), x, *row.conditions, **first)), call)

    def fresh():
        return make(*row.sizes, rngs=flax.nnx.Rngs(0), **options)

    def variables_of(module):
        kinds = {"params": flax.nnx.Param, "batch_stats": flax.nnx.BatchStat}
        found = {c: flax.nnx.to_pure_dict(flax.nnx.state(module, kind)) for c, kind in kinds.items()}
        return {c: v for c, v in found.items() if v}

    def call(variables, x, *args, **kwargs):
        module = fresh()
        for values in variables.values():
            for path, value in jax.tree_util.tree_leaves_with_path(values):
                *inner, last = [key.key for key in path]
                owner = module
                for name in inner:
                    owner = getattr(owner, name)
                getattr(owner, last).set_value(value)
        return module(x, *args, **first | kwargs), variables_of(module)

    return Side(lambda x: variables_of(fresh()), call)


def drawn(variables):
    """Parameters other than the initial ones, and statistics that something has updated, also its weight."""
    leaves, tree = jax.tree.flatten(variables.get("params", {}))
    params = tree.unflatten([draw(v.shape, seed=k) / 4 for k, v in enumerate(leaves)])
    stats = {k: v * 1.5 + float(k in ("mean", "weight")) for k, v in variables.get("batch_stats", {}).items()}
    return {"params": params} | ({"batch_stats": stats} if stats else {})


def named(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): v for path, v in flat}


def shapes(tree):
    return {name: v.shape for name, v in named(tree).items()}


@both
@every
def test_a_layer_is_its_function(api, row):
    layer, x = side(api, row), draw(row.shape, seed=11)
    variables = layer.init(x)
    assert shapes(variables.get("params", {})) == row.shapes
    assert shapes(variables.get("batch_stats", {})) == row.stats
    modes = (True, False) if row.stats else (None,)

    def expected(variables, x, conditions, masked, train):
        where = {"where": masked["mask"]} if masked else {}
        if train is None:
            return row.function(variables["params"], x, *conditions, **where), {}
        stats = variables["batch_stats"]
        y, new = row.function(variables["params"], x, *conditions, stats=stats, train=train, **where)
        return y, {name: new[name] for name in stats}

    # all that it is made of comes in: XLA takes long over constants
    @jax.jit
    def everything(variables, x, conditions, masked, direction):
        def loss(params):
            y, after = layer.call({**variables, "params": params}, x, *conditions, **masked)
            return sum(jnp.sum(v * direction) for v in jax.tree.leaves(y) if v.ndim), (y, after)

        gradient, (y, after) = jax.grad(loss, has_aux=True)(variables["params"])
        found = [(y, after.get("batch_stats", {}))]
        if row.stats:
            y, after = layer.call(variables, x, *conditions, **masked, use_running_average=True)
            found.append((y, after["batch_stats"]))
        return gradient, found, [expected(variables, x, conditions, masked, train) for train in modes]

    mask = (jnp.arange(row.shape[0]) % 3 > 0).reshape(-1, *[1] * (len(row.shape) - 1))
    variables, direction = drawn(variables), draw(row.shape, seed=12)
    masked = {"mask": mask} if row.masked else {}
    gradient, found, wanted = everything(variables, x, row.conditions, masked, direction)
    for (y, stats), (right, state) in zip(found, wanted, strict=True):
        chex.assert_trees_all_close(y, right, rtol=2e-6, atol=2e-6)
        chex.assert_trees_all_close(stats, state, rtol=2e-6, atol=2e-6)
    for name, value in named(gradient).items():
        chex.assert_tree_all_finite(value)
        assert np.any(value != 0), f"no gradient reaches {name}"
    if row.stats:
        (_, trained), (_, evaluated) = found
        chex.assert_trees_all_equal(evaluated, variables["batch_stats"])
        assert all(np.any(trained[name] != value) for name, value in evaluated.items())


def test_every_layer_of_the_family_is_in_the_table():
    names = {name for module, name in LAYERS if not hasattr(flax.linen, name)} - {"PopArt"}
    assert names == {row.name for row in ROWS}
    for name in names:
        assert all(hasattr(module, name) for module in OURS.values())


FUNCTION = {
    "DynamicTanh": jn.dynamic_tanh,
    "Derf": jn.dynamic_erf,
    "ScaleNorm": jn.scale_norm,
    "GatedRMSNorm": jn.gated_rms_norm,
    "PartialRMSNorm": jn.partial_rms_norm,
    "QKNorm": jn.qk_norm,
    "FilterResponseNorm": jn.filter_response_norm,
    "GlobalResponseNorm": jn.global_response_norm,
    "EvoNormS0": jn.evonorm_s0,
    "RevIN": jn.reversible_norm,
    "FiLM": jn.film,
    "AdaLayerNorm": jn.adaptive_layer_norm,
    "AdaLayerNormZero": jn.adaptive_layer_norm,
    "BatchRenorm": jn.batch_renorm,
    "GhostBatchNorm": jn.ghost_batch_norm,
    "DomainBatchNorm": jn.batch_norm,  # of which bank_norm makes it
    "RecurrentBatchNorm": jn.batch_norm,
    "ConditionalBatchNorm": jn.batch_norm,
    "SPADE": jn.batch_norm,
    "EvoNormB0": jn.evonorm_b0,
    "SwitchableNorm": jn.switchable_norm,
    "InputNorm": jn.input_norm,
    "DecorrelatedBatchNorm": jn.decorrelated_batch_norm,
    "IterNorm": jn.decorrelated_batch_norm,
}

# What the papers choose, and their functions leave open.
CHOSEN = {("EvoNormS0", "num_groups"), ("IterNorm", "iterations")}


@both
@every
def test_a_default_is_the_function_s(api, row):
    theirs = inspect.signature(FUNCTION[row.name]).parameters
    renamed = {"momentum": "decay"}
    ours = inspect.signature(getattr(OURS[api], row.name)).parameters
    compared = {name: renamed.get(name, name) for name in ours if renamed.get(name, name) in theirs}
    assert "dtype" in compared or not {"dtype", "axis_name"} & theirs.keys()
    for name, option in compared.items():
        if (row.name, option) not in CHOSEN and theirs[option].default is not inspect.Parameter.empty:
            assert ours[name].default == theirs[option].default, name


BY_NAME = {row.name: row for row in ROWS}


@both
def test_what_layers_start_as(api):
    def start(name):
        row = BY_NAME[name]
        layer, x = side(api, row), draw(row.shape)
        return jax.jit(layer.call)(layer.init(x), x, *row.conditions)[0], x

    (y, gate), x = start("AdaLayerNormZero")
    chex.assert_trees_all_close(y, jn.layer_norm(x), atol=1e-6)
    assert gate.shape == (6, 1, 4) and not gate.any()
    for name, expected in (
        ("GlobalResponseNorm", lambda x: x),
        ("ScaleNorm", jn.rms_norm),
        ("RecurrentBatchNorm", lambda x: 0.1 * jn.batch_norm(x, jn.initial_stats(4), train=True)[0]),
    ):
        y, x = start(name)
        chex.assert_trees_all_close(y, jax.jit(expected)(x), atol=1e-5)


@both
def test_limits_may_be_schedules(api):
    row = BY_NAME["BatchRenorm"]
    layer = side(api, row, r_max=lambda step: 1 + step, d_max=lambda step: 2 * step)
    x, call = draw(row.shape), jax.jit(layer.call)
    variables = layer.init(x)
    assert variables["batch_stats"]["step"] == 0
    first, variables = call(variables, x)
    chex.assert_trees_all_close(first, jn.batch_norm(x, jn.initial_stats(4), train=True)[0], atol=1e-5)
    mean, var = variables["batch_stats"]["mean"], variables["batch_stats"]["var"]
    second, variables = call(variables, x)
    assert variables["batch_stats"]["step"] == 2
    stats = jn.Moments(mean, var, jnp.ones(4))
    chex.assert_trees_all_close(
        second, jn.batch_renorm(x, stats, train=True, r_max=2.0, d_max=2.0)[0], atol=1e-5
    )


@both
@pytest.mark.parametrize("name", ["BatchRenorm", "DomainBatchNorm"])
def test_freezing_holds_the_statistics(api, name):
    row, x = BY_NAME[name], draw((6, 5, 4))
    options = dict(row.options)
    if api == "linen":
        layer = getattr(OURS[api], name)(use_running_average=False, **options)
        variables = drawn(layer.init(jax.random.key(0), x, *row.conditions))
        frozen = OURS[api].freeze(variables, ...)
        y, after = layer.apply(frozen, x, *row.conditions, mutable="batch_stats")
        chex.assert_trees_all_equal(after["batch_stats"], frozen["batch_stats"])
        layer = layer.clone(use_running_average=True)
        chex.assert_trees_all_equal(y, layer.apply(variables, x, *row.conditions))
        return
    layer = getattr(OURS[api], name)(*row.sizes, rngs=flax.nnx.Rngs(0), **options)
    layer(x, *row.conditions)
    OURS[api].freeze(layer, ...)
    before = flax.nnx.to_pure_dict(flax.nnx.state(layer, flax.nnx.BatchStat))
    y = layer(x, *row.conditions)
    chex.assert_trees_all_equal(flax.nnx.to_pure_dict(flax.nnx.state(layer, flax.nnx.BatchStat)), before)
    OURS[api].unfreeze(layer, ...)
    layer.eval()
    chex.assert_trees_all_equal(y, layer(x, *row.conditions))


@both
@pytest.mark.parametrize("name", ["BatchRenorm", "FilterResponseNorm"])
def test_devices_share_moments(api, name):
    row, x = BY_NAME[name], draw((6, 4, 5, 4))
    whole, parts = side(api, row), side(api, row, axis_name="batch")
    # a batch over devices, or the places of one sample: both are the axis that the moments are taken over
    axis = 0 if name == "BatchRenorm" else 2
    joined = x.reshape(24, 5, 4) if axis == 0 else jnp.moveaxis(x, 0, 2).reshape(4, 5, 24)
    variables = drawn(whole.init(joined))
    y, state = jax.jit(whole.call)(variables, joined)
    mapped = jax.vmap(lambda v: parts.call(variables, v), axis_name="batch")
    apart, states = jax.jit(mapped)(x)
    again = apart.reshape(24, 5, 4) if axis == 0 else jnp.moveaxis(apart, 0, 2).reshape(4, 5, 24)
    chex.assert_trees_all_close(again, y, atol=1e-5)
    for name, value in state.get("batch_stats", {}).items():
        chex.assert_trees_all_close(states["batch_stats"][name], jnp.broadcast_to(value, (6, 4)), atol=1e-5)


@both
@every
def test_dtypes(api, row):
    low = jax.ShapeDtypeStruct(row.shape, jnp.bfloat16)
    for dtype in (None, jnp.bfloat16):
        layer = side(api, row, dtype=dtype)
        variables = jax.eval_shape(layer.init, low)
        with jax.numpy_dtype_promotion("standard"):  # Flax's Dense and Conv
            y, after = jax.eval_shape(layer.call, variables, low, *row.conditions)
        expected = jnp.bfloat16 if dtype or not row.shapes else jnp.float32
        assert jax.tree.leaves(y)[0].dtype == expected
        chex.assert_trees_all_equal_shapes_and_dtypes(after, variables)


@both
def test_a_series_comes_back(api):
    layer, x = OURS[api].RevIN, draw((3, 7, 4)) * 100
    if api == "linen":
        norm = layer()
        variables = drawn(norm.init(jax.random.key(0), x))
        y, moments = norm.apply(variables, x)
        back = norm.apply(variables, y[:, -2:], moments, method="denormalize")
    else:
        norm = layer(4, rngs=flax.nnx.Rngs(0))
        norm.scale[...] = jnp.asarray([1.0, 2.0, -3.0, 0.5])
        norm.bias[...] = jnp.asarray([0.0, 1.0, -3.0, 0.5])
        y, moments = norm(x)
        back = norm.denormalize(y[:, -2:], moments)
    chex.assert_trees_all_close(back, x[:, -2:], rtol=1e-4, atol=1e-2)


@both
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DomainBatchNorm", "__call__() missing 1 required positional argument: 'index'"),
        ("ConditionalBatchNorm", "__call__() missing 1 required positional argument: 'labels'"),
    ],
)
def test_a_call_needs_its_conditions(api, name, text):
    layer = side(api, BY_NAME[name])
    variables = layer.init(draw((6, 5, 4)))
    with pytest.raises(TypeError) as found:
        layer.call(variables, draw((6, 5, 4)))
    assert str(found.value).endswith(text)


def test_nnx_constructors_say_what_they_miss():
    with pytest.raises(TypeError) as found:
        OURS["nnx"].DomainBatchNorm(4, rngs=flax.nnx.Rngs(0))
    text = "DomainBatchNorm.__init__() missing 1 required keyword-only argument: 'num_domains'"
    assert str(found.value) == text
    with pytest.raises(TypeError) as found:
        OURS["nnx"].DynamicTanh(4, alpha=0.5, rngs=flax.nnx.Rngs(0))
    assert str(found.value) == "DynamicTanh.__init__() got an unexpected keyword argument 'alpha'"
    with pytest.raises(ValueError, match="features") as refused:
        OURS["nnx"].DynamicTanh(4, rngs=flax.nnx.Rngs(0))(jnp.ones((2, 5)))
    assert str(refused.value) == (
        "DynamicTanh: 4 stored features do not fit axis -1 of x, shape (2, 5); choose a layer of 5 features."
    )


@both
@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_a_part_of_the_features_is_one(api, fraction):
    layer, x = side(api, BY_NAME["PartialRMSNorm"], fraction=fraction), draw((6, 5, 4))
    with pytest.raises(ValueError, match="fraction") as found:
        layer.call(layer.init(x), x)
    assert str(found.value) == (
        f"PartialRMSNorm: fraction={fraction} is outside (0, 1]; it is the part of the features whose mean "
        "square is taken: choose, for example, 0.0625."
    )


@both
def test_a_small_part_is_one_feature(api):
    layer, x = side(api, BY_NAME["PartialRMSNorm"], fraction=0.0625), draw((6, 5, 4))
    y, _ = layer.call(layer.init(x), x)
    chex.assert_trees_all_equal(y, jn.partial_rms_norm(x, num_features=1, scale=jnp.ones(4)))


@both
def test_queries_and_keys_get_one_dtype(api):
    layer, query = side(api, BY_NAME["QKNorm"], use_scale=False), draw((6, 5, 4), jnp.bfloat16)
    (query, key), after = layer.call(layer.init(query), query, draw((6, 7, 2, 4)))
    assert not after.get("params") and query.dtype == key.dtype == jnp.float32
    assert key.shape == (6, 7, 2, 4)
