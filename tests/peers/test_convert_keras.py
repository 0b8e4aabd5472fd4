"""Norms of Keras 3 as layers of jaxnorm: evaluation, one training step, and the way there and back."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_peers import borrowed

from jaxnorm import convert

keras, torch = borrowed("keras"), borrowed("torch")
layers = keras.layers

pytestmark = [
    pytest.mark.flexible,
    # what Keras' own .numpy() does beside a newer NumPy
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
APIS = pytest.mark.parametrize("api", ["linen", "nnx"])
C = 6
LAYERS = {
    "BatchNormalization": (lambda: layers.BatchNormalization(momentum=0.8), (8, C)),
    "BatchNormalization of an image": (lambda: layers.BatchNormalization(epsilon=1e-5), (4, 5, 3, C)),
    "BatchNormalization, axis=1": (lambda: layers.BatchNormalization(axis=1), (4, C, 5)),
    "BatchNormalization, not affine": (lambda: layers.BatchNormalization(center=False, scale=False), (8, C)),
    "BatchNormalization, scale=False": (lambda: layers.BatchNormalization(scale=False), (8, C)),
    "LayerNormalization": (lambda: layers.LayerNormalization(), (4, 5, C)),
    "LayerNormalization, two axes": (lambda: layers.LayerNormalization(axis=[-2, -1]), (4, 5, C)),
    "LayerNormalization, center=False": (lambda: layers.LayerNormalization(center=False), (4, C)),
    "GroupNormalization": (lambda: layers.GroupNormalization(3), (4, 5, 3, C)),
    "GroupNormalization, instances": (lambda: layers.GroupNormalization(-1), (4, 5, 3, C)),
    "GroupNormalization, scale=False": (lambda: layers.GroupNormalization(2, scale=False), (4, 7, C)),
    "RMSNormalization": (lambda: layers.RMSNormalization(), (4, 5, C)),
    "RMSNormalization with an epsilon": (lambda: layers.RMSNormalization(epsilon=1e-2), (4, C, 5)),
    "UnitNormalization": (lambda: layers.UnitNormalization(), (4, 5, C)),
    "UnitNormalization, two axes": (lambda: layers.UnitNormalization(axis=[1, 2]), (4, 5, C)),
    "SpectralNormalization of Dense": (
        lambda: layers.SpectralNormalization(layers.Dense(4), power_iterations=60),
        (8, C),
    ),
    "SpectralNormalization of Conv2D": (
        lambda: layers.SpectralNormalization(
            layers.Conv2D(4, 3, strides=2, padding="same", groups=2, use_bias=False), power_iterations=60
        ),
        (2, 7, 6, C),
    ),
}
KINDS = {"Batch": "batch_norm", "Layer": "layer_norm", "Group": "group_norm", "RMSNo": "rms_norm"}
KINDS |= {"Spect": "spectral_norm"}
OVER = pytest.mark.parametrize("name", LAYERS)


def made(name):
    """A layer with weights and statistics that are not those of the start, and an input."""
    make, shape = LAYERS[name]
    rng = np.random.default_rng(0)
    layer, x = make(), rng.normal(1, 2, shape).astype(np.float32)
    layer(x)
    for w in layer.trainable_weights:
        w.assign(w.numpy() + 0.3 * rng.normal(size=w.shape).astype(np.float32))
    for _ in range(3):
        layer(rng.normal(1, 2, shape).astype(np.float32), training=True)
    return layer, x


def arrays(layer):
    return {w.name: w.numpy().copy() for w in layer.weights}


def theirs(layer, x, training):
    """y, the gradients of sum(sin(y)) in x and the weights, and the new weights. The layer is unchanged."""
    before = arrays(layer)
    x = torch.tensor(x, requires_grad=True)
    leaves = {w.name: w.value for w in layer.trainable_weights}
    y = layer(x, training=training) if layer._call_has_training_arg else layer(x)
    found = torch.autograd.grad(torch.sin(y).sum(), [x, *leaves.values()], allow_unused=True)
    after = arrays(layer)
    for w in layer.weights:
        w.assign(before[w.name])
    dx, *grads = (g if g is None else g.numpy() for g in found)
    return y.detach().numpy(), dx, dict(zip(leaves, grads, strict=True)), after


def ours(layer, x, api, training):
    """The same, with the gradients and the new variables in Keras' words."""
    kind = KINDS.get(type(layer).__name__[:5])
    call = {"batch_norm": {"use_running_average": not training}, "spectral_norm": {"update_stats": training}}
    call = call.get(kind, {})
    found = convert.from_keras(layer, api=api)
    if api == "linen":
        norm, variables = found
        params, stats = variables.get("params", {}), variables.get("batch_stats", {})

        def loss(params, x):
            y, new = norm.apply({"params": params, "batch_stats": stats}, x, mutable="batch_stats", **call)
            return jnp.sin(y).sum(), (y, new)

        grads, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(params, jnp.asarray(x))
        grads, dx = {"params": grads[0], "batch_stats": stats}, grads[1]
        after = {"params": params, **new}
    else:
        graph, params, rest = nnx.split(found, nnx.Param, ...)

        def loss(params, x):
            norm = nnx.merge(graph, params, rest, copy=True)
            y = norm(x, **call)
            return jnp.sin(y).sum(), (y, nnx.state(norm))

        grads, (y, state) = jax.grad(loss, (0, 1), has_aux=True)(params, jnp.asarray(x))
        grads, dx, after = nnx.merge(graph, grads[0], rest), grads[1], nnx.merge(graph, state)
    if kind is None or (api == "nnx" and isinstance(getattr(layer, "axis", 0), list) and len(layer.axis) > 1):
        return y, dx, {}, {}
    back = [convert.to_keras_state(v, kind) if arrays(layer) else {} for v in (grads, after)]
    return y, dx, *back


