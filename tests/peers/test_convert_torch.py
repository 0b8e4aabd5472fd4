"""Norms of PyTorch as layers of jaxnorm: evaluation, one training step, and the way there and back."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnorm import convert

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.flexible  # the layers of Flax that are under a weight norm
APIS = pytest.mark.parametrize("api", ["linen", "nnx"])
EVALUATION, TRAINING = 1e-6, 1e-5


def trained(norm, shape, steps=3, seed=0):
    """The module with parameters and statistics that are not those of the start."""
    torch.manual_seed(seed)
    norm(torch.randn(*shape))  # a lazy one gets its parameters
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    for _ in range(steps):
        norm(1 + 2 * torch.randn(*shape))
    return norm


def old(function, *args, **options):
    """An older form of a parametrization, which PyTorch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


weight_norm, spectral_norm = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm
C = 6
NORMS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(C), (8, C)),
    "BatchNorm1d of sequences": (lambda: nn.BatchNorm1d(C, momentum=0.3, eps=1e-3), (8, C, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(C), (4, C, 5, 3)),
    "BatchNorm2d, affine=False": (lambda: nn.BatchNorm2d(C, affine=False), (4, C, 5, 3)),
    "BatchNorm2d, bias=False": (lambda: nn.BatchNorm2d(C, bias=False), (4, C, 5, 3)),
    "BatchNorm2d, not tracked": (lambda: nn.BatchNorm2d(C, track_running_stats=False), (4, C, 5, 3)),
    "BatchNorm2d, not tracked, not affine": (
        lambda: nn.BatchNorm2d(C, track_running_stats=False, affine=False),
        (4, C, 5, 3),
    ),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(C), (4, C, 3, 2, 2)),
    "LazyBatchNorm2d": (lambda: nn.LazyBatchNorm2d(), (4, C, 5, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(C), (4, 5, C)),
    "LayerNorm, not affine": (lambda: nn.LayerNorm(C, elementwise_affine=False), (4, 5, C)),
    "LayerNorm, bias=False": (lambda: nn.LayerNorm(C, bias=False), (4, 5, C)),
    "LayerNorm of C, H, W": (lambda: nn.LayerNorm((C, 5, 3)), (4, C, 5, 3)),
    "GroupNorm": (lambda: nn.GroupNorm(3, C), (4, C, 5, 3)),
    "GroupNorm, not affine": (lambda: nn.GroupNorm(2, C, affine=False), (4, C, 5)),
    "GroupNorm, bias=False": (lambda: nn.GroupNorm(2, C, bias=False), (4, C)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(C), (4, C, 9)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(C, affine=True), (4, C, 5, 3)),
    "InstanceNorm2d, tracked": (
        lambda: nn.InstanceNorm2d(C, affine=True, track_running_stats=True),
        (4, C, 5, 3),
    ),
    "InstanceNorm3d, tracked, not affine": (
        lambda: nn.InstanceNorm3d(C, track_running_stats=True, momentum=0.4),
        (4, C, 3, 2, 2),
    ),
    "RMSNorm": (lambda: nn.RMSNorm(C), (4, 5, C)),
    "RMSNorm with an epsilon": (lambda: nn.RMSNorm(C, eps=1e-2), (4, 5, C)),
    "RMSNorm, not affine": (lambda: nn.RMSNorm(C, elementwise_affine=False), (4, 5, C)),
    "RMSNorm of C, H": (lambda: nn.RMSNorm((C, 5)), (4, C, 5)),
    "weight_norm of Linear": (lambda: weight_norm(nn.Linear(C, 4)), (8, C)),
    "weight_norm of Linear, whole": (lambda: weight_norm(nn.Linear(C, 4), dim=None), (8, C)),
    "weight_norm of Conv1d": (lambda: weight_norm(nn.Conv1d(C, 4, 3, padding=1, bias=False)), (2, C, 9)),
    "weight_norm of Conv2d": (
        lambda: weight_norm(nn.Conv2d(C, 4, (3, 2), stride=2, padding=(1, 0), dilation=2, groups=2)),
        (2, C, 9, 8),
    ),
    "weight_norm of Conv3d": (lambda: weight_norm(nn.Conv3d(C, 4, 3, padding="same")), (2, C, 3, 4, 3)),
    "weight_norm of Linear, old": (lambda: old(nn.utils.weight_norm, nn.Linear(C, 4)), (8, C)),
    "weight_norm of Conv1d, old": (lambda: old(nn.utils.weight_norm, nn.Conv1d(C, 4, 3)), (2, C, 9)),
    "spectral_norm of Linear": (lambda: spectral_norm(nn.Linear(C, 4), n_power_iterations=60), (8, C)),
    "spectral_norm of Conv2d": (
        lambda: spectral_norm(nn.Conv2d(C, 4, 3), n_power_iterations=60),
        (2, C, 5, 6),
    ),
    "spectral_norm of Linear, old": (
        lambda: old(nn.utils.spectral_norm, nn.Linear(C, 4), n_power_iterations=60),
        (8, C),
    ),
}
KIND = {"Batch": "batch_norm", "Layer": "layer_norm", "Group": "group_norm", "Insta": "instance_norm"}
KIND |= {"RMSNo": "rms_norm", "weigh": "weight_norm", "spect": "spectral_norm", "LazyB": "batch_norm"}
OVER = pytest.mark.parametrize("name", NORMS)


