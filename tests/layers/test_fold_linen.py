"""`fold` of linen and nnx: the same model with folded variables evaluates as before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict, freeze, meta

from jaxnorm import linen as jnl

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def scrambled(tree):
    """Other values of the same shapes; variances positive."""

    def at(path, v):
        value = draw(*v.shape)
        positive = path[-1] in (jax.tree_util.DictKey("var"), jax.tree_util.GetAttrKey("var"))
        return (jnp.abs(value) + 0.1 if positive else value).astype(v.dtype)

    return jax.tree_util.tree_map_with_path(at, tree)


def near(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


def structure(variables):
    return jax.tree.map(lambda v: (v.shape, v.dtype), variables)


class Linen(nn.Module):
    """A residual block of convolutions and a dense layer, each with its norm."""

    norm: type = jnl.BatchNorm
    options: dict = None
    use_bias: bool = True
    affine: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        options = {"use_running_average": not train, "use_bias": self.affine, "use_scale": self.affine}
        options |= self.options or {}
        y = nn.Conv(6, (3, 3), use_bias=self.use_bias, name="conv1")(x)
        y = nn.relu(self.norm(**options, name="norm1")(y))
        y = nn.Conv(6, (3, 3), feature_group_count=3, use_bias=self.use_bias, name="conv2")(y)
        y = nn.relu(self.norm(**options, name="norm2")(y))
        y = nn.ConvTranspose(5, (2, 2), strides=(2, 2), use_bias=self.use_bias, name="up")(y)
        y = nn.relu(self.norm(**options, name="norm3")(y))
        y = nn.Dense(6, use_bias=self.use_bias, name="dense")(y.mean((1, 2)))
        return self.norm(**options, name="norm4")(y)


PAIRS = {"norm1": "conv1", "norm2": "conv2", "norm3": "up", "norm4": "dense"}


@pytest.mark.flexible
@pytest.mark.parametrize("norm", [jnl.BatchNorm, nn.BatchNorm, jnl.BatchRenorm, jnl.GhostBatchNorm])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_linen(norm, use_bias, affine):
    options = {"num_ghosts": 2} if norm is jnl.GhostBatchNorm else {}
    model = Linen(norm, options, use_bias, affine)
    x = draw(2, 8, 8, 3)
    variables = scrambled(model.init(jax.random.key(0), x))
    before = jax.tree.map(jnp.copy, variables)
    folded = jnl.fold(variables, PAIRS)
    near(model.apply(folded, x), model.apply(variables, x))
    assert structure(folded) == structure(variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    for path in PAIRS:
        stats, params = folded["batch_stats"][path], folded["params"].get(path, {})
        assert (stats["var"] + 1e-5 == 1).all()
        assert (params.get("scale", 1) == 1).all() if affine else "scale" not in params
        shift = params["bias"] if affine else stats["mean"]
        assert (shift == 0).all() == use_bias  # the norm keeps what the layer cannot


@pytest.mark.flexible
def test_a_norm_is_the_identity_to_the_last_bit():
    """With every epsilon, ours and Flax's own."""
    x = draw(64, 8) * 10.0 ** draw(64, 8)
    for epsilon in (0.0, 1e-12, 1e-6, 1e-5, 1e-3, 0.3, 0.7, 1.0):
        for norm in (jnl.BatchNorm, nn.BatchNorm):
            model = nn.Sequential([nn.Dense(8), norm(use_running_average=True, epsilon=epsilon)])
            variables = scrambled(model.init(jax.random.key(0), x))
            folded = jnl.fold(variables, {"layers_1": "layers_0"}, epsilon=epsilon)
            dense = nn.Dense(8).apply({"params": folded["params"]["layers_0"]}, x)
            np.testing.assert_array_equal(jax.jit(model.apply)(folded, x), jax.jit(lambda y: y)(dense))


@pytest.mark.flexible
def test_linen_keeps_the_types_of_variables(capsys):
    model, x = Linen(), draw(2, 8, 8, 3)
    variables = scrambled(model.init(jax.random.key(0), x))
    expected = model.apply(variables, x)
    frozen = jnl.fold(freeze(variables), PAIRS)
    assert isinstance(frozen, FrozenDict)
    near(model.apply(frozen, x), expected)

    still = jnl.freeze(variables, ...)
    folded = jnl.fold(still, PAIRS)
    assert jax.tree.structure(folded) == jax.tree.structure(still)
    near(model.apply(folded, x, train=True), expected)

    jnl.fold(variables, PAIRS, model=model, check=x, train=False)
    text = capsys.readouterr().out
    assert text.startswith("fold: the greatest difference of the outputs is ")
    assert float(text.split()[8].strip(",")) < 1e-4
    jnl.fold(variables, {"norm2": "conv1"}, model=model, check=(x, False))
    assert float(capsys.readouterr().out.split()[8].strip(",")) > 0.1


