"""WeightNorm and SpectralNorm around a layer: Flax's variables and values, and nothing overwritten."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal
from flax import linen as nn
from flax import nnx
from layers import FLAX, OURS, draw

import jaxnorm as jn

pytestmark = pytest.mark.flexible  # of nn.Dense and nnx.Linear

X = draw((2, 8, 3))


class Net(nn.Module):
    """Wraps a convolution, and a module with layers of its own."""

    wrapper: type
    options: dict
    call: dict

    @nn.compact
    def __call__(self, x):
        x = self.wrapper(nn.Conv(4, (3,)), **self.options)(x, **self.call)
        return self.wrapper(Inner(), **self.options)(x, **self.call)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(jnp.tanh(nn.Dense(4)(x)))


class Remembering(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))


def nets(name, call, **options):
    return [Net(getattr(modules["linen"], name), options, call) for modules in (FLAX, OURS)]


def same(actual, expected, atol=2e-6):
    assert jax.tree.map(jax.typeof, actual) == jax.tree.map(jax.typeof, expected)
    assert_trees_all_close(actual, expected, atol=atol)


@pytest.mark.parametrize(
    ("name", "call", "options"),
    [
        ("WeightNorm", {}, {}),
        ("WeightNorm", {}, dict(variable_filter={"Dense_1", "Conv"}, feature_axes=None, epsilon=0.1)),
        pytest.param("WeightNorm", {}, dict(use_scale=False, dtype=jnp.bfloat16), marks=pytest.mark.slow),
        ("SpectralNorm", dict(update_stats=True), dict(n_steps=2, epsilon=0.1)),
        pytest.param("SpectralNorm", dict(update_stats=False), {}, marks=pytest.mark.slow),
    ],
    ids=["weight", "weight, chosen", "weight, no scale", "spectral, updated", "spectral"],
)
def test_linen_is_flax_s(name, call, options):
    theirs, ours = nets(name, call, **options)
    variables = jax.jit(theirs.init)(jax.random.key(0), X)
    same(jax.jit(ours.init)(jax.random.key(0), X), variables)

    def step(net):
        def loss(params):
            y, updates = net.apply(variables | {"params": params}, X, mutable="batch_stats")
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, updates)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    rounded = 2e-2 if jax.default_backend() == "cpu" else 4e-2  # of bfloat16, by the convolution, too
    same(step(ours), step(theirs), atol=rounded if options.get("dtype") else 2e-5)


def test_linen_spectral_norm_overwrites_no_parameter():
    _, ours = nets("SpectralNorm", dict(update_stats=True))
    variables = jax.jit(ours.init)(jax.random.key(0), X)
    _, after = jax.jit(lambda v: ours.apply(v, X, mutable=True))(variables)
    assert_trees_all_equal(after["params"], variables["params"])


@pytest.mark.parametrize(("name", "call"), [("WeightNorm", {}), ("SpectralNorm", dict(update_stats=True))])
def test_a_wrapped_batch_norm_trains(name, call):
    # Flax's WeightNorm cannot write its statistics, and Flax's SpectralNorm could normalize them
    layer = getattr(OURS["linen"], name)(Remembering())
    variables = layer.init(jax.random.key(0), X, **call)
    _, updates = layer.apply(variables, X, **call, mutable="batch_stats")
    stats = updates["batch_stats"]["layer_instance"]["BatchNorm_0"]
    assert np.all(stats["mean"] != 0)


@pytest.mark.parametrize("features", [-1, None])
def test_a_scale_from_the_weights_changes_no_function(features):
    dense = nn.Dense(4)
    bare, params = dense.init_with_output(jax.random.key(0), X)
    options = dict(feature_axes=features, scale_from_weights=True)
    linen = OURS["linen"].WeightNorm(dense, **options)
    variables = linen.init(jax.random.key(0), X)
    inner = linen.apply({"params": variables["params"]}, X)
    assert_trees_all_close(
        inner, dense.apply({"params": variables["params"]["layer_instance"]}, X), atol=1e-6
    )

    linear = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    linear.kernel.set_value(params["params"]["kernel"])
    wrapped = OURS["nnx"].WeightNorm(linear, **options, rngs=nnx.Rngs(1))
    assert_trees_all_close(wrapped(X), bare, atol=1e-6)


# ------------------------------------------------------------------------------------ nnx


class Deep(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)])
        self.tied = self.layers[0]
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.layers[1](self.layers[0](x)))


def wrapped(name, **options):
    return getattr(OURS["nnx"], name)(Deep(), rngs=nnx.Rngs(1), **options)


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_nnx_overwrites_no_parameter_and_shares_all_else(name):
    layer = wrapped(name)
    before = jax.tree.map(jnp.copy, nnx.state(layer, nnx.Param))
    y = layer(X)
    assert_trees_all_equal(nnx.state(layer, nnx.Param), before)
    inner = layer.layer_instance
    assert inner.layers[0] is inner.tied
    assert np.any(inner.layers[1].mean[...])  # its own batch norm has learned

    kernels = {path: v[...] for path, v in nnx.to_flat_state(nnx.state(Deep(), nnx.Param)) if v.ndim > 1}
    if name == "WeightNorm":
        kernels = jn.weight_norm(kernels)
    else:  # the stored sigma is that of the call
        kernels = {path: v / layer.batch_stats[(*path, "sigma")][...] for path, v in kernels.items()}
    direct = Deep()
    for path, v in nnx.to_flat_state(nnx.state(direct, nnx.Param)):
        if path in kernels:
            v.set_value(kernels[path])
    assert_trees_all_close(y, direct(X), atol=1e-5)


def test_nnx_spectral_norm_without_an_update_changes_nothing():
    layer = OURS["nnx"].SpectralNorm(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    before = jax.tree.map(jnp.copy, nnx.state(layer))
    y = layer(X, update_stats=False)
    assert_trees_all_equal(nnx.state(layer), before)
    layer.eval()
    assert_trees_all_equal(layer(X), y)
    assert_trees_all_equal(nnx.state(layer), before)
    layer.train()
    assert_trees_all_equal(layer(X), y)
    u = layer.batch_stats["kernel", "u"]
    assert not np.array_equal(u[...], before["batch_stats"]["kernel", "u"][...])


def test_nnx_weight_norm_trains_its_scales():
    layer = OURS["nnx"].WeightNorm(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(layer, optax.sgd(0.1), wrt=nnx.Param)
    kernel = layer.layer_instance.kernel[...]

    @nnx.jit
    def step(layer, optimizer):
        grads = nnx.grad(lambda layer: jnp.sum(layer(X) ** 2))(layer)
        optimizer.update(layer, grads)
        return grads

    grads = step(layer, optimizer)
    scale = layer.scales["kernel",][...]
    assert_trees_all_close(scale, 1 - 0.1 * grads["scales"]["kernel",][...], atol=1e-6)
    assert np.all(np.abs(scale - 1) > 1e-3)
    moved = kernel - 0.1 * grads["layer_instance"]["kernel"][...]
    assert_trees_all_close(layer.layer_instance.kernel[...], moved, atol=1e-6)


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_nnx_may_be_closed_over(name):
    layer = getattr(OURS["nnx"], name)(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    layer.eval()
    assert_trees_all_close(jax.jit(lambda x: layer(x))(X), layer(X), atol=1e-6)


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_a_state_of_flax_loads_by_path(name):
    theirs, ours = (
        getattr(modules["nnx"], name)(nnx.Linear(3, 4, rngs=nnx.Rngs(seed)), rngs=nnx.Rngs(seed + 1))
        for seed, modules in enumerate((FLAX, OURS))
    )
    pure = nnx.to_pure_dict(nnx.state(theirs))
    state = nnx.state(ours)
    nnx.replace_by_pure_dict(state, pure)
    nnx.update(ours, state)
    assert_trees_all_equal(nnx.to_pure_dict(nnx.state(ours)), pure)
    assert_trees_all_close(ours(X), theirs(X), atol=1e-6)


def test_nnx_weight_norm_draws_no_key():
    drawn = []
    for modules in (FLAX, OURS):
        rngs = nnx.Rngs(0)
        modules["nnx"].WeightNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)
        drawn.append(jax.random.key_data(rngs.params()))
    assert_trees_all_equal(*drawn)


def test_nnx_scales_take_random_initializers():
    options = dict(scale_init=nnx.initializers.normal(1.0), param_dtype=jnp.bfloat16, feature_axes=(0, 1))
    layer = OURS["nnx"].WeightNorm(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), **options, rngs=nnx.Rngs(1))
    (scale,) = layer.scales.values()
    assert isinstance(scale, nnx.Param)
    assert (scale.shape, scale.dtype) == ((3, 4), jnp.bfloat16)
    assert len(np.unique(scale[...].astype(jnp.float32))) > 6


# ------------------------------------------------------------------------------------ errors


def test_only_matrices():
    text = (
        "SpectralNorm: Input is 3D but error_on_non_matrix is True; wrap a layer whose kernel is a matrix, "
        "or leave error_on_non_matrix out to flatten the leading axes."
    )
    _, ours = nets("SpectralNorm", dict(update_stats=True), error_on_non_matrix=True)
    with pytest.raises(ValueError, match="Input is 3D but error_on_non_matrix is True") as found:
        ours.init(jax.random.key(0), X)
    assert str(found.value) == text
    conv = nnx.Conv(3, 4, (3,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="Layer instance parameter is 3D but error_on_non_matrix is True"):
        OURS["nnx"].SpectralNorm(conv, error_on_non_matrix=True, rngs=nnx.Rngs(0))


def test_partitioned_kernels_keep_their_axes():
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    layer = OURS["linen"].WeightNorm(nn.Dense(4, kernel_init=kernel_init))
    variables = jax.eval_shape(layer.init, jax.random.key(0), X)
    spec = nn.get_partition_spec(variables)["params"]
    assert spec["layer_instance"]["kernel"] == jax.sharding.PartitionSpec(None, "model")
