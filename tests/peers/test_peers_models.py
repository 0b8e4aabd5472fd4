"""Models of a published library, unedited, with our norms in the place of Flax's."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_peers import borrowed

from jaxnorm import linen as jn

pytestmark = pytest.mark.flexible

KEY = jax.random.key(0)

GPT2 = SimpleNamespace(
    **dict(n_positions=8, n_embd=16, n_head=2, n_inner=None, scale_attn_weights=True),
    **dict(attn_pdrop=0.0, resid_pdrop=0.0, layer_norm_epsilon=1e-5, activation_function="gelu"),
)


def test_a_block_of_gpt2():
    """The whole model calls jnp.reshape in a way that JAX has given up."""
    model, x = borrowed("flaxmodels.gpt2.gpt2").GPT2Block(config=GPT2), jax.random.normal(KEY, (2, 5, 16))
    variables = jax.jit(model.init)(KEY, x)

    def loss(variables, x):
        y, _ = model.apply(variables, x)
        return jnp.mean(jnp.sin(3 * y)), y

    def run():
        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)

    expected = run()
    with jn.in_place_of_flax() as swapped:
        actual = run()
    assert swapped == [("LayerNorm_0", "LayerNorm"), ("LayerNorm_1", "LayerNorm")] and swapped.left == []
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=2e-6 * max(1.0, float(jnp.abs(e).max())))


def test_resnet_has_a_batch_norm_of_its_own_which_is_left():
    model = borrowed("flaxmodels.resnet.resnet").ResNet18(pretrained=None, num_classes=3)
    x = jnp.ones((1, 32, 32, 3))
    with jn.in_place_of_flax() as swapped:
        jax.eval_shape(model.init, KEY, x)
    assert swapped == [] and len(swapped.left) == 20
    assert swapped.left[0] == ("BatchNorm_0", "BatchNorm", "BatchNorm is not a subclass of a norm of Flax")