@pytest.mark.flexible
def test_linen_parameters_in_boxes_stay_in_them():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    model = nn.Sequential([nn.Dense(4, kernel_init=init), jnl.BatchNorm(use_running_average=True)])
    x = draw(3, 2)
    variables = scrambled(model.init(jax.random.key(0), x))
    folded = jnl.fold(variables, {"layers_1": "layers_0"})
    assert folded["params"]["layers_0"]["kernel"].names == ("in", "out")
    near(model.apply(meta.unbox(folded), x), model.apply(meta.unbox(variables), x))


class Scanned(nn.Module):
    """Layers that nn.scan stacks, which nn.vmap stacks once more."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                y = nn.Dense(4, name="dense")(nn.relu(x))
                return jnl.BatchNorm(use_running_average=True, name="norm")(y), None

        axes = {"params": 0, "batch_stats": 0}
        scanned = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)
        several = nn.vmap(scanned, variable_axes=axes, split_rngs={"params": True}, in_axes=(0, None))
        return several(name="blocks")(x, None)[0]


@pytest.mark.flexible
def test_linen_stacked_layers():
    model, x = Scanned(), draw(2, 5, 4)
    variables = scrambled(model.init(jax.random.key(0), x))
    assert variables["params"]["blocks"]["dense"]["kernel"].shape == (2, 3, 4, 4)
    folded = jnl.fold(variables, {"blocks/norm": "blocks/dense"})
    near(model.apply(folded, x), model.apply(variables, x), 1e-4)


@pytest.mark.flexible
def test_linen_both_features_of_a_dense_general():
    norm = jnl.BatchNorm(use_running_average=True, axis=(-2, -1))
    model, x = nn.Sequential([nn.DenseGeneral((3, 4)), norm]), draw(5, 6)
    variables = scrambled(model.init(jax.random.key(0), x))
    near(model.apply(jnl.fold(variables, {"layers_1": "layers_0"}), x), model.apply(variables, x))


@pytest.mark.flexible
@pytest.mark.parametrize("norm", [jnl.LayerNorm, jnl.RMSNorm, nn.RMSNorm, jnl.BatchNorm])
def test_linen_into_the_next_layers(norm):
    """One norm into the three projections of its output."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = {"use_running_average": True} if norm is jnl.BatchNorm else {}
            y = norm(name="norm", **options)(x)
            use_bias = norm not in (jnl.RMSNorm, nn.RMSNorm)
            q = nn.DenseGeneral((2, 3), name="q", use_bias=use_bias)(y)
            k = nn.Dense(6, name="k", use_bias=use_bias)(y)
            v = nn.Conv(4, (3,), feature_group_count=2, padding="VALID", name="v")(y)
            return q, k, v

    model, x = Model(), draw(2, 7, 4)
    variables = scrambled(model.init(jax.random.key(0), x))
    folded = jnl.fold(variables, {"norm": ("q", "k", "v")}, into="next")
    assert structure(folded) == structure(variables)
    assert (folded["params"]["norm"]["scale"] == 1).all()
    jax.tree.map(near, model.apply(folded, x), model.apply(variables, x))


@pytest.mark.flexible
def test_linen_zero_centered_scales():
    model = nn.Sequential([jnl.RMSNorm(zero_centered_scale=True), nn.Dense(3)])
    x = draw(5, 4)
    variables = scrambled(model.init(jax.random.key(0), x))
    folded = jnl.fold(variables, {"layers_0": "layers_1"}, into="next", zero_centered_scale=True)
    assert (folded["params"]["layers_0"]["scale"] == 0).all()
    near(model.apply(folded, x), model.apply(variables, x))


@pytest.mark.flexible
def test_a_chain_of_norms_of_one_layer():
    """Into its next layer one norm, and into that layer the norm after it."""
    norm = {"use_running_average": True}
    model = nn.Sequential([jnl.BatchNorm(**norm), nn.Dense(4), jnl.BatchNorm(**norm)])
    x = draw(5, 3)
    variables = scrambled(model.init(jax.random.key(0), x))
    folded = jnl.fold(variables, {"layers_0": "layers_1"}, into="next")
    folded = jnl.fold(folded, {"layers_2": "layers_1"})
    near(model.apply(folded, x), model.apply(variables, x))


def variables_of(norm=None, **layer):
    """Variables of a layer `dense` and a norm `norm` after it, of 4 features, as a user holds them."""
    stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
    layer = layer or {"kernel": jnp.ones((3, 4))}
    params = {"norm": {"scale": jnp.ones(4)}} if norm is None else norm
    return {"params": {"dense": layer, **params}, "batch_stats": {"norm": stats}}


