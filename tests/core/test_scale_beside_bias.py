"""A scale of one kind beside a bias of another: y, and its gradient in every subset of the arguments.

Some are combined with the statistics before they are broadcast against x, others cannot be; which, depends on
the shapes alone, and on nothing that is or is not differentiated.
"""

from itertools import chain, combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import EPSILON

import jaxnorm as jn

SHAPE = (4, 3, 8)
KINDS = {"feature": (1, 1, 8), "sample": (4, 1, 1), "element": SHAPE}
PAIRS = [("feature", "sample"), ("sample", "feature"), ("element", "feature"), ("feature", "element")]
ARGUMENTS = ("x", "scale", "bias", "where")
SUBSETS = list(chain.from_iterable(combinations(ARGUMENTS[:3], n) for n in (1, 2, 3)))
SUBSETS += [("where",), ("bias", "where"), ARGUMENTS]
STATS = jn.Moments(*np.random.default_rng(1).uniform(0.5, 2, (3, 8)))  # float64


def plain(axes, centered=True, corrected=False):
    """The textbook formula, differentiated by JAX."""

    def norm(x, scale, bias, where):
        def average(v):
            return jnp.sum(where * v, axes, keepdims=True) / jnp.sum(where, axes, keepdims=True)

        mean = average(x) if centered else jnp.zeros_like(x)
        sigma = jnp.sqrt(average((x - mean) ** 2) + EPSILON)
        hat = (x - mean) / sigma
        if corrected:  # batch renorm, without limits
            before = jnp.sqrt(jnp.asarray(STATS.var) + EPSILON)[None, None]
            r, d = jax.lax.stop_gradient(
                (sigma / before, (mean - jnp.asarray(STATS.mean)[None, None]) / before)
            )
            hat = hat * r + d
        return hat * scale + bias

    return norm


def grouped(x, scale, bias, where):
    def in_groups(v):
        return jnp.broadcast_to(v, SHAPE).reshape(4, 3, 2, 4)

    return plain((1, 3))(*map(in_groups, (x, scale, bias, where))).reshape(SHAPE)


def ghosts(x, scale, bias, where):
    def parts(v):
        return jnp.broadcast_to(v, SHAPE).reshape(2, 2, 3, 8)

    return plain((1, 2))(*map(parts, (x, scale, bias, where))).reshape(SHAPE)


def by_state(x, scale, bias, where):
    hat = (x - jnp.asarray(STATS.mean)[None, None]) / jnp.sqrt(jnp.asarray(STATS.var) + EPSILON)[None, None]
    return hat * scale + bias + 0 * where


def forgetting(function, **options):
    return lambda x, **more: function(x, epsilon=EPSILON, **options, **more)


def remembering(function, **options):
    return lambda x, **more: function(x, STATS, epsilon=EPSILON, **options, **more)[0]


NORMS = {
    "layer": (forgetting(jn.layer_norm), plain((2,))),
    "layer of a sample": (forgetting(jn.layer_norm, axis=(1, 2), feature_axis=2), plain((1, 2))),
    "rms": (forgetting(jn.rms_norm), plain((2,), centered=False)),
    "instance": (forgetting(jn.instance_norm), plain((1,))),
    "group": (forgetting(jn.group_norm, num_groups=2), grouped),
    "batch": (remembering(jn.batch_norm, train=True), plain((0, 1))),
    "batch evaluation": (remembering(jn.batch_norm, train=False), by_state),
    "renorm": (
        remembering(jn.batch_renorm, train=True, r_max=1e6, d_max=1e6),
        plain((0, 1), corrected=True),
    ),
    "ghost": (remembering(jn.ghost_batch_norm, train=True, num_ghosts=2), ghosts),
    "standardize": (lambda x, where, **more: jn.standardize(x, STATS, epsilon=EPSILON, **more), by_state),
}


def draw(scale, bias):
    rng = np.random.default_rng(0)
    shapes = {"x": SHAPE, "scale": KINDS[scale], "bias": KINDS[bias], "where": SHAPE}
    return {name: jnp.asarray(rng.uniform(0.5, 2, shape)) for name, shape in shapes.items()}


def quickly(function):
    """Compiled without optimizing: what is tested is arithmetic."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("scale", "bias"), PAIRS)
def test_scale_beside_bias(norm, scale, bias):
    with jax.enable_x64(True):
        ours, formula = NORMS[norm]
        given = draw(scale, bias)
        direction = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE))

        def slopes(function, chosen):
            """The gradient in these arguments; the others are constants of the program."""
            rest = {name: v for name, v in given.items() if name not in chosen}

            def loss(moving):
                return jnp.sum(function(**rest, **moving) * direction)

            return jax.grad(loss)({name: given[name] for name in chosen})

        def everything():
            found = {chosen: slopes(ours, chosen) for chosen in SUBSETS}
            return found, slopes(formula, ARGUMENTS), ours(**given), formula(**given)

        found, right, y, expected = quickly(everything)()
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10)
        for chosen, slope in found.items():
            for name in chosen:
                np.testing.assert_allclose(slope[name], right[name], atol=1e-9, err_msg=f"{name} of {chosen}")
