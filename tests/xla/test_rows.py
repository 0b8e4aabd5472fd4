"""Rows, in the form of each backend: any length, and as on one device however they are spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import mesh_of

import jaxnorm as jn

pytestmark = [
    pytest.mark.usefixtures("form"),
    pytest.mark.parametrize("form", ["cpu form", "default form"], indirect=True, scope="module"),
]
ROWS = 8


def rows(features):
    return jnp.asarray(np.random.default_rng(features).normal(1e3, 1, (ROWS, features)), jnp.float32)


def step(x):
    """y and dx of both norms of rows, and their moments."""
    ct = jnp.cos(x)
    outs = [jn.moments(x, -1, keepdims=True)]
    for norm in (jn.layer_norm, jn.rms_norm):
        y, pullback = jax.vjp(norm, x)
        outs.append((y, pullback(ct)))
    return outs


def close(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b).reshape(a.shape), rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("features", [1, 100, 128, 256, 384, 1000, 1024, 17 * 128, 33 * 128])
def test_any_number_of_features(features):
    x = rows(features)
    wide = np.asarray(x, np.float64)
    m = jn.moments(x, -1)
    np.testing.assert_allclose(m.mean, wide.mean(-1), rtol=1e-7)
    np.testing.assert_allclose(m.var, wide.var(-1), rtol=5e-6)
    np.testing.assert_array_equal(m.weight, features)


@pytest.mark.parametrize("check", [True, False])
def test_in_shard_map(check):
    x, mesh = rows(512), mesh_of((ROWS,), ("data",))
    spread = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check)
    close(jax.jit(spread)(x), step(x))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("data"), P(None, "data")], ids=["rows", "features"])
def test_sharded(kind, spec):
    x, mesh = rows(512), mesh_of((ROWS,), ("data",), kind)
    with jax.set_mesh(mesh):
        actual = jax.jit(step)(jax.device_put(x, NamedSharding(mesh, spec)))
    close(actual, step(x))


def test_under_vmap():
    x = rows(512)
    close(jax.vmap(step)(x), step(x))


def test_groups_of_rows():
    x = rows(512)[None]
    pairs = x.reshape(1, ROWS // 2, 1024)
    close(jn.group_norm(x, ROWS // 2, feature_axis=1), jn.layer_norm(pairs).reshape(x.shape))


# ---------------------------------------------------- y alone, on a GPU in one kernel


def alone(x, centered):
    """y in float64, of columns that a scale and a bias belong to."""
    x = np.asarray(x, np.float64)
    c = x - x.mean(-1, keepdims=True) if centered else x
    return c / np.sqrt((c * c).mean(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("norm", [jn.layer_norm, jn.rms_norm])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e15, 1e18])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3])
def test_y_alone_of_data_of_any_size(norm, mean, size):
    centered = norm is jn.layer_norm
    x = np.random.default_rng(0).uniform(mean - 1, mean + 1, (ROWS, 1000))
    x = jnp.asarray(x / np.abs(x).max() * size, jnp.float32)
    scale, bias = jnp.linspace(-1.0, 1.0, 1000), jnp.linspace(2.0, 3.0, 1000)
    expected = alone(x, centered) * np.asarray(scale) + np.asarray(bias)
    for y in (norm(x, scale=scale, bias=bias), jax.vjp(lambda x: norm(x, scale=scale, bias=bias), x)[0]):
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 if centered and mean < 2 else 4e-6)


@pytest.mark.parametrize("norm", [jn.layer_norm, jn.rms_norm])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e4 / 3, 1e18])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_y_alone_of_a_constant(norm, value, epsilon):
    x, bias = jnp.full((ROWS, 100), value, jnp.float32), jnp.linspace(2.0, 3.0, 100)
    none = norm is jn.layer_norm or value == 0
    expected = 0 if none else np.sign(value) / np.sqrt(1 + epsilon / np.float64(value) ** 2)
    expected = np.broadcast_to(expected + np.asarray(bias), x.shape)
    np.testing.assert_allclose(norm(x, bias=bias, epsilon=epsilon), expected, rtol=1e-6)


def test_y_alone_is_rounded_once():
    x = rows(512).astype(jnp.bfloat16)
    for norm in (jn.layer_norm, jn.rms_norm):
        y = norm(x)
        assert y.dtype == jnp.bfloat16
        half = 1.001 * 2**-8  # of the last place, relative to the least number of a binade
        np.testing.assert_allclose(
            y.astype(jnp.float32), alone(x, norm is jn.layer_norm), rtol=half, atol=1e-6
        )
        assert norm(x, dtype=jnp.float32).dtype == jnp.float32


def test_y_alone_under_vmap_of_any_argument():
    x, scale, epsilon = rows(512), jnp.linspace(0.5, 1.5, 3), jnp.asarray([1e-6, 0.1, 10.0])
    vectors = scale[:, None] * jnp.cos(jnp.arange(512.0))[None]

    def norm(x, scale, epsilon):
        return jn.layer_norm(x, scale=scale, bias=scale, epsilon=epsilon)

    many = jnp.stack([x, x + 1, x * 2])
    for axes in ((0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)):
        args = [v if a == 0 else v[0] for v, a in zip((many, vectors, epsilon), axes, strict=True)]
        each = [norm(*(v if a is None else v[i] for v, a in zip(args, axes, strict=True))) for i in range(3)]
        close(jax.vmap(norm, axes)(*args), jnp.stack(each))
    assert np.abs(each[0] - each[2]).max() > 0.1


def test_y_alone_in_shard_map_of_a_scale_that_varies():
    x, mesh = rows(512), mesh_of((ROWS,), ("data",))
    scales = jnp.tile(1 + jnp.arange(8.0)[:, None], 512)

    def norm(x, scale):
        return jn.rms_norm(x, scale=scale[0])[None]

    spread = jax.shard_map(norm, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    close(jax.jit(spread)(x, scales), jnp.stack([jn.rms_norm(x, scale=s) for s in scales]))


def test_long_rows_and_rows_of_nothing():
    x = rows(3)
    assert jn.layer_norm(x[:, :0]).shape == (ROWS, 0) and jn.rms_norm(x[:0]).shape == (0, 3)
    y = jn.layer_norm(jnp.tile(x, (1, 9000)))[:, :3]
    np.testing.assert_allclose(y, jn.layer_norm(x), rtol=0, atol=2e-4)  # XLA:CPU unites point by point
