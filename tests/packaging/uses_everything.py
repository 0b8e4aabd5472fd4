"""Uses every public name of jaxnorm, as a program of its users does.

mypy and pyright check it, and it runs, against an installed wheel: see test_distributions.py. Calls are
traced and not computed, except those of whole models. `assert_type` says what a checker has to infer.
"""

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax import Array

import jaxnorm

X = jnp.ones((6, 4, 8))  # [batch, length, features]
CONDITION = jnp.ones((6, 3))
LABELS = jnp.zeros(6, jnp.int32)
C = 8


def statistics() -> Array:
    m = jaxnorm.moments(X, (0, 1))
    assert_type(m, jaxnorm.Moments)
    stats = jaxnorm.initial_stats(C, weight=0.0)
    stats = jaxnorm.ema(jaxnorm.merge(stats, m), m, decay=0.9)
    assert_type(stats, jaxnorm.Moments)
    parts = jaxnorm.moments(X, 1)
    m = jaxnorm.combine(parts)
    y = jaxnorm.unstandardize(jaxnorm.standardize(X, m), stats)
    assert_type(y, Array)
    return y


def norms_without_state() -> list[Array]:
    ones = jnp.ones(C)
    threshold = jnp.zeros(C)
    assert_type(jaxnorm.layer_norm(X), Array)
    return [
        jaxnorm.layer_norm(X, scale=ones, bias=ones),
        jaxnorm.rms_norm(X, scale=ones),
        jaxnorm.group_norm(X, 2),
        jaxnorm.instance_norm(X, where=X > 0),
        jaxnorm.unit_norm(X),
        jaxnorm.local_response_norm(X, size=3),
        jaxnorm.adaptive_instance_norm(X, X),
        jaxnorm.adaptive_layer_norm(X, X, X),
        jaxnorm.film(X, ones, ones),
        jaxnorm.evonorm_s0(X, ones, num_groups=2),
        jaxnorm.pixel_norm(X),
        jaxnorm.scale_norm(X, scale=1.0),
        jaxnorm.filter_response_norm(X, threshold=threshold),
        jaxnorm.global_response_norm(X, scale=ones),
        jaxnorm.dynamic_tanh(X, 0.5),
        jaxnorm.dynamic_erf(X, 0.5, 0.0),
        jaxnorm.gated_rms_norm(X, X),
        jaxnorm.partial_rms_norm(X, num_features=4),
        *jaxnorm.qk_norm(X, X),
    ]


def norms_with_state() -> list[Array]:
    stats = jaxnorm.initial_stats(C)
    ones = jnp.ones(C)
    y, new = jaxnorm.batch_norm(X, stats, train=True, axis_name=jaxnorm.IfBound("batch"))
    assert_type(y, Array)
    assert_type(new, jaxnorm.Moments)
    ys = [y]

    def per_device(x: Array) -> Array:
        alone = jaxnorm.InGroups("batch", [[0]])
        return jaxnorm.batch_norm(x, stats, train=True, axis_name=alone)[0]

    ys += [jax.pmap(per_device, axis_name="batch")(X[:1]), jaxnorm.blended_batch_norm(X, stats, alpha=0.5)]
    bank = jaxnorm.initial_stats((3, C))
    logits = jnp.zeros(3)
    table = jnp.ones((5, C))
    covariance = jaxnorm.initial_covariance(C, group_size=4)
    assert_type(covariance, jaxnorm.Covariance)
    for y, _ in (
        jaxnorm.batch_renorm(X, stats, train=True),
        jaxnorm.ghost_batch_norm(X, stats, train=True, num_ghosts=2),
        jaxnorm.bank_norm(X, bank, 1, train=True),
        jaxnorm.conditional_batch_norm(X, stats, LABELS, train=True, scale=table, bias=table),
        jaxnorm.spade(X, stats, X, X, train=True),
        jaxnorm.evonorm_b0(X, stats, ones, train=True),
        jaxnorm.input_norm(X, stats, train=True, clip=5.0),
        jaxnorm.running_instance_norm(X, stats, train=True),
        jaxnorm.switchable_norm(X, stats, logits, logits, train=True),
    ):
        ys.append(y)
    y, covariance = jaxnorm.decorrelated_batch_norm(X, covariance, train=True)
    forecast, m = jaxnorm.reversible_norm(X, axis=1)
    return [*ys, y, jaxnorm.unstandardize(forecast, m)]


