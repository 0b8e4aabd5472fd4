"""`nnx.fold`: a model evaluates as before, or is refused and stays as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import nnx as jnx

RNG = np.random.default_rng(0)

pytestmark = pytest.mark.flexible


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def scramble(model):
    """The model, in evaluation, with other parameters and statistics."""

    def at(path, v):
        value = draw(*v.shape)
        return v.replace((jnp.abs(value) + 0.1 if path[-1] == "var" else value).astype(v.dtype))

    nnx.update(model, nnx.map_state(at, nnx.state(model, (nnx.Param, nnx.BatchStat))))
    model.eval()
    return model


def near(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


class Block(nnx.Module):
    """A layer and the norm of its output, with what is between them."""

    def __init__(self, layer, norm, between=lambda x: x):
        self.layer, self.norm, self.between = layer, norm, between

    def __call__(self, x):
        return nnx.relu(self.norm(self.between(self.layer(x))))


class Net(nnx.Module):
    """Blocks in a list and a dense layer."""

    def __init__(self, norm, use_bias, affine, **options):
        rngs = nnx.Rngs(0)

        def made(features):
            return norm(features, use_scale=affine, use_bias=affine, rngs=rngs, **options)

        common = {"use_bias": use_bias, "rngs": rngs}
        layers = [
            nnx.Conv(3, 6, (3, 3), **common),
            nnx.Conv(6, 6, (3, 3), feature_group_count=6, strides=2, **common),
            nnx.ConvTranspose(6, 5, (2, 2), strides=(2, 2), transpose_kernel=True, **common),
        ]
        self.blocks = nnx.List([Block(layer, made(layer.out_features)) for layer in layers])
        self.dense = nnx.Linear(5, 4, **common)
        self.norm = made(4)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(self.dense(x.mean((1, 2))))


PAIRS = {**{f"blocks/{i}/norm": f"blocks/{i}/layer" for i in range(3)}, "norm": "dense"}


@pytest.mark.parametrize("norm", [jnx.BatchNorm, nnx.BatchNorm, jnx.BatchRenorm, jnx.GhostBatchNorm])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_model(norm, use_bias, affine):
    options = {"num_ghosts": 2} if norm is jnx.GhostBatchNorm else {"epsilon": 1e-3}
    model, x = scramble(Net(norm, use_bias, affine, **options)), draw(2, 8, 8, 3)
    expected = model(x)
    assert jnx.fold(model, PAIRS) is None
    near(model(x), expected)
    near(nnx.jit(lambda m, x: m(x))(model, x), expected)
    assert (model.norm.mean[...] == 0).all()
    assert model.dense.bias.shape == (4,) and model.dense.use_bias
    if affine:
        assert (model.norm.scale[...] == 1).all() and (model.norm.bias[...] == 0).all()
    copy = nnx.merge(*nnx.split(model))  # a checkpoint of it
    near(copy(x), expected)


def test_check_prints_the_greatest_difference(capsys):
    model, x = scramble(Net(jnx.BatchNorm, True, True)), draw(2, 8, 8, 3)
    jnx.fold(model, PAIRS, check=x)
    text = capsys.readouterr().out
    assert text.startswith("fold: the greatest difference of the outputs is ")
    assert float(text.split()[8].strip(",")) < 1e-4


def test_several_axes_of_features():
    """Stored as one, of a LinearGeneral."""
    rngs, x = nnx.Rngs(0), draw(5, 6)
    norm = jnx.BatchNorm(12, axis=(-2, -1), rngs=rngs)
    for use_bias in (True, False):
        layer = nnx.LinearGeneral(6, (3, 4), use_bias=use_bias, rngs=rngs)
        model = scramble(nnx.Sequential(layer, norm))
        expected = model(x)
        jnx.fold(model, {"layers/1": "layers/0"})
        near(model(x), expected)


@pytest.mark.parametrize("axis", [3, -1])
def test_an_axis_that_is_counted_from_the_first(axis):
    rngs = nnx.Rngs(0)
    model = Block(nnx.Conv(3, 4, (2, 2), rngs=rngs), jnx.BatchNorm(4, axis=axis, rngs=rngs))
    scramble(model)
    x = draw(2, 5, 5, 3)
    expected = model(x)
    jnx.fold(model, {"norm": "layer"})
    near(model(x), expected)


def test_a_bias_gets_the_metadata_of_the_kernel():
    rngs = nnx.Rngs(0)
    named = {"out_sharding": ("in", "out"), "eager_sharding": False, "owner": "me"}
    kernel = {"kernel_metadata": named, "use_bias": False, "rngs": rngs}
    model = scramble(nnx.Sequential(nnx.Linear(3, 4, **kernel), jnx.BatchNorm(4, rngs=rngs)))
    x = draw(5, 3)
    expected = model(x)
    jnx.fold(model, {"layers/1": "layers/0"})
    near(model(x), expected)
    metadata = model.layers[0].bias.get_metadata()
    assert metadata["out_sharding"] == ("out",) and metadata["owner"] == "me"
    assert type(model.layers[0].bias) is nnx.Param


def test_stacked_layers():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def made(rngs):
        return Block(nnx.Linear(4, 4, use_bias=False, rngs=rngs), jnx.BatchNorm(4, rngs=rngs))

    class Model(nnx.Module):
        def __init__(self):
            self.blocks = made(nnx.Rngs(0))

        def __call__(self, x):
            return nnx.scan(lambda x, block: (block(x), None), in_axes=(nnx.Carry, 0))(x, self.blocks)[0]

    model, x = scramble(Model()), draw(5, 4)
    expected = model(x)
    jnx.fold(model, {"blocks/norm": "blocks/layer"}, check=x)
    assert model.blocks.layer.bias.shape == (3, 4)
    near(model(x), expected)


@pytest.mark.parametrize("norm", [jnx.LayerNorm, nnx.LayerNorm, jnx.RMSNorm, nnx.RMSNorm, jnx.BatchNorm])
def test_into_the_next_layers(norm):
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.norm = norm(4, rngs=rngs)
            self.q = nnx.Linear(4, 6, use_bias=False, rngs=rngs)
            self.k = nnx.LinearGeneral(4, (2, 3), rngs=rngs)
            self.v = nnx.Conv(4, 8, (3,), padding="CIRCULAR", feature_group_count=2, rngs=rngs)

        def __call__(self, x):
            y = self.norm(x)
            return self.q(y), self.k(y), self.v(y)

    model, x = scramble(Model()), draw(2, 7, 4)
    expected = model(x)
    jnx.fold(model, {"norm": ("q", "k", "v")}, into="next")
    jax.tree.map(near, model(x), expected)
    assert (model.norm.scale[...] == 1).all()
    assert (model.q.bias is None) == (norm in (jnx.RMSNorm, nnx.RMSNorm))


def test_a_scale_alone_folds_into_a_padded_and_a_transposed_convolution():
    for conv in (nnx.Conv, nnx.ConvTranspose):
        rngs, x = nnx.Rngs(0), draw(2, 7, 4)
        layer = conv(4, 3, (3,), padding="SAME", rngs=rngs)
        norm = jnx.RMSNorm(4, zero_centered_scale=True, rngs=rngs)
        model = scramble(nnx.Sequential(norm, layer))
        expected = model(x)
        jnx.fold(model, {"layers/0": "layers/1"}, into="next")
        assert (model.layers[0].scale[...] == 0).all()
        near(model(x), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "padding": "CAUSAL", "strides": 2},
        {"padding": 0},
        {"padding": ((0, 0),)},
        {"padding": "REFLECT", "input_dilation": (1,)},
    ],
    ids=str,
)
def test_into_a_convolution_that_sees_no_zeros(options):
    model, x = after_norm(**options), draw(2, 7, 3)
    expected = model(x)
    jnx.fold(model, {"layers/0": "layers/1"}, into="next")
    near(model(x), expected)


def test_a_frozen_norm_is_in_evaluation():
    rngs, x = nnx.Rngs(0), draw(5, 3)
    model = scramble(nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), jnx.BatchNorm(4, rngs=rngs)))
    expected = model(x)
    jnx.freeze(model, ...)
    model.train()
    jnx.fold(model, {"layers/1": "layers/0"})
    near(model(x), expected)


def test_what_is_jitted_or_rematerialized_between_is_no_hindrance():
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.layer, self.norm = nnx.Linear(3, 4, rngs=rngs), jnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            y = nnx.remat(lambda layer, x: layer(x))(self.layer, x)
            return nnx.jit(lambda norm, x: norm(x))(self.norm, y)

    model, x = scramble(Model()), draw(5, 3)
    expected = model(x)
    jnx.fold(model, {"norm": "layer"}, check=x)
    near(model(x), expected)


def test_a_block_that_is_used_twice_folds_with_both_of_its_layers():
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            block = Block(nnx.Linear(3, 3, rngs=rngs), jnx.BatchNorm(3, rngs=rngs))
            self.blocks = nnx.List([block, block])
            self.norm = jnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return self.norm(x)

    model, x = scramble(Model()), draw(5, 3)
    expected = model(x)
    with pytest.raises(ValueError, match="more than once, at blocks/0, blocks/1;"):
        jnx.fold(model, {"norm": "blocks/0/layer"})
    jnx.fold(model, {"blocks/0/norm": "blocks/0/layer"}, check=x)
    near(model(x), expected)


def test_a_wrapper_of_a_name_that_begins_alike_is_no_hindrance():
    rngs, x = nnx.Rngs(0), draw(5, 3)
    model = Block(nnx.Linear(3, 3, rngs=rngs), jnx.BatchNorm(3, rngs=rngs))
    model.lay = jnx.WeightNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs)
    expected = scramble(model)(x)
    jnx.fold(model, {"norm": "layer"})
    near(model(x), expected)


# ---------------------------------------------------------------- what is refused


def block(norm=None, layer=None, between=lambda x: x, size=4):
    rngs = nnx.Rngs(0)
    layer = nnx.Linear(3, 4, rngs=rngs) if layer is None else layer
    norm = jnx.BatchNorm(size, rngs=rngs) if norm is None else norm
    return scramble(Block(layer, norm, between))


def trained():
    model = block()
    model.train()
    return model


def tied():
    model = block()
    model.other = model.layer
    return model


def tied_kernel():
    model = block()
    model.other = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    model.other.kernel = model.layer.kernel
    return model


def twice():
    """A layer whose second output has no norm."""

    class Twice(Block):
        def __call__(self, x):
            return self.norm(self.layer(x)) + self.layer(2 * x)

    model = Twice(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), jnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    return scramble(model)


def sequential(*between):
    rngs = nnx.Rngs(0)
    layers = (
        nnx.Linear(3, 4, rngs=rngs),
        *between,
        jnx.BatchNorm(4, rngs=rngs),
        nnx.Conv(4, 3, (3,), rngs=rngs),
    )
    return scramble(nnx.Sequential(*layers))


def after_norm(kernel_size=3, **options):
    rngs = nnx.Rngs(0)
    conv = nnx.Conv(3, 4, (kernel_size,), rngs=rngs, **options)
    return scramble(nnx.Sequential(jnx.BatchNorm(3, rngs=rngs), conv))


class Own(nnx.Linear):
    def __call__(self, x):
        return nnx.relu(super().__call__(x))


RNGS = nnx.Rngs(0)
PAIR = {"norm": "layer"}
ACTIVATION = (
    "fold: norm 'norm' takes something else than the output of layer 'layer'; fold where nothing, as an "
    "activation, is between them."
)
REFUSED = {
    "activation": (lambda: block(between=nnx.relu), PAIR, {}, ACTIVATION),
    "activation in a sequence": (
        lambda: sequential(nnx.relu),
        {"layers/2": "layers/0"},
        {},
        ACTIVATION.replace("'norm'", "'layers/2'").replace("'layer'", "'layers/0'"),
    ),
    "activation, by a batch": (
        lambda: block(between=nnx.relu),
        PAIR,
        {"check": jnp.ones((2, 3))},
        ACTIVATION,
    ),
    "twice": (
        twice,
        PAIR,
        {},
        "fold: layer 'layer' is called 2 times, and norm 'norm' 1 times; fold where nothing, as an "
        "activation, is between them.",
    ),
    "training": (
        trained,
        PAIR,
        {},
        "fold: norm 'norm' uses the batch's statistics, use_running_average=False; call model.eval() first.",
    ),
    "shared": (
        tied,
        PAIR,
        {},
        "fold: 'layer' is in the model more than once, at layer, other; the other uses would change, too: "
        "fold copies.",
    ),
    "shared kernel": (
        tied_kernel,
        PAIR,
        {},
        "fold: 'layer' is in the model more than once, at layer/kernel, other/kernel; the other uses would "
        "change, too: fold copies.",
    ),
    "size": (
        lambda: block(size=5),
        PAIR,
        {},
        "fold: norm 'norm' has features of shape (5,), which do not fit layer 'layer' with a kernel of shape "
        "(3, 4); pair layers that follow each other, or choose the kernel's axis of the norm's features, "
        "feature_axis.",
    ),
    "no norm": (block, {"nurm": "layer"}, {}, "fold: there is no norm 'nurm'; there is: norm."),
    "no layer": (block, {"norm": "layers"}, {}, "fold: there is no layer 'layers'; there is: layer."),
    "layer norm": (
        lambda: block(jnx.LayerNorm(4, rngs=RNGS)),
        PAIR,
        {},
        "fold: norm 'norm' keeps no statistics, without which it is not affine; only its scale and bias "
        'fold, into the layer after it: fold(..., into="next").',
    ),
    "group norm": (
        lambda: block(nnx.GroupNorm(4, num_groups=2, rngs=RNGS)),
        PAIR,
        {},
        "fold: norm 'norm' keeps no statistics, without which it is not affine; only its scale and bias "
        'fold, into the layer after it: fold(..., into="next").',
    ),
    "evonorm": (
        lambda: block(jnx.EvoNormB0(4, rngs=RNGS)),
        PAIR,
        {},
        "fold: norm 'norm' is a EvoNormB0, whose evaluation is not that of batch norm; fold batch norms.",
    ),
    "domains": (
        lambda: block(jnx.DomainBatchNorm(4, num_domains=3, rngs=RNGS)),
        PAIR,
        {},
        "fold: norm 'norm' is a DomainBatchNorm, whose evaluation is not that of batch norm; fold batch "
        "norms.",
    ),
    "own layer": (
        lambda: block(layer=Own(3, 4, rngs=RNGS)),
        PAIR,
        {},
        "fold: layer 'layer' is a Own, with a call of its own that need not be linear in its kernel; fold "
        "its arrays with jaxnorm.population.fold_batch_norm.",
    ),
    "axis": (
        lambda: block(jnx.BatchNorm(4, axis=1, rngs=RNGS)),
        PAIR,
        {},
        "fold: norm 'norm' has its features on axis 1, and layer 'layer' on [-1]; give both the same, "
        "counted from the last: -1.",
    ),
    "padding": (
        sequential,
        {"layers/1": "layers/2"},
        {"into": "next"},
        "fold: layer 'layers/2', a Conv with padding='SAME', sees zeros beside the output of norm "
        "'layers/1', so that the norm's shift is no bias at the edges; fold into a Conv with "
        "padding='VALID', or into the layer before the norm.",
    ),
    "transposed": (
        lambda: scramble(
            nnx.Sequential(jnx.BatchNorm(3, rngs=RNGS), nnx.ConvTranspose(3, 4, (2,), rngs=RNGS))
        ),
        {"layers/0": "layers/1"},
        {"into": "next"},
        "fold: layer 'layers/1', a ConvTranspose with strides=None, sees zeros beside the output of norm "
        "'layers/0', so that the norm's shift is no bias at the edges; fold into a Conv with "
        "padding='VALID', or into the layer before the norm.",
    ),
    "dilated": (
        lambda: after_norm(padding="VALID", input_dilation=2),
        {"layers/0": "layers/1"},
        {"into": "next"},
        "fold: layer 'layers/1', a Conv with input_dilation=2, sees zeros beside the output of norm "
        "'layers/0', so that the norm's shift is no bias at the edges; fold into a Conv with "
        "padding='VALID', or into the layer before the norm.",
    ),
    "mask": (
        lambda: after_norm(padding="VALID", mask=jnp.ones((3, 3, 4))),
        {"layers/0": "layers/1"},
        {"into": "next"},
        "fold: layer 'layers/1' has a mask, and the shift would be taken of its kernel without it; multiply "
        "the kernel by the mask, and set mask=None.",
    ),
    "epsilon": (
        lambda: block(jnx.BatchNorm(4, epsilon=1.5, rngs=RNGS)),
        PAIR,
        {},
        "fold: norm 'norm' has epsilon=1.5, with which no variance >= 0 makes it the identity; choose an "
        "epsilon of at most 1.",
    ),
    "weight norm": (
        lambda: scramble(
            nnx.Sequential(
                jnx.WeightNorm(nnx.Linear(3, 4, rngs=RNGS), rngs=RNGS), jnx.BatchNorm(4, rngs=RNGS)
            )
        ),
        {"layers/1": "layers/0/layer_instance"},
        {},
        "fold: layer 'layers/0/layer_instance' is wrapped in weight norm or spectral norm, which would "
        "undo a new length; bake its weights first, by nnx.bake(model).",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_stays_as_it_was(name):
    make, pairs, options, text = REFUSED[name]
    model = make()
    before = nnx.split(nnx.clone(model))
    with pytest.raises(ValueError, match="fold") as raised:
        jnx.fold(model, pairs, **options)
    assert str(raised.value) == text
    graph, state = nnx.split(model)
    assert graph == before[0]
    jax.tree.map(np.testing.assert_array_equal, state, before[1])


def test_the_second_pair_fails_before_the_first_is_folded():
    model = scramble(Net(jnx.BatchNorm, False, True))
    with pytest.raises(ValueError, match="no layer"):
        jnx.fold(model, {"norm": "dense", "blocks/0/norm": "blocks/0/nothing"})
    assert model.dense.bias is None and (model.norm.scale[...] != 1).any()


def test_no_module():
    with pytest.raises(TypeError) as raised:
        jnx.fold({"norm": 1}, PAIR)
    assert str(raised.value) == (
        "fold: model must be an nnx.Module, got dict; pass the model itself, not its state."
    )


def test_what_is_between_cannot_be_seen_where_a_call_takes_more():
    """It is for the user to see to, and `check` shows it."""

    class Model(Block):
        def __call__(self, x, condition):
            return self.norm(nnx.relu(self.layer(x)) + condition)

    model = Model(nnx.Linear(3, 4, rngs=RNGS), jnx.BatchNorm(4, rngs=RNGS))
    scramble(model)
    with pytest.raises(ValueError, match="something else"):
        jnx.fold(model, PAIR, check=(draw(2, 3), 1.0))
    jnx.fold(model, PAIR)
