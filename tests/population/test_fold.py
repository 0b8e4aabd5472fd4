"""Folding arrays: the layer with the folded kernel does what the layer and the norm did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import jaxnorm as jn
from jaxnorm.population import fold_batch_norm, fold_into_next, fold_scale

RNG = np.random.default_rng(0)


def draw(*shape, dtype=np.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def norm_of(*size, dtype=np.float32):
    """Statistics, scale and bias of a norm: far from the identity."""
    stats = jn.Moments(3 * draw(*size, dtype=dtype), jnp.abs(draw(*size)) + 0.1, jnp.ones(size))
    return stats, {"scale": draw(*size, dtype=dtype), "norm_bias": draw(*size, dtype=dtype)}


def evaluated(y, stats, scale, norm_bias, epsilon=1e-5, axis=-1):
    """The norm's evaluation in float64 numpy, with its features on one axis of y."""
    shape = [1] * y.ndim
    shape[axis] = -1
    y, mean, var, scale, norm_bias = (
        np.asarray(v, complex if np.iscomplexobj(v) else float)
        for v in (y, stats.mean, stats.var, scale, norm_bias)
    )
    mean, var, scale, norm_bias = (v.reshape(shape) for v in (mean, var, scale, norm_bias))
    return (y - mean) / np.sqrt(var + epsilon) * scale + norm_bias


