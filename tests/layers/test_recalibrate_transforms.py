"""Recalibrated models whose norms are shared, scanned, mapped, compiled, or on several devices."""

from functools import partial

import chex
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import mesh_of

from jaxnorm import linen, nnx

pytestmark = [pytest.mark.flexible, pytest.mark.slow]

DATA = np.random.default_rng(0).normal(3.0, 2.0, (48, 4)).astype(np.float32)
BATCHES = np.split(DATA, [8, 32])
each_api = pytest.mark.parametrize("api", ["linen", "nnx"])
each_way = pytest.mark.parametrize("sequential", [False, True], ids=["batch", "sequential"])


def of(*arrays):
    """Mean, var and count in float64 of all that came, each [..., features]."""
    data = np.concatenate([np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in arrays])
    return {"mean": data.mean(0), "var": data.var(0), "weight": np.full(data.shape[1], len(data))}


def normalized(x, m):
    return (np.asarray(x, np.float64) - m["mean"]) / np.sqrt(m["var"] + 1e-5)


def assert_stats(found, expected):
    found = {name: np.asarray(found[name], np.float64) for name in expected}
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=2e-6)


def nnx_norm(**options):
    options = {
        "momentum": None,
        "use_scale": False,
        "use_bias": False,
        "use_running_average": True,
        **options,
    }
    return nnx.BatchNorm(4, rngs=flax.nnx.Rngs(0), **options)


def linen_norm(**options):
    options = {
        "momentum": None,
        "use_scale": False,
        "use_bias": False,
        "use_running_average": True,
        **options,
    }
    return linen.BatchNorm(**options)


def run(model, batches, variables=None, **options):
    """Statistics as linen has them."""
    if isinstance(model, flax.nnx.Module):
        nnx.recalibrate(model, batches, **options)
        return flax.nnx.to_pure_dict(flax.nnx.state(model, flax.nnx.BatchStat))
    if variables is None:
        first = batches[0]
        variables = model.init(jax.random.key(0), *(first if isinstance(first, tuple) else (first,)))
    return linen.recalibrate(model, variables, batches, **options)["batch_stats"]


# ---------------------------------------------------------------- called several times


@each_api
def test_a_norm_that_is_called_several_times(api):
    """Every call counts by its own size."""
    if api == "linen":

        class Model(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x):
                norm = linen_norm(name="norm")
                norm(x)
                norm(x[:3] * 2)
                norm(-x, mask=x[:, :1] > 3)

        model = Model()
    else:

        class ModelNnx(flax.nnx.Module):
            def __init__(self):
                self.norm = self.alias = nnx_norm()

            def __call__(self, x):
                self.norm(x)
                self.alias(x[:3] * 2)
                self.norm(-x, mask=x[:, :1] > 3)

        model = ModelNnx()
    found = run(model, BATCHES)
    found = found.get("norm", found.get("alias"))  # nnx names a shared layer once
    assert_stats(found, of(*(a for x in BATCHES for a in (x, x[:3] * 2, -x[x[:, 0] > 3]))))


@each_way
def test_a_shared_module_of_linen(sequential):
    class Model(flax.linen.Module):
        norm: flax.linen.Module

        def __call__(self, x):
            return self.norm(x) + self.norm(x + 1)

    found = run(Model(linen_norm()), BATCHES, sequential=sequential)
    assert_stats(found["norm"], of(*BATCHES, *(x + 1 for x in BATCHES)))


# ---------------------------------------------------------------- scan, vmap, remat, jit


class Layer(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x, _=None):
        return jnp.abs(linen_norm(name="norm")(x)), None


class LayerNnx(flax.nnx.Module):
    def __init__(self, _):
        self.norm = nnx_norm()

    def __call__(self, x):
        return jnp.abs(self.norm(x))


def in_a_row(batches, depth, sequential):
    """The statistics of `depth` norms, each behind the one before it and an absolute value."""
    found, x = [], batches
    for _ in range(depth):
        found.append(of(*x))
        x = [np.abs(normalized(b, found[-1] if sequential else of(b))) for b in x]
    return {name: np.stack([m[name] for m in found]) for name in found[0]}


