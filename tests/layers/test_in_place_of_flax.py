"""`jaxnorm.linen.in_place_of_flax`: a linen model that nobody edits runs with our norms."""

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from layers import draw

from jaxnorm import linen as jn

pytestmark = pytest.mark.flexible

X = draw((4, 6, 6, 4))
KEY = jax.random.key(0)


class Block(nn.Module):
    """A ResNet's, as Flax's examples write it: the norm is a partial of nn.BatchNorm."""

    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(nn.Conv(4, (3, 3), use_bias=False)(x)))
        y = self.norm(scale_init=nn.initializers.zeros)(nn.Conv(4, (3, 3), use_bias=False)(y))
        return nn.relu(self.norm(name="norm_proj")(x) + y)


class ResNet(nn.Module):
    train: bool = True

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=not self.train, momentum=0.9, dtype=jnp.float32)
        for _ in range(2):
            x = Block(norm)(x)
        return nn.Dense(3)(x.mean((1, 2)))


class Attention(nn.Module):
    """A transformer's block, in setup style, with Flax's own norms of queries and keys."""

    def setup(self):
        self.norms = [nn.LayerNorm(), nn.RMSNorm(epsilon=1e-5)]
        self.attention = nn.MultiHeadDotProductAttention(1, normalize_qk=True)
        self.dense = nn.Dense(4)

    def __call__(self, x, _):
        x = x + self.attention(self.norms[0](x))
        return x + self.dense(self.norms[1](x)), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(nn.remat(Attention), {"params": 0}, split_rngs={"params": True}, length=3)
        return nn.LayerNorm(name="final")(blocks(name="blocks")(x.reshape(4, -1, 4), None)[0])


class Momentum(nn.BatchNorm):
    """A user's, with other defaults and a method of its own."""

    momentum: float = 0.5
    use_running_average: bool | None = False

    def describe(self):
        return f"momentum {self.momentum}"


class Layers(nn.Module):
    """Every norm of Flax, lifted, shared and in a Sequential."""

    @nn.compact
    def __call__(self, x):
        x = nn.Sequential([nn.Dense(4), nn.InstanceNorm(), nn.GroupNorm(2)])(x)
        momentum = Momentum()
        assert isinstance(momentum, nn.BatchNorm) and momentum.describe() == "momentum 0.5"
        x = momentum(x, mask=jnp.ones((4, 6, 6, 1), bool).at[0].set(False))
        assert type(momentum) is Momentum
        x = nn.WeightNorm(nn.Dense(4))(x)
        x = nn.SpectralNorm(nn.Dense(4))(x, update_stats=True)
        batch_norm = partial(nn.BatchNorm, use_running_average=False)
        stacked = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        x = nn.vmap(nn.BatchNorm, **stacked)(use_running_average=False, name="stacked")(x)
        x = nn.remat(nn.BatchNorm)(use_running_average=False, name="remat")(x)
        shared = batch_norm(name="shared")
        return Scoped(name="scoped")(shared(x) + shared(2 * x))


class Scoped(nn.Module):
    def setup(self):
        self.norm = nn.LayerNorm(scale_init=nn.with_partitioning(nn.initializers.ones, ("model",)))
        nn.share_scope(self, self.norm)

    def __call__(self, x):
        return self.norm(x)


MODELS = {
    "resnet": (
        ResNet(),
        [
            (f"Block_{i}/{n}", "BatchNorm")
            for i in (0, 1)
            for n in ("BatchNorm_0", "BatchNorm_1", "norm_proj")
        ],
    ),
    "transformer": (
        Transformer(),
        [
            ("blocks/norms_0", "LayerNorm"),
            ("blocks/attention/query_ln", "LayerNorm"),
            ("blocks/attention/key_ln", "LayerNorm"),
            ("blocks/norms_1", "RMSNorm"),
            ("final", "LayerNorm"),
        ],
    ),
    "layers": (
        Layers(),
        [
            ("InstanceNorm_0", "InstanceNorm"),
            ("GroupNorm_0", "GroupNorm"),
            ("Momentum_0", "Momentum"),
            ("WeightNorm_0", "WeightNorm"),
            ("SpectralNorm_0", "SpectralNorm"),
            ("stacked", "BatchNorm"),
            ("remat", "BatchNorm"),
            ("shared", "BatchNorm"),
            ("scoped", "LayerNorm"),
        ],
    ),
}

LARGE = [name for name in MODELS if name != "resnet"]  # to compile


