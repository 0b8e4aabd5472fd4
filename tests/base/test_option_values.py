"""Options are checked whatever holds their values: Python's numbers, numpy's or JAX's, also closed over."""

import re
from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

X = jnp.ones((2, 3, 4)) * jnp.arange(4.0)
STATS = jn.initial_stats((4,))
remembering = {"train": True, "stats": STATS}
SMALL = "is not a number >= 0; it is added to the variance: choose, for example, 1e-5."
OLD = (
    "is outside [0, 1]; it is the fraction of the OLD average that is kept, 1 - PyTorch's momentum: choose, "
    "for example, 0.99."
)
BLEND = "is outside [0, 1]; it is the share of stats, 1 - alpha that of the batch: choose, for example, 0.9."
TARGETS = {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4), "stats": STATS, "targets": X}

# option: a value that is wrong, what is said of it, and the calls that take it
WRONG = {
    "epsilon": (
        -1.0,
        SMALL,
        {
            "layer_norm": partial(jn.layer_norm, X),
            "rms_norm": partial(jn.rms_norm, X),
            "group_norm": partial(jn.group_norm, X, 2),
            "batch_norm": partial(jn.batch_norm, X, **remembering),
            "standardize": partial(jn.standardize, X, STATS),
            "unit_norm": partial(jn.unit_norm, X),
            "weight_norm": partial(jn.weight_norm, X),
            "pixel_norm": partial(jn.pixel_norm, X),
            "qk_norm": partial(jn.qk_norm, X, X),
        },
    ),
    "decay": (
        2.0,
        OLD,
        {
            "batch_norm": partial(jn.batch_norm, X, **remembering),
            "batch_renorm": partial(jn.batch_renorm, X, **remembering),
            "ema": partial(jn.ema, STATS, STATS),
            "pop_art": partial(jn.pop_art, **TARGETS),
        },
    ),
    "r_max": (
        0.5,
        "is too small; choose 1 or more.",
        {"batch_renorm": partial(jn.batch_renorm, X, **remembering)},
    ),
    "d_max": (
        -0.5,
        "is too small; choose 0 or more.",
        {"batch_renorm": partial(jn.batch_renorm, X, **remembering)},
    ),
    "clip": (
        -2.0,
        "is too small; choose 0 or more.",
        {"input_norm": partial(jn.input_norm, X, **remembering)},
    ),
    "alpha": (1.5, BLEND, {"blended_batch_norm": partial(jn.blended_batch_norm, X, STATS)}),
}
CASES = [
    (name, option, value, said, call)
    for option, (value, said, calls) in WRONG.items()
    for name, call in calls.items()
]
HOLDERS = {
    "python": float,
    "numpy scalar": np.float32,
    "numpy array": np.array,
    "jax": jnp.float32,
    "bfloat16": lambda v: jnp.asarray(v, jnp.bfloat16),
}


def assert_raises(error, call, text):
    with pytest.raises(error, match=re.escape(text)) as caught:
        call()
    assert str(caught.value) == text


@pytest.mark.parametrize("under", ["eagerly", "jit", "grad", "eval_shape"])
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize(("name", "option", "value", "said", "call"), CASES, ids=lambda v: str(v)[:20])
def test_a_wrong_value_is_refused(name, option, value, said, call, holder, under):
    options = {option: jax.block_until_ready(HOLDERS[holder](value))}

    def closed_over(t):
        return t * jnp.sum(jax.tree.leaves(call(**options))[0])

    transformed = {"jit": jax.jit(closed_over), "grad": jax.grad(closed_over)}
    calls = {"eagerly": partial(call, **options), "eval_shape": partial(jax.eval_shape, closed_over, 1.0)}
    run = calls.get(under) or partial(transformed[under], 1.0)
    assert_raises(ValueError, run, f"{name}: {option}={value} {said}")


