"""Norms of Haiku and Equinox as layers of jaxnorm: evaluation, one training step, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import convert

hk, eqx = pytest.importorskip("haiku"), pytest.importorskip("equinox")

pytestmark = pytest.mark.flexible
APIS = pytest.mark.parametrize("api", ["linen", "nnx"])
C = 6
EVALUATION, TRAINING = 1e-6, 1e-5


def assert_close(ours, theirs, tolerance):
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max(initial=0) <= tolerance * max(
        np.abs(theirs).max(initial=0), 1
    )


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1, 2, shape), jnp.float32)


def shaken(params):
    """Parameters that are not those of the start."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(
        structure, [v + 0.15 * normal(*v.shape, seed=i) if v.ndim else v for i, v in enumerate(leaves)]
    )


def step(found, x, call):
    """y of one of our layers, the gradients of sum(sin(y)) in x and the parameters, and the layer afterwards.

    The latter two as linen's variables, or as layers of nnx.
    """
    if isinstance(found, tuple):
        layer, variables = found
        params, stats = variables.get("params", {}), variables.get("batch_stats", {})

        def loss(params, x):
            y, new = layer.apply({"params": params, "batch_stats": stats}, x, mutable="batch_stats", **call)
            return jnp.sin(y).sum(), (y, new)

        grads, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return y, grads[1], {"params": grads[0], "batch_stats": stats}, {"params": params, **new}
    graph, params, rest = nnx.split(found, nnx.Param, ...)

    def loss(params, x):
        layer = nnx.merge(graph, params, rest, copy=True)
        y = layer(x, **call)
        return jnp.sin(y).sum(), (y, nnx.state(layer))

    grads, (y, state) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return y, grads[1], nnx.merge(graph, grads[0], rest), nnx.merge(graph, state)


# ---------------------------------------------------------------- Haiku

BOTH = {"create_scale": True, "create_offset": True}
HAIKU = {
    "batch_norm": (
        lambda: hk.BatchNorm(**BOTH, decay_rate=0.9, eps=1e-3),
        (8, 5, C),
        {"decay_rate": 0.9, "eps": 1e-3},
    ),
    "batch_norm, plain": (lambda: hk.BatchNorm(False, False, 0.7), (8, C), {"decay_rate": 0.7}),
    "batch_norm, channels first": (
        lambda: hk.BatchNorm(**BOTH, decay_rate=0.9, data_format="channels_first"),
        (4, C, 5),
        {"decay_rate": 0.9, "data_format": "channels_first"},
    ),
    "layer_norm": (lambda: hk.LayerNorm(-1, **BOTH), (4, 5, C), {}),
    "layer_norm, two axes": (
        lambda: hk.LayerNorm((-2, -1), True, False, param_axis=(-2, -1)),
        (4, 5, C),
        {"axis": (-2, -1), "param_axis": (-2, -1)},
    ),
    "layer_norm, over time": (
        lambda: hk.LayerNorm((1, 2), **BOTH, param_axis=-1),
        (4, 5, C),
        {"axis": (1, 2)},
    ),
    "rms_norm": (lambda: hk.RMSNorm(-1, eps=1e-2), (4, 5, C), {"eps": 1e-2}),
    "rms_norm, plain": (lambda: hk.RMSNorm(-1, create_scale=False), (4, 5, C), {}),
    "group_norm": (lambda: hk.GroupNorm(3), (4, 5, 3, C), {"groups": 3}),
    "group_norm, offset": (lambda: hk.GroupNorm(2, create_scale=False), (4, 5, C), {"groups": 2}),
    "instance_norm": (lambda: hk.InstanceNorm(**BOTH), (4, 5, 3, C), {}),
    "instance_norm, channels first": (
        lambda: hk.InstanceNorm(**BOTH, data_format="channels_first"),
        (4, C, 5),
        {"data_format": "channels_first"},
    ),
}


def haiku_net(name):
    make, shape, arguments = HAIKU[name]
    batch = name.startswith("batch")

    def apply(x, training):
        norm = make()
        return norm(x, training) if batch else norm(x)

    net = hk.without_apply_rng(hk.transform_with_state(apply))
    params, state = net.init(None, normal(*shape), True)
    params = shaken(params)
    for i in range(4):
        _, state = net.apply(params, state, normal(*shape, seed=i), True)
    return net, params, state, arguments, normal(*shape, seed=9)


