"""The table of variants: normalizer, formula, shapes. Each property is one test over the table."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import DECAY, EPSILON, batch, given, grouped, own, response, unit

import jaxnorm
from jaxnorm import Moments


def forgets(function, **options):
    def call(x, scale, bias, where, stats, **more):
        chosen = {"epsilon": EPSILON} | options | more
        return function(x, scale=scale, bias=bias, where=where, **chosen), None

    return call


def remembers(**options):
    def call(x, scale, bias, where, stats, **more):
        chosen = {"train": True, "decay": DECAY, "epsilon": EPSILON} | options | more
        return jaxnorm.batch_norm(x, stats, scale=scale, bias=bias, where=where, **chosen)

    return call


def applies(x, scale, bias, where, stats, **more):
    chosen = {"epsilon": EPSILON} | more
    return jaxnorm.standardize(x, stats, scale=scale, bias=bias, **chosen), None


def bare(function, **options):
    return lambda x, scale, bias, where, stats, **more: (function(x, **options, **more), None)


class Variant(NamedTuple):
    name: str
    function: Callable[..., Any]  # (x, scale, bias, where, stats, **options) -> (y, stats or None)
    formula: Callable[..., Any]  # (xp, x, scale, bias, where, stats) -> the same
    shape: tuple[int, ...]  # of x
    features: tuple[int, ...]  # axes of scale, bias and stats, ascending
    sample: int  # an axis that is reduced
    weight: float = 1.0  # of the state that comes in
    takes: tuple[str, ...] = ("scale", "where")  # scale and bias, where, stats, and gives a state
    state: Callable[..., Any] = Moments  # of the statistics of every feature

    def __str__(self):
        return self.name


def batches(name, shape, features, feature_axis, weight=1.0, **choice):
    return Variant(
        name,
        remembers(feature_axis=feature_axis, **choice),
        partial(batch, features=features, **choice),
        shape,
        features,
        sample=0,
        weight=weight,
        takes=("scale", "where", "stats", "state"),
    )


LAYER = {"shape": (3, 5, 4), "features": (2,), "sample": 2}
SEEN = 7.0  # points in a cumulative average before the call
RESPONSE = {"alpha": 0.5, "beta": 0.75, "k": 2.0}

VARIANTS = (
    batches("batch", (6, 3, 4), (2,), -1),
    batches("batch channels first", (6, 4, 3), (1,), 1),
    batches("batch several feature axes", (6, 3, 2, 2), (1, 3), (-1, 1)),
    batches("batch evaluation", (6, 3, 4), (2,), -1, train=False),
    batches("batch unbiased", (6, 3, 4), (2,), -1, unbiased=True),
    batches("batch debiased", (6, 3, 4), (2,), -1, weight=0.0),
    batches("batch cumulative", (6, 3, 4), (2,), -1, weight=SEEN, decay=None),
    Variant("layer", forgets(jaxnorm.layer_norm), partial(own, axes=(2,), features=(2,)), **LAYER),
    Variant(
        "layer several axes",
        forgets(jaxnorm.layer_norm, axis=(-1, 1)),
        partial(own, axes=(1, 2), features=(1, 2)),
        shape=(3, 5, 4),
        features=(1, 2),
        sample=1,
    ),
    Variant(
        "layer per channel",
        forgets(jaxnorm.layer_norm, axis=(1, 2), feature_axis=1),
        partial(own, axes=(1, 2), features=(1,)),
        shape=(3, 4, 5),
        features=(1,),
        sample=2,
    ),
    Variant(
        "rms",
        forgets(jaxnorm.rms_norm),
        partial(own, axes=(2,), features=(2,), centred=False),
        **LAYER,
    ),
    Variant(
        "group",
        forgets(jaxnorm.group_norm, num_groups=2),
        partial(grouped, groups=2, feature=2),
        shape=(3, 5, 4),
        features=(2,),
        sample=1,
    ),
    Variant(
        "group channels first",
        forgets(jaxnorm.group_norm, group_size=2, feature_axis=1),
        partial(grouped, groups=3, feature=1),
        shape=(3, 6, 5),
        features=(1,),
        sample=2,
    ),
    Variant(
        "instance",
        forgets(jaxnorm.instance_norm),
        partial(own, axes=(1,), features=(2,)),
        shape=(3, 5, 4),
        features=(2,),
        sample=1,
    ),
    Variant(
        "instance channels first",
        forgets(jaxnorm.instance_norm, feature_axis=1),
        partial(own, axes=(2, 3), features=(1,)),
        shape=(2, 3, 5, 2),
        features=(1,),
        sample=2,
    ),
    Variant("standardize", applies, partial(given, features=(2,)), **LAYER, takes=("scale", "stats")),
    Variant(
        "unit ord 1",
        bare(jaxnorm.unit_norm, ord=1),
        partial(unit, axis=2, ord=1),
        **LAYER,
        takes=(),
    ),
    Variant(
        "unit ord 2",
        bare(jaxnorm.unit_norm, axis=1),
        partial(unit, axis=1, ord=2),
        shape=(3, 5, 4),
        features=(1,),
        sample=1,
        takes=(),
    ),
    Variant(
        "local response",
        bare(jaxnorm.local_response_norm, size=4, **RESPONSE),
        partial(response, size=4, feature=2, **RESPONSE),
        shape=(3, 2, 6),
        features=(2,),
        sample=2,
        takes=(),
    ),
    Variant(
        "local response channels first",
        bare(jaxnorm.local_response_norm, size=3, feature_axis=1, **RESPONSE),
        partial(response, size=3, feature=1, **RESPONSE),
        shape=(3, 6, 2),
        features=(1,),
        sample=1,
        takes=(),
    ),
)


def rows(*options):
    """The variants that take these options."""
    return [v for v in VARIANTS if all(o in v.takes for o in options)]


def norms(*options):
    """The same, without the rows that differ from "batch" by the average alone."""
    averages = ("batch unbiased", "batch debiased", "batch cumulative")
    return [v for v in rows(*options) if v.name not in averages]


def named(*names):
    return [v for v in VARIANTS if v.name in names]


def kinds(*options):
    """One of each kind: for a property of the rule, not of the axes, that takes long to compile."""
    alone = "batch evaluation", "rms", "instance", "standardize", "unit ord 2", "local response"
    kinds = named("batch several feature axes", "layer per channel", "group channels first", *alone)
    return [v for v in kinds if v in rows(*options)]


def over(variants):
    return pytest.mark.parametrize("variant", variants, ids=str)


def over_weights(variants, *weights):
    """The variants that take weights with each of these, the others without."""
    cases = [(v, w) for v in variants for w in (weights if "where" in v.takes else [None])]
    return pytest.mark.parametrize(("variant", "where"), cases, ids=lambda v: str(v or "full"))


class Inputs(NamedTuple):
    x: Any
    scale: Any
    bias: Any
    where: Any
    stats: Any


def draw(variant, dtype=jnp.float32, where=None, seed=0):
    """Arguments for a variant; `where` is None, "mask" or "weights", zeros among them."""
    rng = np.random.default_rng(seed)
    wide = np.promote_types(dtype, np.float32)
    real = jnp.finfo(wide).dtype
    sizes = tuple(variant.shape[a] for a in variant.features)
    x, mean = rng.normal(1.5, 2.0, variant.shape), rng.normal(1.0, 1.0, sizes)
    if jnp.issubdtype(wide, jnp.complexfloating):
        x, mean = x + 1j * rng.normal(size=x.shape), mean - 1j * rng.normal(size=sizes)
    scale, bias, var = jnp.asarray(rng.uniform(0.5, 2.0, (3, *sizes)), real)
    count = jnp.asarray(rng.integers(0, 4, variant.shape))
    weights = {None: None, "mask": count > 0, "weights": count.astype(real) / 2}[where]
    affine = (scale, bias) if "scale" in variant.takes else (None, None)
    stats = variant.state(jnp.asarray(mean, wide), var, jnp.full(sizes, variant.weight, real))
    return Inputs(jnp.asarray(x, dtype), *affine, weights, stats if "stats" in variant.takes else None)


def exact(variant, inputs):
    """The formula's value in float64."""
    wide = {"c": np.complex128, "b": np.bool_}
    inputs = jax.tree.map(lambda v: np.asarray(v), inputs)
    inputs = jax.tree.map(lambda v: v.astype(wide.get(v.dtype.kind, np.float64)), inputs)
    return variant.formula(np, *inputs)


def types(tree):
    return jax.tree.map(lambda v: (v.shape, v.dtype), tree)


def assert_close(actual, expected, tolerance):
    """Every leaf within tolerance of the other's, relative to the largest value in it."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = (np.asarray(v).astype(np.complex128 if jnp.iscomplexobj(v) else np.float64) for v in (a, e))
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1, np.abs(e).max(initial=0)))
