"""One trace serves a whole training: what changes with the steps is traced, and the state keeps its type."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm as jn


def test_train_decay_and_epsilon_change_without_a_new_trace():
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 3)), jnp.float32)
    schedule = optax.linear_schedule(0.5, 0.99, 10)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(stats, train, decay, epsilon):
        def loss(x):
            y, new = jn.batch_norm(x, stats, train=train, decay=decay, epsilon=epsilon)
            return jnp.sum(jnp.sin(y)), new

        return jax.value_and_grad(loss, has_aux=True)(x)

    stats = jn.initial_stats(3)
    for count, train in enumerate([True, False, True, True, False]):
        (_, new), gradient = step(stats, train, jnp.float32(schedule(count)), jnp.float32(1e-5 * (count + 1)))
        chex.assert_trees_all_equal_shapes_and_dtypes(stats, new)
        chex.assert_tree_all_finite((new, gradient))
        expected = jn.batch_norm(x, stats, train=train, decay=float(schedule(count)))[1]
        chex.assert_trees_all_close(new, expected, rtol=1e-6)
        stats = new
