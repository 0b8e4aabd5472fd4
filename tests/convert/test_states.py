"""State dicts of NumPy arrays to variables and back, without the frameworks; and all errors' texts."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm
from jaxnorm import convert, linen
from jaxnorm import nnx as jx

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.flexible


def arrays(*shapes):
    return [RNG.normal(size=shape).astype(np.float32) for shape in shapes]


def named(names, shape=(3,), prefix=""):
    return {prefix + name: value for name, value in zip(names, arrays(*[shape] * len(names)), strict=True)}


AFFINE = ("weight", "bias")
STATS = ("running_mean", "running_var")
PARAMETRIZED = "parametrizations.weight."
STATES = {
    "batch_norm": named(AFFINE + STATS),
    "batch_norm, plain": named(STATS),
    "layer_norm": named(AFFINE),
    "layer_norm of C, H, W": named(AFFINE, (3, 4, 5)),
    "group_norm": named(AFFINE),
    "instance_norm": named(AFFINE + STATS),
    "instance_norm, forgetful": named(AFFINE),
    "rms_norm": named(("weight",)),
    "weight_norm": dict(
        zip(
            (f"{PARAMETRIZED}original0", f"{PARAMETRIZED}original1", "bias"),
            arrays((4, 1, 1), (4, 3, 2), (4,)),
            strict=True,
        )
    ),
    "weight_norm, whole": dict(
        zip((f"{PARAMETRIZED}original0", f"{PARAMETRIZED}original1"), arrays((), (4, 3)), strict=True)
    ),
    "spectral_norm": dict(
        zip(
            (f"{PARAMETRIZED}original", f"{PARAMETRIZED}0._u", f"{PARAMETRIZED}0._v", "bias"),
            arrays((4, 3, 2, 2), (4,), (12,), (4,)),
            strict=True,
        )
    ),
}
OLD = {
    "weight_norm": dict(zip(("weight_g", "weight_v"), arrays((4, 1), (4, 3)), strict=True)),
    "spectral_norm": dict(
        zip(("weight_orig", "weight_u", "weight_v"), arrays((4, 3), (4,), (3,)), strict=True)
    ),
}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], strict=True)


@pytest.mark.parametrize("prefix", ["", "net.norm", "net.norm."])
@pytest.mark.parametrize("name", STATES)
def test_there_and_back_is_bitwise(name, prefix):
    kind, dot = name.partition(",")[0].partition(" of")[0], prefix.rstrip(".") + "." if prefix else ""
    state = {dot + key: value for key, value in STATES[name].items()}
    others = {"net.normal.weight": np.ones(7)} if prefix else {}
    variables = convert.from_torch_state(state | others, kind, prefix=prefix)
    assert all(isinstance(v, jax.Array) for v in jax.tree.leaves(variables))
    assert_same(convert.to_torch_state(variables, kind, prefix=prefix), state)


@pytest.mark.parametrize("kind", OLD)
def test_there_and_back_in_the_older_form(kind):
    variables = convert.from_torch_state(OLD[kind], kind)
    assert_same(convert.to_torch_state(variables, kind, parametrized=False), OLD[kind])


@pytest.mark.parametrize(("last", "shape"), [(True, (4, 5, 3)), (False, (3, 4, 5))])
def test_a_scale_of_several_axes(last, shape):
    state = STATES["layer_norm of C, H, W"]
    variables = convert.from_torch_state(state, "layer_norm", input_features_last=last)
    assert variables["params"]["scale"].shape == shape
    assert_same(convert.to_torch_state(variables, "layer_norm", input_features_last=last), state)


def test_the_variables_are_those_of_the_layer():
    x = jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32)
    layers = {
        "batch_norm": linen.BatchNorm(use_running_average=True),
        "layer_norm": linen.LayerNorm(),
        "rms_norm": linen.RMSNorm(),
    }
    for kind, layer in layers.items():
        variables = convert.from_torch_state(STATES[kind], kind)
        start = layer.init(jax.random.key(0), x)
        assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, variables)
    state = STATES["batch_norm"]
    y = layers["batch_norm"].apply(convert.from_torch_state(state, "batch_norm"), x)
    expected = (x - state["running_mean"]) / np.sqrt(np.maximum(state["running_var"], 0) + 1e-5)
    known = state["running_var"] >= 0  # a negative variance counts as not seen
    expected = expected * state["weight"] + state["bias"]
    np.testing.assert_allclose(y[:, known], expected[:, known], rtol=1e-5, atol=1e-5)


def test_statistics_are_wide_and_parameters_keep_their_dtype():
    state = {key: value.astype(jnp.bfloat16) for key, value in STATES["batch_norm"].items()}
    variables = convert.from_torch_state(state, "batch_norm")
    assert {v.dtype.name for v in variables["params"].values()} == {"bfloat16"}
    assert {v.dtype.name for v in variables["batch_stats"].values()} == {"float32"}


def test_a_layer_of_nnx_goes_back_too():
    norm = jx.BatchNorm(3, momentum=None, rngs=nnx.Rngs(0))
    norm(jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32))
    told = []
    state = convert.to_torch_state(norm, "batch_norm", prefix="bn", report=told.append)
    assert sorted(state) == ["bn.bias", "bn.running_mean", "bn.running_var", "bn.weight"]
    np.testing.assert_array_equal(state["bn.running_mean"], norm.mean[...])
    assert told[0].left_out == ["weight"]
    for kind, make in (("weight_norm", jx.WeightNorm), ("spectral_norm", jx.SpectralNorm)):
        layer = make(nnx.Conv(3, 4, (5,), rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        state = convert.to_torch_state(layer, kind)
        shapes = sorted(value.shape for value in state.values())
        assert (4, 3, 5) in shapes and len(state) == {"weight_norm": 3, "spectral_norm": 4}[kind]


def test_the_report_of_a_way_back():
    told = []
    convert.to_torch_state({"params": {"scale": np.ones(2)}}, "rms_norm", prefix="n", report=told.append)
    assert str(told[0]) == "theirs    ours\nn.weight  scale"


TABLE = {
    "conv": ("Conv_0", "conv"),
    "bn": ("blocks/0/BatchNorm_0", "batch_norm"),
    "fc": ("Dense_0", "dense"),
    "out": ("WeightNorm_0(Dense_1)", "weight_norm"),
    "buffer": None,
}


def net_state():
    state = {"conv.weight": arrays((4, 3, 5))[0], "fc.weight": arrays((2, 4))[0], "fc.bias": arrays((2,))[0]}
    state |= {f"bn.{key}": value for key, value in STATES["batch_norm"].items()}
    state |= {f"out.{key}": value for key, value in OLD["weight_norm"].items()}
    return state | {"buffer": np.ones(1), "bn.num_batches_tracked": np.asarray(3)}


def test_a_net():
    told = []
    state = net_state()
    variables = convert.net_from_torch(state, TABLE, report=told.append)
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "Conv_0": {"kernel": (5, 3, 4)},
        "blocks": {"0": {"BatchNorm_0": {"scale": (3,), "bias": (3,)}}},
        "Dense_0": {"kernel": (4, 2), "bias": (2,)},
        "Dense_1": {"kernel": (3, 4)},
        "WeightNorm_0": {"Dense_1/kernel/scale": (4,)},
    }
    assert told[0].left_out == ["bn.num_batches_tracked ()", "buffer"]
    assert "params/WeightNorm_0/Dense_1/kernel/scale" in [row.ours for row in told[0].rows]
    assert "params/Dense_1/kernel" in [row.ours for row in told[0].rows]
    back = convert.net_to_torch(variables, TABLE, parametrized=False, report=told.append)
    del state["buffer"], state["bn.num_batches_tracked"]
    assert_same(back, state)
    assert len(told[1].rows) == len(state)


def test_a_net_of_nnx():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm = jx.BatchNorm(3, rngs=rngs)
            self.out = jx.WeightNorm(nnx.Linear(3, 4, use_bias=False, rngs=rngs), rngs=rngs)

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.List([Block(rngs)])

    net = Net(nnx.Rngs(0))
    table = {"bn": ("blocks/0/norm", "batch_norm"), "out": ("blocks/0/out", "weight_norm")}
    state = {key: value for key, value in net_state().items() if key.partition(".")[0] in table}
    nnx.update(net, convert.net_from_torch(state, table, api="nnx"))
    block = net.blocks[0]
    np.testing.assert_array_equal(block.norm.mean[...], state["bn.running_mean"])
    np.testing.assert_array_equal(block.out.scales["kernel",][...], state["out.weight_g"].ravel())
    np.testing.assert_array_equal(block.out.layer_instance.kernel[...], state["out.weight_v"].T)


@pytest.mark.parametrize("kind", ["dense", "conv", "conv_transpose"])
def test_kernels_there_and_back(kind):
    for groups in (1, 2) if kind == "conv_transpose" else (1,):
        weight = arrays((4, 6) if kind == "dense" else (4, 6, 3, 2))[0]
        kernel = convert.kernel_from_torch(weight, kind, groups=groups)
        np.testing.assert_array_equal(
            convert.kernel_to_torch(kernel, kind, groups=groups), weight, strict=True
        )


def test_keras_and_haiku_and_equinox_take_plain_dicts():
    keras = {"n/gamma": np.ones(2), "n/beta": np.zeros(2), "n/moving_mean": np.ones(2)}
    keras["n/moving_variance"] = np.full(2, 2.0)
    variables = convert.from_keras_state(keras, "batch_norm", prefix="n")
    assert_same(
        convert.to_keras_state(variables, "batch_norm", prefix="n"),
        {key: value.astype(np.float32) for key, value in keras.items()},
    )
    average = {"hidden": np.full((1, 2), 0.19), "average": np.ones((1, 2)), "counter": np.asarray(2)}
    state = {f"bn/~/{name}_ema": average for name in ("mean", "var")}
    layer, variables = convert.from_haiku({}, "batch_norm", state=state, prefix="bn", decay_rate=0.9)
    assert (layer.momentum, layer.debias, layer.use_scale, layer.use_bias) == (0.9, True, False, False)
    np.testing.assert_allclose(variables["batch_stats"]["weight"], [0.19, 0.19], rtol=1e-6)
    _, back = convert.to_haiku(variables, "batch_norm", prefix="bn", decay_rate=0.9)
    assert back["bn/~/mean_ema"]["counter"] == 2
    np.testing.assert_allclose(back["bn/~/mean_ema"]["hidden"], average["hidden"], rtol=1e-6)
    equinox = {"mean": np.full(2, 0.19), "var": np.full(2, 0.38), "counter": 2}
    variables = convert.from_equinox_state(equinox, "batch_norm", momentum=0.9)
    np.testing.assert_allclose(variables["batch_stats"]["var"], [2, 2], rtol=1e-6)


ALONE = """
import sys
import jaxnorm
assert "jaxnorm.convert" not in sys.modules
jaxnorm.convert.kernel_from_torch([[1.0]], "dense")
frameworks = {"flax", "optax", "torch", "keras", "haiku", "equinox", "tensorflow"}
assert not frameworks & set(sys.modules)
"""


def test_importing_it_brings_no_framework():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_is_listed():
    assert "convert" in dir(jaxnorm)


GOOD = STATES["batch_norm"]
NORMS = (
    "'batch_norm' or 'layer_norm' or 'group_norm' or 'instance_norm' or 'rms_norm' or 'weight_norm' or "
    "'spectral_norm'"
)
HAIKU = {"bn/scale": np.ones((1, 2))}


def without(key, state=GOOD):
    return {name: value for name, value in state.items() if name != key}


ERRORS = {
    "an unknown kind": (
        lambda: convert.from_torch_state(GOOD, "batchnorm"),
        ValueError,
        f"from_torch_state: kind='batchnorm' is not known; choose {NORMS}.",
    ),
    "no dict": (
        lambda: convert.from_torch_state([1], "layer_norm"),
        TypeError,
        "from_torch_state: the state must be a dict of arrays, got list; give, for example, "
        "module.state_dict().",
    ),
    "no numbers": (
        lambda: convert.from_torch_state({"weight": "a"}, "rms_norm"),
        TypeError,
        "from_torch_state: weight must hold numbers, got dtype <U1; give arrays or tensors.",
    ),
    "a missing and an unknown key": (
        lambda: convert.from_torch_state({**without("running_var"), "extra": np.ones(1)}, "batch_norm"),
        ValueError,
        "from_torch_state: a batch_norm is missing running_var and has no place for extra; it has "
        "running_mean, "
        "running_var, and may have weight, bias, num_batches_tracked.",
    ),
    "missing keys under a prefix": (
        lambda: convert.from_torch_state({"a.weight": np.ones(2)}, "batch_norm", prefix="a"),
        ValueError,
        "from_torch_state: a batch_norm is missing a.running_mean, a.running_var; it has running_mean, "
        "running_var, "
        "and may have weight, bias, num_batches_tracked.",
    ),
    "no key with the prefix": (
        lambda: convert.from_torch_state(
            {"a.weight": np.ones(2), "b.weight": np.ones(2)}, "rms_norm", prefix="c"
        ),
        ValueError,
        "from_torch_state: no key begins with 'c.'; the keys begin with a, b.",
    ),
    "shapes that differ": (
        lambda: convert.from_torch_state({**GOOD, "bias": np.ones(4)}, "batch_norm"),
        ValueError,
        "from_torch_state: bias has shape (4,), but weight has (3,); the arrays of a batch_norm have one "
        "shape.",
    ),
    "a shape of two axes": (
        lambda: convert.from_torch_state(named(AFFINE, (3, 2), "n."), "group_norm", prefix="n"),
        ValueError,
        "from_torch_state: n.weight has shape (3, 2); the arrays of a group_norm have 1 axis.",
    ),
    "lengths of a weight norm": (
        lambda: convert.from_torch_state(
            {"weight_g": np.ones((1, 3)), "weight_v": np.ones((4, 3))}, "weight_norm"
        ),
        ValueError,
        "from_torch_state: weight_v has shape (4, 3) and its lengths (1, 3); only one length for each output "
        "feature (dim=0), or one in all, is converted.",
    ),
    "a bias under a weight norm": (
        lambda: convert.from_torch_state({**OLD["weight_norm"], "bias": np.ones(3)}, "weight_norm"),
        ValueError,
        "from_torch_state: weight_v has shape (4, 3) and its bias (3,); a bias has 4 places.",
    ),
    "vectors of a spectral norm": (
        lambda: convert.from_torch_state({**OLD["spectral_norm"], "weight_u": np.ones(3)}, "spectral_norm"),
        ValueError,
        "from_torch_state: weight_orig has shape (4, 3) and its vectors (3,) and (3,); u has 4 places "
        "and v has 3.",
    ),
    "a weight of one axis": (
        lambda: convert.from_torch_state({"weight_g": np.ones(4), "weight_v": np.ones(4)}, "weight_norm"),
        ValueError,
        "from_torch_state: weight_v has shape (4,); a weight of Linear or Conv1d to Conv3d has 2 to 5 axes.",
    ),
    "variables that are none": (
        lambda: convert.to_torch_state({"scale": np.ones(2)}, "rms_norm"),
        TypeError,
        "to_torch_state: variables must be a dict of params and batch_stats, got a dict of scale; give "
        "variables "
        "of linen, or a layer of jaxnorm.nnx.",
    ),
    "variables of nothing": (
        lambda: convert.to_torch_state(3, "rms_norm"),
        TypeError,
        "to_torch_state: variables must be a dict of params and batch_stats, got int; give variables of "
        "linen, or "
        "a layer of jaxnorm.nnx.",
    ),
    "variables without statistics": (
        lambda: convert.to_torch_state({"params": {"scale": np.ones(2)}}, "batch_norm"),
        ValueError,
        "to_torch_state: a batch_norm is missing mean, var; it has mean, var, and may have scale, bias, "
        "weight, "
        "step, frozen.",
    ),
    "variables of another norm": (
        lambda: convert.to_torch_state({"params": {"scale": np.ones(2)}}, "weight_norm"),
        ValueError,
        "to_torch_state: the variables of a weight_norm are layer_instance/kernel, layer_instance/bias, "
        "layer_instance/kernel/scale, got scale; give those of one.",
    ),
    "a flat scale": (
        lambda: convert.to_torch_state(
            jx.LayerNorm(6, feature_axes=(-2, -1), reduction_axes=(-2, -1), rngs=nnx.Rngs(0)), "layer_norm"
        ),
        ValueError,
        "to_torch_state: a LayerNorm of nnx keeps the scale of the axes (-2, -1) flat; give linen's "
        "variables, "
        "which have the shape.",
    ),
    "a kind of kernel": (
        lambda: convert.kernel_from_torch(np.ones((2, 2)), "linear"),
        ValueError,
        "kernel_from_torch: kind='linear' is not known; choose 'dense' or 'conv' or 'conv_transpose'.",
    ),
    "axes of a dense kernel": (
        lambda: convert.kernel_from_torch(np.ones(2), "dense"),
        ValueError,
        "kernel_from_torch: weight has shape (2,); a dense weight has 2 axes.",
    ),
    "axes of a convolution's": (
        lambda: convert.kernel_to_torch(np.ones((2, 2)), "conv"),
        ValueError,
        "kernel_to_torch: kernel has shape (2, 2); a conv kernel has 3 to 5 axes.",
    ),
    "groups": (
        lambda: convert.kernel_from_torch(np.ones((4, 2, 3)), "conv_transpose", groups=3),
        ValueError,
        "kernel_from_torch: groups=3 does not divide the 4 input features; choose a divisor of 4.",
    ),
    "groups on the way back": (
        lambda: convert.kernel_to_torch(np.ones((3, 2, 4)), "conv_transpose", groups=3),
        ValueError,
        "kernel_to_torch: groups=3 does not divide the 4 output features; choose a divisor of 4.",
    ),
    "keys without a line": (
        lambda: convert.net_from_torch({"a.weight": np.ones(1), "b.bias": np.ones(1)}, {}),
        ValueError,
        "net_from_torch: the table has no line for a.weight, b.bias; give each a line, or None as its "
        "line to leave "
        "it out.",
    ),
    "a line without keys": (
        lambda: convert.net_from_torch(
            {"a.weight": np.ones(1)}, {"a": ("n", "rms_norm"), "b": ("m", "rms_norm")}
        ),
        ValueError,
        "net_from_torch: no key is of the lines b; there are a.",
    ),
    "a kind of layer": (
        lambda: convert.net_from_torch({"a.weight": np.ones(1)}, {"a": ("n", "linear")}),
        ValueError,
        f"net_from_torch: kind='linear' is not known; choose 'dense' or 'conv' or 'conv_transpose' or "
        f"{NORMS}.",
    ),
    "a bias of another size": (
        lambda: convert.net_from_torch(
            {"a.weight": np.ones((2, 3)), "a.bias": np.ones(3)}, {"a": ("Dense_0", "dense")}
        ),
        ValueError,
        "net_from_torch: a.bias has shape (3,), but a.weight (2, 3); a bias has 2 places.",
    ),
    "a net's variables without a line": (
        lambda: convert.net_to_torch({"params": {"Dense_0": {"kernel": np.ones((2, 2))}}}, {}),
        ValueError,
        "net_to_torch: the table has no line for params/Dense_0/kernel; give each a line.",
    ),
    "a line without variables": (
        lambda: convert.net_to_torch(
            {"params": {"Dense_0": {"kernel": np.ones((2, 2))}}}, {"a": ("Dense_1", "dense")}
        ),
        ValueError,
        "net_to_torch: there is no variable of Dense_1; there are Dense_0.",
    ),
    "Keras' kinds": (
        lambda: convert.from_keras_state({}, "weight_norm"),
        ValueError,
        "from_keras_state: kind='weight_norm' is not known; choose 'batch_norm' or 'layer_norm' or "
        "'group_norm' or "
        "'rms_norm' or 'spectral_norm'.",
    ),
    "Keras' vector": (
        lambda: convert.from_keras_state(
            {"kernel": np.ones((2, 3)), "vector_u": np.ones((1, 2))}, "spectral_norm"
        ),
        ValueError,
        "from_keras_state: kernel has shape (2, 3) and vector_u (1, 2); vector_u has the shape (1, 3).",
    ),
    "Haiku's arguments": (
        lambda: convert.from_haiku(HAIKU, "batch_norm", prefix="bn", momentum=0.9),
        TypeError,
        "from_haiku: a batch_norm of Haiku takes no momentum and needs decay_rate; its arguments are "
        "decay_rate, "
        "eps, data_format.",
    ),
    "Haiku's state": (
        lambda: convert.from_haiku(HAIKU, "batch_norm", prefix="bn", decay_rate=0.9),
        ValueError,
        "from_haiku: a batch_norm is missing bn/~/mean_ema/hidden, bn/~/mean_ema/average, "
        "bn/~/mean_ema/counter, "
        "bn/~/var_ema/hidden, bn/~/var_ema/average, bn/~/var_ema/counter; it has ~/mean_ema/hidden, "
        "~/mean_ema/average, ~/mean_ema/counter, ~/var_ema/hidden, ~/var_ema/average, ~/var_ema/counter, "
        "and may "
        "have scale, offset.",
    ),
    "Haiku's counters": (
        lambda: convert.from_haiku(
            {},
            "batch_norm",
            state={
                f"bn/~/{name}_ema": {"hidden": np.ones(1), "average": np.ones(1), "counter": np.asarray(n)}
                for name, n in (("mean", 1), ("var", 2))
            },
            prefix="bn",
            decay_rate=0.9,
        ),
        ValueError,
        "from_haiku: the counters of bn/~/mean_ema and bn/~/var_ema are 1 and 2; one batch norm has seen "
        "as many "
        "means as variances.",
    ),
    "Haiku's slices": (
        lambda: convert.from_haiku({}, "layer_norm", axis=slice(1, None)),
        ValueError,
        "from_haiku: axis=slice(1, None, None) depends on x; give the axes as ints.",
    ),
    "Haiku's params": (
        lambda: convert.from_haiku([], "layer_norm"),
        TypeError,
        "from_haiku: params must be a dict of arrays, got list; give what hk.transform_with_state's init "
        "returns.",
    ),
    "Haiku's data_format": (
        lambda: convert.from_haiku({}, "instance_norm", data_format="NHWC"),
        ValueError,
        "from_haiku: data_format='NHWC' is not known; choose 'channels_last' or 'channels_first' or "
        "'N...C' or "
        "'NC...'.",
    ),
    "a decay of Haiku's": (
        lambda: convert.to_haiku(
            {"batch_stats": {name: np.ones(1) for name in ("mean", "var", "weight")}}, "batch_norm"
        ),
        TypeError,
        "to_haiku: a batch_norm of Haiku needs decay_rate; give the module's.",
    ),
    "a weight for Haiku": (
        lambda: convert.to_haiku({"batch_stats": {"mean": np.ones(1), "var": np.ones(1)}}, "batch_norm"),
        ValueError,
        "to_haiku: a batch_norm is missing batch_stats/weight; it has batch_stats/mean, batch_stats/var, "
        "batch_stats/weight, and may have params/scale, params/bias.",
    ),
    "a spectral norm of Haiku": (
        lambda: convert.from_haiku(
            {"w": np.ones((2, 2, 2))}, "spectral_norm", state={"u0": np.ones((1, 2)), "sigma": np.ones(())}
        ),
        ValueError,
        "from_haiku: w has shape (2, 2, 2); the spectral norm of a Linear, of 2 axes, is converted.",
    ),
    "a vector of Haiku": (
        lambda: convert.from_haiku(
            {"w": np.ones((2, 3))}, "spectral_norm", state={"u0": np.ones((1, 2)), "sigma": np.ones(())}
        ),
        ValueError,
        "from_haiku: u0 has shape (1, 2) and w (2, 3); u0 has the shape (1, 3).",
    ),
    "a counter without a momentum": (
        lambda: convert.from_equinox_state(
            {"mean": np.ones(1), "var": np.ones(1), "counter": 1}, "batch_norm"
        ),
        ValueError,
        "from_equinox_state: counter says how often the average was updated; give the momentum of the "
        "BatchNorm, "
        "too.",
    ),
    "no module of PyTorch": (
        lambda: convert.from_torch(3),
        TypeError,
        "from_torch: norm must be a torch.nn.Module, got int; give a module of torch.nn, or its state "
        "dict to "
        "from_torch_state.",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, kind, text = ERRORS[case]
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value) == text
