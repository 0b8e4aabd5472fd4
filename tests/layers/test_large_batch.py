"""The recipe for the exact large batch in docs/statistics_after_training.md: its gradient and its memory."""

import re
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest
from layers import draw

import jaxnorm

PAGE = Path(__file__).parents[2] / "docs" / "statistics_after_training.md"


@pytest.fixture(scope="module")
def recipe():
    """What the blocks of the page's section name."""
    section = re.search(
        r"^## The exact large batch\n(.*?)^## ", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
    assert section is not None
    (block,) = re.findall(r"^```\{code-cell\} python\n(.*?)^```", section.group(1), re.M | re.S)
    names = {"jax": jax, "jnp": jnp, "jn": jaxnorm, "x": draw((32, 4)), "__name__": "recipe"}
    exec(compile(block, PAGE.name, "exec"), names)
    rows = re.findall(r"^\| (.+?) \| (\d+) \|$", section.group(1), re.M)
    return names, [int(copies) for _, copies in rows]


@pytest.mark.flexible
def test_it_is_the_large_batch(recipe):
    names, _ = recipe
    x = draw((24, 4)) * jnp.linspace(1, 5, 24)[:, None]
    params, stats = names["params"], names["stats"]
    (loss, new), gradient = jax.jit(partial(names["large_batch_step"], 1))(params, stats, x.reshape(3, 8, 4))
    direct = jax.value_and_grad(lambda p: names["loss_and_stats"](names["net"], p, stats, x), has_aux=True)
    (expected, other), right = jax.jit(direct)(params)
    chex.assert_trees_all_close(loss, expected, rtol=1e-5)
    chex.assert_trees_all_close(new, other, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(gradient, right, rtol=1e-4, atol=1e-5)


@pytest.mark.flexible
def test_the_page_s_memory(recipe):
    names, (large, mapped, scanned) = recipe
    x = jax.ShapeDtypeStruct((4096, 128), jnp.float32)
    parts = jax.ShapeDtypeStruct((8, 512, 128), jnp.float32)

    def copies(step, x):
        net = names["Net"](8)
        v = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((512, 128), jnp.float32))
        compiled = jax.jit(step).lower(v["params"], v["batch_stats"], x).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4096 * 128 * 4)

    def whole(params, stats, x):
        return jax.value_and_grad(
            lambda p: names["loss_and_stats"](names["Net"](8), p, stats, x), has_aux=True
        )(params)

    def accumulating(params, stats, parts):
        def step(carry, x):
            total, stats = carry
            (_, stats), gradient = whole(params, stats, x)
            return (jax.tree.map(jnp.add, total, gradient), stats), None

        return jax.lax.scan(step, (jax.tree.map(jnp.zeros_like, params), stats), parts)[0]

    found = (
        copies(whole, x),
        copies(partial(names["large_batch_step"], 8), parts),
        copies(accumulating, parts),
    )
    for value, written in zip(found, (large, mapped, scanned), strict=True):
        assert 0.8 * written < value < 1.2 * written, found