@each_api
@each_way
@pytest.mark.parametrize("remat", [False, True], ids=["plain", "remat"])
def test_scanned_layers(api, sequential, remat):
    """Each of the stack by its own; with `sequential` layer after layer of the stack."""
    if api == "linen":
        layer = flax.linen.remat(Layer) if remat else Layer
        scan = flax.linen.scan(layer, variable_axes={"params": 0, "batch_stats": 0}, length=3)

        class Model(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x):
                return scan(name="layers")(x, None)[0]

        model = Model()
    else:

        class ModelNnx(flax.nnx.Module):
            def __init__(self):
                self.layers = flax.nnx.vmap(LayerNnx)(jnp.arange(3))

            def __call__(self, x):
                def step(x, layer):
                    return flax.nnx.remat(type(layer).__call__)(layer, x) if remat else layer(x)

                return flax.nnx.scan(step, in_axes=(flax.nnx.Carry, 0), out_axes=flax.nnx.Carry)(
                    x, self.layers
                )

        model = ModelNnx()
    found = run(model, BATCHES, sequential=sequential)["layers"]["norm"]
    assert_stats(found, in_a_row(BATCHES, 3, sequential))


@each_api
def test_mapped_layers(api):
    """One norm for each member of an ensemble."""
    members = np.stack([DATA, -2 * DATA, DATA + 1], 1)  # [rows, members, features]
    if api == "linen":
        model = flax.linen.vmap(Layer, in_axes=1, out_axes=1, variable_axes={"batch_stats": 0})()
    else:

        class ModelNnx(flax.nnx.Module):
            def __init__(self):
                self.norm = flax.nnx.vmap(lambda _: nnx_norm())(jnp.arange(3))

            def __call__(self, x):
                return flax.nnx.vmap(lambda norm, x: norm(x), in_axes=(0, 1), out_axes=1)(self.norm, x)

        model = ModelNnx()
    found = run(model, np.split(members, [8, 32]))["norm"]
    expected = [of(members[:, i]) for i in range(3)]
    assert_stats(found, {name: np.stack([m[name] for m in expected]) for name in expected[0]})


