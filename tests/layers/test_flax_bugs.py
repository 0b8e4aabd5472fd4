"""What Flax, Equinox, Haiku and PyTorch get wrong, each as a test here. The docstrings say what they do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from layers import OURS, PLAIN, Case, draw, layer
from meshes import mesh_of

import jaxnorm as jn

BATCH_NORM = Case("BatchNorm", (8, 4), 4)
GROUP_NORM = Case("GroupNorm", (3, 5, 4), 4, dict(num_groups=2))
FAR = 1e4  # mean / std

both = pytest.mark.parametrize("api", ["linen", "nnx"])
every_layer = pytest.mark.parametrize("case", PLAIN, ids=str)


def close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


# ------------------------------------------------------------------------------------ masks


@both
@pytest.mark.parametrize("counts", [(3, 4, 1, 2), (3, 4, 0, 2)], ids=str)
def test_devices_count_by_their_unmasked_rows(api, counts):
    """Flax averages the devices' means: 2.22 where 2.55 is true; a device without a row gives NaN to all."""
    x = draw((16, 4))
    mask = jnp.asarray(np.arange(4) < np.reshape(counts, (4, 1))).reshape(16, 1)
    alone, together = (layer(OURS, api, BATCH_NORM, axis_name=name) for name in (None, "i"))
    variables, cotangent = alone.init(x), draw(x.shape, seed=1)
    mesh = mesh_of((4,), ("i",))

    def spread(variables, x, mask):
        specs = dict(in_specs=(P(), P("i"), P("i")), out_specs=(P("i"), P()))
        call = jax.shard_map(lambda v, x, m: together.call(v, x, mask=m), mesh=mesh, **specs)
        return call(variables, x, mask)

    def loss(params, x, run):
        y, new = run(variables | params, x, mask)
        return jnp.sum(y * cotangent), (y, new["batch_stats"])

    params = {"params": variables["params"]}
    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    one = step(params, x, lambda v, x, mask: alone.call(v, x, mask=mask))
    jax.tree.map(partial(close, atol=2e-5), step(params, x, spread), one)
    true = np.asarray(x)[np.asarray(mask)[:, 0]].mean(0)
    close(one[0][1][1]["mean"], 0.01 * true)


@both
@every_layer
def test_a_nan_under_the_mask_reaches_nothing(api, case):
    """Flax's gradients are NaN everywhere, and its nnx layers take no integer mask."""
    side = layer(OURS, api, case)
    x, last = draw(case.shape), jnp.s_[-1, ..., :1]
    mask = jnp.ones(case.shape, jnp.int32).at[last].set(0)
    variables = side.init(x)

    @jax.jit
    def step(variables, x):
        def loss(x):
            y, new = side.call(variables, x, mask=mask)
            return jnp.sum(jnp.where(mask > 0, y, 0) ** 3), (y, new)

        return jax.value_and_grad(loss, has_aux=True)(x)

    def visible(result):
        (value, (y, new)), dx = result
        return value, y.at[last].set(0), new, dx.at[last].set(0)

    poisoned = step(variables, x.at[last].set(jnp.nan))
    assert jnp.isfinite(poisoned[1]).all()
    jax.tree.map(close, visible(poisoned), visible(step(variables, x)))


@both
@pytest.mark.parametrize("empty", ["no rows", "all masked"])
def test_an_empty_batch_leaves_the_statistics(api, empty):
    """Flax's statistics are NaN for ever."""
    side = layer(OURS, api, BATCH_NORM)
    _, trained = side.call(side.init(draw((8, 4))), draw((8, 4)))
    x = draw((0, 4)) if empty == "no rows" else draw((8, 4))
    y, after = side.call(trained, x, mask=jnp.zeros((x.shape[0], 1), bool))
    jax.tree.map(np.testing.assert_array_equal, after, trained)
    np.testing.assert_array_equal(y, jnp.zeros_like(x))


@both
def test_group_norm_takes_a_mask_of_time_steps(api):
    """Flax's GroupNorm reshapes an (N, T, 1) mask by the channels, and crashes."""
    side, x = layer(OURS, api, GROUP_NORM), draw(GROUP_NORM.shape)
    lengths = (5, 3, 1)
    mask = jnp.asarray(np.arange(5).reshape(1, 5, 1) < np.reshape(lengths, (3, 1, 1)))
    variables = side.init(x)
    y, _ = side.call(variables, x, mask=mask)
    for i, length in enumerate(lengths):
        close(y[i, :length], side.call(variables, x[i : i + 1, :length])[0][0])


# ------------------------------------------------------------------------------------ accuracy


@both
@pytest.mark.parametrize(("name", "axes"), {"BatchNorm": (0, 1), "LayerNorm": 2, "InstanceNorm": 1}.items())
def test_a_large_mean_keeps_its_variance(api, name, axes):
    """On N(1e4, 1) Flax's layer norm has std 980, its batch norm an error of 1300; Haiku NaN."""
    case = Case(name, (4, 16, 8), 8)
    side, x = layer(OURS, api, case), draw(case.shape) / 2 + FAR
    y, new = side.call(side.init(x), x)
    exact = np.asarray(x, np.float64)
    var = exact.var(axes, keepdims=True)
    epsilon = 1e-5 if name == "BatchNorm" else 1e-6
    close(y, (exact - exact.mean(axes, keepdims=True)) / np.sqrt(var + epsilon), atol=2e-5)
    if name == "BatchNorm":
        close(new["batch_stats"]["var"], 0.99 + 0.01 * var.ravel(), atol=1e-6)


