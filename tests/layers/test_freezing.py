"""Frozen norms stay frozen: beside Flax's own, through checkpoints, in a state. Labels of parameters."""

import pickle
from typing import Any

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx, serialization
from layers import OURS, draw
from test_family_layers import ROWS, Row

pytestmark = pytest.mark.flexible  # of Flax's layers
X = draw((8, 4))
linen, ours = OURS["linen"], OURS["nnx"]


class Half(nn.Module):
    """A model of which one norm is ours."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train, name="theirs")(x)
        return linen.BatchNorm(use_running_average=not train, name="ours")(x)


def trained() -> Any:
    variables = Half().init(jax.random.key(0), X)
    return {**variables, **Half().apply(variables, X, mutable=["batch_stats"])[1]}


def step(variables: Any) -> Any:
    """A training step on other data."""
    return {**variables, **Half().apply(variables, X * 3 + 9, mutable=["batch_stats"])[1]}


def stand_still(after: Any, before: Any) -> None:
    for norm in ("ours", "theirs"):
        for name in ("mean", "var"):
            after_, before_ = (v["batch_stats"][norm][name] for v in (after, before))
            np.testing.assert_array_equal(after_, before_)


STEPS = {
    "eager": step,
    "jit": jax.jit(step),
    "scan": lambda v: jax.lax.scan(lambda v, _: (step(v), None), v, None, length=3)[0],
    "FrozenDict": lambda v: step(flax.core.freeze(v)),
    "all mutable": lambda v: Half().apply(v, X + 9, mutable=True)[1],
    "pickle": lambda v: step(pickle.loads(pickle.dumps(jax.device_get(v)))),
}


@pytest.mark.parametrize("how", STEPS)
def test_in_a_half_converted_linen_model_all_statistics_stand_still(how):
    before = trained()
    stand_still(STEPS[how](linen.freeze(before, ...)), before)
    moved = STEPS[how](before)
    for norm in ("ours", "theirs"):
        assert np.any(moved["batch_stats"][norm]["mean"] != before["batch_stats"][norm]["mean"])


def test_a_frozen_model_evaluates_as_before():
    before = trained()
    frozen = linen.freeze(before, ...)
    np.testing.assert_array_equal(*(Half().apply(v, X, train=False) for v in (frozen, before)))
    assert jax.tree.structure(linen.unfreeze(frozen, ...)) == jax.tree.structure(before)
    stand_still(linen.unfreeze(frozen, ...), before)


LIFTED = {
    "vmap": lambda norm: nn.vmap(
        norm, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}
    ),
    "remat": nn.remat,
    "jit": nn.jit,
    "none": lambda norm: norm,
}


@pytest.mark.parametrize("lift", LIFTED)
@pytest.mark.parametrize("norm", [nn.BatchNorm, linen.BatchNorm], ids=["flax", "ours"])
def test_lifted_norms_stand_still(norm, lift):
    layer, x = LIFTED[lift](norm)(use_running_average=False), draw((2, 8, 4))
    frozen = linen.freeze(layer.init(jax.random.key(0), x), ...)
    _, after = layer.apply(frozen, x, mutable=["batch_stats"])
    chex.assert_trees_all_equal(dict(after["batch_stats"]), dict(frozen["batch_stats"]))


def test_bytes_of_frozen_variables_are_refused_by_others():
    frozen = linen.freeze(trained(), ...)
    start = Half().init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="keys do not match"):
        serialization.from_bytes(start, serialization.to_bytes(frozen))
    bare = linen.BatchNorm(use_running_average=False).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="keys do not match"):
        serialization.from_bytes(bare, serialization.to_bytes(linen.freeze(bare, ...)))


@pytest.mark.parametrize("saved", [True, False], ids=["of frozen", "of others"])
def test_bytes_load_into_frozen_variables(saved):
    before = trained()
    source = linen.freeze(before, ...) if saved else before
    target = linen.freeze(Half().init(jax.random.key(0), X), ...)
    stand_still(step(serialization.from_bytes(target, serialization.to_bytes(source))), before)


def test_orbax_keeps_the_mark_or_refuses(tmp_path):
    before = trained()
    frozen = linen.freeze(before, ...)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "frozen", frozen)
        checkpointer.wait_until_finished()
        loaded = checkpointer.restore(tmp_path / "frozen", jax.eval_shape(lambda: frozen))
        with pytest.raises(ValueError, match="frozen"):
            checkpointer.restore(tmp_path / "frozen", jax.eval_shape(lambda: before))
    stand_still(step(loaded), before)


def test_frozen_statistics_ignore_what_is_written():
    stats = linen.freeze(trained(), ...)["batch_stats"]["ours"]
    before = dict(stats)
    stats["mean"] = 7.0
    chex.assert_trees_all_equal(dict(stats), before)
    assert set(stats) == {"mean", "var", "frozen"} and "mean" in stats and len(stats) == 3
    assert str(stats).startswith("FrozenStats({'mean'")


# ------------------------------------------------------------------------------------ PopArt


def test_a_frozen_linen_pop_art_does_not_move():
    head, h = linen.PopArt(2), draw((6, 5))
    variables = linen.freeze(head.init(jax.random.key(0), h), ...)
    mutable = ["params", "batch_stats"]
    _, after = head.apply(variables, draw((6, 2)) + 9, method="update", mutable=mutable)
    chex.assert_trees_all_equal(after, {name: variables[name] for name in mutable})
    _, after = head.apply(linen.unfreeze(variables, ...), draw((6, 2)) + 9, method="update", mutable=mutable)
    assert np.all(after["batch_stats"]["mean"] != 0)


def test_a_frozen_nnx_pop_art_does_not_move():
    head = ours.PopArt(5, 2, rngs=nnx.Rngs(0))
    ours.freeze(head, ...)
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(head)))
    head.update(draw((6, 2)) + 9)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(head)), before)
    ours.unfreeze(head, ...)
    head.update(draw((6, 2)) + 9)
    assert np.all(head.mean[...] != 0)


# ------------------------------------------------------------------------------------ nnx


def pair() -> Any:
    rngs = nnx.Rngs(0)
    return nnx.List([ours.BatchNorm(4, rngs=rngs), ours.BatchRenorm(4, rngs=rngs)])


def test_an_nnx_state_carries_the_mark():
    frozen, other = pair(), pair()
    for norm in frozen:
        norm(X)
    ours.freeze(frozen, ...)
    assert all(norm.frozen is True for norm in frozen)
    nnx.update(other, nnx.state(frozen))
    assert all(norm.frozen is True for norm in other)
    other.train()
    for norm, source in zip(other, frozen, strict=True):
        nnx.jit(lambda norm, x: norm(x))(norm, X * 3 + 9)
        chex.assert_trees_all_equal(norm.mean[...], source.mean[...])
    # the usual filters take it, too
    graph, params, stats = nnx.split(frozen, nnx.Param, nnx.BatchStat)
    assert nnx.merge(graph, params, stats)[0].frozen
    with pytest.raises(ValueError, match="leaves"):
        nnx.merge(nnx.graphdef(pair()), nnx.state(frozen))


def test_a_state_without_the_mark_leaves_a_model_frozen():
    frozen, other = pair(), pair()
    other[0](X)
    ours.freeze(frozen, ...)
    nnx.update(frozen, nnx.state(other))
    frozen[0](X * 3 + 9)
    chex.assert_trees_all_equal(frozen[0].mean[...], other[0].mean[...])
    ours.unfreeze(frozen, ...)
    assert frozen[0].frozen is False
    assert jax.tree.structure(nnx.state(frozen)) == jax.tree.structure(nnx.state(other))


def test_a_frozen_nnx_stack():
    @nnx.vmap(in_axes=0)
    def stack(key):
        return ours.BatchNorm(4, rngs=nnx.Rngs(key))

    norms, x = stack(jax.random.split(jax.random.key(0), 2)), draw((2, 8, 4))
    ours.freeze(norms, ...)
    before = nnx.to_pure_dict(nnx.state(norms))
    nnx.vmap(lambda norm, x: norm(x))(norms, x)
    nnx.scan(lambda x, norm: norm(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x[0], norms)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(norms)), before)


def test_nnx_does_not_freeze_flax_s_own():
    rngs = nnx.Rngs(0)
    model = nnx.Dict(a=ours.BatchNorm(4, rngs=rngs), b=nnx.BatchNorm(4, rngs=rngs))
    with pytest.raises(ValueError, match="Flax's own") as found:
        ours.freeze(model, ...)
    assert str(found.value) == (
        "freeze: filter=Ellipsis chooses batch norms of Flax's own, which do not stand still: b; make them "
        "those of jaxnorm.nnx, or choose others."
    )
    assert not model.a.frozen
    ours.freeze(model, ours.BatchNorm)
    assert model.a.frozen
    ours.unfreeze(model, ...)
    assert not model.a.frozen


WRONG = {
    "freeze of a state": (
        lambda: ours.freeze(nnx.state(pair()), ...),
        "freeze: model must be an nnx.Module, got State; pass the model itself, not its state or its "
        "parameters.",
    ),
    "labels of a state": (
        lambda: ours.norm_labels(nnx.state(pair(), nnx.Param)),
        "norm_labels: model must be an nnx.Module, got State; pass the model itself, not its state or its "
        "parameters.",
    ),
    "labels of a dict": (
        lambda: ours.norm_labels({"scale": jnp.ones(3)}),
        "norm_labels: model must be an nnx.Module, got dict; pass the model itself, not its state or its "
        "parameters.",
    ),
    "linen's labels of a state": (
        lambda: linen.norm_labels(nnx.state(pair(), nnx.Param)),
        "norm_labels: params must be a dict, got State; pass the parameters, or the variables, that init "
        "returned.",
    ),
    "linen's freeze of a module": (
        lambda: linen.freeze(Half(), ...),
        "freeze: variables must be a dict, got Half; pass the variables that init returned.",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_model_is_a_type_error(wrong):
    call, text = WRONG[wrong]
    with pytest.raises(TypeError) as found:
        call()
    assert str(found.value) == text


# ------------------------------------------------------------------------------------ labels

FLAX_S = [
    Row(name, lambda: None, {}, options)
    for name in ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
    for options in ([{"num_groups": 2}] if name == "GroupNorm" else [{}])
]
WITHOUT = [{}, {"use_bias": False}, {"use_scale": False}]


@pytest.mark.parametrize("without", WITHOUT, ids=str)
@pytest.mark.parametrize("row", [*FLAX_S, *ROWS], ids=str)
def test_linen_s_labels_of_every_layer(row, without):
    cls = getattr(linen, row.name)
    fields = cls.__dataclass_fields__
    if not without.keys() <= fields.keys():
        return
    mode = {"use_running_average": True} if "use_running_average" in fields else {}
    layer = cls(**{**row.options, **without})
    key, x = jax.random.key(0), draw(row.shape)
    variables = jax.eval_shape(lambda x: layer.init(key, x, *row.conditions, **mode), x)
    labels = linen.norm_labels({"model": variables["params"]} if "params" in variables else {})
    whole = linen.norm_labels(variables).get("params", {})
    assert jax.tree.structure(whole) == jax.tree.structure(variables.get("params", {}))
    own = {name: label for name, label in whole.items() if isinstance(label, str)}
    alone = set(own) == {"bias"}
    kept = "batch_stats" in variables
    assert set(own.values()) <= {"norm" if not alone or kept else "other"}
    # by the parameters only a lone bias cannot be told from a layer's without a kernel
    told = {name: v for name, v in labels.get("model", {}).items() if isinstance(v, str)}
    assert set(told.values()) <= {"other" if alone else "norm"}
    # a network inside a norm is none
    inner = [v for name, v in whole.items() if not isinstance(v, str)]
    assert set(jax.tree.leaves(inner)) <= {"other"}


def test_linen_s_labels_of_what_is_no_norm():
    params = {
        "dense": {"kernel": 0, "bias": 0},
        "embed": {"embedding": 0},
        "shift": {"bias": 0},
        "custom": {"kernel": 0, "scale": 0, "bias": 0},
        "weight_norm": {"layer_instance": {"kernel": 0, "bias": 0}, "layer_instance/kernel/scale": 0},
    }
    labels = linen.norm_labels(params)
    assert labels.pop("weight_norm") == {
        "layer_instance": {"kernel": "other", "bias": "other"},
        "layer_instance/kernel/scale": "norm",
    }
    assert set(jax.tree.leaves(labels)) == {"other"}
    stats = {"shift": {"mean": 0, "var": 0}, "head": {"mean": 0, "var": 0}}
    whole = {"params": {**params, "head": {"kernel": 0, "bias": 0}}, "batch_stats": stats}
    labels = linen.norm_labels(whole)
    assert labels["params"]["shift"] == {"bias": "norm"}
    assert labels["params"]["head"] == {"kernel": "other", "bias": "other"}
    assert set(jax.tree.leaves(labels["batch_stats"])) == {"other"}
