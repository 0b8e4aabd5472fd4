"""Recalibrated models: statistics of the whole data in float64 numpy, and nothing else changed."""

import builtins
import importlib
import re
from functools import partial

import chex
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layers import OURS

import jaxnorm
from jaxnorm import linen, nnx

APIS = sorted(OURS)
DATA = np.random.default_rng(0).normal(3.0, 2.0, (60, 4)).astype(np.float32)
PARTITIONS = {"one": [60], "equal": [20, 20, 20], "unequal": [1, 40, 7, 12]}


def split(data, sizes):
    return np.split(data, np.cumsum(sizes)[:-1])


class Linen(flax.linen.Module):
    """Three norms in a row, with nets between them that let no moment through unchanged."""

    norm: type = linen.BatchNorm

    @flax.linen.compact
    def __call__(self, x, train=False):
        for number in range(3):
            x = self.norm(use_running_average=not train, name=f"norm{number}")(x)
            x = jnp.abs(flax.linen.Dense(4, name=f"dense{number}")(x))
        return x


class Nnx(flax.nnx.Module):
    def __init__(self, norm, rngs):
        for number in range(3):
            setattr(self, f"norm{number}", norm(4, rngs=rngs))
            setattr(self, f"dense{number}", flax.nnx.Linear(4, 4, rngs=rngs))

    def __call__(self, x, train=False):
        for number in range(3):
            x = getattr(self, f"norm{number}")(x, use_running_average=not train)
            x = jnp.abs(getattr(self, f"dense{number}")(x))
        return x


def build(api, norm="BatchNorm", package=None):
    """A model, and its variables as linen has them; the parameters are the same in both."""
    norm = getattr((package or {"linen": linen, "nnx": nnx})[api], norm)
    variables = Linen().init(jax.random.key(0), DATA[:2])
    if api == "linen":
        return Linen(norm), variables
    model = Nnx(norm, flax.nnx.Rngs(0))
    flax.nnx.update(model, flax.nnx.State(variables["params"]))
    return model, variables


def recalibrated(model, variables, batches, **options):
    """The statistics by norm, whatever the model is."""
    if isinstance(model, flax.nnx.Module):
        nnx.recalibrate(model, batches, **options)
        return flax.nnx.to_pure_dict(flax.nnx.state(model, flax.nnx.BatchStat))
    return linen.recalibrate(model, variables, batches, **options)["batch_stats"]