def kind_of(name):
    return KIND[name[:5]]


def last(x, name):
    """Channels last, where PyTorch has them first."""
    rows = name.startswith(("LayerNorm", "RMSNorm")) and " of " not in name
    return x if rows else np.moveaxis(x, 1, -1)


def made(name):
    make, shape = NORMS[name]
    module = trained(make(), shape)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(5))
    return module, 1 + 2 * x


def theirs(name, module, x, *, training):
    """y, the gradient of sum(sin(y)) in x and in the parameters, and the state dict afterwards."""
    state = {key: value.clone() for key, value in module.state_dict().items()}
    module = make_again(name)
    module.load_state_dict(state)
    module.train(training)
    x = x.clone().requires_grad_()
    y = module(x)
    torch.sin(y).sum().backward()
    grads = {name: p.grad.numpy() for name, p in module.named_parameters()}
    return y.detach().numpy(), x.grad.numpy(), grads, module.state_dict()


def calls(name, training):
    """What a layer's call is told of training."""
    if name.startswith("spectral"):
        return {"update_stats": training}
    remembers = "not tracked" not in name and (name.startswith(("Batch", "Lazy")) or ", tracked" in name)
    return {"use_running_average": not training} if remembers else {}


def ours(name, module, x, api, *, training):
    """The same of the layer, with the variables afterwards in linen's form and the gradients likewise."""
    x = jnp.asarray(last(x.numpy(), name))
    call = calls(name, training)
    if api == "linen":
        layer, variables = convert.from_torch(module, api=api)
        stats = variables.get("batch_stats", {})

        def loss(params, x):
            y, new = layer.apply({"params": params, "batch_stats": stats}, x, mutable="batch_stats", **call)
            return jnp.sin(y).sum(), (y, new.get("batch_stats", {}))

        grads, (y, new) = jax.grad(loss, (0, 1), has_aux=True)(variables.get("params", {}), x)
        return y, grads[1], {"params": grads[0]}, {**variables, "batch_stats": new} if new else variables
    layer = convert.from_torch(module, api=api)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def loss(params, x):
        layer = nnx.merge(graph, params, rest, copy=True)
        y = layer(x, **call)
        return jnp.sin(y).sum(), (y, nnx.split(layer)[1])

    grads, (y, state) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return y, grads[1], nnx.merge(graph, grads[0], rest), nnx.merge(graph, state)


def assert_close(ours, theirs, tolerance, scale=None):
    """Within `tolerance` of the largest value there."""
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    scale = max(np.abs(theirs).max(initial=0), 1.0) if scale is None else scale
    assert np.abs(np.asarray(ours) - theirs).max(initial=0) <= tolerance * scale


@APIS
@OVER
def test_evaluation(name, api):
    module, x = made(name)
    y, *_ = theirs(name, module, x, training=False)
    result, *_ = ours(name, module, x, api, training=False)
    assert_close(result, last(y, name), EVALUATION)


@APIS
@OVER
def test_a_training_step(name, api):
    module, x = made(name)
    y, dx, grads, state = theirs(name, module, x, training=True)
    result, ours_dx, ours_grads, variables = ours(name, module, x, api, training=True)
    assert_close(result, last(y, name), TRAINING)
    assert_close(ours_dx, last(dx, name), TRAINING)
    several = api == "nnx" and " of C, H" in name  # flat in nnx
    if several:
        return
    form = {"parametrized": not name.endswith("old")}
    if state:
        options = {"prefix": "", **form}
        new = convert.to_torch_state(variables, kind_of(name), **options) if has_stats(name, state) else {}
        for key, value in new.items():
            assert_close(value, state[key].numpy(), TRAINING)
        if grads and "spectral" not in name and has_stats(name, state):
            back = convert.to_torch_state(with_stats(ours_grads, variables), kind_of(name), **options)
            for key, value in grads.items():
                assert_close(back[key], value, TRAINING)


