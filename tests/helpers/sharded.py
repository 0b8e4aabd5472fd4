"""The table of public functions for arrays that are sharded over an Explicit mesh.

A row is called as `call(x, params, state, **options) -> (out, new state)`: `out` is differentiable in x and
params, and the state is what the function remembers, or None. What has FEATURES on its last axis is sharded
there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from meshes import mesh_of

import jaxnorm as jn

SHAPE = BATCH, SEQUENCE, FEATURES = 8, 4, 8


class Row(NamedTuple):
    name: str
    call: Callable[..., Any]
    params: dict[str, Any]
    state: Any = None

    @property
    def scaled(self) -> bool:
        """Whether y is x's size, and x is multiplied by a scale a feature."""
        scale = self.params.get("scale")
        return scale is not None and scale.shape == (FEATURES,)

    def __str__(self) -> str:
        return self.name


def draw(*shape, seed=0, low=0.5, high=2.0):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, shape), jnp.float32)


def observations():
    return jnp.asarray(np.random.default_rng(3).normal(1.5, 2.0, SHAPE), jnp.float32)


AFFINE = {"scale": draw(FEATURES), "bias": draw(FEATURES, seed=1)}
MASK = np.random.default_rng(4).uniform(size=(BATCH, SEQUENCE, 1)) < 0.7
WEIGHTS = jnp.asarray(MASK * np.random.default_rng(5).uniform(0.5, 2, MASK.shape), jnp.float32)
STATS = jn.Moments(draw(FEATURES, seed=6), draw(FEATURES, seed=7), jnp.ones(FEATURES))


def forgets(name, function, params=AFFINE, **options):
    return Row(name, lambda x, p, s, **more: (function(x, **p, **options, **more), None), params)


def remembers(name, function, params=AFFINE, state=STATS, **options):
    options = {"decay": 0.75} | options
    return Row(name, lambda x, p, s, **more: function(x, s, **p, **options, **more), params, state)


def counts(name, function, state=STATS):
    """A function from statistics to statistics."""
    return Row(name, lambda x, p, s: (function(x, s), None), {}, state)


def positional(function, *names, **options):
    """The function with these of its params by place."""

    def call(x, p, s):
        rest = {k: v for k, v in p.items() if k not in names}
        return function(x, *(p[k] for k in names), **rest, **options), None

    return call


def stateful(function, *names, **options):
    """The same, of a function that remembers."""

    def call(x, p, s):
        rest = {k: v for k, v in p.items() if k not in names}
        return function(x, s, *(p[k] for k in names), **rest, **options)

    return call


def pop_art(x, p, s):
    w, b, new = jn.pop_art(p["kernel"], p["bias"], s, x, decay=0.5)
    return (w, b), new


def spectral(x, p, s):
    w, new = jn.spectral_norm(x, s, n_steps=2)
    return w, new


def whitening(**options):
    def call(x, p, s):
        return jn.decorrelated_batch_norm(x, s, train=True, decay=0.75, **p, **options)

    return call


PER_SAMPLE = {"scale": draw(BATCH, FEATURES), "bias": draw(BATCH, FEATURES, seed=1)}
MAPS = {"scale": draw(BATCH, SEQUENCE, FEATURES), "bias": draw(BATCH, SEQUENCE, FEATURES, seed=1)}
SLOPE = AFFINE | {"slope": draw(FEATURES, seed=2)}
LOGITS = {"mean_logits": draw(3), "var_logits": draw(3, seed=1)}
COVARIANCE = jn.initial_covariance(FEATURES)
LABELS = np.arange(BATCH) % 3
STYLE = draw(1, 5, FEATURES)
TABLES = {"scale": draw(3, FEATURES), "bias": draw(3, FEATURES, seed=1)}
BANK = jn.Moments(*(jnp.stack([v, v + 1, v]) for v in STATS))

