"""What `diagnose` reads: every norm, whatever the mode, and nothing is changed."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from runs import LinenNet, NnxNet, held_out, train_linen, train_nnx

import jaxnorm
from jaxnorm import linen as jn
from jaxnorm import nnx as jx

pytestmark = pytest.mark.slow  # doctests and the tests beside it are what `make test` runs

X = jax.random.normal(jax.random.key(0), (64, 6, 8))


def rows(report):
    return {norm.path: (norm.layer, [f.kind for f in norm.findings]) for norm in report.norms}


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda u, v: np.array_equal(u, v, equal_nan=True), a, b))


# ---------------------------------------------------------------- linen


@pytest.mark.parametrize("train", [True, False])
def test_linen_by_the_batch_whatever_the_mode(train):
    model, variables = train_linen()
    before = copy.deepcopy(jax.tree.map(np.asarray, variables))
    x = held_out()
    report = jn.diagnose(model, variables, x, train=train)
    assert same(before, variables)
    dense = variables["params"]["a"]["Dense_0"]
    expected = jaxnorm.moments(x @ dense["kernel"] + dense["bias"][None], 0)
    (a, b) = report.norms
    np.testing.assert_allclose(a.batch.mean, expected.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a.batch.var, expected.var, rtol=1e-4)
    assert same(a.stored.mean, variables["batch_stats"]["a"]["norm"]["mean"])
    assert (a.layer, a.path, b.path, a.samples, a.momentum) == (
        *("BatchNorm", "a/norm", "b/norm", 128),
        pytest.approx(0.9),
    )
    assert float(np.nanmax(a.of_channels("shift"))) < 0.5


class Stack(nn.Module):
    """Layers in a scan with remat, inside of jit, and a norm of Flax's own."""

    @nn.compact
    def __call__(self, x, train=False):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                x = jn.BatchNorm(use_running_average=not train, name="bn")(nn.Dense(8)(x))
                return nn.relu(jn.LayerNorm(name="ln")(x)), None

        options = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(nn.remat(Layer), length=3, **options)(name="layers")(x, None)
        return nn.BatchNorm(use_running_average=not train, name="flax")(x)


def test_linen_inside_of_scan_and_remat_and_jit():
    model = Stack()
    variables = model.init(jax.random.key(0), X)
    for _ in range(60):
        _, new = model.apply(variables, X, train=True, mutable="batch_stats")
        variables = {**variables, **new}
    seen: Any = jax.jit(model.apply)(variables, X)
    for module in (model, nn.jit(Stack)()):
        found = jn.diagnose(module, variables, X)
        assert {path: layer for path, (layer, _) in rows(found).items()} == {
            "layers/bn": "BatchNorm",
            "layers/ln": "LayerNorm",
            "flax": "BatchNorm",
        }
        bn = next(norm for norm in found.norms if norm.path == "layers/bn")
        assert bn.batch.mean.shape == (3, 8)
        assert bn.samples == 64
    assert np.array_equal(seen, jax.jit(model.apply)(variables, X))


def test_linen_every_layer_has_a_row():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, aside=False):
            x = jn.SpectralNorm(nn.Dense(8), name="spectral")(x, update_stats=True)
            x = jn.WeightNorm(nn.Dense(8), name="weight")(x)
            x = jn.RMSNorm(zero_centered_scale=True, name="rms")(x)
            x = jn.GroupNorm(num_groups=2, name="group")(x)
            x = jn.DynamicTanh(name="tanh")(100 * x)
            x = jn.Derf(name="erf")(x)
            if aside:
                x = jn.BatchNorm(use_running_average=True, name="aside")(x)
            return jn.PopArt(1, name="head")(x)

    model = Model()
    variables = model.init(jax.random.key(0), X, aside=True)
    assert rows(jn.diagnose(model, variables, X)) == {
        "spectral": ("SpectralNorm", []),
        "weight": ("WeightNorm", []),
        "rms": ("RMSNorm", []),
        "group": ("GroupNorm", []),
        "tanh": ("DynamicTanh", ["saturated"]),
        "erf": ("Derf", []),
        "aside": ("-", ["never_updated"]),
        "head": ("PopArt", ["never_updated"]),
    }


