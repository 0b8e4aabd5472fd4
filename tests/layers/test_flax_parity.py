"""Where Flax is right, its layers and ours are the same, to their variables, dtypes and errors."""

import dataclasses
import inspect
import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers import CASES, FLAX, OURS, PLAIN, Case, draw, layer

pytestmark = pytest.mark.flexible

NORMAL = jax.nn.initializers.normal(1.0)
BATCH_NORMS = [case for case in CASES if case.name == "BatchNorm"]


def over(cases):
    pairs = [(api, case) for case in cases for api in case.flax.split()]
    return pytest.mark.parametrize(("api", "case"), pairs, ids=lambda value: str(value))


def twins(api, case, **options):
    """Flax's layer, where it is accurate, and ours, with the same random parameters."""
    options = dict(scale_init=NORMAL, bias_init=NORMAL, use_fast_variance=False) | options
    if case.name == "RMSNorm":
        del options["bias_init"]
    return [layer(modules, api, case, **options) for modules in (FLAX, OURS)]


def same_kind(tree, other):
    assert jax.tree.map(jax.typeof, tree) == jax.tree.map(jax.typeof, other)


def assert_close(actual, expected, atol):
    same_kind(actual, expected)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, atol=atol, rtol=1e-5),
        actual,
        expected,
    )


@over(CASES)
def test_variables_are_the_same(api, case):
    x = draw(case.shape)
    flax_variables, variables = (side.init(x) for side in twins(api, case))
    same_kind(variables, flax_variables)
    jax.tree.map(np.testing.assert_array_equal, variables, flax_variables)


def assert_same_step(api, case, **call):
    """The same y, and the same gradients of the parameters and of x."""
    x, weights = draw(case.shape), draw(case.shape, seed=1)
    theirs, ours = twins(api, case)
    variables = theirs.init(x)

    def loss(params, x, side):
        y, _ = side.call(variables | params, x, **call)
        return jnp.sum(y * weights), y

    params = {k: v for k, v in variables.items() if k == "params"}
    step = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
    assert_close(step(params, x, ours), step(params, x, theirs), atol=2e-5)


@over(CASES)
def test_values_and_gradients_are_the_same(api, case):
    assert_same_step(api, case)


@over(PLAIN)
def test_masked_values_and_gradients_are_the_same(api, case):
    assert_same_step(api, case, mask=draw(case.shape, seed=2) > 0)


@over(BATCH_NORMS)
def test_running_statistics_are_the_same(api, case):
    sides = twins(api, case)
    states = [side.init(draw(case.shape)) for side in sides]
    steps = [jax.jit(side.call) for side in sides]
    for seed in range(5):
        x = draw(case.shape, seed=seed)
        states = [step(state, x)[1] for step, state in zip(steps, states, strict=True)]
        assert_close(states[1], states[0], atol=2e-6)
    running = [side.call(states[0], x, use_running_average=True) for side in sides]
    assert_close(running[1], running[0], atol=2e-6)


FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)


@over(PLAIN)
@pytest.mark.parametrize("dtype", [None, *FLOATS], ids=str)
def test_dtypes_are_the_same(api, case, dtype):
    for x_dtype, param_dtype in itertools.product((*FLOATS, jnp.int32), FLOATS[:2]):
        x = jax.ShapeDtypeStruct(case.shape, x_dtype)
        options = dict(dtype=dtype, param_dtype=param_dtype)
        theirs, ours = (layer(modules, api, case, **options) for modules in (FLAX, OURS))
        variables = jax.eval_shape(theirs.init, x)
        same_kind(jax.eval_shape(ours.init, x), variables)
        same_kind(
            jax.eval_shape(ours.call, variables, x),
            jax.eval_shape(theirs.call, variables, x),
        )


@over([case for case in PLAIN if case.name != "BatchNorm"])
@pytest.mark.parametrize("complex_is", ["x", "dtype", "param_dtype"])
def test_complex_layers_are_the_same(api, case, complex_is):
    x = draw(case.shape, jnp.complex64 if complex_is == "x" else jnp.float32)
    options = {} if complex_is == "x" else {complex_is: jnp.complex64}
    theirs, ours = twins(api, case, **options)
    variables = theirs.init(x)
    assert_close(ours.call(variables, x), theirs.call(variables, x), atol=1e-6)


