"""Kinds of x: no array, of another width, complex, of few bits, or empty; checkify and jet."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import checkify, jet
from thin import slow_but
from variants import VARIANTS
from variants_family import FAMILY

import jaxnorm as jn

X = jnp.ones((2, 3, 4)) * jnp.arange(4.0)
STATS = jn.initial_stats((4,))
KEY = jax.random.key(0)
both = pytest.mark.parametrize("api", ["linen", "nnx"])


def assert_raises(error, call, text):
    with pytest.raises(error, match=re.escape(text)) as caught:
        call()
    assert str(caught.value) == text


# ------------------------------------------------------------------------------------ widths

WIDTHS = ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "BatchRenorm", "PartialRMSNorm"]


@pytest.mark.parametrize("name", [*WIDTHS, "DynamicTanh", "ScaleNorm", "InputNorm", "QKNorm"])
def test_an_nnx_layer_without_parameters_has_a_width(name):
    options = {"use_scale": False, "use_bias": False, "num_groups": 1}
    taken = {k: v for k, v in options.items() if k in str(_signature(name))}
    layer = getattr(jn.nnx, name)(4, rngs=nnx.Rngs(0), **taken)
    option = next((name for name in ("feature_axes", "axis", "feature_axis") if hasattr(layer, name)), None)
    advice = f", or choose {option}=1, which has that size" if option else ""
    text = f"{name}: 4 stored features do not fit axis -1 of x, shape (2, 4, 3); choose a layer of 3 features"
    x = jnp.ones((2, 4, 3))
    assert_raises(
        ValueError, (lambda: layer(x, x)) if name == "QKNorm" else (lambda: layer(x)), f"{text}{advice}."
    )


def _signature(name):
    layer = getattr(jn.nnx, name)
    return getattr(layer, "__signature__", None) or inspect.signature(layer.__init__)


# ------------------------------------------------------------------------------------ what is no array


class Tensor:
    __module__ = "torch"
    dtype = "torch.float32"
    shape = (2, 4)
    ndim = 2


ONE = "; make it one array first, for example with jnp.stack(x)."
NO_ARRAYS = [
    (None, "None; give one array."),
    (Tensor(), "a torch Tensor; convert it first, for example with jnp.asarray(x.numpy())."),
    ([X, X], f"a list of arrays{ONE}"),
    ((X, np.ones(3)), f"a tuple of arrays{ONE}"),
    ({"a": 1.0}, "an object of type dict; give one array."),
    ([[1.0], [2.0, 3.0]], "[[1.0], [2.0, 3.0]]; give one array."),
]


@pytest.mark.parametrize(("x", "got"), NO_ARRAYS, ids=lambda v: type(v).__name__)
def test_what_is_no_array(x, got):
    for name, call in (
        ("layer_norm", jn.layer_norm),
        ("batch_norm", partial(jn.batch_norm, stats=STATS, train=True)),
        ("unit_norm", jn.unit_norm),
    ):
        assert_raises(TypeError, partial(call, x), f"{name}: x must hold numbers, got {got}")
    text = f"layer_norm: where must be a boolean mask or real weights, got {got.replace('(x', '(where')}"
    if x is not None:
        assert_raises(TypeError, partial(jn.layer_norm, X, where=x), text)


@both
def test_a_layer_of_no_array(api):
    layer = jn.nnx.LayerNorm(4, rngs=nnx.Rngs(0))
    for x, got in NO_ARRAYS[:2]:
        call = partial(layer if api == "nnx" else partial(jn.linen.LayerNorm().init, KEY), x)
        assert_raises(TypeError, call, f"LayerNorm: x must hold numbers, got {got}")


def test_statistics_have_a_shape():
    text = "initial_stats: shape must be an int or several, got {}; give, for example, x.shape[-1:]."
    for shape, shown in ((X, "float32[2,3,4]"), (4.0, "4.0"), (None, "None"), ((2, 3.0), "(2, 3.0)")):
        assert_raises(TypeError, partial(jn.initial_stats, shape), text.format(shown))
    assert_raises(
        ValueError,
        partial(jn.initial_stats, -1),
        "initial_stats: shape=-1 has a negative size; choose 0 or more.",
    )
    for shape in ((2, 3), [2, 3], np.array([2, 3]), jnp.array([2, 3])):
        assert jn.initial_stats(shape).mean.shape == (2, 3)


def test_moments_are_moments():
    text = "merge: a must be Moments, got float32[2,3,4]; take them with moments(x, axis)."
    assert_raises(TypeError, partial(jn.merge, X, X), text)


# ------------------------------------------------------------------------------------ complex x

COMPLEX = X.astype(jnp.complex64)
REAL = {
    "evonorm_s0": lambda: jn.evonorm_s0(COMPLEX, jnp.ones(4), num_groups=2),
    "evonorm_b0": lambda: jn.evonorm_b0(
        COMPLEX, jn.initial_stats(4, dtype=jnp.complex64), jnp.ones(4), train=True
    ),
    "dynamic_erf": lambda: jn.dynamic_erf(COMPLEX, 0.5, 0.0),
    "input_norm": lambda: jn.input_norm(
        COMPLEX, jn.initial_stats(4, dtype=jnp.complex64), train=True, clip=1.0
    ),
    "filter_response_norm": lambda: jn.filter_response_norm(COMPLEX, threshold=0.0),
    "decorrelated_batch_norm": lambda: jn.decorrelated_batch_norm(
        COMPLEX, jn.initial_covariance(4), train=True
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_a_formula_of_real_numbers_takes_no_complex_ones(name):
    text = f"{name}: x is complex64; give its real and imaginary parts as features."
    assert_raises(TypeError, REAL[name], text)


# ------------------------------------------------------------------------------------ few bits

TINY = ("int2", "uint2", "int4", "uint4", "float4_e2m1fn", "float8_e8m0fnu")
LIKE_INTS = [name for name in TINY if hasattr(jnp, name)]
FLOAT8 = [n for n in vars(jnp) if n.startswith("float8_") and n not in LIKE_INTS]
VALUES = np.array([[1.0, 0.5, 1.0, 1.0], [0.5, 1.0, 1.0, 0.5]])  # which all of the floats have
BITS = np.array([[1, 0, 1, 1], [0, 1, 1, 0]])
NORMS = {
    "layer_norm": jn.layer_norm,
    "rms_norm": jn.rms_norm,
    "group_norm": lambda x: jn.group_norm(x, 2),
    "batch_norm": lambda x: jn.batch_norm(x, STATS, train=True)[0],
    "batch_norm evaluated": lambda x: jn.batch_norm(x, STATS, train=False)[0],
    "unit_norm": jn.unit_norm,
    "dynamic_tanh": lambda x: jn.dynamic_tanh(x, 0.5),
    "standardize": lambda x: jn.standardize(x, STATS),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", LIKE_INTS)
def test_tiny_dtypes_count_as_float32(dtype, name):
    x = jnp.asarray(BITS if "int" in dtype else VALUES).astype(dtype)
    y = NORMS[name](x)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, NORMS[name](x.astype(jnp.float32)))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", FLOAT8)
def test_floats_of_8_bits_are_computed_in_float32(dtype, name):
    x = jnp.asarray(VALUES, jnp.float32).astype(dtype)
    y = NORMS[name](x)
    assert y.dtype == dtype
    expected = NORMS[name](x.astype(jnp.float32))
    np.testing.assert_array_equal(y.astype(jnp.float32), expected.astype(dtype).astype(jnp.float32))


@both
@pytest.mark.parametrize("dtype", [*LIKE_INTS, *FLOAT8])
def test_layers_of_few_bits_compute_in_float32(api, dtype):
    x = jnp.asarray(BITS if "int" in dtype else VALUES).astype(dtype)
    for name, mode in (("LayerNorm", {}), ("BatchNorm", {"use_running_average": False}), ("DynamicTanh", {})):
        if api == "linen":
            layer = getattr(jn.linen, name)(**mode)
            y, after = layer.init_with_output(KEY, x)
            expected = layer.apply(after, x.astype(jnp.float32), mutable="batch_stats")[0]
        else:
            layer = getattr(jn.nnx, name)(4, rngs=nnx.Rngs(0), **mode)
            y, expected = layer(x), layer(x.astype(jnp.float32))
        assert y.dtype == jnp.float32
        np.testing.assert_array_equal(y, expected)


# ------------------------------------------------------------------------------------ empty, and checked


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)])
def test_spectral_norm_of_an_empty_weight(shape):
    v = jnp.ones(shape)
    stats = jn.initial_spectral_stats(v, KEY)
    w, after = jn.spectral_norm(v, stats)
    assert w.shape == shape
    np.testing.assert_array_equal(after.u, stats.u)
    assert after.sigma == stats.sigma


SAMPLES = {
    "masked": lambda shape: (jnp.ones(shape), jnp.zeros(shape, bool)),
    "empty": lambda shape: (jnp.ones(shape)[:0], None),
}


# One of each way to divide
DIVIDING = ("batch", "layer", "group channels first", "unit ord 2", "local response", "standardize")
DIVIDING += ("renorm", "whitened", "filter response", "spade")


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("variant", slow_but([*VARIANTS, *FAMILY], *DIVIDING), ids=str)
def test_checkify_finds_no_false_division(variant, sample):
    x, where = SAMPLES[sample](variant.shape)
    if where is not None and "where" not in variant.takes:
        return
    features = tuple(variant.shape[a] for a in variant.features)
    scale, bias = jnp.full(features, 1.5), jnp.full(features, 0.5)
    stats = variant.state(jnp.zeros(features), jnp.ones(features), jnp.full(features, variant.weight))

    def y_and_dx(x):
        y, pullback = jax.vjp(lambda x: variant.function(x, scale, bias, where, stats)[0], x)
        return y, pullback(y)

    error, _ = checkify.checkify(y_and_dx, errors=checkify.float_checks)(x)
    assert error.get() is None


def test_checkify_finds_no_false_division_by_a_state_of_no_spread():
    stats = jn.Moments(jnp.zeros(4), jnp.zeros(4), jnp.ones(4))
    renorm = partial(jn.batch_renorm, X, stats, train=True, epsilon=0.0)
    error, (y, _) = checkify.checkify(renorm, errors=checkify.float_checks)()
    assert error.get() is None
    assert jnp.isfinite(y).all()


@pytest.mark.parametrize("name", ["layer_norm", "dynamic_tanh", "batch_norm", "group_norm"])
def test_jet_is_refused_in_words(name):
    text = (
        f"{name}: jax.experimental.jet has no rule for jax.checkpoint, which keeps the memory of the "
        "backward pass small; take higher derivatives by jax.jvp of jax.jvp, or by jax.hessian."
    )
    assert_raises(NotImplementedError, lambda: jet.jet(NORMS[name], (X,), ((X, X),)), text)