def test_linen_tuples_keywords_and_collections():
    class Model(nn.Module):
        norm: nn.Module

        def setup(self):
            self.drop = nn.Dropout(0.5)

        def twice(self, x, factor, *, train):
            self.sow("intermediates", "x", x)
            return self.norm(self.drop(x * factor, deterministic=not train), not train)

    model = Model(jn.BatchNorm())
    call = {"method": "twice", "train": True, "rngs": {"dropout": jax.random.key(1)}}
    variables = model.init({"params": jax.random.key(0)}, X, 2.0, method="twice", train=False)
    report = jn.diagnose(model, variables, (X, 2.0), **call)
    assert rows(report) == {"norm": ("BatchNorm", ["never_updated"])}
    assert rows(jn.diagnose(model, variables, (X, 2.0), mutable=["intermediates"], **call)) == rows(report)
    whole = jn.diagnose(
        jn.BatchNorm(use_running_average=True),
        jn.BatchNorm().init(jax.random.key(0), X, use_running_average=True),
        X,
    )
    assert rows(whole) == {"": ("BatchNorm", ["never_updated"])}
    assert "(the model)" in whole.table()
    assert whole.table().count("the model: never_updated 8.") == 1


def test_linen_calls_of_one_norm_are_one_batch():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = jn.BatchNorm(use_running_average=False, name="norm")
            return norm(x[:20]), norm(x[20:])

    variables = Model().init(jax.random.key(0), X)
    (norm,) = jn.diagnose(Model(), variables, X).norms
    expected = jaxnorm.moments(X, (0, 1))
    np.testing.assert_allclose(norm.batch.mean, expected.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.batch.var, expected.var, rtol=1e-4)
    assert norm.samples == 64


def test_linen_domains_that_were_not_seen():
    norm = jn.DomainBatchNorm(num_domains=3, momentum=0.5, use_running_average=False)
    variables = norm.init(jax.random.key(0), X, 0)
    for _ in range(40):
        _, new = norm.apply(variables, X + 1, 1, mutable="batch_stats")
        variables = {**variables, **new}
    (finding, momentum) = jn.diagnose(norm, variables, (X + 1, 1)).findings
    assert (finding.kind, finding.value, momentum.kind) == ("never_updated", 16, "momentum")
    assert finding.advice.startswith("16 of 24 channels still have mean 0 and variance 1, the start.")


# ---------------------------------------------------------------- nnx


@pytest.mark.parametrize("evaluate", [True, False])
def test_nnx_by_the_batch_whatever_the_mode(evaluate):
    model = nnx.clone(train_nnx())
    model.eval() if evaluate else model.train()
    before = nnx.to_pure_dict(nnx.state(nnx.clone(model)))
    graph = nnx.graphdef(model)
    report = jx.diagnose(model, held_out())
    assert same(before, nnx.to_pure_dict(nnx.state(model)))
    assert nnx.graphdef(model) == graph
    expected = jaxnorm.moments(model.a.dense(held_out()), 0)
    (a, b) = report.norms
    np.testing.assert_allclose(a.batch.mean, expected.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a.batch.var, expected.var, rtol=1e-4)
    assert (a.layer, a.path, b.path, a.samples) == ("BatchNorm", "a/norm", "b/norm", 128)


def test_nnx_random_numbers_and_flax_s_norms():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.norms = nnx.List([nnx.BatchNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)])
            self.tanh = jx.DynamicTanh(8, rngs=rngs)
            self.aside = jx.BatchNorm(8, rngs=rngs)

        def __call__(self, x):
            for norm in self.norms:
                x = norm(x)
            return self.tanh(self.drop(x))

    model = Model(nnx.Rngs(0))
    count = int(model.drop.rngs.count[...])
    assert rows(jx.diagnose(model, X)) == {
        "norms/0": ("BatchNorm", ["never_updated"]),
        "norms/1": ("LayerNorm", []),
        "tanh": ("DynamicTanh", []),
        "aside": ("-", ["never_updated"]),
    }
    assert int(model.drop.rngs.count[...]) == count
    assert type(model.norms[0]) is nnx.BatchNorm


@pytest.mark.flexible
def test_nnx_inside_of_scan_and_jit():
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(8, 8, rngs=rngs)
            self.norm = jx.BatchNorm(8, rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.norm(self.dense(x)))

    class Model(nnx.Module):
        def __init__(self, rngs):
            make = nnx.vmap(Layer, in_axes=0, out_axes=0)
            self.layers = nnx.split_rngs(splits=3)(make)(rngs)

        @nnx.jit
        def __call__(self, x):
            scan = nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            return scan(lambda layer, x: layer(x))(self.layers, x)

    model = Model(nnx.Rngs(0))
    for _ in range(5):
        model(X)
    (norm,) = jx.diagnose(model, X).norms
    assert (norm.path, norm.samples, norm.batch.mean.shape) == ("layers/norm", 64, (3, 8))


# ---------------------------------------------------------------- values and errors