def reference(params, batches, *, sequential):
    """The statistics by norm in float64, layer after layer, of the batches together."""
    x, found = [np.asarray(b, np.float64) for b in batches], {}
    for number in range(3):
        whole = np.concatenate(x)
        found[f"norm{number}"] = {"mean": whole.mean(0), "var": whole.var(0)}
        scale, dense = params[f"norm{number}"], params[f"dense{number}"]
        for i, b in enumerate(x):
            of = whole if sequential else b
            y = (b - of.mean(0)) / np.sqrt(of.var(0) + 1e-5)
            y = y * np.asarray(scale["scale"], np.float64) + np.asarray(scale["bias"], np.float64)
            x[i] = np.abs(y @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"], np.float64))
    return found


def assert_stats(found, expected, rtol=2e-5):
    chex.assert_trees_all_close(jax.tree.map(np.float64, found), expected, rtol=rtol, atol=1e-6)


flexible = pytest.mark.flexible
each_api = pytest.mark.parametrize("api", APIS)


# ---------------------------------------------------------------- what the statistics are


@flexible
@each_api
@pytest.mark.parametrize("sequential", [False, True], ids=["batch", "sequential"])
@pytest.mark.parametrize("sizes", [[20, 20, 20], [5, 40, 15]], ids=str)
def test_a_model_against_numpy(api, sequential, sizes):
    model, variables = build(api)
    batches = split(DATA, sizes)
    found = recalibrated(model, variables, batches, sequential=sequential)
    assert_stats(found, reference(variables["params"], batches, sequential=sequential))


@flexible
@each_api
def test_any_partition_is_the_same(api):
    """For the first norm; with `sequential` for all, as none sees what a batch is."""
    one_pass, sequential = [], []
    for sizes in PARTITIONS.values():
        batches = split(DATA, sizes)
        one_pass.append(recalibrated(*build(api), batches)["norm0"])
        sequential.append(recalibrated(*build(api), batches, sequential=True))
    for others, first in ((one_pass[1:], one_pass[0]), (sequential[1:], sequential[0])):
        for other in others:
            chex.assert_trees_all_close(other, first, rtol=1e-5, atol=1e-6)


@flexible
@each_api
@pytest.mark.parametrize("sequential", [False, True], ids=["batch", "sequential"])
def test_the_mode_of_the_model_does_not_matter(api, sequential):
    runs = [
        recalibrated(*build(api), [DATA[:20], DATA[20:]], train=train, sequential=sequential)
        for train in (False, True)
    ]
    chex.assert_trees_all_equal(*runs)


@flexible
@each_api
@pytest.mark.parametrize("sequential", [False, True], ids=["batch", "sequential"])
def test_flax_s_own_norms(api, sequential):
    """They run as ours, and stay what they are."""
    model, variables = build(api, package={"linen": flax.linen, "nnx": flax.nnx})
    batches = split(DATA, PARTITIONS["unequal"])
    found = recalibrated(model, variables, batches, sequential=sequential)
    chex.assert_trees_all_equal(found, recalibrated(*build(api), batches, sequential=sequential))
    if api == "nnx":
        assert type(model.norm0) is flax.nnx.BatchNorm


def single(api, name="BatchNorm", *sizes, **options):
    """A norm alone, in evaluation, and its variables."""
    if api == "nnx":
        return getattr(nnx, name)(
            *(sizes or (4,)), use_running_average=True, rngs=flax.nnx.Rngs(0), **options
        ), None
    norm = getattr(linen, name)(use_running_average=True, **options)
    index = (0,) if name in ("DomainBatchNorm", "RecurrentBatchNorm") else ()
    return norm, norm.init(jax.random.key(0), jnp.ones((4, 3, 4)), *index)


def weighted(data, weights):
    """Mean and var in float64, with weights that broadcast to the data, [..., features]."""
    w = np.broadcast_to(np.asarray(weights, np.float64), data.shape).reshape(-1, data.shape[-1])
    data = np.asarray(data, np.float64).reshape(-1, data.shape[-1])
    mean = (w * data).sum(0) / w.sum(0)
    return {"mean": mean, "var": (w * (data - mean) ** 2).sum(0) / w.sum(0)}


CUBE = np.random.default_rng(1).normal(-2.0, 3.0, (24, 3, 4)).astype(np.float32)


@each_api
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BatchNorm", {}),
        ("BatchRenorm", {}),
        ("GhostBatchNorm", {"num_ghosts": 2}),
        ("EvoNormB0", {}),
        ("SwitchableNorm", {}),
        ("InputNorm", {"momentum": 0.9}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_family(api, name, options):
    found = recalibrated(*single(api, name, **options), split(CUBE, [4, 12, 8]))
    assert_stats(found, weighted(CUBE, 1))


@each_api
@pytest.mark.parametrize("kind", ["mask", "weights"])
def test_masks_and_weights_of_calls(api, kind):
    """A masked NaN is no statistic; weights count as they do in training."""
    rng = np.random.default_rng(2)
    where = (
        rng.random((24, 3, 1)) < 0.5 if kind == "mask" else rng.integers(0, 3, (24, 3, 1)).astype(np.float32)
    )
    data = np.where(where > 0, CUBE, np.nan)

    class Masked(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x, where):
            return linen.BatchNorm(use_running_average=True, momentum=None, name="norm")(x, **{kind: where})

    class MaskedNnx(flax.nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(4, momentum=None, use_running_average=True, rngs=flax.nnx.Rngs(0))

        def __call__(self, x, where):
            return self.norm(x, **{kind: where})

    model, variables = (Masked(), None) if api == "linen" else (MaskedNnx(), None)
    if api == "linen":
        variables = model.init(jax.random.key(0), CUBE, where)
    batches = list(zip(split(data, [4, 12, 8]), split(where, [4, 12, 8]), strict=True))
    batches.append((CUBE[:4] * 9, np.zeros_like(where[:4])))  # nothing of it counts
    found = recalibrated(model, variables, batches)["norm"]
    expected = weighted(CUBE, where) | {"weight": np.full(4, np.float64(where.sum()))}
    assert_stats(found, expected)


@each_api
@pytest.mark.parametrize("real", [False, True], ids=["mask", "weights"])
def test_unbiased_is_over_the_whole_count(api, real):
    """n / (n - 1) with the places of all batches, those of positive weight."""
    norm, variables = single(api, unbiased=True)
    where = np.random.default_rng(3).integers(0, 3, (24, 3, 1)).astype(np.float32 if real else bool)
    name = "weights" if real else "mask"

    if api == "linen":

        class Model(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x, where):
                return linen.BatchNorm(use_running_average=True, unbiased=True, name="norm")(
                    x, **{name: where}
                )

        model = Model()
        variables = model.init(jax.random.key(0), CUBE, where)
    else:

        class ModelNnx(flax.nnx.Module):
            def __init__(self):
                self.norm = norm

            def __call__(self, x, where):
                return self.norm(x, **{name: where})

        model = ModelNnx()
    batches = list(zip(split(CUBE, [4, 12, 8]), split(where, [4, 12, 8]), strict=True))
    expected = weighted(CUBE, where)
    n = (where > 0).sum()
    expected["var"] *= n / (n - 1)
    assert_stats(recalibrated(model, variables, batches)["norm"], expected)


@each_api
@pytest.mark.parametrize(
    "options", [{"momentum": None}, {"debias": True}, {"debias": True, "momentum": None}], ids=str
)
def test_the_weight_is_the_count_of_a_cumulative_average_and_else_one(api, options):
    norm, variables = single(api, **options)
    found = recalibrated(norm, variables, split(CUBE, [4, 12, 8]))
    assert_stats(found, weighted(CUBE, 1) | {"weight": np.full(4, 72.0 if "momentum" in options else 1.0)})


@each_api
def test_a_checkpoint_of_flax_gets_the_weight_that_training_would_store(api):
    norm, variables = single(api, momentum=None)
    if api == "linen":
        variables = {**variables, "batch_stats": {k: variables["batch_stats"][k] for k in ("mean", "var")}}
    else:
        del norm.weight
    found = recalibrated(norm, variables, [CUBE])
    assert (found["weight"] == 72).all()


@each_api
def test_statistics_of_before_do_not_count(api):
    """Neither their values nor their weight, NaN included."""
    norm, variables = single(api, momentum=None)
    old = {"mean": jnp.full(4, jnp.nan), "var": jnp.full(4, -1.0), "weight": jnp.full(4, 1e6)}
    if api == "linen":
        variables = {**variables, "batch_stats": old}
    else:
        flax.nnx.update(norm, flax.nnx.State(old))
    found = recalibrated(norm, variables, split(CUBE, [4, 20]))
    assert_stats(found, weighted(CUBE, 1) | {"weight": np.full(4, 72.0)})


@each_api
@pytest.mark.parametrize("name", ["DecorrelatedBatchNorm", "IterNorm"])
def test_covariances_are_statistics_too(api, name):
    norm, variables = single(api, name, group_size=2)
    found = recalibrated(norm, variables, split(CUBE, [4, 12, 8]))
    groups = CUBE.reshape(-1, 2, 2).astype(np.float64)
    cov = np.stack([np.cov(groups[:, g].T, bias=True) for g in range(2)])
    assert_stats(found, {"mean": groups.mean(0), "var": cov})


@each_api
def test_a_bank_by_domain(api):
    """Each domain by its own batches; one without a batch stays as it was."""
    norm, variables = single(api, "DomainBatchNorm", num_domains=3, momentum=None)
    batches = [(CUBE[:4], 0), (CUBE[4:16], 2), (CUBE[16:], np.int32(0))]
    found = recalibrated(norm, variables, batches)
    first, last = weighted(np.concatenate([CUBE[:4], CUBE[16:]]), 1), weighted(CUBE[4:16], 1)
    expected = {
        name: np.stack([first[name], np.full(4, start), last[name]])
        for name, start in (("mean", 0), ("var", 1))
    }
    assert_stats(found, expected | {"weight": np.repeat([[36.0], [0.0], [36.0]], 4, 1)})


@each_api
def test_a_norm_of_the_user_s_own(api):
    package = OURS[api]

    class Stream(package.BatchNorm):
        limit: float = 1.0

        def normalize(self, x, stats, *, train, **call):
            _, stats = jaxnorm.batch_norm(x, stats, train=train, **call)
            y, _ = jaxnorm.batch_norm(x, stats, train=False, **call)
            return jnp.clip(y, -self.limit, self.limit), stats

    norm = Stream(4, rngs=flax.nnx.Rngs(0)) if api == "nnx" else Stream(use_running_average=True)
    variables = None if api == "nnx" else norm.init(jax.random.key(0), CUBE)
    assert_stats(recalibrated(norm, variables, split(CUBE, [4, 20])), weighted(CUBE, 1))


@each_api
def test_narrow_complex_and_several_axes(api):
    x = (CUBE + 1j * CUBE[::-1]).astype(np.complex64)
    norm, variables = single(api, dtype=jnp.complex64)
    if api == "linen":
        variables = norm.init(jax.random.key(0), x)
    found = recalibrated(norm, variables, split(x, [4, 20]))
    flat = x.reshape(-1, 4).astype(np.complex128)
    np.testing.assert_allclose(found["mean"], flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["var"], flat.var(0), rtol=1e-5)

    narrow = jnp.asarray(CUBE, jnp.bfloat16)
    norm, variables = single(api, "BatchNorm", 12, axis=(-2, -1))
    if api == "linen":
        variables = norm.init(jax.random.key(0), narrow)
    found = recalibrated(norm, variables, [narrow[:4], narrow[4:]])
    wide = np.asarray(narrow, np.float64)
    for name, expected in (("mean", wide.mean(0)), ("var", wide.var(0))):
        assert found[name].dtype == jnp.float32
        np.testing.assert_allclose(found[name].reshape(3, 4), expected, rtol=1e-5)


# ---------------------------------------------------------------- what stays as it is


@flexible
@each_api
def test_parameters_and_all_else_are_untouched(api):
    model, variables = build(api)
    before = flax.nnx.clone(model) if api == "nnx" else jax.tree.map(np.array, variables)
    batches = split(DATA, [20, 40])
    if api == "linen":
        variables = {**variables, "cache": {"length": jnp.ones(())}}
        after = linen.recalibrate(model, variables, batches, mutable=["cache"], train=True)
        assert after.keys() == variables.keys()
        for name in ("params", "cache"):
            assert all(
                a is b for a, b in zip(*map(jax.tree.leaves, (after[name], variables[name])), strict=True)
            )
        chex.assert_trees_all_equal(variables["batch_stats"], before["batch_stats"])
        return
    nnx.recalibrate(model, batches)
    for kind in (flax.nnx.Param, flax.nnx.RngState):
        chex.assert_trees_all_equal(flax.nnx.state(model, kind), flax.nnx.state(before, kind))
    assert flax.nnx.graphdef(model) == flax.nnx.graphdef(before)


def test_frozen_dicts_come_back_as_frozen_dicts():
    norm, variables = single("linen")
    frozen = linen.recalibrate(norm, flax.core.freeze(variables), [CUBE])
    assert isinstance(frozen, flax.core.FrozenDict)
    chex.assert_trees_all_equal(frozen.unfreeze(), linen.recalibrate(norm, variables, [CUBE]))


@flexible
@each_api
def test_a_frozen_norm_stays_and_evaluates(api):
    """Behind it, norms see what it makes of its stored statistics."""
    model, variables = build(api)
    chosen = flax.nnx.PathContains("norm0")
    if api == "linen":
        variables = linen.freeze(variables, chosen)
    else:
        nnx.freeze(model, chosen)
    batches = split(DATA, [20, 40])
    found = recalibrated(model, variables, batches)
    np.testing.assert_array_equal(found["norm0"]["mean"], 0)
    np.testing.assert_array_equal(found["norm0"]["var"], 1)
    x = DATA.astype(np.float64) / np.sqrt(1 + 1e-5)
    dense = jax.tree.map(np.float64, variables["params"]["dense0"])
    seen = np.abs(x @ dense["kernel"] + dense["bias"])
    assert_stats({k: found["norm1"][k] for k in ("mean", "var")}, {"mean": seen.mean(0), "var": seen.var(0)})


@each_api
def test_nothing_changes_where_all_is_frozen(api):
    norm, variables = single(api)
    if api == "linen":
        frozen = linen.freeze(variables, ...)
        after = linen.recalibrate(norm, frozen, [CUBE])
        assert after == frozen and type(after["batch_stats"]) is type(frozen["batch_stats"])
    else:
        nnx.freeze(norm, ...)
        nnx.recalibrate(norm, [CUBE])
        assert norm.frozen and (norm.mean[...] == 0).all()


@flexible
@each_api
def test_the_step_of_a_schedule_stays(api):
    norm, variables = single(api, momentum=optax.constant_schedule(0.9))
    step = jnp.asarray(7, jnp.int32)
    if api == "linen":
        variables = {**variables, "batch_stats": {**variables["batch_stats"], "step": step}}
    else:
        norm.step.set_value(step)
    found = recalibrated(norm, variables, [CUBE])
    assert found["step"] == 7
    assert_stats({k: found[k] for k in ("mean", "var")}, weighted(CUBE, 1))


@each_api
def test_statistics_of_weights_and_targets_stay(api):
    """Spectral norm's u and sigma, and PopArt's statistics, are none of a norm's inputs."""
    if api == "linen":

        class Model(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x):
                x = linen.BatchNorm(use_running_average=True, name="norm")(x)
                x = linen.SpectralNorm(flax.linen.Dense(4), name="spectral")(x, update_stats=True)
                return linen.PopArt(2, name="head")(x)

        model = Model()
        variables = model.init(jax.random.key(0), DATA)
        after = linen.recalibrate(model, variables, [DATA])["batch_stats"]
        before = variables["batch_stats"]
    else:

        class ModelNnx(flax.nnx.Module):
            def __init__(self, rngs):
                self.norm = nnx.BatchNorm(4, rngs=rngs)
                self.spectral = nnx.SpectralNorm(flax.nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
                self.head = nnx.PopArt(4, 2, rngs=rngs)

            def __call__(self, x):
                return self.head(self.spectral(self.norm(x), update_stats=True))

        model = ModelNnx(flax.nnx.Rngs(0))
        before = flax.nnx.to_pure_dict(flax.nnx.state(model, flax.nnx.BatchStat))
        nnx.recalibrate(model, [DATA])
        after = flax.nnx.to_pure_dict(flax.nnx.state(model, flax.nnx.BatchStat))
    norm = after.pop("norm")
    before.pop("norm")
    chex.assert_trees_all_equal(after, before)
    assert_stats(norm, weighted(DATA, 1))


# ---------------------------------------------------------------- dropout


class Dropped(flax.nnx.Module):
    def __init__(self):
        rngs = flax.nnx.Rngs(0)
        self.dropout = flax.nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(1, rngs=rngs)

    def __call__(self, x, deterministic=False):
        return self.norm(self.dropout(x, deterministic=deterministic))


@flexible
def test_dropout_of_linen_differs_between_batches():
    """The caller decides about it, by its keywords; the first batch has the given keys."""

    class Model(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x, deterministic):
            x = flax.linen.Dropout(0.5)(x, deterministic=deterministic)
            return linen.BatchNorm(use_running_average=True, momentum=None, name="norm")(x)

    model, x = Model(), jnp.ones((50, 1))
    variables = model.init(jax.random.key(0), x, True)

    def mean(number, **options):
        return float(
            linen.recalibrate(model, variables, [x] * number, **options)["batch_stats"]["norm"]["mean"][0]
        )

    rngs = {"dropout": jax.random.key(1)}
    assert mean(2, deterministic=True) == 1
    first = flax.linen.Dropout(0.5, deterministic=False).apply({}, x, rngs=rngs)
    assert first.shape == x.shape and 0.5 < mean(1, deterministic=False, rngs=rngs) < 1.5
    assert mean(1, deterministic=False, rngs=rngs) != mean(2, deterministic=False, rngs=rngs)
    assert mean(2, deterministic=False, rngs=rngs) == mean(2, deterministic=False, rngs=rngs)


@flexible
def test_dropout_of_nnx_differs_between_batches_and_draws_no_key():
    model, x = Dropped(), jnp.ones((50, 1))
    means = []
    for number in (1, 2, 2):
        nnx.recalibrate(model, [x] * number)
        means.append(float(model.norm.mean[0]))
    assert means[0] != means[1] == means[2]
    assert model.dropout.rngs.count[...] == 0
    nnx.recalibrate(model, [x, x], deterministic=True)
    assert model.norm.mean[0] == 1


# ---------------------------------------------------------------- compiled once


@flexible
@each_api
@pytest.mark.parametrize("sequential", [False, True], ids=["batch", "sequential"])
def test_compiled_once_for_all_batches_of_one_shape(api, sequential):
    traces = []
    if api == "linen":

        class Counted(Linen):
            def __call__(self, x, train=False):
                traces.append(x.shape)
                return super().__call__(x, train)

        model, variables = Counted(), build(api)[1]
    else:

        class CountedNnx(Nnx):
            def __call__(self, x, train=False):
                traces.append(x.shape)
                return super().__call__(x, train)

        model, variables = CountedNnx(nnx.BatchNorm, flax.nnx.Rngs(0)), None
    recalibrated(model, variables, split(DATA, [10, 10, 20, 10, 10]), sequential=sequential, train=False)
    assert traces == [(10, 4), (20, 4)] * (2 if sequential else 1)


def test_progress_shows_a_bar(capsys):
    pytest.importorskip("rich")
    norm, variables = single("linen")
    linen.recalibrate(norm, variables, [CUBE] * 3, progress=True)
    shown = capsys.readouterr()
    assert "recalibrate" in shown.out + shown.err


def test_progress_prefers_tqdm(monkeypatch):
    labels = []

    class Tqdm:
        @staticmethod
        def tqdm(batches, desc):
            labels.append(desc)
            return batches

    found = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: Tqdm if name == "tqdm" else found(name))
    norm, variables = single("linen")
    linen.recalibrate(norm, variables, [CUBE], progress=True)
    assert labels == ["recalibrate"]


# ---------------------------------------------------------------- what fails, and changes nothing


def exactly(text):
    """For pytest's `match`, which reads the notes beneath an error, too."""
    return rf"^{re.escape(text)}(\n|$)"


def attempt(api, batches, error, text, **options):
    """The whole text of an error, after which the statistics are those of before."""
    model, variables = build(api)
    found = recalibrated(model, variables, [DATA])
    if api == "linen":
        variables = {**variables, "batch_stats": found}
        kept = jax.tree.map(np.array, variables)
    else:
        kept = jax.tree.map(np.array, flax.nnx.to_pure_dict(flax.nnx.state(model)))
    with pytest.raises(error, match=exactly(text)):
        recalibrated(model, variables, batches, **options)
    now = variables if api == "linen" else flax.nnx.to_pure_dict(flax.nnx.state(model))
    chex.assert_trees_all_equal(kept, now)


@flexible
@each_api
def test_an_iterator_that_raises(api):
    def batches():
        yield DATA[:20]
        raise OSError("the disk is gone")

    attempt(api, batches(), OSError, "the disk is gone")


@flexible
@each_api
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_that_is_not_finite(api, place):
    batches = split(DATA.copy(), [20, 20, 20])
    batches[place][3, 1] = [np.nan, np.inf, -np.inf][place]
    text = (
        f"recalibrate: batch {place}, counted from 0, gives norm0, norm1, norm2 statistics that are not "
        "finite; leave out or mask what is not finite; nothing was changed."
    )
    attempt(api, batches, ValueError, text)
    attempt(api, batches, ValueError, text, sequential=True)


@flexible
@each_api
def test_a_variance_that_overflows(api):
    text = (
        "recalibrate: batch 1, counted from 0, gives norm0 statistics that are not finite; leave out or "
        "mask what is not finite; nothing was changed."
    )
    far = DATA * np.float32([1, 1, 1, 1e25])
    attempt(api, [DATA, far], ValueError, text)
    text = text.replace("batch 1, counted from 0, gives", "all batches together give")
    attempt(api, [DATA, DATA + np.float32([0, 0, 0, 1e25])], ValueError, text)


@flexible
@each_api
def test_no_batch(api):
    text = "recalibrate: batches is empty; give one batch or more."
    attempt(api, [], ValueError, text)
    attempt(api, iter(()), ValueError, text)


@flexible
@each_api
@pytest.mark.parametrize(
    ("batches", "kind"),
    [
        ((x for x in [DATA]), "a generator"),
        (iter([DATA]), "an iterator (list_iterator)"),
        (zip([DATA]), "an iterator (zip)"),
    ],
    ids=["generator", "iterator", "zip"],
)
def test_sequential_reads_the_batches_again(api, batches, kind):
    text = (
        f"recalibrate: sequential=True reads batches several times, and {kind} can be read once; pass a "
        "list, or an object whose __iter__ starts from the beginning."
    )
    attempt(api, batches, TypeError, text, sequential=True)


@flexible
@each_api
def test_a_list_is_no_batch(api):
    text = (
        "recalibrate: batch 1, counted from 0, is a list; give an array, or a tuple of the model's "
        "positional arguments."
    )
    attempt(api, [DATA, [DATA, DATA]], TypeError, text)


@flexible
@each_api
def test_a_model_that_raises(api):
    model, variables = build(api)
    with pytest.raises((ValueError, TypeError, flax.errors.ScopeParamShapeError)):
        recalibrated(model, variables, [DATA, DATA[:, :2]])
    if api == "nnx":
        assert (model.norm0.mean[...] == 0).all()


@flexible
@each_api
def test_progress_without_its_packages(api, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name in ("tqdm", "rich.progress"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(importlib, "import_module", without)
    text = "recalibrate: progress=True needs tqdm or rich; install one of them, or jaxnorm[progress]."
    attempt(api, [DATA], ImportError, text, progress=True)


@flexible
def test_what_is_no_model():
    text = "recalibrate: variables must be a dict, got list; pass the variables that init returned."
    with pytest.raises(TypeError, match=exactly(text)):
        linen.recalibrate(Linen(), [], [DATA])
    text = (
        "recalibrate: the model has no norm that keeps statistics in batch_stats; pass all variables that "
        "init returned, or a model with batch norms."
    )
    with pytest.raises(ValueError, match=exactly(text)):
        linen.recalibrate(Linen(), {"params": {}}, [DATA])
    text = "recalibrate: the model has no norm that keeps statistics; pass a model with batch norms."
    with pytest.raises(ValueError, match=exactly(text)):
        nnx.recalibrate(flax.nnx.Linear(4, 4, rngs=flax.nnx.Rngs(0)), [DATA])
    text = (
        "recalibrate: model must be an nnx.Module, got dict; pass the model itself, not its state or its "
        "parameters."
    )
    with pytest.raises(TypeError, match=exactly(text)):
        nnx.recalibrate({}, [DATA])


@each_api
def test_a_norm_that_no_batch_reaches_is_named(api):
    """One that is not called, one that is masked whole, and a norm that is not ours."""
    text = (
        "recalibrate: other, unused keep their statistics: no batch reached them, or they are no batch norm "
        "of jaxnorm or Flax."
    )
    if api == "linen":

        class Other(flax.linen.BatchNorm):
            @flax.linen.compact
            def __call__(self, x):
                self.variable("batch_stats", "mean", jnp.zeros, (4,))
                self.variable("batch_stats", "var", jnp.ones, (4,))
                return x

        class Model(flax.linen.Module):
            def setup(self):
                self.norm, self.unused = (linen.BatchNorm(use_running_average=True) for _ in range(2))
                self.other = Other()

            def __call__(self, x):
                return self.unused(self.short(x))

            def short(self, x):
                return self.other(self.norm(x))

        model = Model()
        variables, options = model.init(jax.random.key(0), DATA), {"method": "short"}
    else:

        class OtherNnx(flax.nnx.BatchNorm):
            def __call__(self, x):
                return x

        class ModelNnx(flax.nnx.Module):
            def __init__(self, rngs):
                self.norm, self.unused = (nnx.BatchNorm(4, rngs=rngs) for _ in range(2))
                self.other = OtherNnx(4, rngs=rngs)

            def __call__(self, x):
                return self.unused(self.other(self.norm(x)), mask=jnp.zeros((1, 1), bool))

        model, variables, options = ModelNnx(flax.nnx.Rngs(0)), None, {}
    with pytest.warns(UserWarning, match=exactly(text)):
        found = recalibrated(model, variables, [DATA], **options)
    assert_stats(found["norm"], weighted(DATA, 1))
    for name in ("other", "unused"):
        assert (found[name]["mean"] == 0).all() and (found[name]["var"] == 1).all()


@each_api
def test_positional_flags_and_arrays_of_other_libraries(api):
    """A bool decides what is traced, as in the model's own call; whatever numpy reads is an array."""

    class Foreign:
        def __array__(self, dtype=None, copy=None):
            return DATA

    model, variables = build(api)
    with jax.numpy_dtype_promotion("standard"):
        found = recalibrated(model, variables, [(Foreign(), True), (DATA, False)])
    np.testing.assert_allclose(found["norm0"]["mean"], DATA.mean(0), rtol=1e-5)


def test_a_recalibrated_model_evaluates_as_numpy_does():
    norm, variables = single("linen", use_scale=False, use_bias=False)
    variables = linen.recalibrate(norm, variables, split(CUBE, [4, 20]))
    flat = CUBE.reshape(-1, 4).astype(np.float64)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    y = partial(norm.apply, variables)(CUBE)
    np.testing.assert_allclose(y.reshape(-1, 4), expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- the options of statistics


@each_api
def test_what_every_k_has_gathered_is_cleared(api):
    """In the middle of an accumulation: the next call is the first of k."""
    norm, variables = single(api, every_k=3)
    if api == "linen":
        _, updated = norm.clone(use_running_average=False).apply(variables, CUBE, mutable=["batch_stats"])
        variables = {**variables, **updated}
        before = updated["batch_stats"]
    else:
        norm(CUBE, use_running_average=False)
        before = flax.nnx.to_pure_dict(flax.nnx.state(norm, flax.nnx.BatchStat))
    assert (before["pending_calls"] == 1).all() and (before["mean"] == 0).all()
    found = recalibrated(norm, variables, split(CUBE, [4, 20]))
    assert found.keys() == before.keys()
    for name in found.keys() - {"mean", "var"}:
        np.testing.assert_array_equal(found[name], np.zeros_like(before[name]))
    assert_stats({k: found[k] for k in ("mean", "var")}, weighted(CUBE, 1))


@each_api
@pytest.mark.parametrize("unbiased", [False, True], ids=["biased", "unbiased"])
def test_instance_norm_averages_over_instances(api, unbiased):
    """As PyTorch's running statistics are: the spread between instances is not in the variance."""
    norm, variables = single(api, "InstanceNorm", track_stats=True, unbiased=unbiased)
    found = recalibrated(norm, variables, split(CUBE, [4, 12, 8]))
    wide = CUBE.astype(np.float64)
    assert_stats(found, {"mean": wide.mean((0, 1)), "var": wide.var(1, ddof=int(unbiased)).mean(0)})


@flexible
@each_api
@pytest.mark.parametrize("sequential", [False, True], ids=["batch", "sequential"])
def test_a_blend_is_for_evaluation_alone(api, sequential):
    """Norms behind one with a blend see what its stored statistics make, or the batch's."""
    model, variables = build(api)
    expected = recalibrated(model, variables, [DATA[:20], DATA[20:]], sequential=sequential)
    if api == "linen":
        model = Linen(partial(linen.BatchNorm, blend=0.5))
    else:
        model = build(api)[0]
        model.set_attributes(blend=0.5)
    found = recalibrated(model, variables, [DATA[:20], DATA[20:]], sequential=sequential)
    chex.assert_trees_all_equal(found, expected)


@each_api
def test_norms_that_track_nothing_are_no_norms_that_remember(api):
    if api == "linen":

        class Model(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x):
                x = linen.BatchNorm(track_stats=False)(x)
                return linen.BatchNorm(use_running_average=True, name="norm")(x)

        model = Model()
        variables = model.init(jax.random.key(0), DATA)
    else:
        norms = [nnx.BatchNorm(4, track_stats=track, rngs=flax.nnx.Rngs(0)) for track in (False, True)]
        model, variables = flax.nnx.Sequential(*norms), None
    found = recalibrated(model, variables, [DATA])
    norm = found["norm"] if api == "linen" else found["layers"][1]
    np.testing.assert_allclose(norm["mean"], 0, atol=1e-6)
    np.testing.assert_allclose(norm["var"], 1, rtol=1e-4)


@each_api
def test_instance_norm_keeps_no_cumulative_average(api):
    text = (
        "InstanceNorm: momentum=None is a cumulative average, which this norm does not keep; choose the "
        "fraction of the OLD average that is kept, as 0.9."
    )
    with pytest.raises(ValueError, match=exactly(text)):
        single(api, "InstanceNorm", track_stats=True, momentum=None)