def prefix_of(params, state):
    return next((name.partition("/~/")[0] for name in (*params, *state)), "")


def from_haiku(name, params, state, arguments, api):
    kind = name.partition(",")[0]
    return convert.from_haiku(
        params, kind, state=state, prefix=prefix_of(params, state), api=api, **arguments
    )


@APIS
@pytest.mark.parametrize("name", HAIKU)
def test_haiku(name, api):
    net, params, state, arguments, x = haiku_net(name)
    kind, batch = name.partition(",")[0], name.startswith("batch")
    if (name, api) == ("rms_norm, plain", "nnx"):  # which wants to know the features
        return
    found = from_haiku(name, params, state, arguments, api)
    for training in (False, True):
        call = {"use_running_average": not training} if batch else {}
        tolerance = TRAINING if training else EVALUATION

        def loss(params, x, training=training):
            y, new = net.apply(params, state, x, training)
            return jnp.sin(y).sum(), (y, new)

        (grads, dx), (y, new) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        ours, our_dx, our_grads, after = step(found, x, call)
        assert_close(ours, y, tolerance)
        assert_close(our_dx, dx, TRAINING)
        if api == "nnx" and "two axes" in name:
            continue
        options = {"prefix": prefix_of(params, state), "ndim": x.ndim}
        options |= {k: v for k, v in arguments.items() if k in ("decay_rate", "data_format")}
        if not params and not state:
            continue
        back, _ = convert.to_haiku(our_grads, kind, **options)
        for path, theirs in jax.tree_util.tree_leaves_with_path(grads):
            assert_close(back[path[0].key][path[1].key], theirs, TRAINING)
        _, stats = convert.to_haiku(after, kind, **options)
        for path, theirs in jax.tree_util.tree_leaves_with_path(new):
            assert_close(stats[path[0].key][path[1].key], theirs, TRAINING)


@pytest.mark.parametrize("name", HAIKU)
def test_haiku_and_back(name):
    _, params, state, arguments, x = haiku_net(name)
    if not (params or state):
        return
    _, variables = from_haiku(name, params, state, arguments, "linen")
    options = {k: v for k, v in arguments.items() if k in ("decay_rate", "data_format")}
    options["prefix"] = prefix_of(params, state)
    back, stats = convert.to_haiku(variables, name.partition(",")[0], ndim=x.ndim, **options)
    assert jax.tree.structure((back, stats)) == jax.tree.structure((params, state))
    for path, value in jax.tree_util.tree_leaves_with_path((back, stats)):
        theirs = (params, state)[path[0].idx][path[1].key][path[2].key]
        if path[2].key == "hidden":
            np.testing.assert_allclose(value, theirs, rtol=1e-6)
        else:
            np.testing.assert_array_equal(value, theirs, strict=path[2].key != "counter")


@APIS
def test_spectral_norm_of_haiku(api):
    """From the same u both do the same steps, converged or not."""
    norm = hk.without_apply_rng(
        hk.transform_with_state(lambda w, train: hk.SpectralNorm()(w, update_stats=train))
    )
    w, b = normal(C, 4), normal(4, seed=1)
    _, state = norm.init(jax.random.key(0), w, True)
    for _ in range(2):
        _, state = norm.apply({}, state, w, True)
    params, x = {"linear": {"w": w, "b": b}}, normal(3, C, seed=2)
    found = convert.from_haiku(params["linear"], "spectral_norm", state=state["spectral_norm"], api=api)
    for training in (False, True):

        def loss(w, training=training):
            normalized, new = norm.apply({}, state, w, training)
            y = x @ normalized + b
            return jnp.sin(y).sum(), (y, new)

        grad, (y, new) = jax.grad(loss, has_aux=True)(w)
        ours, _, grads, after = step(found, x, {"update_stats": training})
        assert_close(ours, y, TRAINING)
        back, stats = convert.to_haiku(after, "spectral_norm", prefix="n")
        np.testing.assert_array_equal(back["n"]["w"], w)
        assert_close(convert.to_haiku(grads, "spectral_norm", prefix="n")[0]["n"]["w"], grad, TRAINING)
        for name, theirs in new["spectral_norm"].items():
            assert_close(stats["n"][name].reshape(theirs.shape), theirs, TRAINING)


