"""Six trainings broken on purpose, each found with its kind and no other; healthy ones without finding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from runs import held_out, train_linen, train_nnx

from jaxnorm import linen as jn
from jaxnorm import nnx as jx

pytestmark = pytest.mark.slow  # doctests and the tests beside it are what `make test` runs


def kinds(report):
    found = {}
    for path, kind, _, _ in report.findings:
        found.setdefault(kind, []).append(path)
    return found


class Linen:
    train = staticmethod(functools.cache(train_linen))

    @staticmethod
    def diagnose(run, x, **call):
        return jn.diagnose(*run, x, **call)

    @staticmethod
    def with_kernel(run, change):
        """The run with another kernel in its first layer."""
        model, variables = run
        kernel = variables["params"]["a"]["Dense_0"]["kernel"]
        new = jax.tree.map(lambda v: change(v) if v is kernel else v, variables)
        return model, new


class Nnx:
    train = staticmethod(functools.cache(train_nnx))

    @staticmethod
    def diagnose(run, x, **call):
        return jx.diagnose(run, x, **call)

    @staticmethod
    def with_kernel(run, change):
        copy = nnx.clone(run)
        copy.a.dense.kernel[...] = change(copy.a.dense.kernel[...])
        return copy


@pytest.fixture(params=[Linen, Nnx], ids=["linen", "nnx"])
def api(request):
    return request.param


BOTH = ["a/norm", "b/norm"]


@pytest.mark.parametrize("size", [32, 64, 360])
def test_a_healthy_run(api, size):
    assert kinds(api.diagnose(api.train(), held_out(size))) == {}


def test_never_updated(api):
    assert kinds(api.diagnose(api.train(keep=False), held_out())) == {"never_updated": BOTH}


def test_momentum_mistaken_for_pytorch_s(api):
    report = api.diagnose(api.train(momentum=0.1), held_out())
    assert kinds(report) == {"momentum": BOTH}
    assert report.findings[0].value == pytest.approx(1 / 0.9)
    assert report.findings[0].advice == (
        "momentum=0.1 is the fraction of the OLD value that is kept, so that the average holds 1.1 batches. "
        "PyTorch's momentum=0.1 is momentum=0.9 here: set that, then train on, or recalibrate."
    )


@pytest.mark.parametrize("trained_by_two", [False, True])
def test_a_batch_of_two(api, trained_by_two):
    run = api.train(size=2, rate=0.01) if trained_by_two else api.train()
    report = api.diagnose(run, held_out(2))
    assert kinds(report) == {"small_batch": BOTH}
    assert report.findings[0].value == 2
    assert report.findings[0].advice == (
        "Statistics of 2 samples are noisy: by 0.71 deviations in the mean and by 141 % in the "
        "variance. Train "
        "with GroupNorm, BatchRenorm, or axis_name across devices; every_k steadies the average. Whether the "
        "data have shifted shows from 8 samples on."
    )


@pytest.mark.parametrize("shifted", [lambda x: x + 0.5, lambda x: 1 - x, lambda x: 0.3 * x, lambda x: 3 * x])
def test_a_shift_between_training_and_test(api, shifted):
    """The second norm sees no shift: norm and scale have taken it away."""
    report = api.diagnose(api.train(), shifted(held_out()))
    assert kinds(report) == {"shift": ["a/norm"]}
    assert report.findings[0].value > 1


def test_dead_channels(api):
    run = api.with_kernel(api.train(), lambda kernel: kernel.at[:, 3:8].set(0))
    report = api.diagnose(run, held_out())
    assert kinds(report) == {"dead_channels": ["a/norm"]}
    assert report.findings[0].value == 5


@pytest.mark.parametrize("rate", [1e3, 1e6])
def test_a_diverged_run_explodes(api, rate):
    report = api.diagnose(api.train(rate=rate, steps=30), held_out())
    assert "exploding" in kinds(report)
    assert kinds(report).keys() <= {"exploding", "non_finite"}


def test_a_diverged_run_is_not_finite(api):
    """The stored statistics stay finite, since a norm stores no others."""
    run = api.with_kernel(api.train(), lambda kernel: kernel.at[0, 0].set(jnp.nan))
    report = api.diagnose(run, held_out())
    assert kinds(report) == {"non_finite": BOTH}
    assert [finding.value for finding in report.findings] == [1, 16]


# ---------------------------------------------------------------- healthy in other ways


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.99, "debias": True},
        {"momentum": None},
        {"momentum": 0.8},
        {"unbiased": True},
        {"use_scale": False, "use_bias": False},
        pytest.param({"dtype": jnp.bfloat16}, marks=pytest.mark.flexible),
        {"size": 512, "rate": 0.3},
        {"size": 16},
        {"axis_name": "data"},
    ],
    ids=str,
)
def test_other_healthy_options(api, options):
    if "axis_name" in options:  # trained without, as on one device
        run = api.train()
        report = api.diagnose(
            Linen_with(run, options) if api is Linen else Nnx_with(run, options), held_out()
        )
    else:
        report = api.diagnose(api.train(**options), held_out())
    assert kinds(report) == {}


def Linen_with(run, options):
    model, variables = run
    return model.clone(options={**model.options, **options}), variables


def Nnx_with(run, options):
    copy = nnx.clone(run)
    copy.set_attributes(**options)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("GhostBatchNorm", {"num_ghosts": 4}),
        ("BatchRenorm", {}),
        ("SwitchableNorm", {}),
        ("EvoNormB0", {}),
        ("IterNorm", {}),
    ],
)
def test_healthy_relatives(api, name, options):
    norm = getattr(jn if api is Linen else jx, name)
    report = api.diagnose(api.train(norm, rate=0.05, **options), held_out())
    assert kinds(report) == {}
    assert [n.layer for n in report.norms] == [name] * 2


def test_a_masked_batch_counts_its_own_samples(api):
    x = held_out().at[40:].set(jnp.nan)
    report = api.diagnose(api.train(), x, mask=jnp.arange(128)[:, None] < 40)
    assert kinds(report) == {}
    assert [norm.samples for norm in report.norms] == [40, 40]


def test_fine_tuning_with_frozen_norms(api):
    if api is Linen:
        model, variables = api.train(momentum=0.1)
        run = model, jn.freeze(variables, ...)
    else:
        run = nnx.clone(api.train(momentum=0.1))
        jx.freeze(run, ...)
    assert kinds(api.diagnose(run, held_out())) == {}
    assert kinds(api.diagnose(run, held_out(2))) == {}
    assert kinds(api.diagnose(run, held_out() + 0.5))["shift"][0] == "a/norm"


@pytest.mark.slow
def test_noise_is_that_of_the_mean(api):
    """The mean of one batch after the other varies as the report says."""
    run = api.train()
    means, told = [], []
    for start in range(0, 1280, 32):
        (norm, *_) = api.diagnose(run, held_out(1280)[start : start + 32]).norms
        means.append(norm.batch.mean)
        told.append(norm.noise[0])
    spread = np.std(means, axis=0) / np.sqrt(norm.stored.var)
    assert np.median(spread) == pytest.approx(np.mean(told), rel=0.2)
