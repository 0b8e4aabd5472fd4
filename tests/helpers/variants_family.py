"""The rows of the family: as those of variants.py, and read by the same tests."""

from functools import partial

import formulas_family as formula
import jax.numpy as jnp
import numpy as np
from formulas import DECAY, EPSILON, batch, own
from formulas_family import MEAN_LOGITS, VAR_LOGITS
from variants import SEEN, Variant, bare, forgets

import jaxnorm
from jaxnorm import Covariance

ALL = ("scale", "where", "stats", "state")
BATCH = {"shape": (6, 3, 4), "features": (2,), "sample": 0}
SAMPLE = {"shape": (4, 5, 4), "features": (2,), "sample": 1}
FEATURES = {"shape": (3, 5, 4), "features": (2,), "sample": 2}
EPS = {"epsilon": EPSILON}
RNG = np.random.default_rng(7)
GATE = RNG.normal(size=(5, 4)).astype(np.float32)
STYLE = RNG.normal(2.0, 3.0, (1, 7, 4)).astype(np.float32)
TABLES = RNG.uniform(0.5, 2.0, (2, 2, 4)).astype(np.float32)


def remembers(function, **options):
    def call(x, scale, bias, where, stats, **more):
        chosen = {"train": True, "decay": DECAY, "epsilon": EPSILON} | options | more
        return function(x, stats, scale=scale, bias=bias, where=where, **chosen)

    return call


def beside(x, v):
    """A constant in the dtype of the statistics of x."""
    return jnp.asarray(v, np.promote_types(x.dtype, np.float32))


def in_a_bank(x, scale, bias, where, stats, **more):
    """The state is the second of three, between two that hold nothing."""
    junk = type(stats)(*(jnp.full_like(v, jnp.nan) for v in stats))
    bank = type(stats)(*(jnp.stack(v) for v in zip(junk, stats, junk, strict=True)))
    options = {"train": True, "decay": DECAY, "epsilon": EPSILON} | more
    y, bank = jaxnorm.bank_norm(x, bank, 1, scale=scale, bias=bias, where=where, **options)
    return y, type(stats)(*(v[1] for v in bank))


def blends(x, scale, bias, where, stats, **more):
    options = {"alpha": 0.75, "epsilon": EPSILON} | more
    return jaxnorm.blended_batch_norm(x, stats, scale=scale, bias=bias, where=where, **options), None


def gates(x, scale, bias, where, stats, *, groups=None, **more):
    if groups is not None:
        more["group_size"] = x.shape[-1] // groups
    gate = beside(x, np.resize(GATE, x.shape[1:]))  # repeated beside more features
    return jaxnorm.gated_rms_norm(x, gate, scale=scale, where=where, **EPS | more), None


def from_one(x, scale, bias, where, stats, **more):
    options = {"scale": scale - 1, "bias": bias, "where": where} | EPS | more
    return jaxnorm.rms_norm(x, zero_centered_scale=True, **options), None


def queries(x, scale, bias, where, stats, **more):
    options = {"query_scale": scale, "bias": bias, "where": where} | EPS | more
    return jaxnorm.qk_norm(x, x, **options)[0], None


def scales(x, scale, bias, where, stats, **more):
    return jaxnorm.scale_norm(x, scale=scale, **EPS | more), None


def squash(function, *learned):
    def call(x, scale, bias, where, stats, **more):
        return function(x, *learned, scale=scale, bias=bias, **more), None

    return call


def films(x, scale, bias, where, stats, **more):
    return jaxnorm.film(x, scale, bias, **more), None


def adapts(x, scale, bias, where, stats, **more):
    return jaxnorm.adaptive_layer_norm(x, scale - 1, bias, where=where, **EPS | more), None


def styles(x, scale, bias, where, stats, **more):
    return jaxnorm.adaptive_instance_norm(x, beside(x, STYLE), where=where, **EPS | more), None


def labels(x, scale, bias, where, stats, **more):
    options = {"train": True, "decay": DECAY, "epsilon": EPSILON} | more
    of_class, (factor, shift) = jnp.arange(x.shape[0]) % 2, beside(x, TABLES)
    return jaxnorm.conditional_batch_norm(
        x, stats, of_class, scale=factor, bias=shift, where=where, **options
    )


def maps(x, scale, bias, where, stats, **more):
    options = {"train": True, "decay": DECAY, "epsilon": EPSILON} | more
    return jaxnorm.spade(x, stats, scale - 1, bias, where=where, **options)


def filters(x, scale, bias, where, stats, **more):
    learned = {"threshold": bias - scale / 2, "learned_epsilon": scale / 10}
    options = {"scale": scale, "bias": bias, "where": where} | learned | EPS | more
    return jaxnorm.filter_response_norm(x, **options), None


def evolves_b0(x, scale, bias, where, stats, **more):
    options = {"train": True, "decay": DECAY, "epsilon": EPSILON} | more
    return jaxnorm.evonorm_b0(x, stats, scale, scale=scale, bias=bias, where=where, **options)


def evolves_s0(x, scale, bias, where, stats, **more):
    return jaxnorm.evonorm_s0(x, scale, num_groups=2, scale=scale, bias=bias, where=where, **EPS | more), None


def observes(x, scale, bias, where, stats, **more):
    options = {"train": True, "clip": 1.0, "epsilon": EPSILON} | more
    return jaxnorm.input_norm(x, stats, where=where, **options)