def weights() -> dict[str, Array]:
    params = {"kernel": jnp.ones((3, C)), "bias": jnp.ones(C)}
    params = jaxnorm.weight_norm(params, scale=jaxnorm.weight_lengths(params))
    params = jaxnorm.weight_standardize(params)
    stats = jaxnorm.initial_spectral_stats(params, jax.random.key(0))
    params, stats = jaxnorm.spectral_norm(params, stats)
    one: jaxnorm.SpectralStats = stats["kernel"]
    kernel = jaxnorm.weight_demodulate(jnp.ones((3, 4, C)), jnp.ones((6, 4)))
    popped = jaxnorm.pop_art(params["kernel"], params["bias"], jaxnorm.initial_stats(C), jnp.ones((6, C)))
    return {**params, "sigma": one.sigma, "modulated": kernel, "popped": popped[0]}


def after_training() -> list[Array]:
    stats, scale = jaxnorm.initial_stats(C), jnp.ones(C)
    kernel, bias = jaxnorm.population.fold_batch_norm(jnp.ones((4, C)), None, stats, scale=scale)
    assert_type(kernel, Array)
    kernel, bias = jaxnorm.population.fold_into_next(jnp.ones((C, 4)), None, stats, scale=scale)
    kernel, shifted = jaxnorm.population.fold_scale(kernel, bias, scale=scale)
    assert_type(shifted, Array | None)  # None where there was none
    pending = jaxnorm.population.initial_pending(stats)
    assert_type(pending, jaxnorm.population.Pending)
    m = jaxnorm.moments(X, (0, 1))
    stats, pending = jaxnorm.population.accumulate(stats, pending, m, every_k=2)
    whole = jaxnorm.population.merge_batches([m, m])
    assert_type(whole, jaxnorm.Moments)
    return [kernel, bias, stats.mean, whole.mean, pending.calls]


def by_value(y: Array) -> list[Array]:
    """Measures of what was stored, against a batch."""
    stored, batch = jaxnorm.initial_stats(C), jaxnorm.moments(y, (0, 1))
    flags = jaxnorm.monitor.flags(stored, batch=batch)
    assert_type(flags, jaxnorm.monitor.Flags)
    shift = jaxnorm.monitor.shift(batch, stored)
    errors = jaxnorm.monitor.standard_errors(64)
    held = jaxnorm.monitor.batches_held(0.9)
    return [flags.dead, shift, jaxnorm.monitor.divergence(batch, stored), *errors, held]


def report_of(checkpoint: str) -> jaxnorm.monitor.Report:
    """What stands in a checkpoint of orbax."""
    return jaxnorm.monitor.read(checkpoint)


def reports() -> None:
    norm = jaxnorm.monitor.Norm(path="norm", layer="BatchNorm", stored=jaxnorm.initial_stats(C))
    report = jaxnorm.monitor.Report([norm])
    assert_type(report.findings, list[jaxnorm.monitor.Finding])
    for finding in report.findings:
        assert finding.kind in jaxnorm.monitor.KINDS
        print(f"{finding.path}: {finding.advice}")
    text: str = report.table()
    print(text)
    try:
        report_of("no/such/folder")
    except ValueError as error:
        print(error)