# ---------------------------------------------------------------- Equinox


def equinox_batch(mode, size=C):
    return eqx.nn.make_with_state(eqx.nn.BatchNorm)(size, axis_name="batch", momentum=0.9, mode=mode)


KEY = jax.random.key(1)
EQUINOX = {
    "LayerNorm": (lambda: eqx.nn.LayerNorm(C), (4, C)),
    "LayerNorm, plain": (lambda: eqx.nn.LayerNorm(C, use_weight=False, use_bias=False), (4, C)),
    "LayerNorm of an image": (lambda: eqx.nn.LayerNorm((C, 5, 3), eps=1e-3), (4, C, 5, 3)),
    "RMSNorm": (lambda: eqx.nn.RMSNorm(C), (4, C)),
    "RMSNorm without bias": (lambda: eqx.nn.RMSNorm(C, use_bias=False), (4, C)),
    "RMSNorm of an image": (lambda: eqx.nn.RMSNorm((C, 5)), (4, C, 5)),
    "GroupNorm": (lambda: eqx.nn.GroupNorm(3, C), (4, C, 5, 3)),
    "GroupNorm, plain": (lambda: eqx.nn.GroupNorm(2, C, channelwise_affine=False), (4, C, 5)),
    "WeightNorm of Linear": (lambda: eqx.nn.WeightNorm(eqx.nn.Linear(C, 4, key=KEY)), (4, C)),
    "WeightNorm, whole": (lambda: eqx.nn.WeightNorm(eqx.nn.Linear(C, 4, key=KEY), axis=None), (4, C)),
    "WeightNorm of Conv2d": (
        lambda: eqx.nn.WeightNorm(eqx.nn.Conv2d(C, 4, 3, stride=2, padding=1, groups=2, key=KEY)),
        (2, C, 7, 6),
    ),
    "SpectralNorm of Linear": (
        lambda: eqx.nn.make_with_state(eqx.nn.SpectralNorm)(
            eqx.nn.Linear(C, 4, key=KEY), "weight", num_power_iterations=60, key=KEY
        ),
        (4, C),
    ),
    "BatchNorm, batch": (lambda: equinox_batch("batch"), (8, C, 5)),
    "BatchNorm, ema": (lambda: equinox_batch("ema"), (8, C, 5)),
}


def called(layer, state, x, inference):
    """Equinox maps over the batch."""
    if state is None:
        return jax.vmap(layer)(x), None
    call = jax.vmap(
        lambda x, state: layer(x, state, inference=inference),
        axis_name="batch",
        in_axes=(0, None),
        out_axes=(0, None),
    )
    return call(x, state)


def equinox_layer(name):
    make, shape = EQUINOX[name]
    layer, state = made if isinstance(made := make(), tuple) else (made, None)
    arrays, rest = eqx.partition(layer, eqx.is_inexact_array)
    layer = eqx.combine(shaken(arrays), rest)
    for i in range(4):
        _, state = called(layer, state, normal(*shape, seed=i), False)
    return layer, state, normal(*shape, seed=9)


def last(x):
    return np.moveaxis(np.asarray(x), 1, -1)


@APIS
@pytest.mark.parametrize("name", EQUINOX)
def test_equinox(name, api):
    layer, state, x = equinox_layer(name)
    found = convert.from_equinox(layer, state=state, api=api)
    for training in (False, True):
        call = {"use_running_average": not training} if name.startswith("Batch") else {}
        call = {"update_stats": training} if name.startswith("Spectral") else call
        tolerance = TRAINING if training else EVALUATION

        def loss(x, training=training):
            y, new = called(layer, state, x, not training)
            return jnp.sin(y).sum(), (y, new)

        dx, (y, new) = jax.grad(loss, has_aux=True)(x)
        ours, our_dx, _, after = step(found, jnp.asarray(last(x)), call)
        if name == "BatchNorm, ema" and training:  # Equinox normalizes by the statistics just updated
            state_of = convert.to_equinox_state(after, "batch_norm")
            mean, var = new.get(layer.ema_state_index)
            assert_close(state_of["mean"], mean, TRAINING)
            assert_close(state_of["var"], var, TRAINING)
            continue
        assert_close(ours, last(y), tolerance)
        assert_close(our_dx, last(dx), TRAINING)
        if name == "BatchNorm, batch":
            stats = nnx.state(after, nnx.BatchStat) if api == "nnx" else after["batch_stats"]
            hidden = new.get(layer.batch_state_index)
            scale = 1 - 0.9 ** int(new.get(layer.batch_counter))
            for key, theirs in zip(("mean", "var"), hidden, strict=True):
                value = stats[key].get_value() if api == "nnx" else stats[key]
                assert_close(value, theirs / scale, TRAINING)