def test_a_value_that_fits_is_not_refused_after_one_that_does_not():
    y = jn.layer_norm(X, epsilon=jnp.float32(1e-3))
    with pytest.raises(ValueError, match=r"epsilon=-1\.0"):
        jn.layer_norm(X, epsilon=jnp.float32(-1.0))
    np.testing.assert_array_equal(y, jn.layer_norm(X, epsilon=jnp.float32(1e-3)))


SWITCH = "; pass True for the batch's statistics, False for the stored ones, or a traced boolean scalar."


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (jnp.array(0.5), "0.5"),
        (np.array(1), "1"),
        (jnp.array([True]), "bool[1]"),
        ("yes", "'yes'"),
        (None, "None"),
    ],
)
def test_train_is_a_switch(value, shown):
    for name in ("batch_norm", "batch_renorm", "input_norm"):
        call = partial(getattr(jn, name), X, STATS, train=value)
        assert_raises(TypeError, call, f"{name}: train must be a bool, got {shown}{SWITCH}")


def test_a_traced_train_is_a_switch():
    call = jax.jit(lambda train: jn.batch_norm(X, STATS, train=train))
    assert_raises(TypeError, partial(call, 0.5), f"batch_norm: train must be a bool, got float32[]{SWITCH}")


@pytest.mark.parametrize("switch", [np.bool_, jnp.bool_, np.array, jnp.array])
def test_every_boolean_scalar_is_a_switch(switch):
    for train in (True, False):
        y, state = jn.batch_norm(X, STATS, train=switch(train))
        expected, after = jn.batch_norm(X, STATS, train=train)
        np.testing.assert_allclose(y, expected, rtol=1e-6)
        np.testing.assert_allclose(state.mean, after.mean, rtol=1e-6)


def test_a_traced_value_is_a_real_scalar():
    text = f"layer_norm: epsilon=float32[3] {SMALL}"
    assert_raises(ValueError, partial(jax.jit(lambda e: jn.layer_norm(X, epsilon=e)), jnp.ones(3)), text)


# ------------------------------------------------------------------------------------ ints

INTS = {
    "group_norm: num_groups": lambda n: jn.group_norm(X, n),
    "group_norm: group_size": lambda n: jn.group_norm(X, group_size=n),
    "evonorm_s0: num_groups": lambda n: jn.evonorm_s0(X, jnp.ones(4), num_groups=n),
    "ghost_batch_norm: num_ghosts": lambda n: jn.ghost_batch_norm(X, STATS, train=True, num_ghosts=n)[0],
    "partial_rms_norm: num_features": lambda n: jn.partial_rms_norm(X, num_features=n),
    "local_response_norm: size": lambda n: jn.local_response_norm(X, size=n),
    "decorrelated_batch_norm: iterations": lambda n: jn.decorrelated_batch_norm(
        X, jn.initial_covariance(4), train=True, iterations=n
    )[0],
    "spectral_norm: n_steps": lambda n: jn.spectral_norm(
        X, jn.initial_spectral_stats(X, jax.random.key(0)), n_steps=n
    )[0],
    "initial_covariance: features": lambda n: jn.initial_covariance(n).cov,
    "layer_norm: axis": lambda n: jn.layer_norm(X, axis=n),
    "batch_norm: feature_axis": lambda n: jn.batch_norm(X, STATS, train=True, feature_axis=n)[0],
    "moments: axis": lambda n: jn.moments(X, n).mean,
}


@pytest.mark.parametrize("name", INTS)
def test_an_int_is_one_in_any_holder(name):
    call = INTS[name]
    expected = call(2)
    for n in (np.int64(2), np.int8(2), np.array(2), jnp.int32(2)):
        np.testing.assert_array_equal(call(n), expected)


