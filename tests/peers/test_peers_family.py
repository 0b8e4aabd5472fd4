"""Batches, conditions and responses agree with other people's code, as test_peers.py compares them."""

import jax
import jax.numpy as jnp
from test_peers import (
    AFFINE,
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
    over,
    remembers,
    stats,
    tensor,
)

import jaxnorm as jn

GROUPS = {"num_groups": 2}
ONE = {"epsilon": EPS}


def banks(x, scale, bias):
    """The first half of the batch by the first state, the other by the other."""
    bank, ys = jn.initial_stats((2, 4)), []
    for i, half in enumerate(jnp.split(x, 2)):
        y, bank = jn.bank_norm(half, bank, i, scale=scale, bias=bias, unbiased=True, **SECOND, **TRAIN)
        ys.append(y)
    return jnp.concatenate(ys), *bank.mean, *bank.var


def switches(chosen):
    """Logits that leave one of instance, layer and batch."""
    logits = jnp.where(jnp.arange(3) == chosen, 200.0, 0.0)
    return lambda x: jn.switchable_norm(x, stats(), logits, logits, **SECOND, **TRAIN)[:1]


def whitens(**options):
    def call(x):
        y, _ = jn.decorrelated_batch_norm(x, jn.initial_covariance(4), train=True, epsilon=EPS, **options)
        return (y,)

    return call


def maps(x, scale, bias):
    y, new = jn.spade(x, stats(), scale, bias, unbiased=True, **SECOND, **TRAIN)
    return y, new.mean, new.var


def films(x, scale, bias):
    return (jn.film(x, 1 + scale, bias),)


def adapts(x, scale, bias):
    return (jn.adaptive_layer_norm(x, jax.nn.silu(scale), jax.nn.silu(bias), **ONE),)


def adapts_from_zero(x, condition, kernel):
    bias, scale, *gates = jnp.split(jax.nn.silu(condition) @ kernel.T, 6, 1)
    return jn.adaptive_layer_norm(x, scale, bias), *gates


def adapts_groups(x, scale, bias):
    scale, bias = (v[:, :, None, None] for v in (1 + scale, bias))
    return (jn.group_norm(x, scale=scale, bias=bias, **GROUPS, **SECOND, **ONE),)


# ---------------------------------------------------------------- theirs


def timm_split(library, x, scale, bias):
    layer = library.SplitBatchNorm2d(4, EPS, momentum=0.1).double()
    halves = "", "aux_bn.0."
    buffers = dict(layer.named_buffers())
    shared = {f"{half}{name}": v for half in halves for name, v in (("weight", scale), ("bias", bias))}
    y = called(layer, buffers | shared, x)
    return y, *(buffers[f"{half}running_{name}"] for name in ("mean", "var") for half in halves)


def beside(scale, bias):
    return borrowed("torch").cat([scale, bias], 1)


def identity(size):
    return borrowed("torch").eye(size, dtype=borrowed("torch").float64)


def monai_spade(library, x, scale, bias):
    """What makes maps of a segmentation gives those that are in it."""
    nn, running = borrowed("torch.nn"), [tensor(v) for v in stats()[:2]]
    layer = library.SPADE(8, 4, norm=("BATCH", {"eps": EPS, "momentum": 0.1, "affine": False}))
    layer.mlp_shared = nn.Identity()
    layer.mlp_gamma, layer.mlp_beta = (nn.Conv2d(8, 4, 1, bias=False) for _ in range(2))
    parameters = {
        "mlp_gamma.weight": identity(8)[:4, :, None, None],
        "mlp_beta.weight": identity(8)[4:, :, None, None],
        "param_free_norm.running_mean": running[0],
        "param_free_norm.running_var": running[1],
    }
    return called(layer, parameters, x, beside(scale, bias)), *running


def diffusers_film(library, x, scale, bias):
    layer = library.T5FiLMLayer(8, 4)
    return (called(layer, {"scale_bias.weight": identity(8)}, x, beside(scale, bias)[:, None]),)


