"""Derivatives of every mode, mixture and order equal those of the textbook formula, in float64."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from thin import slow_but
from variants import assert_close, draw, exact, kinds, named, norms, over, types

import jaxnorm as jn

pytestmark = [
    pytest.mark.usefixtures("form"),
    pytest.mark.parametrize("form", ["cpu form"], indirect=True, scope="module"),
]

EXACT = 1e-10


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def weigh(shape):
    return jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float64)


def smooth(function, inputs):
    """A function of what is differentiable, curved in y, so that every second derivative counts."""
    present = {k: v for k, v in inputs._asdict().items() if v is not None}
    fixed = {k: v for k, v in present.items() if k == "where" and v.dtype == bool}
    free = {k: v for k, v in present.items() if k not in fixed}

    def loss(free):
        y, _ = function(*inputs._replace(**free))
        return jnp.sum(weigh(y.shape) * jnp.sin(y))

    return loss, free


def direction(free, seed):
    """A tangent; a state's weights are constants."""
    rng = np.random.default_rng(seed)
    tangent = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape), v.dtype), free)
    if "stats" in tangent:
        tangent["stats"] = tangent["stats"]._replace(weight=jnp.zeros_like(free["stats"].weight))
    return tangent


def modes(function, inputs):
    """A value, and its derivatives by each way of differentiating."""
    loss, free = smooth(function, inputs)
    u, v = direction(free, 4), direction(free, 5)

    def along(t):
        return jax.jvp(loss, (t,), (u,))[1]

    (value, reverse), (_, forward_over_reverse) = jax.jvp(jax.value_and_grad(loss), (free,), (v,))
    forward, reverse_over_forward = jax.value_and_grad(along)(free)
    return {
        "value": value,
        "forward": forward,
        "reverse": reverse,
        "forward over reverse": forward_over_reverse,
        "reverse over forward": reverse_over_forward,
    }


def without_weights_of_state(modes):
    """The mass of a state only says whether there is one."""
    return {
        k: v | {"stats": v["stats"]._replace(weight=0)} if isinstance(v, dict) and "stats" in v else v
        for k, v in modes.items()
    }


def assert_same_modes(variant, inputs):
    actual = jax.jit(partial(modes, variant.function))(inputs)
    expected = jax.jit(partial(modes, partial(variant.formula, jnp)))(inputs)
    assert_close(without_weights_of_state(actual), without_weights_of_state(expected), EXACT)


@over(slow_but(norms(), *(v.name for v in kinds())))
def test_every_mode_and_order(variant, float64):
    assert_same_modes(variant, draw(variant, jnp.float64))


@over(named("batch", "layer", "rms", "group"))
def test_every_mode_and_order_with_weights(variant, float64):
    inputs = draw(variant, jnp.float64, "weights")
    # away from zero, a kink: who is not seen has no slope
    assert_same_modes(variant, inputs._replace(where=inputs.where + 0.25))


@pytest.mark.parametrize("where", ["mask", "weights"])
@over(kinds("where"))
def test_values_and_gradients_of_a_weighted_sample(variant, where, float64):
    inputs = draw(variant, jnp.float64, where)

    def both(function):
        loss, free = smooth(function, inputs)
        return jax.jit(jax.value_and_grad(lambda x: loss(free | {"x": x})))(inputs.x)

    assert_close(both(variant.function), both(partial(variant.formula, jnp)), EXACT)


@over(named("batch", "batch unbiased", "batch cumulative"))
def test_a_float64_state(variant, float64):
    inputs = draw(variant, jnp.float64, "weights")
    assert_close(variant.function(*inputs), exact(variant, inputs), 1e-13)


@over(named("batch", "layer", "group"))
def test_weights_that_broadcast(variant, float64):
    """One weight for many points has the sum of their slopes."""
    inputs = draw(variant, jnp.float64, "weights")
    axes = tuple(a for a in range(inputs.x.ndim) if a != variant.sample)
    inputs = inputs._replace(where=inputs.where.sum(axes, keepdims=True) + 0.25)

    def gradient(function):
        loss, free = smooth(function, inputs)
        return jax.jit(jax.grad(lambda w: loss(free | {"where": w})))(inputs.where)

    assert_close(gradient(variant.function), gradient(partial(variant.formula, jnp)), EXACT)