def reverses(x, scale, bias, where, stats, **more):
    options = {"axis": 1, "scale": scale, "bias": bias, "where": where} | EPS | more
    return jaxnorm.reversible_norm(x, **options)[0], None


def switches(x, scale, bias, where, stats, **more):
    logits = (beside(x, v) for v in (MEAN_LOGITS, VAR_LOGITS))
    options = {"train": True, "decay": DECAY, "epsilon": EPSILON} | more
    return jaxnorm.switchable_norm(x, stats, *logits, scale=scale, bias=bias, where=where, **options)


def whitens(**choice):
    def call(x, scale, bias, where, stats, **more):
        options = {"train": True, "decay": DECAY, "epsilon": EPSILON} | choice | more
        where = None if where is None else where[..., :1]
        return jaxnorm.decorrelated_batch_norm(x, stats, scale=scale, bias=bias, where=where, **options)

    return call


def in_pairs(mean, var, weight):
    """Features 0 and 1, 2 and 3, whose correlation is 1/2."""
    deviation = jnp.sqrt(var).reshape(2, 2)
    cov = deviation[:, :, None] * deviation[:, None, :] * (0.5 + 0.5 * jnp.eye(2, dtype=var.dtype)[None])
    return Covariance(mean.reshape(2, 2), cov, weight[:2])


def row(name, function, formula, kind, takes=("scale", "where"), **more):
    return Variant(name, function, formula, **kind, takes=takes, **more)


LIMITS = {"r_max": 1.25, "d_max": 0.125}
CHANNELS = {"features": (2,)}

FAMILY = (
    row(
        "renorm",
        remembers(jaxnorm.batch_renorm, **LIMITS),
        partial(formula.renorm, **CHANNELS, **LIMITS),
        BATCH,
        ALL,
    ),
    row(
        "ghost",
        remembers(jaxnorm.ghost_batch_norm, num_ghosts=2),
        partial(formula.ghosts, parts=2, **CHANNELS),
        SAMPLE,
        ALL,
    ),
    row("bank", in_a_bank, partial(batch, **CHANNELS), BATCH, ALL),
    row("blended", blends, partial(formula.blended, alpha=0.75, **CHANNELS), BATCH, ALL[:3]),
    row("gated", gates, partial(formula.gated, gate=GATE, before=True), FEATURES),
    row(
        "gated before",
        partial(gates, norm_before_gate=False),
        partial(formula.gated, gate=GATE, before=False),
        FEATURES,
    ),
    row(
        "gated in groups",
        partial(gates, groups=2),
        partial(formula.gated, gate=GATE, before=True, parts=2),
        FEATURES,
    ),
    row("running instance", remembers(jaxnorm.running_instance_norm), formula.instances, SAMPLE, ALL),
    row(
        "running instance unbiased",
        remembers(jaxnorm.running_instance_norm, unbiased=True),
        partial(formula.instances, unbiased=True),
        SAMPLE,
        ALL,
    ),
    row(
        "partial", forgets(jaxnorm.partial_rms_norm, num_features=3), partial(formula.part, first=3), FEATURES
    ),
    row("rms about one", from_one, partial(own, axes=(2,), centred=False, **CHANNELS), FEATURES),
    row("query", queries, partial(own, axes=(2,), centred=False, **CHANNELS), FEATURES),
    row("scale", scales, formula.length, FEATURES, ("scale",)),
    row(
        "dynamic tanh",
        squash(jaxnorm.dynamic_tanh, 0.5),
        partial(formula.squashed, squash=formula.tanh, alpha=0.5),
        FEATURES,
        ("scale",),
    ),
    row(
        "dynamic erf",
        squash(jaxnorm.dynamic_erf, 0.5, 0.25),
        partial(formula.squashed, squash=formula.erf, alpha=0.5, shift=0.25),
        FEATURES,
        ("scale",),
    ),
    row("film", films, formula.film, FEATURES, ("scale",)),
    row("adaptive layer", adapts, partial(own, axes=(2,), **CHANNELS), FEATURES),
    row("adaptive instance", styles, partial(formula.styled, style=STYLE), SAMPLE, ("where",)),
    row("conditional batch", labels, partial(formula.by_label, tables=TABLES), SAMPLE, ALL[1:]),
    row("spade", maps, partial(batch, **CHANNELS), BATCH, ALL),
    row("filter response", filters, formula.filtered, SAMPLE),
    row("global response", forgets(jaxnorm.global_response_norm), formula.competing, SAMPLE),
    row("evonorm b0", evolves_b0, formula.evo_b0, SAMPLE, ALL),
    row("evonorm s0", evolves_s0, partial(formula.evo_s0, groups=2), SAMPLE),
    row("pixel", bare(jaxnorm.pixel_norm, **EPS), formula.pixels, FEATURES, ()),
    row("input", observes, partial(formula.observed, clip=1.0), BATCH, ALL[1:], weight=SEEN),
    row("reversible", reverses, partial(own, axes=(1,), **CHANNELS), SAMPLE),
    row("switchable", switches, formula.switched, SAMPLE, ALL),
    row("whitened", whitens(), formula.whitened, BATCH, ALL, state=in_pairs),
    row(
        "whitened by Newton",
        whitens(iterations=5),
        partial(formula.whitened, iterations=5),
        BATCH,
        ALL,
        state=in_pairs,
    ),
)