def near(actual, expected, tolerance=1e-5):
    """Within `tolerance` of the greatest expected value."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


LAYERS = {
    "dense": (nn.Dense(6), (5, 4), {}),
    "dense general": (nn.DenseGeneral((3, 6)), (5, 4), {}),
    "conv": (nn.Conv(6, (3, 3)), (2, 8, 8, 4), {}),
    "strided, dilated": (nn.Conv(6, (3, 3), strides=2, kernel_dilation=2), (2, 9, 9, 4), {}),
    "grouped": (nn.Conv(6, (3, 3), feature_group_count=2), (2, 8, 8, 4), {}),
    "depthwise": (nn.Conv(8, (3, 3), feature_group_count=4), (2, 8, 8, 4), {}),
    "1-d": (nn.Conv(6, (3,), padding="CAUSAL"), (2, 8, 4), {}),
    "3-d": (nn.Conv(6, (2, 3, 2), padding="CIRCULAR"), (2, 4, 4, 4, 4), {}),
    "transposed": (nn.ConvTranspose(6, (3, 3), strides=(2, 2)), (2, 5, 5, 4), {}),
    "transpose_kernel": (
        nn.ConvTranspose(6, (3, 3), strides=(2, 2), transpose_kernel=True),
        (2, 5, 5, 4),
        {"feature_axis": -2},
    ),
}


@pytest.mark.flexible
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_into_the_layer_before(name, use_bias):
    layer, shape, options = LAYERS[name]
    layer, x = layer.clone(use_bias=use_bias), draw(*shape)
    params = layer.init(jax.random.key(0), x)["params"]
    if use_bias:
        params["bias"] = draw(*params["bias"].shape)
    y = layer.apply({"params": params}, x)
    stats, affine = norm_of(y.shape[-1])
    kernel, bias = fold_batch_norm(params["kernel"], params.get("bias"), stats, **affine, **options)
    assert kernel.dtype == bias.dtype == jnp.float32 and kernel.shape == params["kernel"].shape
    if name == "dense general":
        folded = layer.clone(use_bias=False).apply({"params": {"kernel": kernel}}, x) + bias
    else:
        folded = layer.clone(use_bias=True).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    near(folded, evaluated(y, stats, **affine))
    ours, _ = jn.batch_norm(y, stats, train=False, scale=affine["scale"], bias=affine["norm_bias"])
    near(folded, ours)


# Those after a norm: no padding with zeros.
NEXT = {
    "dense": (nn.Dense(6), (5, 4), {}),
    "dense general, outputs": (nn.DenseGeneral((3, 6)), (5, 4), {"feature_axis": 0}),
    "dense general, inputs": (nn.DenseGeneral(6, axis=(-2, -1)), (5, 3, 4), {}),
    "conv": (nn.Conv(6, (3, 3), padding="VALID"), (2, 8, 8, 4), {}),
    "circular": (nn.Conv(6, (3, 3), padding="CIRCULAR"), (2, 8, 8, 4), {}),
    "grouped": (nn.Conv(6, (3, 3), padding="VALID", feature_group_count=2), (2, 8, 8, 4), {"groups": 2}),
    "depthwise": (nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4), (2, 8, 8, 4), {"groups": 4}),
    "1-d": (nn.Conv(6, (3,), padding="VALID", kernel_dilation=2), (2, 8, 4), {}),
    "3-d": (nn.Conv(6, (2, 3, 2), padding="VALID"), (2, 4, 4, 4, 4), {}),
}


@pytest.mark.flexible
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", NEXT)
def test_into_the_layer_after(name, use_bias):
    layer, shape, options = NEXT[name]
    layer, x = layer.clone(use_bias=use_bias), draw(*shape)
    params = layer.init(jax.random.key(0), x)["params"]
    if use_bias:
        params["bias"] = draw(*params["bias"].shape)
    stats, affine = norm_of(shape[-1])
    expected = layer.apply({"params": params}, jnp.asarray(evaluated(x, stats, **affine), jnp.float32))
    kernel, bias = fold_into_next(params["kernel"], params.get("bias"), stats, **affine, **options)
    near(layer.clone(use_bias=True).apply({"params": {"kernel": kernel, "bias": bias}}, x), expected)

    x = jn.layer_norm(x, epsilon=0.0)
    expected = layer.apply({"params": params}, x * affine["scale"] + affine["norm_bias"])
    kernel, bias = fold_scale(params["kernel"], params.get("bias"), **affine, **options)
    near(layer.clone(use_bias=True).apply({"params": {"kernel": kernel, "bias": bias}}, x), expected)


@pytest.mark.flexible
def test_a_scale_alone_needs_no_bias_and_minds_no_padding():
    layer, x, scale = nn.Conv(6, (3, 3), padding="SAME", use_bias=False), draw(2, 8, 8, 4), draw(4)
    kernel = layer.init(jax.random.key(0), x)["params"]["kernel"]
    folded, bias = fold_scale(kernel, None, scale=scale)
    assert bias is None
    near(
        layer.apply({"params": {"kernel": folded}}, x), layer.apply({"params": {"kernel": kernel}}, x * scale)
    )


def test_a_transposed_kernel_has_its_inputs_last():
    kernel, x = draw(3, 6, 4), draw(2, 9, 4)
    stats, affine = norm_of(4)

    def conv(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NHC", "HOI", "NHC"))

    folded, bias = fold_into_next(kernel, None, stats, **affine, feature_axis=-1)
    expected = conv(jnp.asarray(evaluated(x, stats, **affine), jnp.float32), kernel)
    near(conv(x, folded) + bias[None, None], expected)


def test_grouped_inputs_may_stand_after_the_outputs():
    kernel, (stats, affine) = draw(3, 4, 6), norm_of(8)
    options = {**affine, "groups": 2}
    kernel_2, bias_2 = fold_into_next(kernel, None, stats, **options)
    turned, bias = fold_into_next(jnp.swapaxes(kernel, -1, -2), None, stats, **options, feature_axis=-1)
    near(jnp.swapaxes(turned, -1, -2), kernel_2, 1e-6)
    near(bias, bias_2, 1e-6)


def test_both_features_of_a_dense_general():
    kernel, bias, x = draw(4, 2, 3), draw(2, 3), draw(5, 4)
    m, scale, term = (draw(2, 3) for _ in range(3))
    stats = jn.Moments(m, jnp.abs(m) + 0.1, jnp.ones((2, 3)))
    options = {"scale": scale, "norm_bias": term, "feature_axis": (-2, -1)}
    new_kernel, new_bias = fold_batch_norm(kernel, bias, stats, **options)
    y = jnp.einsum("ni,iab->nab", x, kernel) + bias[None]
    expected, _ = jn.batch_norm(y, stats, train=False, scale=scale, bias=term, feature_axis=(-2, -1))
    near(jnp.einsum("ni,iab->nab", x, new_kernel) + new_bias[None], expected)


def test_heads_of_a_dense_general():
    """The norm has one of its two output axes, wherever that stands in the bias."""
    kernel, bias, x = draw(4, 2, 3), draw(2, 3), draw(5, 4)
    stats, affine = norm_of(2)
    new_kernel, new_bias = fold_batch_norm(kernel, bias, stats, **affine, feature_axis=-2)
    y = jnp.einsum("ni,iab->nab", x, kernel) + bias[None]
    near(jnp.einsum("ni,iab->nab", x, new_kernel) + new_bias[None], evaluated(y, stats, **affine, axis=-2))


def test_batch_axes_are_outputs():
    """Of a DenseGeneral with `batch_dims`."""
    kernel, bias, x = draw(3, 4, 6), draw(3, 6), draw(3, 5, 4)
    stats, affine = norm_of(4)
    new_kernel, new_bias = fold_into_next(kernel, bias, stats, **affine, output_axis=(0, -1))
    expected = jnp.asarray(evaluated(x, stats, **affine), jnp.float32) @ kernel + bias[:, None]
    near(x @ new_kernel + new_bias[:, None], expected)


@pytest.mark.flexible
@pytest.mark.parametrize("complex_kernel", [True, False])
def test_complex(complex_kernel):
    dtype = np.complex64
    kernel, x = draw(4, 3), draw(5, 4) + 1j * draw(5, 4)
    if complex_kernel:
        kernel = kernel + 1j * draw(4, 3)
    stats, affine = norm_of(3, dtype=dtype)
    stats = stats._replace(mean=stats.mean * (1 + 2j))
    affine = {name: v * (2 - 1j) for name, v in affine.items()}
    new_kernel, bias = fold_batch_norm(kernel, None, stats, **affine)
    assert new_kernel.dtype == bias.dtype == dtype
    y = x @ kernel.astype(dtype)
    near(x @ new_kernel + bias[None], evaluated(y, stats, **affine))

    stats, affine = norm_of(4, dtype=dtype)
    stats = stats._replace(mean=stats.mean * (1 + 2j))
    new_kernel, bias = fold_into_next(kernel, None, stats, **affine)
    z = jnp.asarray(evaluated(x, stats, **affine), dtype)
    near(x @ new_kernel.astype(dtype) + bias[None], z @ kernel.astype(dtype))


@pytest.mark.parametrize("fold", [fold_batch_norm, fold_into_next])
def test_bfloat16_is_rounded_once(fold):
    kernel, bias = draw(4, 4, dtype=jnp.bfloat16), draw(4)
    stats, affine = norm_of(4)
    new_kernel, new_bias = fold(kernel, bias, stats, **affine)
    wide_kernel, wide_bias = fold(kernel.astype(jnp.float32), bias, stats, **affine)
    assert new_kernel.dtype == jnp.bfloat16 and new_bias.dtype == jnp.float32
    assert (new_kernel == wide_kernel.astype(jnp.bfloat16)).all()
    near(new_bias, wide_bias, 1e-6)
    _, new_bias = fold(kernel, None, stats, **affine)
    assert new_bias.dtype == jnp.bfloat16


def test_integer_kernels_and_narrow_statistics():
    stats = jn.Moments(*(jnp.ones(2, jnp.bfloat16) for _ in range(3)))
    kernel, bias = fold_batch_norm(np.ones((3, 2), np.int32), [1, 2], stats, epsilon=0.0)
    assert kernel.dtype == bias.dtype == jnp.float32
    np.testing.assert_array_equal(bias, [0, 1])


@pytest.mark.parametrize("var", [1e-12, 1e-30, 0.0])
@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-12, 0.0])
def test_tiny_variances_and_zero_scales_are_as_in_evaluation(var, scale, epsilon):
    """Without cancellation: x is small, and so are kernel, bias and mean."""
    size = np.sqrt(var + epsilon).astype(np.float32)
    x, kernel, bias = draw(5, 4), draw(4, 3) * size, draw(3) * size
    stats = jn.Moments(draw(3) * size, jnp.full(3, var, jnp.float32), jnp.ones(3))
    affine = {"scale": jnp.full(3, scale), "norm_bias": draw(3)}
    new_kernel, new_bias = fold_batch_norm(kernel, bias, stats, **affine, epsilon=epsilon)
    expected, _ = jn.batch_norm(
        x @ kernel + bias[None],
        stats,
        train=False,
        scale=affine["scale"],
        bias=affine["norm_bias"],
        epsilon=epsilon,
    )
    near(x @ new_kernel + new_bias[None], expected)

    stats = jn.Moments(draw(4) * size, jnp.full(4, var, jnp.float32), jnp.ones(4))
    affine = {"scale": jnp.full(4, scale), "norm_bias": draw(4)}
    x, kernel = x * size, draw(4, 3)
    normed, _ = jn.batch_norm(
        x, stats, train=False, scale=affine["scale"], bias=affine["norm_bias"], epsilon=epsilon
    )
    new_kernel, new_bias = fold_into_next(kernel, None, stats, **affine, epsilon=epsilon)
    near(x @ new_kernel + new_bias[None], normed @ kernel)


@pytest.mark.parametrize("fold", [fold_batch_norm, fold_into_next])
def test_a_channel_that_cannot_be_used_is_the_identity_as_in_evaluation(fold):
    stats = jn.Moments(
        jnp.array([jnp.nan, 1.0, 1.0, 1.0, 2.0]),
        jnp.array([1.0, jnp.inf, -1.0, 4.0, 4.0]),
        jnp.array([1.0, 1.0, 1.0, 0.0, 1.0]),
    )
    x, kernel = draw(3, 5), draw(5, 5)
    new_kernel, bias = fold(kernel, None, stats)
    if fold is fold_batch_norm:
        expected, _ = jn.batch_norm(x @ kernel, stats, train=False)
    else:
        expected = jn.batch_norm(x, stats, train=False)[0] @ kernel
    near(x @ new_kernel + bias[None], expected)


def test_stacked_layers_by_vmap_and_jit():
    kernel, bias, x = draw(3, 5, 4), draw(3, 4), draw(3, 6, 5)
    stats, affine = norm_of(3, 4)
    fold = jax.jit(
        jax.vmap(lambda k, b, s, scale, term: fold_batch_norm(k, b, s, scale=scale, norm_bias=term))
    )
    new_kernel, new_bias = fold(kernel, bias, stats, *affine.values())
    y = x @ kernel + bias[:, None]
    for i in range(3):
        at = [jax.tree.map(lambda v, i=i: v[i], v) for v in (stats, affine)]
        near(x[i] @ new_kernel[i] + new_bias[i][None], evaluated(y[i], at[0], **at[1]))


@pytest.mark.parametrize("fold", [fold_batch_norm, fold_into_next])
def test_gradients_are_those_of_layer_and_norm(fold):
    x, kernel, bias, target = draw(6, 4), draw(4, 4), draw(4), draw(6, 4)
    stats, affine = norm_of(4)

    def folded(kernel, bias, stats, affine):
        kernel, bias = fold(kernel, bias, stats, **affine)
        return jnp.sum(target * (x @ kernel + bias[None]))

    def apart(kernel, bias, stats, affine):
        def norm(y):
            options = {"scale": affine["scale"], "bias": affine["norm_bias"]}
            return jn.batch_norm(y, stats, train=False, **options)[0]

        if fold is fold_batch_norm:
            return jnp.sum(target * norm(x @ kernel + bias[None]))
        return jnp.sum(target * (norm(x) @ kernel + bias[None]))

    gradients = (jax.grad(f, (0, 1, 2, 3))(kernel, bias, stats, affine) for f in (folded, apart))
    jax.tree.map(lambda a, b: near(a, b, 1e-4), *gradients)


ONE = jn.initial_stats((4,))
KERNEL = jnp.ones((3, 3, 2, 4))
ERRORS = [
    (
        lambda: fold_batch_norm(KERNEL, None, jn.initial_stats((3,))),
        "fold_batch_norm: stats.mean has shape (3,), but kernel, shape (3, 3, 2, 4), has (4,) on its feature "
        "axes (3,); give one value a feature of the norm, or choose feature_axis=1, which has that size.",
    ),
    (
        lambda: fold_batch_norm(KERNEL, None, ONE, scale=jnp.ones(5)),
        "fold_batch_norm: scale has shape (5,), but kernel, shape (3, 3, 2, 4), has (4,) on its feature axes "
        "(3,); give one value a feature of the norm.",
    ),
    (
        lambda: fold_batch_norm(KERNEL, jnp.ones(2), ONE),
        "fold_batch_norm: bias has shape (2,), but kernel, shape (3, 3, 2, 4), has (4,) on its feature axes "
        "(3,); give the bias of the same layer, or feature_axis.",
    ),
    (
        lambda: fold_batch_norm(KERNEL, None, ONE, feature_axis=4),
        "fold_batch_norm: feature_axis=4 is out of range for kernel, shape (3, 3, 2, 4); choose from -4 "
        "to 3.",
    ),
    (
        lambda: fold_batch_norm(KERNEL, None, ONE, epsilon=-1.0),
        "fold_batch_norm: epsilon=-1.0 is not a number >= 0; it is added to the variance: choose, for "
        "example, 1e-5.",
    ),
    (
        lambda: fold_batch_norm(KERNEL, None, None),
        "fold_batch_norm: stats must be Moments, got None; take them with moments(x, axis).",
    ),
    (
        lambda: fold_batch_norm("kernel", None, ONE),
        "fold_batch_norm: kernel must hold numbers, got dtype <U6; convert it first, for example with "
        "kernel.astype(jnp.float32).",
    ),
    (
        lambda: fold_into_next(KERNEL, None, jn.initial_stats((8,))),
        "fold_into_next: stats.mean has shape (8,), but kernel, shape (3, 3, 2, 4), has (2,) on its feature "
        "axes (2,); give one value a feature of the norm, or groups=4 of a grouped Conv after the norm.",
    ),
    (
        lambda: fold_into_next(KERNEL, None, jn.initial_stats((6,)), groups=4),
        "fold_into_next: stats.mean has shape (6,), but kernel, shape (3, 3, 2, 4), has (2,) on its feature "
        "axes (2,) and groups=4 make (8,); give one value a feature of the norm, or groups=3 of a grouped "
        "Conv after the norm.",
    ),
    (
        lambda: fold_into_next(KERNEL, None, jn.initial_stats((6,)), groups=3),
        "fold_into_next: groups=3 does not divide axis 3 of kernel, shape (3, 3, 2, 4); choose a divisor "
        "of 4.",
    ),
    (
        lambda: fold_into_next(KERNEL, None, jn.initial_stats((6,)), groups=0),
        "fold_into_next: groups=0 is too small; choose 1 or more.",
    ),
    (
        lambda: fold_into_next(KERNEL, None, ONE, groups=2, output_axis=(0, 3)),
        "fold_into_next: groups=2 for a kernel, shape (3, 3, 2, 4), with feature axes (2,) and output axes "
        "(0, 3); a grouped kernel has one of each.",
    ),
    (
        lambda: fold_into_next(KERNEL, None, ONE, output_axis=2),
        "fold_into_next: feature_axis=-2 and output_axis=2 share an axis of kernel, shape (3, 3, 2, 4); an "
        "axis is of one kind.",
    ),
    (
        lambda: fold_scale(KERNEL, jnp.ones(2), scale=jnp.ones(2)),
        "fold_scale: bias has shape (2,), but kernel, shape (3, 3, 2, 4), has (4,) on its axes of output "
        "features (3,); give the bias of the same layer, or output_axis.",
    ),
    (
        lambda: fold_scale(KERNEL, None, scale=jnp.ones(3)),
        "fold_scale: scale has shape (3,), but kernel, shape (3, 3, 2, 4), has (2,) on its feature axes "
        "(2,); give one value a feature of the norm, or choose feature_axis=1, which has that size.",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS)
def test_errors(call, text):
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    assert str(raised.value) == text