@pytest.mark.parametrize("name", INTS)
def test_a_float_is_no_int(name):
    for value in (2.0, np.float32(2.0), jnp.float32(2.0), "2"):
        with pytest.raises(TypeError, match=f"^{name} must be an int") as caught:
            INTS[name](value)
        given = value if isinstance(value, str) else float(value)
        assert f" must be an int, got {given!r}; " in str(caught.value) or (
            f" must be an int or several, got {given!r}; " in str(caught.value)
        )


def test_a_traced_int_is_refused():
    text = "group_norm: num_groups must be an int, got int32[]; choose a divisor of 4."
    assert_raises(TypeError, partial(jax.jit(lambda n: jn.group_norm(X, n)), 2), text)


def test_what_divides_is_still_asked():
    text = "group_norm: num_groups=3 does not divide axis -1 of x, shape (2, 3, 4); choose a divisor of 4."
    for n in (3, np.int64(3), np.array(3), jnp.int32(3)):
        assert_raises(ValueError, partial(jn.group_norm, X, n), text)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_layers_take_numpy_s_ints(api):
    for name in ("GroupNorm", "EvoNormS0"):
        make = getattr(getattr(jn, api), name)
        if api == "nnx":
            layers = [make(4, num_groups=n, rngs=flax.nnx.Rngs(0)) for n in (2, np.int64(2))]
            ys = [layer(X) for layer in layers]
        else:
            ys = [make(num_groups=n).init_with_output(jax.random.key(0), X)[0] for n in (2, np.int64(2))]
        np.testing.assert_array_equal(*ys)


def test_nnx_group_norm_keeps_flax_s_sentence():
    with pytest.raises(
        ValueError, match=r"Number of groups \(3\) does not divide the number of channels \(4\)"
    ):
        jn.nnx.GroupNorm(4, num_groups=3, rngs=flax.nnx.Rngs(0))


def test_counts_of_layers_are_ints():
    for name, field in (("DomainBatchNorm", "num_domains"), ("ConditionalBatchNorm", "num_classes")):
        text = f"{name}: {field} must be an int, got 2.0; choose 1 or more."
        layer = partial(getattr(jn.nnx, name), 4, rngs=flax.nnx.Rngs(0), **{field: 2.0})
        assert_raises(TypeError, layer, text)


# ------------------------------------------------------------------------------------ lists


AXES = {
    "layer_norm": (lambda axes: jn.layer_norm(X, axis=axes, feature_axis=axes), [-1, 1]),
    "batch_norm": (lambda axes: jn.batch_norm(X, STATS, train=True, feature_axis=axes)[0], [-1]),
    "group_norm": (lambda axes: jn.group_norm(X, 2, reduction_axes=axes), [1, 2]),
    "moments": (lambda axes: jn.moments(X, axes).mean, [0, 1]),
}


@pytest.mark.parametrize("name", AXES)
def test_a_list_of_axes_is_compiled(name):
    call, axes = AXES[name]
    expected = call(tuple(axes))
    for held in (axes, range(axes[0], axes[-1] + 1) if axes[0] >= 0 else axes, dict.fromkeys(axes).keys()):
        np.testing.assert_array_equal(call(held), expected)
        (program,) = jax.make_jaxpr(lambda held=held: call(held))().eqns
        assert program.params["name"] == name
    for held in (np.asarray(axes), jnp.asarray(axes), iter(axes)):
        np.testing.assert_array_equal(call(held), expected)


def test_groups_of_devices_may_be_lists():
    def local(x):
        return jn.moments(x, 0, axis_name=jn.InGroups("d", [[0, 1], [2, 3]])).mean

    mean = jax.pmap(local, axis_name="d")(jnp.arange(8.0).reshape(4, 2))
    np.testing.assert_allclose(mean, [1.5, 1.5, 5.5, 5.5])


def test_the_message_shows_the_list():
    text = "layer_norm: axis=[-1, 2] names an axis of x, shape (2, 3, 4), twice; name each once."
    assert_raises(ValueError, partial(jn.layer_norm, X, axis=[-1, 2]), text)
