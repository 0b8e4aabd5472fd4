"""Lengths, responses and norms of transformers agree with other people's code, as test_peers.py does it."""

from functools import partial

import jax.numpy as jnp
from test_peers import (
    AFFINE,
    CHANNELS,
    EPS,
    LAST,
    SECOND,
    TRAIN,
    F,
    Row,
    alone,
    assert_agrees,
    borrowed,
    called,
    module,
    over,
    stats,
    tensor,
)

import jaxnorm as jn

IMAGE = (6, 4, 2, 3)  # channels first
GROUPS = {"num_groups": 2}
ONE = {"epsilon": EPS}


def zero_centred(x, scale):
    return (jn.rms_norm(x, scale=1 + scale, **ONE),)


def gates(x, gate, scale, **order):
    return (jn.gated_rms_norm(x, gate, scale=scale, **order, **ONE),)


def queries_and_keys(query, key, query_scale, key_scale):
    both = jn.qk_norm(query, key, query_scale=query_scale, key_scale=key_scale, **ONE)
    return (jnp.concatenate(both, 1),)


def lengthens(x, scale):
    """g times the root of the number of features is learned there."""
    return (jn.scale_norm(x, scale=2 * scale, epsilon=0.0),)


def squashes(function):
    def call(x, *learned):
        *learned, scale, bias = learned
        return (function(x, *learned, scale=scale, bias=bias),)

    return call


def evolves(x, scale, bias, slope, **more):
    options = {"unbiased": True} | SECOND | TRAIN | more
    y, new = jn.evonorm_b0(x, stats(), slope, scale=scale, bias=bias, **options)
    return y, new.var


def swishes(x, scale, bias, slope):
    return (jn.evonorm_s0(x, slope, scale=scale, bias=bias, **GROUPS, **SECOND, **ONE),)


def filters(x, scale, bias, threshold):
    return (jn.filter_response_norm(x, scale=scale, bias=bias, threshold=threshold, **SECOND, **ONE),)


def competes(x, scale, bias):
    return (jn.global_response_norm(x, scale=scale, bias=bias),)


# ---------------------------------------------------------------- theirs


def qwen(library, query, key, query_scale, key_scale):
    norm = module("Qwen3RMSNorm", 4, eps=EPS)
    return (borrowed("torch").cat([*norm(library, query, query_scale), *norm(library, key, key_scale)], 1),)


def timm_evonorm(library, x, scale, bias, slope, training=True):
    layer, running = library.EvoNorm2dB0(4, momentum=0.1, eps=EPS), tensor(stats().var)
    layer.train(training)
    y = called(layer, {"weight": scale, "bias": bias, "v": slope, "running_var": running}, x)
    return y, running


MODELS = "transformers.models."
TIMM = "timm.layers."
RESPONSE = {"alpha": 0.5, "beta": 0.75, "k": 2.0}
X = "x_transformers.x_transformers"
STYLEGAN = "flaxmodels.stylegan2.ops"

ROWS = (
    Row(
        "rms zero-centred, Gemma 3",
        MODELS + "gemma3.modeling_gemma3",
        zero_centred,
        module("Gemma3RMSNorm", 4, eps=EPS),
        (LAST, CHANNELS),
    ),
    Row(
        "gated, Qwen3-Next",
        MODELS + "qwen3_next.modeling_qwen3_next",
        gates,
        module("Qwen3NextRMSNormGated", 4, inputs=2, eps=EPS),
        (LAST, LAST, CHANNELS),
    ),
    Row(
        "gated before, Mamba-2",
        MODELS + "mamba2.modeling_mamba2",
        partial(gates, norm_before_gate=False),
        module("MambaRMSNormGated", 4, 4, inputs=2, eps=EPS),
        (LAST, LAST, CHANNELS),
    ),
    Row(
        "gated before in groups, Mamba-2",
        MODELS + "mamba2.modeling_mamba2",
        partial(gates, norm_before_gate=False, group_size=2),
        module("MambaRMSNormGated", 4, 2, inputs=2, eps=EPS),
        (LAST, LAST, CHANNELS),
    ),
    Row(
        "queries and keys, Qwen3",
        MODELS + "qwen3.modeling_qwen3",
        queries_and_keys,
        qwen,
        (LAST, LAST, CHANNELS, CHANNELS),
    ),
    Row("scale, x-transformers", X, lengthens, module("ScaleNorm", 4, names=["g"]), (LAST, (1,))),
    Row(
        "dynamic tanh, x-transformers",
        X,
        squashes(jn.dynamic_tanh),
        module("DynamicTanh", 4, names=("pre_tanh_scale", "gamma", "beta")),
        (LAST, (), *AFFINE),
    ),
    Row(
        "dynamic erf, x-transformers",
        X,
        squashes(jn.dynamic_erf),
        module("Derf", 4, names=("alpha", "s", "gamma", "beta")),
        (LAST, (), (), *AFFINE),
    ),
    *(
        Row(
            f"unit ord {ord}, torch",
            F,
            alone(jn.unit_norm, ord=ord),
            lambda f, x, ord=ord: (f.normalize(x, p=ord, dim=-1),),
            (LAST,),
        )
        for ord in (1, 2)
    ),
    Row(
        "pixel, flaxmodels",
        STYLEGAN,
        alone(jn.pixel_norm, feature_axis=1, **ONE),
        lambda ops, x: (ops.normalize_2nd_moment(x, eps=EPS),),
        (LAST,),
    ),
    Row("evonorm b0, timm", TIMM + "evo_norm", evolves, timm_evonorm, (IMAGE, *AFFINE, CHANNELS)),
    Row(
        "evonorm b0 evaluation, timm",
        TIMM + "evo_norm",
        partial(evolves, train=False),
        partial(timm_evonorm, training=False),
        (IMAGE, *AFFINE, CHANNELS),
    ),
    Row(
        "evonorm s0, timm",
        TIMM + "evo_norm",
        swishes,
        module("EvoNorm2dS0", 4, names=("weight", "bias", "v"), groups=2, eps=EPS),
        (IMAGE, *AFFINE, CHANNELS),
    ),
    # it has no learned epsilon
    Row(
        "filter response, timm",
        TIMM + "filter_response_norm",
        filters,
        module("FilterResponseNormTlu2d", 4, names=("weight", "bias", "tau"), eps=EPS),
        (IMAGE, *AFFINE, CHANNELS),
    ),
    Row(
        "global response, timm",
        TIMM + "grn",
        competes,
        module("GlobalResponseNorm", 4),
        ((3, 2, 5, 4), *AFFINE),
    ),
    Row(
        "global response, Transformers",
        "transformers.models.convnextv2.modeling_convnextv2",
        competes,
        module("ConvNextV2GRN", 4),
        ((3, 2, 5, 4), (1, 1, 1, 4), (1, 1, 1, 4)),
    ),
    *(
        Row(
            f"local response of {size}, torch",
            F,
            alone(jn.local_response_norm, size=size, **SECOND, **RESPONSE),
            lambda f, x, size=size: (f.local_response_norm(x, size, **RESPONSE),),
            ((3, 6, 2),),
        )
        for size in (3, 4)
    ),
)


@over(ROWS)
def test_agrees_with_the_length_of(row):
    assert_agrees(row)