@over(kinds())
def test_gradients_of_a_narrow_type(variant):
    """Each gradient has its argument's type, and is rounded once."""
    dtype = jnp.bfloat16
    inputs = draw(variant, dtype)
    cotangent = jnp.asarray(np.random.default_rng(3).normal(size=variant.shape), dtype)

    def gradient(function, inputs, cotangent):
        def loss(x, scale, bias):
            y, _ = function(x, scale, bias, *inputs[3:])
            return jnp.sum((y * cotangent).astype(np.promote_types(y.dtype, np.float32)))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs[:3])

    actual = gradient(variant.function, inputs, cotangent)
    assert types(actual) == types(inputs[:3])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), (inputs, cotangent))
        expected = gradient(partial(variant.formula, jnp), *wide)
    assert_close(actual, expected, 2**-8)


@pytest.mark.flexible
@pytest.mark.parametrize("norm", [jn.layer_norm, jn.rms_norm])
@pytest.mark.parametrize("shape", [(512,), (16, 1)], ids=["columns", "rows"])
def test_gradients_of_a_scale_that_is_wider_than_x(norm, shape):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 512)), jnp.float32)
        scale = jnp.linspace(1.0, 2.0, math.prod(shape)).reshape(shape)

        def gradient(x):
            return jax.jit(jax.grad(lambda x, scale: jnp.sum(norm(x, scale=scale) * jnp.cos(x)), (0, 1)))(
                x, scale
            )

        actual, expected = gradient(x), gradient(x.astype(jnp.float64))
        assert [v.dtype for v in actual] == [jnp.float32, jnp.float64]
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@over(kinds("scale"))
def test_gradients_of_complex_numbers(variant, float64):
    inputs = draw(variant, jnp.complex128)
    rng = np.random.default_rng(3)
    u, ct = (jnp.asarray(rng.normal(size=variant.shape) + 1j * rng.normal(size=variant.shape)) for _ in "uc")

    def y(x, scale):
        return variant.function(x, scale, *inputs[2:])[0]

    def value(step):
        moved = inputs._replace(x=inputs.x + step * u, scale=inputs.scale * (1 + step))
        return exact(variant, moved)[0]

    @jax.jit
    def derivatives(*args):
        return jax.jvp(y, args, (u, inputs.scale))[1], jax.vjp(y, *args)[1](ct)

    tangent, (dx, dscale) = derivatives(*inputs[:2])
    assert_close(tangent, (value(1e-5) - value(-1e-5)) / 2e-5, 1e-8)
    assert dscale.dtype == jnp.float64
    # the transpose: Re<ct, J u> = Re<J' ct, u>, where JAX pairs without a conjugate
    pulled = jnp.real(jnp.sum(dx * u)) + jnp.sum(dscale * inputs.scale)
    np.testing.assert_allclose(jnp.real(jnp.sum(ct * tangent)), pulled, rtol=1e-10)


@over(kinds())
def test_vmap_of_grad_is_a_loop(variant, float64):
    several = [draw(variant, jnp.float64, "mask", seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *several)

    def grad(function):
        def of(inputs):
            loss, free = smooth(function, inputs)
            return jax.grad(lambda t: loss(free | t))({k: v for k, v in free.items() if k != "stats"})

        return of

    loop = jax.jit(grad(partial(variant.formula, jnp)))
    expected = jax.tree.map(lambda *v: jnp.stack(v), *map(loop, several))
    assert_close(jax.jit(jax.vmap(grad(variant.function)))(stacked), expected, EXACT)


@over(kinds())
def test_grad_of_scan_of_remat(variant, float64):
    inputs = draw(variant, jnp.float64)

    def gradients(function):
        def loss(x, scale, bias):
            def layer(x, _):
                return x + jnp.sin(function(x, scale, bias, None, inputs.stats)[0]), None

            return jnp.sum(jnp.cos(jax.lax.scan(layer, x, None, length=3)[0]))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs[:3])

    actual = gradients(jax.checkpoint(variant.function))
    assert_close(actual, gradients(partial(variant.formula, jnp)), EXACT)


@over(named("batch"))
def test_gradients_through_a_traced_train(variant, float64):
    inputs = draw(variant, jnp.float64, "mask")

    def grad(train):
        loss, free = smooth(partial(variant.function, train=train), inputs)
        return jax.grad(loss)(free)

    for train in (True, False):
        assert_close(jax.jit(grad)(train), grad(train), EXACT)