def has_stats(name, state):
    return kind_of(name) != "batch_norm" or "running_mean" in state


def with_stats(grads, variables):
    """Gradients have no statistics, which the way back asks for."""
    return grads if isinstance(grads, nnx.Module) else {**variables, **grads}


@OVER
def test_there_and_back_is_bitwise(name):
    module, _ = made(name)
    state = {f"net.0.{key}": value for key, value in module.state_dict().items()}
    if not state or not has_stats(name, module.state_dict()):
        return
    options = {"prefix": "net.0" if "Linear" in name else "net.0."}
    variables = convert.from_torch_state(state, kind_of(name), **options)
    back = convert.to_torch_state(variables, kind_of(name), parametrized=not name.endswith("old"), **options)
    assert state.keys() - back.keys() <= {"net.0.num_batches_tracked"}
    assert back.keys() <= state.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key].numpy(), strict=True)
    same = make_again(name)
    same.load_state_dict({key.removeprefix("net.0."): torch.from_numpy(v.copy()) for key, v in back.items()})


def make_again(name):
    make, shape = NORMS[name]
    module = make()
    module(torch.randn(*shape))
    return module


@pytest.mark.parametrize(
    "name", ["BatchNorm2d", "LayerNorm of C, H, W", "InstanceNorm2d, tracked", "GroupNorm"]
)
@APIS
def test_channels_first(name, api):
    module, x = made(name)
    y, *_ = theirs(name, module, x, training=False)
    call = calls(name, False)
    if api == "linen":
        layer, variables = convert.from_torch(module, input_features_last=False)
        result = layer.apply(variables, jnp.asarray(x), **call)
    else:
        result = convert.from_torch(module, input_features_last=False, api="nnx")(jnp.asarray(x), **call)
    assert_close(result, y, EVALUATION)


def test_options():
    layer, _ = convert.from_torch(nn.BatchNorm2d(3, eps=1e-4, momentum=0.25), axis_name="d")
    assert (layer.epsilon, layer.momentum, layer.unbiased, layer.axis, layer.axis_name) == (
        1e-4,
        0.75,
        True,
        -1,
        "d",
    )
    layer, variables = convert.from_torch(nn.SyncBatchNorm(3))
    assert variables["batch_stats"]["mean"].shape == (3,)


def test_a_cumulative_average():
    """Equal means where the number of places is told: PyTorch stores how many batches."""
    norm = trained(nn.BatchNorm1d(3, momentum=None), (8, 3))
    assert int(norm.num_batches_tracked) == 4
    layer, variables = convert.from_torch(norm, count=32)
    assert layer.momentum is None and variables["batch_stats"]["weight"].tolist() == [32.0] * 3
    x = torch.randn(8, 3)
    _, new = layer.apply(variables, jnp.asarray(x), use_running_average=False, mutable="batch_stats")
    norm(x)
    assert_close(new["batch_stats"]["mean"], norm.running_mean.numpy(), TRAINING)
    _, variables = convert.from_torch(norm)
    assert variables["batch_stats"]["weight"].tolist() == [5.0] * 3
    layer, variables = convert.from_torch(nn.BatchNorm1d(3, momentum=None))
    assert variables["batch_stats"]["weight"].tolist() == [0.0] * 3


def test_the_mode_of_a_module_is_that_of_the_layer():
    norm = nn.BatchNorm1d(3)
    assert convert.from_torch(norm, api="nnx").use_running_average is False
    assert convert.from_torch(norm.eval(), api="nnx").use_running_average is True
    layer = convert.from_torch(spectral_norm(nn.Linear(3, 2)).eval(), api="nnx")
    before = layer.batch_stats["kernel", "u"][...]
    layer(jnp.ones((1, 3)))
    assert bool((layer.batch_stats["kernel", "u"][...] == before).all())