def assert_close(actual, expected):
    """Pytrees with the same structure and dtypes, and the same values to float32's rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=2e-6 * max(1.0, float(jnp.abs(e).max())))


def randomized(variables):
    """Parameters that are not those of the start, so that each of them matters."""
    leaves, structure = jax.tree.flatten(variables["params"])
    leaves = [leaf + 0.1 * draw(leaf.shape, seed=i) for i, leaf in enumerate(leaves)]
    return {**variables, "params": jax.tree.unflatten(structure, leaves)}


@pytest.mark.parametrize("name", MODELS)
def test_init_makes_the_same_variables(name):
    model, norms = MODELS[name]
    expected = jax.jit(model.init)(KEY, X)
    with jn.in_place_of_flax() as swapped:
        variables = jax.jit(model.init)(KEY, X)
    assert swapped == norms and swapped.left == []
    assert jax.tree.map(jax.typeof, variables) == jax.tree.map(jax.typeof, expected)
    # Flax stores weights that are normalized, and so rounded, at the start
    same = assert_close if name == "layers" else np.testing.assert_array_equal
    jax.tree.map(same, variables, expected)


@pytest.mark.parametrize("name", ["resnet", *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)])
def test_outputs_statistics_and_gradients_are_those_of_flax(name):
    model, norms = MODELS[name]
    variables = randomized(jax.jit(model.init)(KEY, X))

    def loss(params, x):
        y, state = model.apply({**variables, "params": params}, x, mutable="batch_stats")
        return jnp.mean(jnp.sin(3 * y)), (y, state)

    def run():
        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], X)

    expected = run()
    with jn.in_place_of_flax() as swapped:
        actual = run()
    assert swapped == norms and swapped.left == []
    assert_close(actual, expected)


def test_the_norms_are_ours():
    """Flax's variance of data far from 0 is lost; ours is not."""
    model, x = nn.LayerNorm(), X + 1e5
    variables = model.init(KEY, x)
    expected = (np.float64(x) - np.float64(x).mean(-1, keepdims=True)) / np.float64(x).std(-1, keepdims=True)
    with jn.in_place_of_flax():
        assert np.abs(model.apply(variables, x) - expected).max() < 1e-2
    assert np.abs(model.apply(variables, x) - expected).max() > 0.1


def test_a_function_compiled_outside_is_compiled_anew_inside_and_the_other_way_round():
    model, x = nn.Sequential([nn.LayerNorm(), nn.Dense(4)]), X + 1e5
    variables = model.init(KEY, x)
    traced = []

    @jax.jit
    def run(variables, x):
        traced.append(model)
        return model.apply(variables, x)

    before = run(variables, x)
    with jn.in_place_of_flax() as swapped:
        inside = run(variables, x)
        np.testing.assert_array_equal(run(variables, x), inside)
    assert swapped == [("layers_0", "LayerNorm")] and len(traced) == 2
    np.testing.assert_array_equal(run(variables, x), before)
    with jn.in_place_of_flax() as swapped:
        np.testing.assert_array_equal(run(variables, x), inside)
    assert swapped == [] and len(traced) == 2  # nothing is traced anew
    assert np.abs(inside - before).max() > 0.1


@pytest.mark.slow
def test_a_training_loop_goes_on_inside_and_its_checkpoint_outside():
    model, optimizer = ResNet(), optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(variables, state):
        def loss(params):
            y, new = model.apply({**variables, "params": params}, X, mutable="batch_stats")
            return jnp.mean((y - 1) ** 2), new

        gradient, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradient, state)
        return {"params": optax.apply_updates(variables["params"], updates), **new}, state

    variables = jax.jit(model.init)(KEY, X)
    ours = theirs = step(variables, optimizer.init(variables["params"]))
    for _ in range(3):
        theirs = step(*theirs)
        with jn.in_place_of_flax():
            ours = step(*ours)
    for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-4)
    evaluation = ResNet(train=False)
    with jn.in_place_of_flax():
        inside = evaluation.apply(ours[0], X)
    assert_close(inside, evaluation.apply(ours[0], X))


class Doubled(nn.LayerNorm):
    @nn.compact
    def __call__(self, x, *, mask=None):
        return 2 * super().__call__(x, mask=mask)


class Halved(nn.WeightNorm):
    def _l2_normalize(self, path, vs):
        return vs / 2


class Taken(nn.RMSNorm):
    normalize: bool = True


class OwnNorm(nn.Module):
    def __call__(self, x):
        return x


def test_what_is_left_is_listed_with_a_reason_and_runs_as_it_did():
    model = nn.Sequential([Doubled(), Halved(nn.Dense(4)), Taken(), OwnNorm(), jn.LayerNorm()])
    variables = model.init(KEY, X)
    expected = model.apply(variables, X)
    with jn.in_place_of_flax() as swapped:
        np.testing.assert_array_equal(model.apply(variables, X), expected)
        OwnNorm()(X)  # outside of any model
    assert swapped == []
    assert swapped.left == [
        ("layers_0", "Doubled", "Doubled overrides __call__ of LayerNorm"),
        ("layers_1", "Halved", "Halved overrides _l2_normalize of WeightNorm"),
        ("layers_2", "Taken", "Taken has normalize, which jaxnorm's RMSNorm has, too"),
        ("layers_3", "OwnNorm", "OwnNorm is not a subclass of a norm of Flax"),
        ("", "OwnNorm", "OwnNorm is not a subclass of a norm of Flax"),
    ]