def test_complex_batch_norm_is_the_same():
    # Flax's mean begins real and is complex from the first step on; ours is complex from the start
    x = draw(BATCH_NORMS[0].shape, jnp.complex64)
    theirs, ours = twins("linen", BATCH_NORMS[0])
    assert_close(ours.call(ours.init(x), x), theirs.call(theirs.init(x), x), atol=1e-6)


@pytest.mark.parametrize("name", [case.name for case in PLAIN])
def test_linen_takes_the_same_arguments(name):
    flax_class, ours = getattr(FLAX["linen"], name), getattr(OURS["linen"], name)
    theirs, fields = (
        [(f.name, f.type, f.default) for f in dataclasses.fields(c) if f.name not in ("parent", "name")]
        for c in (flax_class, ours)
    )
    assert fields[: len(theirs)] == theirs
    begins_with(ours.__call__, flax_class.__call__)


@pytest.mark.parametrize("name", [case.name for case in PLAIN])
def test_nnx_takes_the_same_arguments(name):
    flax_class, ours = getattr(FLAX["nnx"], name), getattr(OURS["nnx"], name)
    begins_with(ours.__init__, flax_class.__init__)
    begins_with(ours.__call__, flax_class.__call__)


def begins_with(function, flax_function):
    found, expected = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (function, flax_function)
    )
    assert found[: len(expected)] == expected


# what Flax's fields mean is written here once: a new one must not be ignored in silence
KNOWN = {
    *(
        "axis",
        "axis_index_groups",
        "axis_name",
        "bias_init",
        "dtype",
        "epsilon",
        "feature_axes",
    ),
    *(
        "force_float32_reductions",
        "group_size",
        "momentum",
        "name",
        "num_groups",
        "param_dtype",
    ),
    *("parent", "reduction_axes", "scale_init", "use_bias", "use_fast_variance"),
    *("use_running_average", "use_scale"),
}


def test_no_field_of_flax_is_ignored():
    found = {f.name for c in PLAIN for f in dataclasses.fields(getattr(FLAX["linen"], c.name))}
    assert found <= KNOWN


WRONG = {
    "neither mode": ("BatchNorm", {}, dict(use_running_average=None)),
    "twice the mode": (
        "BatchNorm",
        dict(use_running_average=True),
        dict(use_running_average=True),
    ),
    "integer dtype": ("LayerNorm", dict(dtype=jnp.int32), {}),
    "no groups": ("GroupNorm", dict(num_groups=None), {}),
    "two kinds of groups": ("GroupNorm", dict(num_groups=2, group_size=2), {}),
    "groups that do not divide": ("GroupNorm", dict(num_groups=3), {}),
    "sizes that do not divide": ("GroupNorm", dict(num_groups=None, group_size=3), {}),
    "reduction without channels": (
        "GroupNorm",
        dict(num_groups=2, reduction_axes=(1,)),
        {},
    ),
    "channels on the batch axis": ("InstanceNorm", dict(feature_axes=0), {}),
}
ONLY_LINEN = ("twice the mode", "reduction without channels")
IN_BOTH = [(api, w) for w in WRONG for api in ("linen", "nnx") if not (api == "nnx" and w in ONLY_LINEN)]


@pytest.mark.parametrize(("api", "wrong"), IN_BOTH)
def test_errors_contain_flax_s_sentence(api, wrong):
    name, options, call = WRONG[wrong]
    if api == "nnx" and wrong == "neither mode":
        options = dict(use_running_average=None)
    case, x = Case(name, (4, 5, 4), 4, options), draw((4, 5, 4))
    theirs, ours = (error_of(modules, api, case, x, call) for modules in (FLAX, OURS))
    sentence = theirs.split(" Consider")[0].removesuffix(".")  # what follows is advice
    assert sentence in ours


def error_of(modules, api, case, x, call):
    try:
        side = layer(modules, api, case)
        side.call(side.init(x), x, **call)
    except ValueError as error:
        return str(error)
    raise AssertionError("no error")


def test_a_checkpoint_of_flax_loads():
    theirs, ours = twins("linen", BATCH_NORMS[0])
    x = draw(BATCH_NORMS[0].shape)
    _, trained = theirs.call(theirs.init(x), x)
    stored = flax.serialization.to_bytes(trained)
    loaded = flax.serialization.from_bytes(ours.init(x), stored)
    evaluated = [s.call(v, x, use_running_average=True)[0] for s, v in ((theirs, trained), (ours, loaded))]
    assert_close(evaluated[1], evaluated[0], atol=2e-6)
