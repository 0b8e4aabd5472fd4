"""Rows, in the form of each backend: any length, and as on one device however they are spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

pytestmark = [
    pytest.mark.usefixtures("form"),
    pytest.mark.parametrize("form", ["cpu form", "default form", "tpu form"], indirect=True, scope="module"),
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
    x, mesh = rows(512), jax.make_mesh((ROWS,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(step, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check)
    close(jax.jit(spread)(x), step(x))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("data"), P(None, "data")], ids=["rows", "features"])
def test_sharded(kind, spec):
    x, mesh = rows(512), jax.make_mesh((ROWS,), ("data",), axis_types=(kind,))
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
