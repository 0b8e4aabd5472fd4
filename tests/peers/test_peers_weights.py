"""Weights, inputs and the moments agree with other people's code, as test_peers.py compares them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from test_peers import (
    CHANNELS,
    EPS,
    LAST,
    MASK,
    MEAN,
    RNG,
    VAR,
    Row,
    alone,
    assert_agrees,
    borrowed,
    called,
    over,
    stats,
    tensor,
)

import jaxnorm as jn

ONE = {"epsilon": EPS}
START = RNG.normal(size=(1, 4))  # of a power iteration
BACK = {"feature_axis": 0}  # of a torch kernel, [outputs, inputs]


def demodulates(x, kernel, style):
    return (jnp.einsum("nhwi,nio->nhwo", x, jn.weight_demodulate(kernel[0, 0], style)),)


def weighs(kernel, scale):
    return (jn.weight_norm(kernel, scale=scale[:, 0], epsilon=0.0, **BACK),)


def spectral(kernel):
    old = jn.SpectralStats(jnp.asarray(START, jnp.float32), jnp.float32(1))
    w, new = jn.spectral_norm(kernel, old, n_steps=2)
    return w, new.u


def reverses(x):
    y, m = jn.reversible_norm(x, axis=1, where=MASK, **ONE)
    return y, m.mean, jnp.sqrt(m.var + EPS)


def observes(batches):
    state = jn.initial_stats(4, weight=0.5)
    for x in batches:
        y, state = jn.input_norm(x, state, train=True, **ONE)
    return y, *state


def merges(x):
    m = jn.moments(x[:2], 0)
    for part in (x[2:5], x[5:]):
        m = jn.merge(m, jn.moments(part, 0))
    return m.mean, m.var, m.weight[0]


def rescales(kernel, bias, targets):
    kernel, bias, new = jn.pop_art(kernel, bias, stats(), targets, decay=0.9, epsilon=0.0)
    return jnp.concatenate([kernel, bias[None]]), new.mean, new.var


# ---------------------------------------------------------------- theirs


def through_identity(layer, parameters, *spatial):
    """The kernel that a torch layer uses, [outputs, inputs]."""
    torch, size = borrowed("torch"), layer.weight.shape[1]
    inputs = torch.eye(size, dtype=torch.float64).reshape(size, size, *spatial)
    return called(layer, parameters, inputs).flatten(1).T


def torch_weight_norm(nn, kernel, scale):
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4, bias=False))
    weight = "parametrizations.weight.original"
    return (through_identity(layer, {weight + "0": scale, weight + "1": kernel}),)


def torch_lengths(nn, kernel):
    linear = nn.Linear(6, 4, bias=False)
    linear.weight.data = kernel.detach()
    return (nn.utils.parametrizations.weight_norm(linear).parametrizations.weight.original0[:, 0],)


def torch_spectral(nn, kernel):
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6, bias=False), n_power_iterations=2)
    layer, weight = layer.double(), "parametrizations.weight."
    buffers = dict(layer.named_buffers()) | {weight + "0._v": tensor(START[0])}
    w = through_identity(layer, buffers | {weight + "original": kernel})
    return w, buffers[weight + "0._v"][None]


def haiku_spectral(hk, kernel):
    layer = hk.transform_with_state(lambda v: hk.SpectralNorm(eps=1e-12, n_steps=2)(v))
    _, state = layer.init(jax.random.key(0), kernel)
    ((name, fields),) = state.items()
    y, new = layer.apply({}, {name: fields | {"u0": jnp.asarray(START)}}, None, kernel)
    return y, new[name]["u0"]


def timm_standardized(name, **options):
    def call(library, kernel, *gain):
        layer = getattr(library, name)(6, 4, 1, bias=False, **options)
        parameters = dict(
            zip(("weight", "gain"), (v[..., None, None] for v in (kernel, *gain)), strict=False)
        )
        return (through_identity(layer, parameters, 1, 1),)

    return call


def flaxmodels_modulated(library, x, kernel, style):
    return (library.modulated_conv2d_layer(x, kernel, style, fmaps=4, kernel=1),)


def patchtst(library, x):
    scaler = library.PatchTSTStdScaler(SimpleNamespace(scaling_dim=1, keepdim=True, minimum_scale=EPS))
    return scaler(x, tensor(MASK))


def gymnasium_inputs(library, batches):
    rms = library.utils.RunningMeanStd(epsilon=0.5, shape=(4,))
    wrapper = SimpleNamespace(_update_running_mean=True, obs_rms=rms, epsilon=EPS)
    for x in batches.numpy():
        y = library.vector.NormalizeObservation.observations(wrapper, x)
    return y, rms.mean, rms.var, np.full(4, rms.count)


def gymnasium_merges(library, x):
    parts = [(v.mean(0), v.var(0), len(v)) for v in np.split(x.numpy(), (2, 5))]
    total = parts[0]
    for part in parts[1:]:
        total = library.update_mean_var_count_from_moments(*total, *part)
    return total


def rlax_rescales(library, kernel, bias, targets):
    old = library.PopArtState(MEAN, np.sqrt(VAR), VAR + MEAN**2)
    # its step is that of each target
    _, update = library.popart(4, 0.1 / len(targets), 1e-6, 1e6)
    indices = jnp.broadcast_to(jnp.arange(4, dtype=jnp.int32), targets.shape)
    new, state = update({"w": kernel, "b": bias}, old, targets, indices)
    return jnp.concatenate([new["w"], new["b"][None]]), state.shift, state.scale**2


KERNEL = (4, 6)  # outputs, inputs, as in torch
NN = "torch.nn"
STD = "timm.layers.std_conv"

ROWS = (
    Row(
        "demodulated, flaxmodels",
        "flaxmodels.stylegan2.ops",
        demodulates,
        flaxmodels_modulated,
        ((2, 3, 2, 6), (1, 1, 6, 4), (2, 6)),
    ),
    # torch adds no epsilon
    Row("weight norm, torch", NN, weighs, torch_weight_norm, (KERNEL, (4, 1))),
    Row(
        "weight lengths, torch",
        NN,
        alone(jn.weight_lengths, **BACK),
        torch_lengths,
        (KERNEL,),
        gradient=False,
    ),
    Row("spectral, torch", NN, spectral, torch_spectral, ((6, 4),)),
    Row("spectral, Haiku", "haiku", spectral, haiku_spectral, ((6, 4),)),
    Row(
        "weights standardized, timm",
        STD,
        alone(jn.weight_standardize, **BACK, **ONE),
        timm_standardized("StdConv2d", eps=EPS),
        (KERNEL,),
    ),
    # there epsilon is added, and must be positive; here, as in NFNets, it is the least variance
    Row(
        "weights standardized by fan-in, timm",
        STD,
        lambda v, gain: (jn.weight_standardize(v, scale=gain[:, 0], by_fan_in=True, epsilon=0.0, **BACK),),
        timm_standardized("ScaledStdConv2d", eps=1e-12),
        (KERNEL, (4, 1)),
    ),
    Row(
        "reversible masked, PatchTST",
        "transformers.models.patchtst.modeling_patchtst",
        reverses,
        patchtst,
        (LAST,),
    ),
    Row("inputs, Gymnasium", "gymnasium.wrappers", observes, gymnasium_inputs, ((3, 5, 4),), gradient=False),
    Row("merge, Gymnasium", "gymnasium.wrappers.utils", merges, gymnasium_merges, ((9, 4),), gradient=False),
    Row("pop art, RLax", "rlax._src.pop_art", rescales, rlax_rescales, ((6, 4), CHANNELS, (7, 4))),
    Row(
        "moments, torch",
        "torch",
        lambda x: (jnp.stack(jn.moments(x, 0)[1::-1]),),
        lambda torch, x: (torch.stack(torch.var_mean(x, 0, correction=0)),),
        ((7, 4),),
    ),
    Row(
        "combine, torch",
        "torch",
        lambda x: (jnp.stack(jn.combine(jn.moments(x, 1))[1::-1]),),
        lambda torch, x: (torch.stack(torch.var_mean(x, (0, 1), correction=0)),),
        ((3, 5, 4),),
    ),
)


@over(ROWS)
def test_agrees_with_the_weights_of(row):
    assert_agrees(row)
