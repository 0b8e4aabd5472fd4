"""Words: a keyword of another framework is answered by ours, and an error says what the user wrote."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxnorm as jn

X = jnp.ones((2, 3, 4)) * jnp.arange(4.0)
STATS = jn.initial_stats((4,))
MASK = jnp.ones((2, 3), bool)
KEY = jax.random.key(0)
OLD = "the fraction of the OLD value that is kept: 1 - PyTorch's momentum"
OPPOSITE = "the opposite: True to evaluate by the stored statistics"

batch = partial(jn.batch_norm, X, STATS, train=True)
both = pytest.mark.parametrize("api", ["linen", "nnx"])


def assert_raises(error, call, text):
    with pytest.raises(error, match=re.escape(text)) as caught:
        call()
    assert str(caught.value) == text


# ------------------------------------------------------------------------------------ functions

FUNCTIONS = [
    (batch, "batch_norm", "momentum", f"`decay`, {OLD}"),
    (batch, "batch_norm", "eps", "`epsilon`"),
    (batch, "batch_norm", "mask", "`where`, a boolean mask, or weights >= 0"),
    (batch, "batch_norm", "weight", "`scale`"),
    (batch, "batch_norm", "gamma", "`scale`"),
    (batch, "batch_norm", "beta", "`bias`"),
    (batch, "batch_norm", "offset", "`bias`"),
    (batch, "batch_norm", "running_mean", "`stats`, Moments(mean, var, weight)"),
    (batch, "batch_norm", "training", "`train`"),
    (batch, "batch_norm", "is_training", "`train`"),
    (
        batch,
        "batch_norm",
        "use_running_average",
        "`train`, the opposite: True to train by the batch's statistics",
    ),
    (batch, "batch_norm", "axis", "`feature_axis`, the axes that have a scale and statistics of their own"),
    (partial(jn.layer_norm, X), "layer_norm", "dim", "`axis`"),
    (partial(jn.layer_norm, X), "layer_norm", "eps", "`epsilon`"),
    (jn.layer_norm, "layer_norm", "input", "`x`"),
    (partial(jn.moments, X, 0), "moments", "keepdim", "`keepdims`"),
    (partial(jn.moments, X, 0), "moments", "keep_dims", "`keepdims`"),
    (partial(jn.ema, STATS, STATS), "ema", "momentum", f"`decay`, {OLD}"),
    (partial(jn.weight_norm, X), "weight_norm", "eps", "`epsilon`"),
    (partial(jn.unit_norm, X), "unit_norm", "p", "`ord`"),
    # through a function that hands its options on
    (partial(jn.spade, X, STATS, X, X, train=True), "spade", "momentum", f"`decay`, {OLD}"),
    (partial(jn.qk_norm, X, X), "qk_norm", "eps", "`epsilon`"),
    (
        partial(jn.bank_norm, X, jn.initial_stats((2, 4)), 0, train=True),
        "bank_norm",
        "momentum",
        f"`decay`, {OLD}",
    ),
]


@pytest.mark.parametrize(
    ("call", "name", "word", "ours"), FUNCTIONS, ids=[f"{f[1]}-{f[2]}" for f in FUNCTIONS]
)
def test_a_function_names_its_own_option(call, name, word, ours):
    text = f"{name}: {word} is not an option; jaxnorm's is {ours}."
    assert_raises(TypeError, lambda: call(**{word: 0.5}), text)


def test_an_unknown_word_is_python_s_error():
    assert_raises(
        TypeError, partial(batch, colour=1), "batch_norm() got an unexpected keyword argument 'colour'"
    )
    assert_raises(
        TypeError, partial(batch, keepdim=1), "batch_norm() got an unexpected keyword argument 'keepdim'"
    )


# ------------------------------------------------------------------------------------ layers

CONSTRUCTORS = [
    ("BatchNorm", "decay", f"is `momentum`, {OLD}"),
    ("BatchNorm", "eps", "is `epsilon`"),
    ("BatchNorm", "affine", "are `use_scale` and `use_bias`"),
    ("BatchNorm", "is_training", f"is `use_running_average`, {OPPOSITE}"),
    ("BatchRenorm", "decay", f"is `momentum`, {OLD}"),
    ("LayerNorm", "elementwise_affine", "are `use_scale` and `use_bias`"),
    ("LayerNorm", "axis", "is `reduction_axes`"),
    ("RMSNorm", "elementwise_affine", "are `use_scale` and `use_bias`"),
    ("GroupNorm", "groups", "is `num_groups`"),
    ("InstanceNorm", "eps", "is `epsilon`"),
    ("PartialRMSNorm", "eps", "is `epsilon`"),
    ("PartialRMSNorm", "feature_axis", "is `feature_axes`"),
]


def made(api, name, **options):
    layer = getattr(getattr(jn, api), name)
    return layer(**options) if api == "linen" else layer(4, rngs=nnx.Rngs(0), **options)


def called(api, layer, x=X, **options):
    return layer.init_with_output(KEY, x, **options)[0] if api == "linen" else layer(x, **options)


@both
@pytest.mark.parametrize(("name", "word", "ours"), CONSTRUCTORS)
def test_a_constructor_names_its_own_option(api, name, word, ours):
    text = f"{name}: {word} is not an option; jaxnorm's {ours}."
    assert_raises(TypeError, lambda: made(api, name, **{word: 0.5}), text)


CALLS = [
    ("BatchNorm", "where", "`mask`, or, for real weights, `weights`"),
    ("BatchNorm", "training", f"`use_running_average`, {OPPOSITE}"),
    ("BatchRenorm", "where", "`mask`, or, for real weights, `weights`"),
    ("BatchRenorm", "train", f"`use_running_average`, {OPPOSITE}"),
    ("LayerNorm", "where", "`mask`, or, for real weights, `weights`"),
    ("LayerNorm", "gamma", "`scale`"),
    ("PartialRMSNorm", "where", "`mask`, or, for real weights, `weights`"),
]


@both
@pytest.mark.parametrize(("name", "word", "ours"), CALLS)
def test_a_call_names_its_own_option(api, name, word, ours):
    text = f"{name}: {word} is not an option; jaxnorm's is {ours}."
    assert_raises(TypeError, lambda: called(api, made(api, name), **{word: MASK[..., None]}), text)


@both
def test_an_unknown_option_of_a_layer_is_python_s_error(api):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'colour'"):
        made(api, "LayerNorm", colour=1)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'colour'"):
        called(api, made(api, "LayerNorm"), colour=1)


LAYERS = {
    "mask": (
        lambda api: called(api, made(api, "LayerNorm"), mask=MASK),
        "LayerNorm: mask of shape (2, 3) does not broadcast to x, shape (2, 3, 4); it has the sizes of x's "
        "first axes: give mask[..., None].",
    ),
    "weights": (
        lambda api: called(api, made(api, "PartialRMSNorm"), weights=MASK.astype(jnp.float32)),
        "PartialRMSNorm: weights of shape (2, 3) does not broadcast to x, shape (2, 3, 4); it has the sizes "
        "of x's first axes: give weights[..., None].",
    ),
    "momentum": (
        lambda api: called(api, made(api, "BatchNorm", momentum=2.0, use_running_average=False)),
        "BatchNorm: momentum=2.0 is outside [0, 1]; it is the fraction of the OLD average that is kept, "
        "1 - PyTorch's momentum: choose, for example, 0.99.",
    ),
    "momentum in an array": (
        lambda api: called(
            api, made(api, "BatchRenorm", momentum=jnp.float32(2.0), use_running_average=False)
        ),
        "BatchRenorm: momentum=2.0 is outside [0, 1]; it is the fraction of the OLD average that is kept, "
        "1 - PyTorch's momentum: choose, for example, 0.99.",
    ),
    "epsilon in an array": (
        lambda api: called(api, made(api, "LayerNorm", epsilon=jnp.float32(-1.0))),
        "LayerNorm: epsilon=-1.0 is not a number >= 0; it is added to the variance: choose, for example, "
        "1e-5.",
    ),
    "reduction_axes": (
        lambda api: called(api, made(api, "LayerNorm", reduction_axes=5)),
        "LayerNorm: reduction_axes=5 is out of range for x, shape (2, 3, 4); choose from -3 to 2.",
    ),
    "feature_axes": (
        lambda api: called(api, made(api, "InstanceNorm", feature_axes=5)),
        "InstanceNorm: feature_axes=5 is out of range for x, shape (2, 3, 4); choose from -3 to 2.",
    ),
    "feature_axes of the family": (
        lambda api: called(api, made(api, "ScaleNorm", feature_axes=5)),
        "ScaleNorm: feature_axes=5 is out of range for x, shape (2, 3, 4); choose from -3 to 2.",
    ),
    "axis": (
        lambda api: called(api, made(api, "BatchNorm", axis=5, use_running_average=False)),
        "BatchNorm: axis=5 is out of range for x, shape (2, 3, 4); choose from -3 to 2.",
    ),
    "axis of time": (
        lambda api: called(api, made(api, "RevIN", axis=5)),
        "RevIN: axis=5 is out of range for x, shape (2, 3, 4); choose from -3 to 2.",
    ),
    "num_groups": (
        lambda api: called(api, made(api, "EvoNormS0", num_groups=3)),
        "EvoNormS0: num_groups=3 does not divide axis -1 of x, shape (2, 3, 4); choose a divisor of 4.",
    ),
    "axis_name": (
        lambda api: jax.jit(lambda x: _nowhere(api, x))(X),
        "LayerNorm: axis_name='nowhere' is not bound here; call it inside jax.shard_map, jax.pmap or "
        "jax.vmap with that axis name, leave axis_name out (plain jit with sharded arrays needs none), or "
        "give IfBound('nowhere'), which is local where the name is missing.",
    ),
}


def _nowhere(api, x):
    layer = made(api, "LayerNorm", axis_name="nowhere")
    return layer.apply(layer.init(KEY, x), x) if api == "linen" else layer(x)


@both
@pytest.mark.parametrize("wrong", LAYERS)
def test_a_layer_speaks_of_its_own_options(api, wrong):
    call, text = LAYERS[wrong]
    assert_raises(ValueError, partial(call, api), text)


@both
def test_the_mode_of_a_layer_is_a_bool(api):
    text = (
        "BatchNorm: use_running_average must be a bool, got 'yes'; pass False for the batch's statistics, "
        "True for the stored ones, or a traced boolean scalar."
    )
    assert_raises(TypeError, lambda: called(api, made(api, "BatchNorm"), use_running_average="yes"), text)


# ------------------------------------------------------------------------------------ jaxnorm.linen


def test_the_layers_are_imported_when_they_are_asked_for():
    program = (
        "import sys, jaxnorm\n"
        "assert 'flax' not in sys.modules\n"
        "assert {'linen', 'nnx'} <= set(dir(jaxnorm))\n"
        "assert 'flax' not in sys.modules\n"
        "assert jaxnorm.linen.BatchNorm.__module__ == 'jaxnorm.linen.batch'\n"
        "assert jaxnorm.nnx.BatchNorm.__module__ == 'jaxnorm.nnx.batch'\n"
    )
    folder = Path(jn.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match=r"^module 'jaxnorm' has no attribute 'haiku'$"):
        getattr(jn, "haiku" + "")