def test_values_of_norms_without_statistics():
    norm = jn.LayerNorm()
    variables = norm.init(jax.random.key(0), X)

    def kinds(x, variables=variables):
        return [(f.kind, f.value) for f in jn.diagnose(norm, variables, x).findings]

    assert kinds(X) == []
    assert kinds(X.at[3, 2, 1].set(jnp.nan)) == [("non_finite", 1)]
    (found,) = kinds(X * 1e6)
    assert found[0] == "exploding" and found[1] > 1e6
    (found,) = kinds(X * 1e-5)
    assert found[0] == "small_variance" and found[1] == pytest.approx(1e-10, rel=0.3)
    scale = {"params": {"scale": jnp.ones(8).at[2].set(0), "bias": jnp.zeros(8)}}
    assert kinds(X, scale) == [("dead_channels", 1)]
    bias = {"params": {"scale": jnp.ones(8), "bias": jnp.full(8, jnp.inf)}}
    assert kinds(X, bias) == [("non_finite", 8)]


def test_momenta():
    def kinds(**options):
        norm = jn.BatchNorm(use_running_average=True, **options)
        variables = {
            **norm.init(jax.random.key(0), X),
            "batch_stats": {"mean": jnp.full(8, 0.01), "var": jnp.ones(8)},
        }
        return {f.kind: f.value for f in jn.diagnose(norm, variables, X).findings}

    assert kinds(momentum=0.0) == {"momentum": 1}
    assert kinds(momentum=0.5) == {"momentum": 2}
    assert kinds(momentum=0.6) == {}
    assert kinds(momentum=1.0) == {"momentum": np.inf}
    assert kinds(momentum=lambda step: 0.1 + 0 * step) == {"momentum": pytest.approx(1 / 0.9)}


def test_errors():
    with pytest.raises(ValueError, match="diagnose") as caught:
        jn.diagnose(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), X), X)
    text = "diagnose: the model has no norm; choose a model with norms of jaxnorm or of Flax."
    assert str(caught.value) == text
    with pytest.raises(ValueError, match="diagnose") as caught:
        jx.diagnose(nnx.Linear(8, 2, rngs=nnx.Rngs(0)), X)
    assert str(caught.value) == text
    with pytest.raises(TypeError) as caught:
        jx.diagnose(nnx.state(NnxNet(rngs=nnx.Rngs(0))), X)
    assert str(caught.value) == (
        "diagnose: model must be an nnx.Module, got State; pass the model itself, not its state or its "
        "parameters."
    )
    with pytest.raises(TypeError) as caught:
        jn.diagnose(LinenNet(), [X], X)
    assert str(caught.value) == (
        "diagnose: variables must be a dict, got list; pass the variables that init returned."
    )


def test_an_error_in_the_model_ends_the_watching():
    model, variables = train_linen()
    with pytest.raises(TypeError):
        jn.diagnose(model, variables, held_out(), unknown=1)
    assert "callback" not in str(jax.make_jaxpr(lambda v: model.apply(v, held_out(), train=False))(variables))
    assert jn.diagnose(model, variables, held_out()).findings == []


@pytest.mark.parametrize("size", [2, 64])
def test_norms_that_store_nothing(size):
    """Their training and their evaluation are by the batch, whose size matters."""
    kinds = ["small_batch"] if size == 2 else []
    norm = jn.BatchNorm(track_stats=False)
    assert rows(jn.diagnose(norm, norm.init(jax.random.key(0), X), X[:size])) == {"": ("BatchNorm", kinds)}
    layer = jx.BatchNorm(8, track_stats=False, rngs=nnx.Rngs(0))
    assert rows(jx.diagnose(layer, X[:size])) == {"": ("BatchNorm", kinds)}


def test_instance_norm_s_averages():
    norm = jn.InstanceNorm(track_stats=True, use_running_average=False)
    variables = norm.init(jax.random.key(0), X)
    assert rows(jn.diagnose(norm, variables, X[:2])) == {"": ("InstanceNorm", ["never_updated"])}
    for _ in range(60):
        _, new = norm.apply(variables, X, mutable="batch_stats")
        variables = {**variables, **new}
    assert rows(jn.diagnose(norm, variables, X)) == {"": ("InstanceNorm", [])}
    assert rows(jn.diagnose(norm, variables, X[:2])) == {"": ("InstanceNorm", [])}
    assert rows(jn.diagnose(norm, variables, X + 3)) == {"": ("InstanceNorm", ["shift"])}


def test_moments_that_wait_for_every_k():
    norm = jn.BatchNorm(use_running_average=False, every_k=4, momentum=0.9)
    variables = norm.init(jax.random.key(0), X)
    for _ in range(2):
        _, new = norm.apply(variables, X, mutable="batch_stats")
        variables = {**variables, **new}
    assert rows(jn.diagnose(norm, variables, X)) == {"": ("BatchNorm", ["never_updated"])}