def arrays_of_others() -> None:
    """From and to plain dicts of arrays: no other framework is needed."""
    ones = {"weight": np.ones(C, np.float32), "bias": np.zeros(C, np.float32)}
    found: list[jaxnorm.convert.Report] = []
    variables = jaxnorm.convert.from_torch_state(ones, "layer_norm", report=found.append)
    assert found and sorted(variables["params"]) == ["bias", "scale"]
    jaxnorm.convert.to_torch_state(variables, "layer_norm")
    jaxnorm.convert.from_equinox_state(ones, "layer_norm")
    jaxnorm.convert.to_equinox_state(variables, "layer_norm")
    named = {"n/gamma": ones["weight"], "n/beta": ones["bias"]}
    jaxnorm.convert.from_keras_state(named, "layer_norm", prefix="n")
    jaxnorm.convert.to_keras_state(variables, "layer_norm")
    params, state = jaxnorm.convert.to_haiku(variables, "layer_norm", prefix="n")
    layer, again = jaxnorm.convert.from_haiku(params, "layer_norm", state=state, prefix="n")
    assert layer.epsilon == 1e-5 and sorted(again["params"]) == ["bias", "scale"]
    kernel = jaxnorm.convert.kernel_from_torch(np.zeros((C, 3, 5, 5)), "conv")
    assert jaxnorm.convert.kernel_to_torch(kernel, "conv").shape == (C, 3, 5, 5)
    table = {"norm": ("LayerNorm_0", "layer_norm")}
    net = jaxnorm.convert.net_from_torch({f"norm.{name}": v for name, v in ones.items()}, table)
    assert sorted(jaxnorm.convert.net_to_torch(net, table)) == ["norm.bias", "norm.weight"]


def objects_of_others(torch_norm: Any, equinox_norm: Any, keras_norm: Any) -> list[Any]:
    """Layers from those of frameworks that are not installed here: this is checked, and does not run."""
    return [
        jaxnorm.convert.from_torch(torch_norm, api="nnx"),
        jaxnorm.convert.from_equinox(equinox_norm),
        jaxnorm.convert.from_keras(keras_norm),
    ]