def test_it_lives_with_other_interceptors():
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])
    variables = model.init(KEY, X)
    seen = []

    def watch(next_call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            seen.append(isinstance(context.module, jn.BatchNorm))
            kwargs = {**kwargs, "use_running_average": None}
        return next_call(*args, **kwargs)

    expected = model.apply(variables, X)
    with nn.intercept_methods(watch), jn.in_place_of_flax() as swapped:
        assert_close(model.apply(variables, X), expected)
    assert seen == [False]  # outside, it sees what the model has
    with jn.in_place_of_flax() as swapped, nn.intercept_methods(watch), jn.in_place_of_flax():
        _, state = model.apply(variables, X, capture_intermediates=True)
    assert seen == [False, True]  # inside, what runs
    assert swapped == [("layers_1", "BatchNorm")]
    assert jax.tree.map(jnp.shape, state["intermediates"]["layers_1"]) == {"__call__": (X.shape,)}
    with jn.in_place_of_flax():
        assert "BatchNorm" in model.tabulate(KEY, X)


def test_it_ends_with_the_block_and_holds_in_its_thread():
    norm = nn.LayerNorm()
    variables = norm.init(KEY, X)
    with pytest.raises(RuntimeError, match="stop"), jn.in_place_of_flax():
        raise RuntimeError("stop")

    def far(x):
        return np.abs(norm.apply(variables, x + 1e5)).max()

    elsewhere = []
    with jn.in_place_of_flax():
        inside = far(X)
        thread = Thread(target=lambda: elsewhere.append(far(X)))
        thread.start()
        thread.join()
    assert elsewhere == [far(X)] and elsewhere != [inside]


@jn.in_place_of_flax()
def decorated(variables, x):
    return nn.LayerNorm().apply(variables, x)


def test_it_decorates_a_function_which_may_be_compiled():
    x, variables = X + 1e5, nn.LayerNorm().init(KEY, X)
    with jn.in_place_of_flax():
        expected = nn.LayerNorm().apply(variables, x)
    np.testing.assert_array_equal(decorated(variables, x), expected)
    np.testing.assert_allclose(jax.jit(decorated)(variables, x), expected, atol=1e-6)


def test_a_layer_that_linen_compiles_is_compiled_anew():
    norm, x = nn.jit(nn.LayerNorm)(), X + 1e5
    variables = norm.init(KEY, x)
    before = norm.apply(variables, x)
    with jn.in_place_of_flax():
        inside = norm.apply(variables, x)
        np.testing.assert_allclose(inside, decorated(variables, x), atol=1e-6)
    assert np.abs(inside - before).max() > 0.1
    np.testing.assert_array_equal(norm.apply(variables, x), before)


def test_statistics_of_several_devices():
    norm = nn.BatchNorm(use_running_average=False, axis_name="data")
    variables = norm.init(KEY, X)
    run = jax.vmap(lambda x: norm.apply(variables, x, mutable="batch_stats"), axis_name="data")
    expected = run(X)
    with jn.in_place_of_flax() as swapped:
        assert_close(run(X), expected)
    assert swapped == [("", "BatchNorm")]


def test_errors_are_those_of_our_layers_and_leave_the_model_as_it_was():
    bound = nn.GroupNorm(3).bind(nn.GroupNorm(1).init(KEY, X))
    with pytest.raises(ValueError, match="groups") as raised, jn.in_place_of_flax():
        bound(X)
    assert str(raised.value) == (
        "GroupNorm: Number of groups (3) does not divide the number of channels (4). Choose a divisor of 4."
    )
    assert type(bound) is nn.GroupNorm
    with pytest.raises(ValueError, match="use_running_average") as raised, jn.in_place_of_flax():
        nn.BatchNorm().init(KEY, X)
    assert raised.value.__notes__[0] == (
        "BatchNorm: say which statistics normalize, those of the batch in training "
        "(use_running_average=False) or the stored ones in evaluation (True), once: in the constructor or "
        "in the call."
    )


def test_a_batch_norm_that_remembers_is_frozen_likewise():
    model = ResNet()
    variables = jn.freeze(jax.jit(model.init)(KEY, X), ...)
    with jn.in_place_of_flax():
        y, state = model.apply(variables, X, mutable="batch_stats")
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    plain = {**variables, "batch_stats": jn.unfreeze(variables, ...)["batch_stats"]}
    assert_close(y, ResNet(train=False).apply(plain, X))


def test_recalibration_takes_the_norms_of_a_model_of_flax():
    variables = jax.jit(ResNet().init)(KEY, X)
    batches = [draw(X.shape, seed=i) for i in range(2)]
    with jn.in_place_of_flax() as swapped:
        new = jn.recalibrate(ResNet(), variables, batches)
    assert swapped == MODELS["resnet"][1]
    first = np.concatenate(batches).astype(np.float64)  # what norm_proj of the first block takes
    stats = new["batch_stats"]["Block_0"]["norm_proj"]
    np.testing.assert_allclose(stats["mean"], first.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(stats["var"], first.var((0, 1, 2)), rtol=1e-5)