@pytest.mark.parametrize(
    "name", ["LayerNorm", "LayerNorm of an image", "RMSNorm", "GroupNorm", "BatchNorm, ema"]
)
def test_equinox_and_back_is_bitwise(name):
    layer, state, _ = equinox_layer(name)
    kinds = {"Laye": "layer_norm", "RMSN": "rms_norm", "Grou": "group_norm", "Batc": "batch_norm"}
    kind, arrays = kinds[name[:4]], {"n.weight": layer.weight, "n.bias": layer.bias}
    if state is not None:
        arrays["n.mean"], arrays["n.var"] = state.get(layer.ema_state_index)
    back = convert.to_equinox_state(convert.from_equinox_state(arrays, kind, prefix="n"), kind, prefix="n")
    assert back.keys() == arrays.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, arrays[key], strict=True)


@pytest.mark.parametrize("name", ["LayerNorm of an image", "GroupNorm", "BatchNorm, batch"])
@APIS
def test_equinox_with_channels_first(name, api):
    layer, state, x = equinox_layer(name)
    y, _ = called(layer, state, x, True)
    found = convert.from_equinox(layer, state=state, api=api, input_features_last=False)
    call = {"use_running_average": True} if name.startswith("Batch") else {}
    assert_close(step(found, x, call)[0], y, EVALUATION)


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_equinox_before_the_first_batch(mode):
    layer, state = equinox_batch(mode)
    norm, variables = convert.from_equinox(layer, state=state)
    assert norm.debias
    stats = jax.tree.map(lambda v: v.tolist(), variables["batch_stats"])
    assert stats == {"mean": [0.0] * C, "var": [1.0] * C, "weight": [0.0] * C}


ERRORS = {
    "no state": (
        lambda: convert.from_equinox(equinox_batch("ema")[0]),
        ValueError,
        "from_equinox: a BatchNorm has its statistics in a State; give state=, the eqx.nn.State that "
        "goes with it.",
    ),
    "no vectors": (
        lambda: convert.from_equinox(EQUINOX["SpectralNorm of Linear"][0]()[0]),
        ValueError,
        "from_equinox: a SpectralNorm has its vectors in a State; give state=, the eqx.nn.State that "
        "goes with it.",
    ),
    "no module": (
        lambda: convert.from_equinox(1),
        TypeError,
        "from_equinox: layer must be an equinox.Module, got int; give a layer of equinox.nn, or its "
        "arrays to "
        "from_equinox_state.",
    ),
    "no norm": (
        lambda: convert.from_equinox(eqx.nn.Linear(2, 2, key=KEY)),
        ValueError,
        "from_equinox: there is no layer for Linear; give LayerNorm, RMSNorm, GroupNorm, BatchNorm, "
        "WeightNorm or "
        "SpectralNorm.",
    ),
    "another axis": (
        lambda: convert.from_equinox(eqx.nn.WeightNorm(eqx.nn.Linear(2, 2, key=KEY), axis=1)),
        ValueError,
        "from_equinox: WeightNorm with axis=1; axis=0 or None is converted.",
    ),
    "another parameter": (
        lambda: convert.from_equinox(eqx.nn.WeightNorm(eqx.nn.Linear(2, 2, key=KEY), "bias")),
        ValueError,
        "from_equinox: a WeightNorm of Linear.bias; that of the weight of Linear or Conv1d to Conv3d is "
        "converted.",
    ),
    "another padding": (
        lambda: convert.from_equinox(
            eqx.nn.WeightNorm(eqx.nn.Conv1d(2, 2, 3, padding=1, padding_mode="REFLECT", key=KEY))
        ),
        ValueError,
        "from_equinox: padding_mode='REFLECT'; Conv is converted with zeros only.",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, kind, text = ERRORS[case]
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value) == text
