"""What each member of the family is for, as a law."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxnorm as jn

close = chex.assert_trees_all_close


def normal(*shape, mean=1.5, std=2.0, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(mean, std, shape), jnp.float32)


STATS = jn.Moments(normal(4, seed=1), jnp.float32([0.5, 1, 2, 4]), jnp.ones(4))


# ---------------------------------------------------------------- small batches


def test_batch_renorm_is_batch_norm_at_one_end_and_evaluation_at_the_other():
    x, scale, bias = normal(6, 4), normal(4, seed=2), normal(4, seed=3)
    affine = {"scale": scale, "bias": bias, "unbiased": True}
    batch = jn.batch_norm(x, STATS, train=True, **affine)
    evaluated, _ = jn.batch_norm(x, STATS, train=False, **affine)
    renorm = jax.jit(lambda r, d: jn.batch_renorm(x, STATS, train=True, r_max=r, d_max=d, **affine))
    close(renorm(1.0, 0.0), batch, atol=2e-6)
    close(renorm(1e3, 1e3), (evaluated, batch[1]), atol=2e-5)


def test_batch_renorm_of_statistics_of_nothing_is_batch_norm():
    x, fresh = normal(6, 4), jn.initial_stats(4, weight=0.0)
    close(jn.batch_renorm(x, fresh, train=True), jn.batch_norm(x, fresh, train=True), atol=2e-6)


def test_one_ghost_is_the_batch_and_evaluation_divides_nothing():
    x = normal(5, 4)
    close(
        jn.ghost_batch_norm(x, STATS, train=True, num_ghosts=1),
        jn.batch_norm(x, STATS, train=True),
        atol=2e-6,
    )
    evaluated = jn.ghost_batch_norm(x, STATS, train=False, num_ghosts=2)
    close(evaluated, jn.batch_norm(x, STATS, train=False))


def test_ghosts_stay_on_their_devices_and_their_state_does_not():
    x = normal(4, 6, 3)
    stats = jn.initial_stats(3, weight=0.0)

    def local(x, **options):
        return jn.ghost_batch_norm(x, stats, train=True, num_ghosts=2, decay=None, **options)

    y, state = jax.vmap(lambda x: local(x, axis_name="data"), axis_name="data")(x)
    close(y, jax.vmap(lambda x: local(x)[0])(x), atol=2e-6)
    close(state, jax.tree.map(lambda v: jnp.stack([v] * 4), jn.moments(x.reshape(24, 3), 0)), rtol=2e-6)


def test_a_bank_touches_one_state_and_clips_its_index():
    x = normal(6, 4)
    bank = jn.initial_stats((3, 4))

    @jax.jit
    def step(index, where=True):
        return jn.bank_norm(x, bank, index, train=True, where=where)

    y, state = jn.batch_norm(x, jn.initial_stats(4), train=True)
    for index, place in ((1, 1), (2, 2), (7, 2), (-1, 0)):
        out, new = step(index)
        close(out, y, atol=1e-6)
        for before, after, one in zip(bank, new, state, strict=True):
            close(after, before.at[place].set(one), atol=1e-6)
            chex.assert_trees_all_equal(jnp.delete(after, place, 0), jnp.delete(before, place, 0))
    chex.assert_trees_all_equal(step(0, jnp.zeros((6, 1), bool))[1], bank)


def test_recurrent_statistics_of_ragged_sequences():
    """Each time step knows the sequences that are still there; the last state serves all later steps."""
    lengths = np.array([5, 3, 1])
    x = normal(3, 5, 2)
    there = jnp.arange(5)[None] < lengths[:, None]

    def step(bank, inputs):
        time, x, where = inputs
        y, bank = jn.bank_norm(x, bank, time, train=True, decay=None, where=where[:, None])
        return bank, y

    bank = jn.initial_stats((4, 2), weight=0.0)
    xs = jnp.arange(5), jnp.swapaxes(x, 0, 1), there.T
    bank, _ = jax.lax.scan(step, bank, xs)
    for time in range(3):
        alive = np.asarray(x)[lengths > time, time].astype(np.float64)
        close(bank.mean[time], alive.mean(0), rtol=1e-5)
        close(bank.var[time], alive.var(0), rtol=1e-5, atol=1e-6)
    late = np.asarray(x)[0, 3:].astype(np.float64)
    close(
        (bank.mean[3], bank.var[3], bank.weight[3]), (late.mean(0), late.var(0), np.full(2, 2.0)), rtol=1e-5
    )


def test_a_blend_is_evaluation_at_one_end_and_the_batch_at_the_other():
    x = normal(6, 4)
    blended = jax.jit(lambda alpha: jn.blended_batch_norm(x, STATS, alpha=alpha))
    close(blended(1.0), jn.batch_norm(x, STATS, train=False)[0], atol=2e-6)
    close(blended(0.0), jn.batch_norm(x, STATS, train=True)[0], atol=2e-6)
    heavy = STATS._replace(weight=STATS.weight * 100)  # a count is no share
    close(jn.blended_batch_norm(x, heavy, alpha=0.5), blended(0.5), atol=2e-6)


# ---------------------------------------------------------------- transformers


def test_queries_and_keys_are_normalized_by_head():
    query, key = normal(2, 5, 3, 4), normal(2, 7, 1, 4, seed=1)
    scales = {"query_scale": normal(4, seed=2), "key_scale": normal(4, seed=3)}
    q, k = jn.qk_norm(query, key, epsilon=0.0, **scales)
    close(q, jn.rms_norm(query, scale=scales["query_scale"], epsilon=0.0))
    close(k, jn.rms_norm(key, scale=scales["key_scale"], epsilon=0.0))
    q, k = jn.qk_norm(query, key, norm=jn.scale_norm, query_scale=3.0, key_scale=1.0)
    close(jnp.linalg.norm(q, axis=-1), jnp.full((2, 5, 3), 3.0), rtol=1e-5)
    close(jnp.linalg.norm(k, axis=-1), jnp.ones((2, 7, 1)), rtol=1e-5)


def test_all_features_are_no_part():
    x = normal(3, 4)
    close(jn.partial_rms_norm(x, num_features=4), jn.rms_norm(x), atol=1e-6)


# ---------------------------------------------------------------- conditions


def test_a_condition_of_a_sample_reaches_its_own_places():
    x, scale, bias = normal(2, 3, 4), normal(2, 4, seed=1), normal(2, 4, seed=2)
    close(jn.film(x, scale, bias), x * scale[:, None] + bias[:, None], rtol=1e-6)
    expected = jn.layer_norm(x) * (1 + scale[:, None]) + bias[:, None]
    close(jn.adaptive_layer_norm(x, scale, bias), expected, atol=1e-5)
    first = jnp.swapaxes(x, 1, 2)
    close(jn.film(first, scale, bias, feature_axis=1), jnp.swapaxes(jn.film(x, scale, bias), 1, 2))


def test_adaptive_instance_norm_takes_the_style_s_statistics():
    x, style = normal(2, 50, 3), normal(1, 30, 3, mean=-1.0, std=0.5, seed=1)
    y = jn.adaptive_instance_norm(x, style, epsilon=0.0)
    m, s = jn.moments(y, 1), jn.moments(style[0], 0)
    close(m.mean, jnp.stack([s.mean] * 2), rtol=1e-4)
    close(m.var, jnp.stack([s.var] * 2), rtol=1e-4)
    close(jn.adaptive_instance_norm(x, x), x, rtol=1e-5, atol=1e-5)


def test_a_label_out_of_range_is_heard():
    x, table = normal(3, 4), normal(2, 4, seed=1)
    y, _ = jn.conditional_batch_norm(x, STATS, jnp.array([0, 1, 2]), train=False, scale=table)
    assert jnp.isfinite(y[:2]).all() and jnp.isnan(y[2]).all()


def test_a_demodulated_kernel_keeps_unit_variance():
    kernel, style = normal(3, 3, 8, 5, mean=0.0), normal(4, 8, mean=0.0, seed=1)
    w = np.asarray(jn.weight_demodulate(kernel, style, epsilon=0.0), np.float64)
    v = np.asarray(kernel, np.float64)[None] * np.asarray(style, np.float64)[:, None, None, :, None]
    close(w, v / np.sqrt((v**2).sum((1, 2, 3), keepdims=True)), rtol=1e-5)


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize("std", [1e-8, 0.0, 3.0])
def test_a_reversible_norm_comes_back_at_any_length(std):
    x = normal(2, 6, 3, mean=100.0, std=std)
    affine = {"scale": normal(3, seed=1), "bias": normal(3, seed=2)}
    y, m = jn.reversible_norm(x, axis=1, **affine)
    affine = {k: v[None, None] for k, v in affine.items()}
    assert (jnp.abs(y - affine["bias"]) <= 3 * jnp.abs(affine["scale"])).all()
    close(jn.unstandardize(y, m, **affine), x, rtol=1e-6)
    longer = jnp.concatenate([y, y], 1)
    assert jn.unstandardize(longer, m).shape == (2, 12, 3)


def test_running_inputs_are_those_of_all_that_was_seen():
    x = normal(5, 8, 3, mean=40.0)
    step = jax.jit(lambda s, x, train: jn.input_norm(x, s, train=train, clip=1.0))
    stats = jn.initial_stats(3, weight=0.0)
    for i, train in enumerate([True, True, False, True, True]):
        y, stats = step(stats, x[i], train)
    seen = np.asarray(x, np.float64)[[0, 1, 3, 4]].reshape(-1, 3)
    close((stats.mean, stats.var), (seen.mean(0), seen.var(0)), rtol=1e-5)
    close(stats.weight, jnp.full(3, 32.0))
    plain = (np.asarray(x[4], np.float64) - seen.mean(0)) / seen.std(0)
    close(y, np.clip(plain, -1, 1), atol=1e-4)
    free, _ = jn.input_norm(x[4], stats, train=False)
    close(jn.unstandardize(free, stats, epsilon=1e-8), x[4], rtol=1e-6)


def test_pop_art_keeps_predictions_and_the_second_moment():
    h, kernel, bias = normal(7, 5), normal(5, 2, seed=1), normal(2, seed=2)
    stats, epsilon = jn.initial_stats(2), 1e-4
    mean, second = np.zeros(2), np.ones(2)

    def predicted():
        return jn.unstandardize(h @ kernel + bias[None], stats, epsilon=epsilon)

    for seed in range(3):
        targets = normal(1, 2, mean=30.0, seed=seed)  # of one target the variance is all spread
        before = predicted()
        kernel, bias, stats = jn.pop_art(kernel, bias, stats, targets, decay=0.75)
        close(predicted(), before, rtol=1e-4, atol=1e-3)
        one = np.asarray(targets[0], np.float64)
        mean, second = 0.75 * mean + 0.25 * one, 0.75 * second + 0.25 * one**2
    close((stats.mean, stats.var), (mean, second - mean**2), rtol=1e-5)


# ---------------------------------------------------------------- switches


@pytest.mark.parametrize("kind", range(3))
def test_a_switch_that_is_set_is_one_norm(kind):
    x = normal(3, 5, 4)
    logits = 100 * jax.nn.one_hot(kind, 3)
    y, _ = jn.switchable_norm(x, STATS, logits, logits, train=True)
    norms = (
        lambda: jn.instance_norm(x, epsilon=1e-5),
        lambda: jn.layer_norm(x, axis=(1, 2), epsilon=1e-5),
        lambda: jn.batch_norm(x, STATS, train=True)[0],
    )
    close(y, norms[kind](), atol=5e-6)


def test_the_devices_of_a_switch_share_a_batch_and_no_sample():
    x, logits = normal(4, 3, 5, 4), jnp.float32([0.5, 0.1, -0.2])
    stats = jn.initial_stats(4, weight=0.0)

    def norm(x, **options):
        return jn.switchable_norm(x, stats, logits, logits, train=True, **options)

    y, state = norm(x.reshape(12, 5, 4))
    parts, states = jax.vmap(lambda x: norm(x, axis_name="data"), axis_name="data")(x)
    close((parts.reshape(y.shape), jax.tree.map(lambda v: v[3], states)), (y, state), atol=2e-6)


def test_the_shares_of_a_switch_learn():
    with jax.enable_x64(True):
        x, stats = normal(2, 3, 4).astype(jnp.float64), jn.initial_stats(4, dtype=jnp.float64)

        def loss(mean_logits, var_logits):
            y, _ = jn.switchable_norm(x, stats, mean_logits, var_logits, train=True)
            return jnp.sum(jnp.sin(y))

        logits = jnp.float64([0.5, -0.5, 0.1]), jnp.float64([-0.2, 0.3, 0.1])
        check_grads(loss, logits, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------- errors

X = jnp.ones((2, 3, 4))
ERRORS = [
    (
        lambda: jn.batch_renorm(X, STATS, train=True, r_max=0.5),
        "batch_renorm: r_max=0.5 is too small; choose 1 or more.",
    ),
    (
        lambda: jn.ghost_batch_norm(X, STATS, train=True, num_ghosts=3),
        "ghost_batch_norm: num_ghosts=3 does not divide axis 0 of x, shape (2, 3, 4); choose a divisor of 2, "
        "or pad x and mask the padding with `where`.",
    ),
    (
        lambda: jn.bank_norm(X, jn.initial_stats((3, 4)), jnp.zeros(2, int), train=True),
        "bank_norm: index must be an integer scalar, got int32 of shape (2,); choose one state for the "
        "batch, and mask the samples of the others with `where`.",
    ),
    (
        lambda: jn.bank_norm(X, jn.initial_stats(()), 0, train=True),
        "bank_norm: stats has fields of shapes [(), (), ()], which must have one first axis, of the states; "
        "start from initial_stats((states, *sizes)).",
    ),
    (
        lambda: jn.blended_batch_norm(X, STATS, alpha=1.5),
        "blended_batch_norm: alpha=1.5 is outside [0, 1]; it is the share of stats, 1 - alpha that of the "
        "batch: choose, for example, 0.9.",
    ),
    (
        lambda: jn.partial_rms_norm(X, num_features=5),
        "partial_rms_norm: num_features=5 is out of range for axis -1 of x, shape (2, 3, 4); choose from 1 "
        "to 4.",
    ),
    (
        lambda: jn.adaptive_instance_norm(X, jnp.ones((2, 3, 5))),
        "adaptive_instance_norm: style has shape (2, 3, 5), but x, shape (2, 3, 4), has (4,) on its feature "
        "axes (2,); give style as many axes and the same features.",
    ),
    (
        lambda: jn.conditional_batch_norm(X, STATS, jnp.zeros(3, int), train=True),
        "conditional_batch_norm: labels are int32 of shape (3,), but x has shape (2, 3, 4); give one integer "
        "for every sample.",
    ),
    (
        lambda: jn.weight_demodulate(jnp.ones((3, 4, 5)), jnp.ones((2, 3))),
        "weight_demodulate: style of shape (2, 3) does not fit kernel, shape (3, 4, 5); give kernel as "
        "[..., inputs, outputs] and style as [samples, inputs].",
    ),
    (
        lambda: jn.pop_art(jnp.ones((3, 4)), jnp.ones(3), STATS, X),
        "pop_art: kernel, bias and targets have shapes (3, 4), (3,) and (2, 3, 4); give all the same number "
        "of outputs, on the last axis.",
    ),
    (
        lambda: jn.switchable_norm(X, STATS, jnp.zeros(2), jnp.zeros(3), train=True),
        "switchable_norm: mean_logits are float32 of shape (2,); give three floats: instance, layer, batch.",
    ),
    (
        lambda: jn.decorrelated_batch_norm(X, STATS, train=True),
        "decorrelated_batch_norm: stats must be a Covariance, got Moments; start from initial_covariance(4).",
    ),
    (
        lambda: jn.decorrelated_batch_norm(X, jn.initial_covariance(6), train=True),
        "decorrelated_batch_norm: stats.mean has shape (1, 6), but x, shape (2, 3, 4), has 4 features; start "
        "from initial_covariance(4).",
    ),
    (
        lambda: jn.decorrelated_batch_norm(X, jn.initial_covariance(4), train=True, where=X > 0),
        "decorrelated_batch_norm: where of shape (2, 3, 4) differs between features, which a covariance "
        "cannot have; give it size 1 on axis 2.",
    ),
    (
        lambda: jn.initial_covariance(4, group_size=3),
        "initial_covariance: group_size=3 does not divide axis 0 of x, shape (4,); choose a divisor of 4.",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS, ids=[text[:40] for _, text in ERRORS])
def test_errors(call, text):
    with pytest.raises((ValueError, TypeError), match=re.escape(text)) as caught:
        call()
    assert str(caught.value) == text
