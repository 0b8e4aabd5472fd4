"""Labels and indices that a user gives: out of range, negative, of every integer dtype."""

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
import jaxnorm.linen
import jaxnorm.nnx

X = jnp.asarray(np.random.default_rng(0).normal(1.5, 2.0, (6, 5, 3)), jnp.float32)
TABLE = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2.0, (4, 3)), jnp.float32)
STATS = jn.Moments(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 3.0]), jnp.ones(3))
DTYPES = ["int4", "int8", "uint8", "int16", "int32", "uint32"]
LABELS = jnp.array([0, 3, -1, 4, -4, 2])
KNOWN = np.array([True, True, False, False, False, True])

over_tables = pytest.mark.parametrize("tables", [("scale", "bias"), ("scale",), ("bias",)])
over_modes = pytest.mark.parametrize("train", [True, False])
over_jit = pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])


def conditional(x, labels, tables, train=True, **more):
    return jn.conditional_batch_norm(x, STATS, labels, train=train, **tables, **more)


@over_jit
@over_modes
@over_tables
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sample_whose_label_is_out_of_range_is_nan_and_no_other(dtype, tables, train, transform):
    tables = dict.fromkeys(tables, TABLE)
    labels = LABELS.astype(dtype)  # -1 is the largest number of an unsigned dtype
    y, state = transform(lambda x, v, t: conditional(x, v, t, train))(X, labels, tables)
    assert bool(jnp.isnan(y[~KNOWN]).all())
    rows = {name: jnp.expand_dims(table[jnp.where(KNOWN, LABELS, 0)], 1) for name, table in tables.items()}
    expected, plain = jn.batch_norm(X, STATS, train=train, **rows)
    np.testing.assert_allclose(y[KNOWN], expected[KNOWN], rtol=1e-5, atol=1e-6)
    for actual, right in zip(state, plain, strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-6)