def diffusers_adaptive(name, *arguments, **options):
    """Its linear layer passes scale and bias on, after a SiLU where it has one."""

    def call(library, x, scale, bias):
        layer = getattr(library, name)(*arguments, eps=EPS, **options)
        linear = {"linear.weight": identity(8), "linear.bias": identity(8)[0] * 0}
        return (called(layer, linear, x, beside(scale, bias)),)

    return call


def diffusers_zero(library, x, condition, kernel):
    layer = library.AdaLayerNormZero(4, bias=False)
    return called(layer, {"linear.weight": kernel}, x, None, None, None, condition)


def ltx_style(library, x, style):
    return (library.LTXLatentUpsamplePipeline.adain_filter_latent(None, x, style),)


def kornia_whitens(library, x):
    return (library.zca_whiten(x, unbiased=False, eps=EPS),)


IMAGE = (6, 4, 2, 3)  # channels first
DIFFUSERS = "diffusers.models.normalization"
LTX = "diffusers.pipelines.ltx.pipeline_ltx_latent_upsample"
TIMM = "timm.layers."

ROWS = (
    Row("bank, timm", TIMM + "split_batchnorm", banks, timm_split, (IMAGE, *AFFINE)),
    # it keeps statistics for every part: the state is not compared
    Row(
        "ghosts, timm",
        TIMM + "split_batchnorm",
        lambda *v: remembers(jn.ghost_batch_norm, num_ghosts=2, **SECOND)(*v)[:1],
        lambda *v: timm_split(*v)[:1],
        (IMAGE, *AFFINE),
    ),
    Row(
        "switched to instance, torch",
        F,
        switches(0),
        lambda f, x: (f.instance_norm(x, eps=EPS),),
        (IMAGE,),
    ),
    Row(
        "switched to layer, torch",
        F,
        switches(1),
        lambda f, x: (f.layer_norm(x, x.shape[1:], eps=EPS),),
        (IMAGE,),
    ),
    Row(
        "switched to batch, torch",
        F,
        switches(2),
        lambda f, x: (f.batch_norm(x, None, None, training=True, eps=EPS),),
        (IMAGE,),
    ),
    Row("whitened, Kornia", "kornia.enhance", whitens(), kornia_whitens, ((16, 4),)),
    # enough iterations of Newton's for the exact root
    Row("whitened by Newton, Kornia", "kornia.enhance", whitens(iterations=15), kornia_whitens, ((16, 4),)),
    Row("spade, MONAI", "monai.networks.blocks", maps, monai_spade, (IMAGE, IMAGE, IMAGE)),
    Row(
        "film, Diffusers",
        "diffusers.models.transformers.t5_film_transformer",
        films,
        diffusers_film,
        (LAST, (6, 4), (6, 4)),
    ),
    Row(
        "adaptive layer, Diffusers",
        DIFFUSERS,
        adapts,
        diffusers_adaptive("AdaLayerNormContinuous", 4, 8, elementwise_affine=False),
        (LAST, (6, 4), (6, 4)),
    ),
    Row(
        "adaptive layer zero, Diffusers", DIFFUSERS, adapts_from_zero, diffusers_zero, (LAST, (6, 4), (24, 4))
    ),
    Row(
        "adaptive group, Diffusers",
        DIFFUSERS,
        adapts_groups,
        diffusers_adaptive("AdaGroupNorm", 8, 4, 2),
        (IMAGE, (6, 4), (6, 4)),
    ),
    # without epsilon, and unbiased on both sides, which cancels; it writes into what autograd needs
    Row(
        "adaptive instance, Diffusers",
        LTX,
        alone(jn.adaptive_instance_norm, epsilon=0.0, **SECOND),
        ltx_style,
        (IMAGE, IMAGE),
        gradient=False,
    ),
)


@over(ROWS)
def test_agrees_with_the_member_of(row):
    assert_agrees(row)
