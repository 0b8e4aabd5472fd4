"""The usual norms agree with those of Keras, Haiku and Equinox, as test_peers.py compares them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from test_peers import (
    AFFINE,
    CHANNELS,
    EPS,
    FIRST,
    LAST,
    MASK,
    MEAN,
    SECOND,
    TRAIN,
    VAR,
    Row,
    alone,
    assert_agrees,
    forgets,
    over,
    remembers,
    stats,
    tensor,
    twice,
)

import jaxnorm as jn

LABELS = np.array([0, 2, 0, 1, 1, 0], np.int32)


def averages(values):
    """The debiased average of what comes one after another."""
    state = jn.initial_stats(values.shape[1:], weight=0.0)
    for v in values:
        state = jn.ema(state, jn.Moments(v, jnp.ones_like(v), jnp.ones_like(v)), decay=0.9)
    return (state.mean,)


def conditions(x, scale, bias):
    state = jn.initial_stats(4, weight=0.0)
    return jn.conditional_batch_norm(x, state, LABELS, scale=scale, bias=bias, **TRAIN)[:1]


def blends(x, scale, bias):
    return (jn.blended_batch_norm(x, stats(), alpha=0.75, scale=scale, bias=bias, epsilon=EPS),)


# ---------------------------------------------------------------- theirs


def keras_layer(name, **options):
    def call(keras, x, *parameters, fixed=(), **more):
        layer = getattr(keras.layers, name)(dtype="float64", **{"epsilon": EPS} | options)
        layer.build(x.shape)
        y, state = layer.stateless_call(parameters, [tensor(v) for v in fixed], x, **more)
        return y, *state

    return call


def keras_batch(*arrays, momentum=0.9, fixed=(MEAN, VAR), mask=None, training=True):
    mask = None if mask is None else tensor(mask[..., 0]) != 0
    layer = keras_layer("BatchNormalization", momentum=momentum)
    return layer(*arrays, fixed=fixed, mask=mask, training=training)


def keras_blend(*arrays):
    """An average that keeps 3/4 of the old, and evaluation by it."""
    _, *mixed = keras_batch(*arrays, momentum=0.75)
    return keras_batch(*arrays, fixed=mixed, training=False)[:1]


def keras_renorm(*arrays):
    limits = {"rmax": 1.25, "rmin": 1 / 1.25, "dmax": 0.5}
    layer = keras_layer("BatchNormalization", momentum=0.9, renorm=True, renorm_clipping=limits)
    sigma = np.sqrt(VAR + EPS)
    return layer(*arrays, fixed=(MEAN, VAR, sigma, MEAN, sigma), training=True)[:2]


def keras_inverse(keras, y):
    return (keras.layers.Normalization(mean=MEAN, variance=VAR, invert=True, dtype="float64")(y),)


def haiku_layer(name, *arguments, **options):
    def call(hk, x, *affine):
        def apply(x, *affine):
            return getattr(hk, name)(*arguments, eps=EPS, **options)(x, *affine)

        return (hk.without_apply_rng(hk.transform(apply)).apply({}, x, *affine),)

    return call


PLAIN = {"create_scale": False, "create_offset": False}


def haiku_batch(hk, x, scale, bias):
    layer = hk.transform_with_state(
        lambda x: hk.BatchNorm(decay_rate=0.9, eps=EPS, **PLAIN)(x, True, scale=scale, offset=bias)
    )
    _, state = layer.init(None, x[0])
    for batch in x:
        y, state = layer.apply({}, state, None, batch)
    return y, *(state[f"batch_norm/~/{name}_ema"]["average"].ravel() for name in ("mean", "var"))


def haiku_labels(hk, x, scale, bias):
    """As its BigGAN does."""
    return haiku_batch(hk, x[None], *(table[LABELS][:, None] for table in (scale, bias)))[:1]


def haiku_average(hk, values):
    average = hk.transform_with_state(lambda v: hk.ExponentialMovingAverage(0.9)(v))
    _, state = average.init(None, values[0])
    for v in values:
        y, state = average.apply({}, state, None, v)
    return (y,)


def equinox_layer(name, *arguments, names=("weight", "bias"), **options):
    def call(equinox, x, *affine):
        layer = getattr(equinox.nn, name)(*arguments, eps=EPS, **options)
        layer = equinox.tree_at(lambda v: [getattr(v, name) for name in names], layer, affine)
        return (jax.vmap(layer)(x),)

    return call


K, H, E = "keras", "haiku", "equinox"
ALL = (LAST, *AFFINE)
WHOLE = (LAST, LAST[1:], LAST[1:])
TABLES = ((3, 4), (3, 4))
GROUPS = {"num_groups": 2}
LIMITS = {"r_max": 1.25, "d_max": 0.5}

ROWS = (
    Row("batch, Keras", K, remembers(), keras_batch, ALL),
    Row("batch masked, Keras", K, remembers(where=MASK), partial(keras_batch, mask=MASK), ALL),
    Row(
        "batch evaluation, Keras",
        K,
        remembers(train=False),
        partial(keras_batch, training=False),
        ALL,
    ),
    # Keras averages the deviation: of the state the means alone are compared
    Row("batch renorm, Keras", K, lambda *v: remembers(jn.batch_renorm, **LIMITS)(*v)[:2], keras_renorm, ALL),
    Row("blended, Keras", K, blends, keras_blend, ALL),
    Row("layer, Keras", K, forgets(jn.layer_norm), keras_layer("LayerNormalization"), ALL),
    Row("rms, Keras", K, forgets(jn.rms_norm), keras_layer("RMSNormalization"), ALL[:2]),
    Row(
        "group, Keras", K, forgets(jn.group_norm, **GROUPS), keras_layer("GroupNormalization", groups=2), ALL
    ),
    Row(
        "unit, Keras",
        K,
        alone(jn.unit_norm, axis=1),
        lambda keras, x: (keras.layers.UnitNormalization(axis=1, dtype="float64")(x),),
        (LAST,),
    ),
    # the epsilon of Keras is the smallest deviation, not a part of the variance
    Row(
        "unstandardize, Keras",
        K,
        lambda y: (jn.unstandardize(y, stats(), epsilon=0.0),),
        keras_inverse,
        (LAST,),
    ),
    Row("batch debiased, Haiku", H, twice(), haiku_batch, ((2, *LAST), *AFFINE)),
    Row("conditional batch, Haiku", H, conditions, haiku_labels, (LAST, *TABLES)),
    Row("average debiased, Haiku", H, averages, haiku_average, ((3, 4),)),
    Row("layer, Haiku", H, forgets(jn.layer_norm), haiku_layer("LayerNorm", -1, **PLAIN), ALL),
    Row("rms, Haiku", H, forgets(jn.rms_norm), haiku_layer("RMSNorm", -1, create_scale=False), (LAST,)),
    Row("group, Haiku", H, forgets(jn.group_norm, **GROUPS), haiku_layer("GroupNorm", 2, **PLAIN), ALL),
    Row("instance, Haiku", H, forgets(jn.instance_norm), haiku_layer("InstanceNorm", **PLAIN), ALL),
    Row(
        "layer, Equinox", E, forgets(jn.layer_norm, axis=(1, 2)), equinox_layer("LayerNorm", LAST[1:]), WHOLE
    ),
    Row(
        "rms, Equinox",
        E,
        forgets(jn.rms_norm),
        lambda e, x, scale: equinox_layer("RMSNorm", 4, names=["weight"], use_bias=False)(e, x, scale),
        ((6, 4), CHANNELS),
    ),
    Row(
        "group, Equinox",
        E,
        forgets(jn.group_norm, **GROUPS, **SECOND),
        equinox_layer("GroupNorm", 2, 4),
        (FIRST, *AFFINE),
    ),
)


@over(ROWS)
def test_agrees_with_the_layers_of(row):
    assert_agrees(row)