def test_narrow_tensors_keep_their_values():
    norm = trained(nn.BatchNorm1d(3), (8, 3)).to(torch.bfloat16)
    _, variables = convert.from_torch(norm)
    assert variables["params"]["scale"].dtype == jnp.bfloat16
    assert variables["batch_stats"]["mean"].dtype == jnp.float32
    for ours, theirs in (("scale", norm.weight), ("bias", norm.bias)):
        assert np.array_equal(
            np.asarray(variables["params"][ours], np.float32), theirs.detach().float().numpy()
        )
    half = convert.from_torch_state(nn.LayerNorm(3).half().state_dict(), "layer_norm")
    assert half["params"]["scale"].dtype == jnp.float16


def test_a_spectral_norm_that_was_trained_goes_back_with_new_vectors():
    module, x = made("spectral_norm of Linear")
    layer, variables = convert.from_torch(module)
    params = jax.tree.map(lambda v: v * 2 + 0.1, variables["params"])
    changed = {**variables, "params": params}
    _, new = layer.apply(changed, jnp.asarray(x), update_stats=True, mutable="batch_stats")
    back = convert.to_torch_state({**changed, **new}, "spectral_norm")
    module.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in back.items()})
    y = layer.apply({**changed, **new}, jnp.asarray(x), update_stats=False)
    assert_close(y, module.eval()(x).detach().numpy(), EVALUATION)


class LlamaRMSNorm(nn.Module):
    """As in transformers, which has it with another name of epsilon."""

    def __init__(self, offset):
        super().__init__()
        self.weight, self.variance_epsilon, self.offset = nn.Parameter(torch.randn(C)), 1e-5, offset

    def forward(self, x):
        return (
            x
            * torch.rsqrt((x**2).mean(-1, keepdim=True) + self.variance_epsilon)
            * (self.offset + self.weight)
        )


@APIS
@pytest.mark.parametrize("offset", [0, 1])
def test_scales_of_one_plus_weight(offset, api):
    norm, x = LlamaRMSNorm(offset), torch.randn(4, C)
    found = convert.from_torch(norm, zero_centered_scale=bool(offset), api=api)
    x_ = jnp.asarray(x)
    y = found(x_) if api == "nnx" else found[0].apply(found[1], x_)
    assert_close(y, norm(x).detach().numpy(), EVALUATION)


def test_a_report():
    told = []
    convert.from_torch(trained(nn.BatchNorm2d(3), (4, 3, 2, 2)), report=told.append)
    (report,) = told
    assert report.left_out == ["num_batches_tracked ()"]
    assert str(report).splitlines() == [
        "theirs                  ours",
        "weight (3,)             params/scale",
        "bias (3,)               params/bias",
        "running_mean (3,)       batch_stats/mean",
        "running_var (3,)        batch_stats/var",
        "num_batches_tracked ()  left out          counts calls; read by from_torch where momentum=None",
        "eps=1e-05               epsilon=1e-05",
        "momentum=0.1            momentum=0.9      the fraction of the OLD average",
        "var * n / (n - 1)       unbiased=True",
    ]