@both
def test_half_precision_does_not_overflow(api):
    """Haiku and Equinox keep float16: above 256 the variance is inf, and y is 0."""
    x = (draw((64, 4)) * 1000).astype(jnp.float16)
    side = layer(OURS, api, BATCH_NORM, dtype=jnp.float16)
    y, new = side.call(side.init(x), x)
    assert jnp.isfinite(new["batch_stats"]["var"]).all()
    close(y.astype(jnp.float32).std(0), 1.0, atol=2e-3)


def test_nnx_evaluates_with_unrounded_statistics():
    """Flax's nnx rounds them to dtype: with mean 100.3, x = 100.5 gives 0 where 0.2 is right."""
    side = layer(OURS, "nnx", Case("BatchNorm", (1, 1), 1), dtype=jnp.bfloat16, epsilon=0.0)
    variables = side.init(jnp.ones((1, 1)))
    variables["batch_stats"]["mean"] = jnp.asarray([100.3])
    y, _ = side.call(variables, jnp.asarray([[100.5]]), use_running_average=True)
    assert y.dtype == jnp.bfloat16
    close(y.astype(jnp.float32), 0.2, atol=1e-3)


@both
@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16], ids=["our state", "a bfloat16 state"])
def test_running_statistics_do_not_stall(api, stored):
    """In bfloat16, as Haiku and PyTorch's .bfloat16() modules keep them, 3 is never reached: 2.03."""
    x = jnp.full((4, 1), 3, jnp.bfloat16)
    side = layer(OURS, api, Case("BatchNorm", x.shape, 1), momentum=0.99)
    variables = side.init(x)
    variables["batch_stats"] = jax.tree.map(lambda v: v.astype(stored), variables["batch_stats"])
    _, variables = side.call(variables, x)  # reads the narrow state, and leaves it wide

    def step(variables, _):
        return side.call(variables, x)[1], None

    variables, _ = jax.jit(partial(jax.lax.scan, step, length=1200))(variables)
    close(variables["batch_stats"]["mean"], 3.0, atol=1e-3)


# ------------------------------------------------------------------------------------ state


@both
def test_the_state_keeps_its_type(api):
    """Flax's float32 statistics become float64 under a float64 x, which breaks a scan."""
    side = layer(OURS, api, BATCH_NORM)
    variables = side.init(draw((8, 4)))
    with jax.enable_x64(True):
        _, after = side.call(variables, draw((8, 4)).astype(jnp.float64))
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, variables)


def test_linen_refuses_statistics_of_another_layer():
    """Flax broadcasts statistics of one channel to three."""
    side, one = (layer(OURS, "linen", Case("BatchNorm", (2, n), n)) for n in (3, 1))
    variables = side.init(jnp.ones((2, 3))) | {"batch_stats": one.init(jnp.ones((2, 1)))["batch_stats"]}
    text = (
        r"BatchNorm: 1 stored features do not fit axis -1 of x, shape \(2, 3\); choose a layer of 3 features."
    )
    with pytest.raises(ValueError, match=text):
        side.call(variables, jnp.ones((2, 3)))


@both
def test_the_mode_may_be_traced(api):
    """Flax needs a Python bool: TracerBoolConversionError."""
    side, x = layer(OURS, api, BATCH_NORM), draw((8, 4))
    _, variables = side.call(side.init(x), x)
    step = jax.jit(lambda flag: side.call(variables, x, use_running_average=flag))
    for flag in (False, True):
        jax.tree.map(close, step(flag), side.call(variables, x, use_running_average=flag))


def test_debiased_statistics_are_right_after_one_step():
    """Equinox's debiased variance begins at 1: its evaluation has std 0.05 where 1 is right."""
    x = draw((512, 4)) / 4
    _, stats = jn.batch_norm(x, jn.initial_stats(4, weight=0.0), train=True, decay=0.99)
    y, _ = jn.batch_norm(x, stats, train=False)
    close(y.std(0), 1.0, atol=1e-3)


def test_population_statistics_keep_the_spread_between_batches():
    """PyTorch's update_bn averages the batches' variances: what lies between their means is lost."""
    batches = draw((5, 6, 4)) + 3 * jnp.arange(5.0).reshape(5, 1, 1)
    stats = jn.initial_stats(4, weight=0.0)
    for x in batches:
        _, stats = jn.batch_norm(x, stats, train=True, decay=None)
    close(stats.mean, batches.mean((0, 1)))
    close(stats.var, batches.var((0, 1)))


# ------------------------------------------------------------------------------------ axes


def test_nnx_batch_norm_takes_several_feature_axes():
    """Flax's nnx BatchNorm crashes on a tuple axis."""
    case = Case("BatchNorm", (6, 2, 3, 4), 8, dict(axis=(1, -1)))
    nnx, linen = (layer(OURS, api, case) for api in ("nnx", "linen"))
    x = draw(case.shape)
    results = [nnx.call(nnx.init(x), x), linen.call(linen.init(x), x)]
    flat = [jax.tree.map(jnp.ravel, result) for result in results]
    jax.tree.map(close, *flat)


def test_nnx_group_norm_reduces_over_channels_alone():
    """Flax's nnx GroupNorm repeats the statistics along axis 1, and is wrong by 46."""
    case = Case("GroupNorm", (3, 4, 6), 6, dict(num_groups=2, reduction_axes=(-1,)))
    side, x = layer(OURS, "nnx", case), draw(case.shape)
    grouped = np.asarray(x, np.float64).reshape(3, 4, 2, 3)
    centered = grouped - grouped.mean(-1, keepdims=True)
    expected = centered / np.sqrt(centered.var(-1, keepdims=True) + 1e-6)
    close(side.call(side.init(x), x)[0], expected.reshape(x.shape))