PAIR = {"norm": "dense"}
NARROW = {"kernel": jnp.ones((3, 5))}
ERRORS = [
    (
        lambda: jnl.fold(variables_of()["params"], PAIR),
        "fold: variables must be a dict with params, got dict; pass the variables that init returned.",
    ),
    (
        lambda: jnl.fold(variables_of(), ["norm"]),
        "fold: pairs must be a dict with a pair or more, got list ['norm']; give "
        '{"path/of/norm": "path/of/layer"}.',
    ),
    (
        lambda: jnl.fold(variables_of(), PAIR, into="after"),
        "fold: into='after' is not known; choose 'previous' or 'next'.",
    ),
    (
        lambda: jnl.fold(variables_of(), {"norm": ("dense", "dense")}),
        "fold: norm 'norm' has 2 layers before it; it can become part of one.",
    ),
    (
        lambda: jnl.fold(variables_of(), {"norm": "dense", "other": "dense"}),
        "fold: layer 'dense' is beside two norms; name each layer once.",
    ),
    (lambda: jnl.fold(variables_of(), {"nrm": "dense"}), "fold: there is no norm 'nrm'; there is: norm."),
    (lambda: jnl.fold(variables_of(), {"dense": "dense"}), "fold: there is no norm 'dense'; there is: norm."),
    (
        lambda: jnl.fold(variables_of(), {"norm": "dens/1"}),
        "fold: there is no layer 'dens/1'; there is: dense.",
    ),
    (
        lambda: jnl.fold({"params": {"norm": {"scale": jnp.ones(4)}}}, {"norm": "dense"}),
        "fold: norm 'norm' keeps no statistics, without which it is not affine; only its scale and bias "
        'fold, into the layer after it: fold(..., into="next").',
    ),
    (
        lambda: jnl.fold({"params": {"norm": {"scale": jnp.ones(4)}}}, {"norm": "dense"}, into="next"),
        "fold: there is no layer 'dense'; the model has none.",
    ),
    (
        lambda: jnl.fold(variables_of({"norm": {"slope": jnp.ones(4), "bias": jnp.ones(4)}}), PAIR),
        "fold: norm 'norm' has parameters slope, so that its evaluation is not that of one batch norm; fold "
        "batch norms.",
    ),
    (
        lambda: jnl.fold(variables_of({"norm": {"scale": jnp.ones(1)}}), PAIR),
        "fold: norm 'norm' has values of shapes [(1,), (4,)], so that its evaluation is not that of one "
        "batch norm; fold batch norms.",
    ),
    (
        lambda: jnl.fold(variables_of(**NARROW), PAIR),
        "fold: norm 'norm' has features of shape (4,), which do not fit layer 'dense' with a kernel of shape "
        "(3, 5); pair layers that follow each other, or choose the kernel's axis of the norm's features, "
        "feature_axis.",
    ),
    (
        lambda: jnl.fold(variables_of(), PAIR, feature_axis=1),
        "fold: feature_axis=1 counts from the first axis, which may stack layers; count from the last: "
        "choose a negative axis.",
    ),
    (
        lambda: jnl.fold(variables_of(kernel=jnp.ones((4, 4, 6))), PAIR, into="next"),
        "fold: norm 'norm' has features of shape (4,), which may be on several axes of layer 'dense' with a "
        "kernel of shape (4, 4, 6); say which: feature_axis=-2 or -3.",
    ),
    (
        lambda: jnl.fold(variables_of(kernel=jnp.ones((4, 6))), PAIR, into="next"),
        "fold: layer 'dense' has no bias, which would hold the shift of norm 'norm'; give the layer a bias, "
        "of zeros.",
    ),
    (
        lambda: jnl.fold(variables_of(), PAIR, epsilon=2.0),
        "fold: norm 'norm' has epsilon=2.0, with which no variance >= 0 makes it the identity; choose an "
        "epsilon of at most 1.",
    ),
    (
        lambda: jnl.fold(variables_of(), PAIR, check=jnp.ones((2, 3))),
        "fold: check needs the model, which is None; pass model=, too.",
    ),
    (
        lambda: jnl.fold(variables_of(), PAIR, eps=1e-3),
        "fold: eps would be for the model's call with the batch `check`, which is None; give check, too, or "
        "leave them out.",
    ),
]


@pytest.mark.parametrize(("call", "text"), ERRORS)
def test_errors(call, text):
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    assert str(raised.value) == text


@pytest.mark.flexible
@pytest.mark.parametrize("wrapper", [jnl.WeightNorm, jnl.SpectralNorm])
def test_a_layer_in_weight_or_spectral_norm_is_refused(wrapper):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            call = {"update_stats": False} if wrapper is jnl.SpectralNorm else {}
            y = wrapper(nn.Dense(4, name="dense"), name="wrapper")(x, **call)
            return jnl.BatchNorm(use_running_average=True, name="norm")(y)

    variables = Model().init(jax.random.key(0), draw(2, 3))
    with pytest.raises(ValueError, match="layer") as raised:
        jnl.fold(variables, {"norm": "dense"})
    assert str(raised.value) == (
        "fold: layer 'dense' is wrapped in weight norm or spectral norm, which would undo a new length; bake "
        "its weights first, by linen.bake(variables)."
    )