def test_nothing_is_printed_and_nothing_is_warned_of(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert.from_torch(nn.BatchNorm2d(3))
    assert capsys.readouterr() == ("", "")


ERRORS = {
    "a Linear": (
        lambda: convert.from_torch(nn.Linear(2, 2)),
        ValueError,
        "from_torch: there is no layer for Linear; give BatchNorm1d to 3d, SyncBatchNorm, LayerNorm, "
        "GroupNorm, "
        "InstanceNorm1d to 3d, RMSNorm, or a Linear or Conv1d to 3d under weight_norm or spectral_norm.",
    ),
    "no module": (
        lambda: convert.from_torch({"weight": np.ones(2)}),
        TypeError,
        "from_torch: norm must be a torch.nn.Module, got dict; give a module of torch.nn, or its state "
        "dict to "
        "from_torch_state.",
    ),
    "a lazy one": (
        lambda: convert.from_torch(nn.LazyBatchNorm2d()),
        ValueError,
        "from_torch: LazyBatchNorm2d has seen no input yet and has no weights; call it once in PyTorch.",
    ),
    "an RMS norm of another library": (
        lambda: convert.from_torch(LlamaRMSNorm(0)),
        ValueError,
        "from_torch: LlamaRMSNorm is not of torch.nn; say zero_centered_scale=True if it multiplies by 1 "
        "+ weight "
        "(Gemma), False if by weight (Llama).",
    ),
    "a transposed convolution": (
        lambda: convert.from_torch(weight_norm(nn.ConvTranspose1d(2, 2, 3))),
        ValueError,
        "from_torch: a weight norm or spectral norm of ConvTranspose1d is not converted; give "
        "BatchNorm1d to 3d, "
        "SyncBatchNorm, LayerNorm, GroupNorm, InstanceNorm1d to 3d, RMSNorm, or a Linear or Conv1d to 3d "
        "under "
        "weight_norm or spectral_norm.",
    ),
    "another dim": (
        lambda: convert.from_torch(weight_norm(nn.Linear(2, 3), dim=1)),
        ValueError,
        "from_torch: parametrizations.weight.original1 has shape (3, 2) and its lengths (1, 2); only one "
        "length "
        "for each output feature (dim=0), or one in all, is converted.",
    ),
    "another padding": (
        lambda: convert.from_torch(weight_norm(nn.Conv1d(2, 2, 3, padding_mode="circular"))),
        ValueError,
        "from_torch: padding_mode='circular'; Conv is converted with zeros only.",
    ),
    "two norms": (
        lambda: convert.from_torch(spectral_norm(weight_norm(nn.Linear(2, 2)))),
        ValueError,
        "from_torch: Linear has several normalized parameters, or another than weight; one norm, of "
        "the weight, is converted.",
    ),
    "another api": (
        lambda: convert.from_torch(nn.LayerNorm(2), api="flax"),
        ValueError,
        "from_torch: api='flax' is not known; choose 'linen' or 'nnx'.",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, kind, text = ERRORS[case]
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value) == text


def test_the_parametrization_takes_the_older_keys():
    """`parametrized=False` is for the older module."""
    module, _ = made("weight_norm of Linear, old")
    state = convert.to_torch_state(
        convert.from_torch_state(module.state_dict(), "weight_norm"), "weight_norm", parametrized=False
    )
    assert set(state) == {"weight_g", "weight_v", "bias"}


KERNELS = {
    "linear": ("dense", lambda: nn.Linear(C, 4), (3, C), {}),
    "1d": ("conv", lambda: nn.Conv1d(C, 4, 3), (2, C, 9), {}),
    "2d, grouped": ("conv", lambda: nn.Conv2d(C, 4, (3, 2), groups=2), (2, C, 7, 6), {}),
    "depthwise": ("conv", lambda: nn.Conv1d(C, C, 3, groups=C), (2, C, 9), {}),
    "3d": ("conv", lambda: nn.Conv3d(C, 4, 2), (2, C, 3, 4, 3), {}),
    "1d, transposed": ("conv_transpose", lambda: nn.ConvTranspose1d(C, 4, 3, stride=2), (2, C, 5), {}),
    "2d, transposed": (
        "conv_transpose",
        lambda: nn.ConvTranspose2d(C, 4, (3, 2), stride=2),
        (2, C, 5, 4),
        {},
    ),
    "1d, transposed, grouped": (
        "conv_transpose",
        lambda: nn.ConvTranspose1d(C, 4, 3, stride=2, groups=2),
        (2, C, 5),
        {"groups": 2},
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name):
    kind, make, shape, options = KERNELS[name]
    module, x = make(), torch.randn(*shape)
    kernel = convert.kernel_from_torch(module.weight, kind, **options)
    back = convert.kernel_to_torch(kernel, kind, **options)
    np.testing.assert_array_equal(back, module.weight.detach().numpy(), strict=True)
    x_, n = jnp.asarray(np.moveaxis(x.numpy(), 1, -1)), len(shape) - 2
    groups = getattr(module, "groups", 1)
    if kind == "dense":
        y = jnp.asarray(x) @ kernel
    elif kind == "conv":
        y = conv(x_, kernel, groups, n)
    elif groups == 1:
        y = jax.lax.conv_transpose(x_, kernel, module.stride, "VALID", dimension_numbers=numbers_of(n))
    else:
        pad = [(k - 1, k - 1) for k in module.kernel_size]
        y = jax.lax.conv_general_dilated(
            x_,
            kernel,
            (1,) * n,
            pad,
            lhs_dilation=module.stride,
            feature_group_count=groups,
            dimension_numbers=numbers_of(n),
        )
    expected = module(x).detach().numpy()
    assert_close(
        y + jnp.asarray(module.bias.detach().numpy()),
        np.moveaxis(expected, 1, -1) if n > 0 else expected,
        TRAINING,
    )


def numbers_of(n):
    space = "DHW"[-n:]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def conv(x, kernel, groups, n):
    return jax.lax.conv_general_dilated(
        x, kernel, (1,) * n, "VALID", feature_group_count=groups, dimension_numbers=numbers_of(n)
    )