def test_statistics_that_a_scan_carries():
    """One norm for all steps of a sequence: every step counts."""

    class Step(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, carry, x):
            return carry, linen_norm(name="norm")(x)

    class Model(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            scan = flax.linen.scan(Step, variable_carry="batch_stats", variable_broadcast="params", in_axes=1)
            return scan(name="steps")(jnp.zeros(()), x)[1]

    sequences = DATA.reshape(12, 4, 4)
    variables = {
        "batch_stats": {
            "steps": {"norm": dict(zip(("mean", "var", "weight"), 3 * [jnp.ones(4)], strict=True))}
        }
    }
    found = run(Model(), [sequences[:5], sequences[5:]], variables)["steps"]["norm"]
    assert_stats(found, of(DATA))


@each_api
def test_what_was_compiled_before_is_not_used(api):
    """A compiled sublayer that has run in evaluation, and runs in evaluation again."""
    if api == "linen":

        class Model(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x):
                return flax.linen.jit(Layer)(name="layer")(x)[0]

        model = Model()
        variables = model.init(jax.random.key(0), DATA)
        before = model.apply(variables, DATA)
        found = linen.recalibrate(model, variables, [DATA])
        np.testing.assert_array_equal(model.apply(variables, DATA), before)
        assert_stats(found["batch_stats"]["layer"]["norm"], of(DATA))
        after = model.apply(found, DATA)
    else:

        class ModelNnx(flax.nnx.Module):
            def __init__(self):
                self.layer = LayerNnx(0)

            def __call__(self, x):
                return flax.nnx.jit(type(self.layer).__call__)(self.layer, x)

        model = ModelNnx()
        before = model(DATA)
        nnx.recalibrate(model, [DATA])
        assert_stats({k: getattr(model.layer.norm, k)[...] for k in ("mean", "var", "weight")}, of(DATA))
        after = model(DATA)
    np.testing.assert_allclose(before, np.abs(DATA), rtol=1e-5)
    np.testing.assert_allclose(after, np.abs(normalized(DATA, of(DATA))), rtol=1e-4, atol=1e-5)


def test_partitioned_statistics_keep_their_boxes():
    class Boxed(linen.BatchNorm):
        def variable(self, col, name, init_fn=None, *args, **kwargs):
            if init_fn is not None and name in ("mean", "var"):
                init_fn = flax.linen.with_partitioning(init_fn, ("model",))
            return super().variable(col, name, init_fn, *args, **kwargs)

    norm = Boxed(use_running_average=True)
    variables = norm.init(jax.random.key(0), DATA)
    assert variables["batch_stats"]["mean"].names == ("model",)
    found = linen.recalibrate(norm, variables, BATCHES)
    chex.assert_trees_all_equal_structs(found, variables)
    assert_stats(flax.core.meta.unbox(found)["batch_stats"], {k: of(DATA)[k] for k in ("mean", "var")})


# ---------------------------------------------------------------- several devices


@each_api
def test_sharded_batches(api):
    """Of a global batch every device has a part; the statistics are those of the whole."""
    mesh = mesh_of((4,), ("data",))
    batches = [jax.device_put(b, NamedSharding(mesh, P("data"))) for b in BATCHES]
    found = run(linen_norm() if api == "linen" else nnx_norm(), batches)
    assert_stats(found, of(DATA))


@each_api
@each_way
def test_inside_shard_map(api, sequential):
    """`recalibrate` where devices meet in the norms: unequal masks, and statistics that all share."""
    mesh = mesh_of((4,), ("data",))
    where = np.random.default_rng(1).random((48, 1)) < 0.4
    where[:2] = False  # the first device has nothing of the first batch

    class Model(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x, where):
            x = jnp.abs(linen_norm(axis_name="data", name="first")(x, mask=where))
            return linen_norm(axis_name="data", name="second")(x, mask=where)

    class ModelNnx(flax.nnx.Module):
        def __init__(self):
            self.first, self.second = nnx_norm(axis_name="data"), nnx_norm(axis_name="data")

        def __call__(self, x, where):
            return self.second(jnp.abs(self.first(x, mask=where)), mask=where)

    batches = list(zip(np.split(DATA, [8, 32]), np.split(where, [8, 32]), strict=True))
    kept = [x[w[:, 0]] for x, w in batches]
    first = of(*kept)
    second = of(*(np.abs(normalized(x, first if sequential else of(x))) for x in kept))

    if api == "linen":
        model = Model()
        start = {"mean": jnp.zeros(4), "var": jnp.ones(4), "weight": jnp.zeros(4)}
        variables = {"batch_stats": {"first": start, "second": start}}
        recalibrate = partial(linen.recalibrate, model, sequential=sequential)
        mapped = jax.shard_map(recalibrate, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
        found = jax.jit(mapped)(variables, batches)["batch_stats"]
    else:
        graph, state = flax.nnx.split(ModelNnx())

        def recalibrated(state, batches):
            model = flax.nnx.merge(graph, state)
            nnx.recalibrate(model, batches, sequential=sequential)
            return flax.nnx.state(model)

        mapped = jax.shard_map(recalibrated, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
        found = flax.nnx.to_pure_dict(jax.jit(mapped)(state, batches))
    assert_stats(found["first"], first)
    assert_stats(found["second"], second)


def test_a_model_whose_step_is_a_shard_map():
    """`recalibrate` needs no more of a model than its `apply`: batches stream, each over all devices."""
    mesh, norm = mesh_of((4,), ("data",)), linen_norm(axis_name="data")

    class Sharded:
        def apply(self, variables, x, **options):
            one = partial(norm.apply, **options)
            specs = {"in_specs": (P(), P("data")), "out_specs": (P("data"), P())}
            return jax.shard_map(one, mesh=mesh, **specs)(variables, x)

    variables = norm.init(jax.random.key(0), DATA)
    assert_stats(linen.recalibrate(Sharded(), variables, iter(BATCHES))["batch_stats"], of(DATA))


@each_api
@pytest.mark.parametrize("finite", [True, False], ids=["finite", "not finite"])
def test_inside_jit_what_is_not_finite_changes_nothing(api, finite):
    """No error can be raised there."""
    batches = [b.copy() for b in BATCHES]
    if not finite:
        batches[1][2, 3] = np.nan
    if api == "linen":
        norm = linen_norm()
        variables = norm.init(jax.random.key(0), DATA)
        found = jax.jit(partial(linen.recalibrate, norm))(variables, batches)["batch_stats"]
    else:
        norm = nnx_norm()
        flax.nnx.jit(nnx.recalibrate)(norm, batches)
        found = flax.nnx.to_pure_dict(flax.nnx.state(norm, flax.nnx.BatchStat))
    start = {"mean": np.zeros(4), "var": np.ones(4), "weight": np.zeros(4)}
    assert_stats(found, of(DATA) if finite else start)