ROWS = (
    remembers("batch_norm", jn.batch_norm, train=True),
    remembers("batch_norm masked", jn.batch_norm, train=True, where=MASK, unbiased=True),
    remembers("batch_norm weighted", jn.batch_norm, train=True, where=WEIGHTS, decay=None),
    remembers("batch_norm evaluation", jn.batch_norm, train=False),
    remembers("batch_norm either", jn.batch_norm, train=np.bool_(True)),
    forgets("layer_norm", jn.layer_norm),
    Row(
        "layer_norm masked",
        lambda x, p, s: (jn.layer_norm(x, where=x > 1, axis=(1, 2), feature_axis=2, **p), None),
        AFFINE,
    ),
    forgets("rms_norm", jn.rms_norm, zero_centered_scale=True),
    forgets("group_norm", jn.group_norm, num_groups=4),
    forgets("group_norm masked", jn.group_norm, num_groups=4, where=MASK),
    forgets("group_norm rows", jn.group_norm, num_groups=4, reduction_axes=-1),
    forgets("instance_norm", jn.instance_norm),
    forgets("instance_norm weighted", jn.instance_norm, where=WEIGHTS),
    counts("moments", lambda x, s: (jn.moments(x, (0, 1)), jn.moments(x, 2), jn.moments(x, 1))),
    counts("moments masked", lambda x, s: (jn.moments(x, (0, 1), where=MASK), jn.moments(x, 2, where=MASK))),
    counts("moments about", lambda x, s: jn.moments(x, (0, 1), about=s.mean)),
    counts("moments pivot", lambda x, s: jn.moments(x, (0, 1), pivot=s.mean)),
    counts("merge", lambda x, s: (jn.merge(s, jn.moments(x, (0, 1))), jn.merge(jn.moments(x, (0, 1)), s))),
    counts("combine", lambda x, s: (jn.combine(jn.moments(x, 1)), jn.combine(jn.moments(x, 1), 1))),
    Row("ema", lambda x, p, s: (None, jn.ema(s, jn.moments(x, (0, 1)), decay=0.75)), {}, STATS),
    Row("standardize", lambda x, p, s: (jn.standardize(x, s, **p), None), AFFINE, STATS),
    Row("standardize own", lambda x, p, s: (jn.standardize(x, jn.moments(x, (0, 1)), **p), None), AFFINE),
    Row("unstandardize", lambda x, p, s: (jn.unstandardize(x, s, **p), None), AFFINE, STATS),
    remembers("batch_renorm", jn.batch_renorm, train=True, r_max=1.25, d_max=0.125),
    remembers("ghost_batch_norm", jn.ghost_batch_norm, train=True, num_ghosts=4),
    Row("bank_norm", stateful(jn.bank_norm, index=1, train=True, decay=0.75), AFFINE, BANK),
    Row(
        "blended_batch_norm",
        lambda x, p, s: (jn.blended_batch_norm(x, s, alpha=0.75, **p), None),
        AFFINE,
        STATS,
    ),
    remembers("input_norm", jn.input_norm, {}, train=True, clip=1.0, decay=None),
    Row("pop_art", pop_art, {"kernel": draw(3, FEATURES), "bias": draw(FEATURES)}, STATS),
    Row("switchable_norm", stateful(jn.switchable_norm, *LOGITS, train=True), AFFINE | LOGITS, STATS),
    Row("evonorm_b0", stateful(jn.evonorm_b0, "slope", train=True), SLOPE, STATS),
    Row("evonorm_s0", positional(jn.evonorm_s0, "slope", num_groups=4), SLOPE),
    Row(
        "conditional_batch_norm",
        lambda x, p, s: jn.conditional_batch_norm(x, s, LABELS, train=True, **p),
        TABLES,
        STATS,
    ),
    forgets("adaptive_layer_norm", jn.adaptive_layer_norm, PER_SAMPLE),
    Row(
        "adaptive_instance_norm",
        lambda x, p, s: (jn.adaptive_instance_norm(x, STYLE), None),
        {},
    ),
    forgets("film", jn.film, PER_SAMPLE),
    Row("spade", stateful(jn.spade, "scale", "bias", train=True), MAPS, STATS),
    forgets(
        "filter_response_norm",
        jn.filter_response_norm,
        AFFINE | {"threshold": draw(FEATURES, seed=2), "learned_epsilon": draw(FEATURES, seed=3)},
    ),
    forgets("global_response_norm", jn.global_response_norm),
    forgets("local_response_norm", jn.local_response_norm, {}, size=3),
    forgets("unit_norm", jn.unit_norm, {}),
    forgets("scale_norm", jn.scale_norm, {"scale": draw()}),
    forgets("pixel_norm", jn.pixel_norm, {}),
    forgets("gated_rms_norm", jn.gated_rms_norm, {"gate": draw(FEATURES), "scale": draw(FEATURES, seed=1)}),
    forgets("partial_rms_norm", jn.partial_rms_norm, num_features=5),
    Row("qk_norm", lambda x, p, s: (jn.qk_norm(x, x + 1, query_scale=p["scale"]), None), AFFINE),
    forgets("dynamic_tanh", partial(jn.dynamic_tanh, alpha=0.5)),
    forgets("dynamic_erf", partial(jn.dynamic_erf, alpha=0.5, shift=0.25)),
    forgets("weight_norm", jn.weight_norm, {"scale": draw(FEATURES)}),
    Row("weight_lengths", lambda x, p, s: (jn.weight_lengths(x), None), {}),
    forgets("weight_standardize", jn.weight_standardize, {"scale": draw(FEATURES)}),
    forgets("weight_standardize by fan", jn.weight_standardize, {"scale": draw(FEATURES)}, by_fan_in=True),
    Row("weight_demodulate", lambda x, p, s: (jn.weight_demodulate(x, jnp.ones((2, SEQUENCE))), None), {}),
    Row("spectral_norm", spectral, {}, jn.initial_spectral_stats(jnp.ones(SHAPE), jax.random.key(0))),
    Row("decorrelated_batch_norm", whitening(), AFFINE, COVARIANCE),
    Row("decorrelated_batch_norm Newton", whitening(iterations=3), AFFINE, COVARIANCE),
    Row("reversible_norm", lambda x, p, s: (jn.reversible_norm(x, axis=1, **p), None), AFFINE),
)


# ------------------------------------------------------------------------------------ where things are


def mesh(sizes, kind=AxisType.Explicit):
    return mesh_of(sizes, ("data", "model"), kind)


def kinds(tree):
    """Shapes, dtypes and shardings."""
    return [
        (v.shape, v.dtype, *map(str, (*v.sharding.spec, *[None] * v.ndim)[: v.ndim]))
        for v in map(jax.typeof, jax.tree.leaves(tree))
    ]


def quickly(function):
    """Compiled without optimizing: what is tested is where things are."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