def assert_close(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max(initial=0) <= tolerance * max(
        np.abs(theirs).max(initial=0), 1
    )


@APIS
@OVER
def test_evaluation(name, api):
    layer, x = made(name)
    assert_close(ours(layer, x, api, False)[0], theirs(layer, x, False)[0], 1e-6)


@APIS
@OVER
def test_a_training_step(name, api):
    layer, x = made(name)
    y, dx, grads, after = theirs(layer, x, True)
    result, our_dx, our_grads, new = ours(layer, x, api, True)
    assert_close(result, y, 1e-5)
    assert_close(our_dx, dx, 1e-5)
    for key in new.keys() - {"kernel"}:  # which Keras overwrites
        assert_close(new[key], after[key], 1e-5)
    if not name.startswith("Spectral"):  # whose gradient Keras takes of the overwritten kernel
        for key in our_grads.keys() & grads.keys():
            assert_close(our_grads[key], grads[key], 1e-5)


@OVER
def test_there_and_back_is_bitwise(name):
    layer, _ = made(name)
    state = {f"net/norm/{key}": value for key, value in arrays(layer).items()}
    if not state:
        return
    kind = KINDS[name[:5]]
    back = convert.to_keras_state(
        convert.from_keras_state(state, kind, prefix="net/norm"), kind, prefix="net/norm"
    )
    assert back.keys() == state.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], strict=True)


def test_a_report_names_what_is_left_out(capsys):
    layer, _ = made("BatchNormalization")
    layer.trainable = False
    convert.from_keras(layer, report=lambda report: print(report.left_out))
    assert capsys.readouterr().out == "['trainable=False']\n"


def unbuilt():
    return layers.LayerNormalization()


def rms_scaling():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = layers.LayerNormalization(rms_scaling=True)
        layer.build((None, 3))
    return layer


def built(layer, *shape):
    layer.build((None, *shape))
    return layer


ERRORS = {
    "not built": (
        unbuilt,
        ValueError,
        "from_keras: LayerNormalization is not built and has no weights; call it once, or its build.",
    ),
    "no layer": (
        dict,
        TypeError,
        "from_keras: layer must be a keras.Layer, got dict; give a layer, or its arrays to from_keras_state.",
    ),
    "no norm": (
        lambda: layers.Dense(2),
        ValueError,
        "from_keras: there is no layer for Dense; give BatchNormalization, LayerNormalization, "
        "GroupNormalization, "
        "RMSNormalization, SpectralNormalization or UnitNormalization.",
    ),
    "renorm": (
        lambda: built(layers.BatchNormalization(renorm=True), 2),
        ValueError,
        "from_keras: renorm=True is batch renorm; copy its statistics into jaxnorm's BatchRenorm by hand.",
    ),
    "rms_scaling": (
        rms_scaling,
        ValueError,
        "from_keras: rms_scaling=True divides by the deviation and does not subtract the mean; no layer "
        "here does, "
        "and Keras has deprecated it for RMSNormalization.",
    ),
    "an embedding": (
        lambda: built(layers.SpectralNormalization(layers.Embedding(3, 2)), 4),
        ValueError,
        "from_keras: a SpectralNormalization of Embedding is not converted; give Dense or Conv1D to Conv3D.",
    ),
    "an activation": (
        lambda: built(layers.SpectralNormalization(layers.Dense(2, activation="relu")), 4),
        ValueError,
        "from_keras: Dense has the activation relu; take it out, and call it after the layer.",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    make, kind, text = ERRORS[case]
    layer = make()
    with pytest.raises(kind) as raised:
        convert.from_keras(layer)
    assert str(raised.value) == text


def test_nnx_wants_to_know_the_features():
    layer = built(layers.LayerNormalization(center=False, scale=False), 3)
    with pytest.raises(ValueError, match="features") as raised:
        convert.from_keras(layer, api="nnx")
    assert str(raised.value) == (
        "from_keras: a LayerNorm without scale and bias does not tell its features; make the layer of "
        "jaxnorm.nnx "
        "by hand, or choose linen."
    )