class Linen(nn.Module):
    """All of linen's layers, one after another."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        eval_mode = not train
        y = jaxnorm.linen.BatchNorm(every_k=2)(x, eval_mode)
        assert_type(y, Array)
        x = jaxnorm.linen.LayerNorm()(y)
        x = jaxnorm.linen.RMSNorm()(x)
        x = jaxnorm.linen.GroupNorm(num_groups=2)(x)
        x = jaxnorm.linen.InstanceNorm()(x)
        x = jaxnorm.linen.WeightNorm(nn.Dense(C))(x)
        x = jaxnorm.linen.SpectralNorm(nn.Dense(C))(x, update_stats=train)
        x = jaxnorm.linen.BatchRenorm()(x, eval_mode)
        x = jaxnorm.linen.GhostBatchNorm(num_ghosts=2)(x, eval_mode)
        x = jaxnorm.linen.DomainBatchNorm(num_domains=2)(x, jnp.int32(1), eval_mode)
        x = jaxnorm.linen.RecurrentBatchNorm(max_length=4)(x, jnp.int32(2), eval_mode)
        x = jaxnorm.linen.ConditionalBatchNorm(num_classes=5)(x, LABELS, eval_mode)
        x = jaxnorm.linen.SPADE()(x, jnp.ones((6, 4, 2)), eval_mode)
        x = jaxnorm.linen.DecorrelatedBatchNorm(group_size=4)(x, eval_mode)
        x = jaxnorm.linen.IterNorm(group_size=4)(x, eval_mode)
        x = jaxnorm.linen.EvoNormB0()(x, eval_mode)
        x = jaxnorm.linen.InputNorm()(x, eval_mode)
        x = jaxnorm.linen.SwitchableNorm()(x, eval_mode)
        x = jaxnorm.linen.EvoNormS0(num_groups=2)(x)
        x = jaxnorm.linen.FilterResponseNorm()(x)
        x = jaxnorm.linen.GlobalResponseNorm()(x)
        x = jaxnorm.linen.DynamicTanh()(x)
        x = jaxnorm.linen.Derf()(x)
        x = jaxnorm.linen.ScaleNorm()(x)
        x = jaxnorm.linen.GatedRMSNorm()(x, x)
        x = jaxnorm.linen.PartialRMSNorm(fraction=0.5)(x)
        x, _ = jaxnorm.linen.QKNorm()(x, x)
        x = jaxnorm.linen.FiLM()(x, CONDITION)
        x = jaxnorm.linen.AdaLayerNorm()(x, CONDITION)
        x, gate = jaxnorm.linen.AdaLayerNormZero()(x, CONDITION)
        x, _ = jaxnorm.linen.RevIN()(gate * x)
        return jaxnorm.linen.PopArt(2)(x)


class Nnx(nnx.Module):
    """All of nnx's layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.batch = jaxnorm.nnx.BatchNorm(C, every_k=2, rngs=rngs)
        self.layer = jaxnorm.nnx.LayerNorm(C, rngs=rngs)
        self.rms = jaxnorm.nnx.RMSNorm(C, rngs=rngs)
        self.group = jaxnorm.nnx.GroupNorm(C, num_groups=2, rngs=rngs)
        self.instance = jaxnorm.nnx.InstanceNorm(C, rngs=rngs)
        self.weight = jaxnorm.nnx.WeightNorm(nnx.Linear(C, C, rngs=rngs), rngs=rngs)
        self.spectral = jaxnorm.nnx.SpectralNorm(nnx.Linear(C, C, rngs=rngs), rngs=rngs)
        self.renorm = jaxnorm.nnx.BatchRenorm(C, rngs=rngs)
        self.ghost = jaxnorm.nnx.GhostBatchNorm(C, num_ghosts=2, rngs=rngs)
        self.domain = jaxnorm.nnx.DomainBatchNorm(C, num_domains=2, rngs=rngs)
        self.recurrent = jaxnorm.nnx.RecurrentBatchNorm(C, max_length=4, rngs=rngs)
        self.conditional = jaxnorm.nnx.ConditionalBatchNorm(C, num_classes=5, rngs=rngs)
        self.spade = jaxnorm.nnx.SPADE(C, 2, rngs=rngs)
        self.decorrelated = jaxnorm.nnx.DecorrelatedBatchNorm(C, group_size=4, rngs=rngs)
        self.iter = jaxnorm.nnx.IterNorm(C, group_size=4, rngs=rngs)
        self.evo_b0 = jaxnorm.nnx.EvoNormB0(C, rngs=rngs)
        self.input = jaxnorm.nnx.InputNorm(C, rngs=rngs)
        self.switchable = jaxnorm.nnx.SwitchableNorm(C, rngs=rngs)
        self.evo_s0 = jaxnorm.nnx.EvoNormS0(C, num_groups=2, rngs=rngs)
        self.filter_response = jaxnorm.nnx.FilterResponseNorm(C, rngs=rngs)
        self.global_response = jaxnorm.nnx.GlobalResponseNorm(C, rngs=rngs)
        self.tanh = jaxnorm.nnx.DynamicTanh(C, rngs=rngs)
        self.derf = jaxnorm.nnx.Derf(C, rngs=rngs)
        self.scale = jaxnorm.nnx.ScaleNorm(C, rngs=rngs)
        self.gated = jaxnorm.nnx.GatedRMSNorm(C, rngs=rngs)
        self.partial = jaxnorm.nnx.PartialRMSNorm(C, fraction=0.5, rngs=rngs)
        self.query_key = jaxnorm.nnx.QKNorm(C, rngs=rngs)
        self.film = jaxnorm.nnx.FiLM(C, 3, rngs=rngs)
        self.adaptive = jaxnorm.nnx.AdaLayerNorm(C, 3, rngs=rngs)
        self.adaptive_zero = jaxnorm.nnx.AdaLayerNormZero(C, 3, rngs=rngs)
        self.reversible = jaxnorm.nnx.RevIN(C, rngs=rngs)
        self.pop_art = jaxnorm.nnx.PopArt(C, 2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        y = self.batch(x)
        assert_type(y, Array)
        x = self.instance(self.group(self.rms(self.layer(y))))
        x = self.spectral(self.weight(x))
        x = self.ghost(self.renorm(x))
        x = self.recurrent(self.domain(x, jnp.int32(1)), jnp.int32(2))
        x = self.spade(self.conditional(x, LABELS), jnp.ones((6, 4, 2)))
        x = self.switchable(self.input(self.evo_b0(self.iter(self.decorrelated(x)))))
        x = self.scale(self.derf(self.tanh(self.global_response(self.filter_response(self.evo_s0(x))))))
        x, _ = self.query_key(self.partial(self.gated(x, x)), x)
        x, gate = self.adaptive_zero(self.adaptive(self.film(x, CONDITION), CONDITION), CONDITION)
        x, m = self.reversible(gate * x)
        return self.pop_art(self.reversible.denormalize(x, m))


class LinenPair(nn.Module):
    """A Dense, the norm after it, which is Flax's, and a layer with weight norm."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = nn.Dense(C, name="dense")(x)
        x = nn.BatchNorm(not train, name="norm")(x)
        y: Array = jaxnorm.linen.WeightNorm(nn.Dense(C))(x)
        return y


class NnxPair(nnx.Module):
    """The same in nnx."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(C, C, rngs=rngs)
        self.norm = nnx.BatchNorm(C, rngs=rngs)
        self.head = jaxnorm.nnx.WeightNorm(nnx.Linear(C, C, rngs=rngs), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        y: Array = self.head(self.norm(self.dense(x)))
        return y


def linen_models() -> Array:
    model = LinenPair()
    with jaxnorm.linen.in_place_of_flax():
        variables = model.init(jax.random.key(0), X)
        variables = jaxnorm.linen.recalibrate(model, variables, [X, 2 * X])
        jaxnorm.linen.norm_labels(variables["params"])
        variables = jaxnorm.linen.freeze(variables, ...)
        variables = jaxnorm.linen.unfreeze(variables, ...)
        assert_type(jaxnorm.linen.diagnose(model, variables, X), jaxnorm.monitor.Report)
        variables = jaxnorm.linen.fold(variables, {"norm": "dense"})
        y = model.apply(variables, X)
    jaxnorm.linen.bake(variables)  # for a model without the WeightNorm
    assert isinstance(y, Array)
    return y


def nnx_models() -> Array:
    model = NnxPair(nnx.Rngs(0))
    for path, name in jaxnorm.nnx.convert(model):
        print(f"{path}: {name}")
    jaxnorm.nnx.recalibrate(model, [X, 2 * X])
    assert_type(jaxnorm.nnx.diagnose(model, X), jaxnorm.monitor.Report)
    jaxnorm.nnx.norm_labels(model)
    jaxnorm.nnx.freeze(model, ...)
    jaxnorm.nnx.unfreeze(model, ...)
    model.set_attributes(use_running_average=True)
    jaxnorm.nnx.fold(model, {"norm": "dense"})
    jaxnorm.nnx.bake(model)
    return model(X)


def main() -> None:
    for section in (statistics, norms_without_state, norms_with_state, weights, after_training):
        jax.eval_shape(section)
    jax.eval_shape(by_value, X)
    reports()
    arrays_of_others()
    y, _ = jax.eval_shape(lambda: Linen().init_with_output(jax.random.key(0), X, True))
    assert y.shape == (6, 4, 2)
    y = nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))(X))
    assert y.shape == (6, 4, 2)
    assert linen_models().shape == nnx_models().shape == X.shape
    print(f"jaxnorm {jaxnorm.__version__}: every public name was used")


if __name__ == "__main__":
    main()