@over_jit
@over_modes
def test_a_label_out_of_range_has_no_part_in_any_gradient(train, transform):
    """The loss may leave such a sample out or not."""

    def loss(x, scale, bias, seen):
        y, _ = conditional(x, LABELS, {"scale": scale, "bias": bias}, train)
        return jnp.where(seen, y * jnp.sin(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape)), 0).sum()

    grads = transform(jax.grad(loss, (0, 1, 2)))
    of_known = grads(X, TABLE, TABLE, jnp.asarray(KNOWN)[:, None, None])
    assert all(bool(jnp.isfinite(v).all()) for v in of_known)
    _, dscale, dbias = grads(X, TABLE, TABLE, jnp.ones((), bool))
    for actual, right in zip((dscale, dbias), of_known[1:], strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(actual[1], 0)  # nobody's class


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_unknown_label_leaves_the_dtype_of_y(dtype):
    y, _ = conditional(X.astype(dtype), LABELS, {"scale": TABLE.astype(dtype)})
    assert y.dtype == dtype and bool(jnp.isnan(y[2]).all())


@pytest.mark.parametrize("labels", [200, 255])
def test_classes_beyond_a_narrow_dtype_are_counted_in_a_wider_one(labels):
    table = jnp.arange(200.0)[:, None]
    y, _ = jn.conditional_batch_norm(
        jnp.ones((2, 1)),
        jn.initial_stats(1),
        jnp.array([150, labels], jnp.uint8),
        train=False,
        bias=table,
        epsilon=0.0,
    )
    assert float(y[0, 0]) == 151 and bool(jnp.isnan(y[1, 0]))


def test_tables_of_integers_count_as_float32():
    y, _ = conditional(X, LABELS, {"bias": jnp.arange(12).reshape(4, 3)}, train=False)
    assert bool(jnp.isnan(y[~KNOWN]).all()) and bool(jnp.isfinite(y[KNOWN]).all())


@pytest.mark.parametrize("labels", [LABELS, np.asarray(LABELS), [0, 3, -1, 4, -4, 2]], ids=type)
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_the_layer_hears_a_label_out_of_range(api, labels):
    if api == "linen":
        norm = jaxnorm.linen.ConditionalBatchNorm(num_classes=4, use_running_average=False)
        variables = norm.init(jax.random.key(0), X, labels)
        y, variables = norm.apply(variables, X, labels, mutable="batch_stats")
        mean = variables["batch_stats"]["mean"]
    else:
        norm = jaxnorm.nnx.ConditionalBatchNorm(3, num_classes=4, rngs=flax.nnx.Rngs(0))
        y = norm(X, labels)
        mean = norm.mean[...]
    np.testing.assert_array_equal(np.isnan(y).all((1, 2)), ~KNOWN)
    np.testing.assert_array_equal(np.isnan(y).any((1, 2)), ~KNOWN)
    np.testing.assert_allclose(mean, 0.01 * X.mean((0, 1)), rtol=1e-5)


@over_jit
@pytest.mark.parametrize(
    ("index", "dtype", "place"),
    [
        (-1, "int8", 0),
        (-128, "int8", 0),
        (100, "int8", 100),
        (150, "uint8", 150),
        (255, "uint8", 199),
        (7, "int4", 7),
        (-3, "int32", 0),
        (2**31 - 1, "int32", 199),
        (2**32 - 1, "uint32", 199),
    ],
)
def test_an_index_of_any_dtype_is_clipped_to_the_states_there_are(index, dtype, place, transform):
    bank = jn.initial_stats((200, 3))
    step = transform(lambda i: jn.bank_norm(X, bank, i, train=True, decay=0.5)[1])
    new = step(jnp.array(index, dtype))
    np.testing.assert_array_equal(np.flatnonzero(new.mean[:, 0]), [place])


@pytest.mark.parametrize("index", [-2, 9])
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_layer_clips_its_domain(api, index):
    if api == "linen":
        norm = jaxnorm.linen.DomainBatchNorm(num_domains=3, use_running_average=False)
        _, variables = norm.init_with_output(jax.random.key(0), X, index)
        _, variables = norm.apply(variables, X, index, mutable="batch_stats")
        mean = variables["batch_stats"]["mean"]
    else:
        norm = jaxnorm.nnx.DomainBatchNorm(3, num_domains=3, rngs=flax.nnx.Rngs(0))
        norm(X, index)
        mean = norm.mean[...]
    np.testing.assert_array_equal(np.flatnonzero(mean[:, 0]), [max(0, min(index, 2))])


# ---------------------------------------------------------------- thresholds, at which y has a kink


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_threshold_has_the_derivative_of_the_maximum(dtype):
    """Also at a tie, of which jnp.maximum gives each side half."""
    x = X.astype(dtype)
    plain = jn.filter_response_norm(x)
    threshold = plain[2, 1]  # equal to y at one place of each channel
    g = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape).astype(dtype)
    y, back = jax.vjp(lambda x, t: jn.filter_response_norm(x, threshold=t), x, threshold)
    right, expected = jax.vjp(
        lambda x, t: jnp.maximum(jn.filter_response_norm(x), t[None, None]), x, threshold
    )
    np.testing.assert_array_equal(y.astype(jnp.float32), right.astype(jnp.float32))
    for actual, of_max in zip(back(g), expected(g), strict=True):
        tolerance = 1e-6 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(
            actual.astype(jnp.float32), of_max.astype(jnp.float32), rtol=0, atol=tolerance * 4
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_clip_has_the_derivative_of_jnp_clip(dtype):
    x = jnp.array([[-2.0], [-1.0], [0.5], [1.0], [3.0]], dtype)  # 1 and -1 are ties
    stats = jn.initial_stats(1)
    options = {"train": False, "epsilon": 0.0}
    y, back = jax.vjp(lambda x, c: jn.input_norm(x, stats, clip=c, **options)[0], x, jnp.float32(1))
    right, expected = jax.vjp(lambda x, c: jnp.clip(x, -c.astype(dtype), c.astype(dtype)), x, jnp.float32(1))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(jnp.float32), right.astype(jnp.float32))
    g = jnp.array([[1.0], [2.0], [3.0], [4.0], [5.0]], dtype)
    for actual, of_clip in zip(back(g), expected(g), strict=True):
        np.testing.assert_allclose(actual.astype(jnp.float32), of_clip.astype(jnp.float32), rtol=1e-6)
