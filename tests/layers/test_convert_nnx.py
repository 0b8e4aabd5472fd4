"""`jaxnorm.nnx.convert`: the norms of a model that Flax built become ours, and all that is stored stays."""

import copy
import pickle
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.errors import TraceContextError
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layers import draw
from meshes import mesh_of

from jaxnorm import nnx as jn

pytestmark = pytest.mark.flexible

X = draw((6, 5, 4))


@nnx.dataclass
class Residual(nnx.Module):
    inner: nnx.Module

    def __call__(self, x):
        return x + self.inner(x)


@dataclass
class Plain(nnx.Module):
    inner: nnx.Module

    def __call__(self, x):
        return self.inner(x)


class Net(nnx.Module):
    """Norms in attributes, lists, dicts, tuples and dataclasses; one is shared."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.shared = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.norms = nnx.List([nnx.GroupNorm(4, 2, rngs=rngs), self.shared])
        self.named = nnx.Dict(instance=nnx.InstanceNorm(4, use_scale=False, rngs=rngs))
        self.pair = nnx.data((nnx.LayerNorm(4, rngs=rngs), Plain(nnx.RMSNorm(4, rngs=rngs))))
        self.inner = Residual(nnx.Sequential(nnx.BatchNorm(4, use_bias=False, rngs=rngs), jax.nn.relu))
        self.last = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        x = self.shared(self.first(x))
        for norm in (*self.norms, self.named.instance, *self.pair, self.inner):
            x = norm(x)
        return self.last(x)


SWAPPED = [
    ("inner/inner/layers/0", "BatchNorm"),
    ("named/instance", "InstanceNorm"),
    ("norms/0", "GroupNorm"),
    ("norms/1", "BatchNorm"),
    ("pair/0", "LayerNorm"),
    ("pair/1/inner", "RMSNorm"),
]


def assert_close(actual, expected):
    """Pytrees with the same structure and dtypes, and the same values to float32's rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6 * max(1.0, float(jnp.abs(e).max())))


def states(model):
    return nnx.to_pure_dict(nnx.state(model))


def variables(model):
    return [v for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)]


def step(model, optimizer, x):
    loss, gradient = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 1.0) ** 2))(model)
    optimizer.update(model, gradient)
    return loss


def test_every_norm_is_swapped_once_and_the_variables_are_the_same_objects():
    model = Net(nnx.Rngs(0))
    alias, old, before = model.shared, variables(model), jax.tree.map(jnp.copy, states(model))
    swapped = jn.convert(model)
    assert swapped == SWAPPED and swapped.left == []
    assert model.shared is alias and model.norms[1] is alias and type(alias) is jn.BatchNorm
    assert all(a is b for a, b in zip(variables(model), old, strict=True))
    jax.tree.map(np.testing.assert_array_equal, states(model), before)
    graph = nnx.graphdef(model)
    again = jn.convert(model)
    assert again == [] and again.left == [] and nnx.graphdef(model) == graph


def test_outputs_gradients_and_statistics_are_those_of_flax():
    model = Net(nnx.Rngs(0))
    ours = nnx.clone(model)
    jn.convert(ours)

    @nnx.jit
    def run(m, x):
        def loss(m):
            y = m(x)
            return jnp.mean(jnp.sin(3 * y)), y

        gradient, y = nnx.grad(loss, has_aux=True)(m)
        return y, nnx.to_pure_dict(gradient)

    assert_close(run(ours, X), run(model, X))
    assert_close(states(ours), states(model))
    model.eval()
    ours.eval()
    assert_close(ours(X), model(X))


KINDS = {
    "BatchNorm": dict(axis=1, momentum=0.9, epsilon=1e-2, dtype=jnp.bfloat16, use_running_average=True),
    "LayerNorm": dict(reduction_axes=(1, 2), feature_axes=1, epsilon=1e-2, param_dtype=jnp.bfloat16),
    "RMSNorm": dict(feature_axes=1, reduction_axes=1, use_fast_variance=False),
    "GroupNorm": dict(num_groups=None, group_size=2, use_scale=False),
    "InstanceNorm": dict(feature_axes=1, use_bias=False, promote_dtype=lambda arrays, dtype: arrays),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_converted_norm_is_as_if_it_were_built_with_ours(name):
    x = jnp.moveaxis(X, 1, 2) if name != "GroupNorm" else X
    theirs, built = (getattr(m, name)(4, **KINDS[name], rngs=nnx.Rngs(0)) for m in (nnx, jn))
    ours = nnx.clone(theirs)
    assert jn.convert(ours) == [("", name)]
    assert type(ours) is type(built)
    arrays = {"scale", "bias", "mean", "var"}
    options = [
        {k: v for k, v in vars(m).items() if k not in arrays and not k.startswith("_pytree")}
        for m in (ours, built)
    ]
    assert options[0] == options[1]
    assert jax.tree.structure(states(ours)) == jax.tree.structure(states(theirs))
    tolerance = dict(rtol=1e-2, atol=1e-2) if name == "BatchNorm" else dict(rtol=1e-5, atol=1e-6)
    actual, expected = ours(x), theirs(x)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual.astype(jnp.float32), expected.astype(jnp.float32), **tolerance)


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_a_norm_of_weights_and_the_norm_that_it_wraps(name):
    rngs = nnx.Rngs(0)
    inner = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs))
    model = nnx.Dict(layer=getattr(nnx, name)(inner, rngs=rngs))
    ours = nnx.clone(model)
    assert jn.convert(ours) == [("layer/layer_instance/layers/1", "LayerNorm"), ("layer", name)]
    assert jax.tree.structure(states(ours)) == jax.tree.structure(states(model))
    for _ in range(2):
        assert_close(ours.layer(X), model.layer(X))
    np.testing.assert_array_equal(  # Flax overwrites the kernel
        ours.layer.layer_instance.layers[0].kernel[...],
        nnx.Linear(4, 3, rngs=nnx.Rngs(0)).kernel[...],
    )


def test_modes_and_attributes_that_were_set_are_kept():
    model = Net(nnx.Rngs(0))
    model.eval()
    model.shared.set_attributes(momentum=0.25, epsilon=0.5)
    expected = model(X)
    jn.convert(model)
    assert model.shared.use_running_average is True and model.shared.momentum == 0.25
    assert_close(model(X), expected)
    model.train()
    model(X)
    assert float(jnp.abs(model.shared.mean[...]).max()) > 0
    jn.freeze(model, ...)  # what Flax's cannot
    assert all(norm.frozen for norm in (model.shared, model.norms[1]))


@pytest.mark.slow
def test_a_training_loop_goes_on_with_the_optimizer_of_before():
    models = [Net(nnx.Rngs(0)) for _ in range(2)]
    optimizers = [nnx.Optimizer(m, optax.sgd(1e-2, momentum=0.9), wrt=nnx.Param) for m in models]
    train = nnx.jit(step)
    for turn in range(4):
        losses = [train(m, o, X) for m, o in zip(models, optimizers, strict=True)]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
        if turn == 1:
            assert jn.convert(models[1]) == SWAPPED
    for a, e in zip(*(jax.tree.leaves(states(m)) for m in models), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)
    state = optimizers[1].opt_state
    assert jax.tree.structure(state) == jax.tree.structure(optimizers[0].opt_state)


def test_checkpoints_of_before_and_after_are_interchangeable():
    theirs, ours = Net(nnx.Rngs(0)), Net(nnx.Rngs(1))
    jn.convert(ours)
    theirs(X)
    before = jax.tree.map(jnp.copy, nnx.state(theirs))
    nnx.update(ours, before)
    assert_close(ours(X), theirs(X))
    nnx.update(theirs, nnx.state(ours))
    assert_close(ours(X), theirs(X))


class Momentum(nnx.BatchNorm):
    """A user's: it has a constructor, a mode and a method of its own, and Flax's call."""

    def __init__(self, features, *, rngs):
        super().__init__(features, momentum=0.5, rngs=rngs)
        self.calls = 0

    def set_view(self, use_running_average=None):
        return super().set_view(use_running_average)

    def describe(self):
        return f"momentum {self.momentum}"


class Doubled(nnx.LayerNorm):
    def __call__(self, x, *, mask=None):
        return 2 * super().__call__(x, mask=mask)


class Halved(nnx.SpectralNorm):
    def _spectral_normalize_inplace(self, path, orig_param, update_stats):
        orig_param[...] = orig_param[...] / 2


class Taken(nnx.RMSNorm):
    def normalize(self):
        return "something else"


class OwnNorm(nnx.Module):
    def __call__(self, x):
        return x


def test_subclasses_keep_their_class_or_are_left_with_a_reason():
    rngs = nnx.Rngs(0)
    attribute = nnx.LayerNorm(4, rngs=rngs)
    attribute.shapes = "something else"
    halved = Halved(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
    layers = [Momentum(4, rngs=rngs), Doubled(4, rngs=rngs), halved, Taken(4, rngs=rngs), OwnNorm()]
    model = nnx.List([*layers, attribute])
    theirs = nnx.clone(model)
    swapped = jn.convert(model)
    assert swapped == [("0", "Momentum")]
    assert swapped.left == [
        ("1", "Doubled", "Doubled overrides __call__ of LayerNorm"),
        ("2", "Halved", "Halved overrides _spectral_normalize_inplace of SpectralNorm"),
        ("3", "Taken", "Taken has normalize, which jaxnorm's RMSNorm has, too"),
        ("4", "OwnNorm", "OwnNorm is not a subclass of a norm of Flax"),
        ("5", "LayerNorm", "LayerNorm has shapes, which jaxnorm's LayerNorm has, too"),
    ]
    norm = model[0]
    assert isinstance(norm, Momentum) and isinstance(norm, jn.BatchNorm)
    assert norm.describe() == "momentum 0.5" and norm.calls == 0
    assert repr(type(norm)) == repr(Momentum)
    assert_close(norm(X), theirs[0](X))
    assert_close(states(norm), states(theirs[0]))
    assert nnx.view(norm, use_running_average=True).use_running_average
    another = Momentum(4, rngs=rngs)
    jn.convert(another)
    assert type(another) is type(norm) and isinstance(copy.deepcopy(norm), Momentum)
    assert type(norm)(3, rngs=rngs).momentum == 0.5
    assert [type(layer) for layer in model[1:]] == [type(layer) for layer in theirs[1:]]


@pytest.mark.parametrize("transform", ["vmap", "scan"])
def test_stacks(transform):
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def create(rngs):
        return Residual(nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)))

    theirs = create(nnx.Rngs(0))
    ours = nnx.clone(theirs)
    assert jn.convert(ours) == [("inner/layers/1", "BatchNorm")]
    forward = nnx.vmap(lambda m, x: m(x), in_axes=(0, None))
    if transform == "scan":

        @partial(nnx.scan, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(m, x):
            return nnx.remat(lambda m, x: m(x))(m, x)

    assert_close(forward(ours, X), forward(theirs, X))
    assert_close(states(ours), states(theirs))


def test_metadata_and_shardings_are_kept():
    mesh = mesh_of((2,), ("model",), AxisType.Explicit)
    sharding = NamedSharding(mesh, PartitionSpec("model"))
    with jax.set_mesh(mesh):
        norm = nnx.BatchNorm(4, scale_metadata={"out_sharding": ("model",), "tag": 1}, rngs=nnx.Rngs(0))
        for variable in (norm.scale, norm.bias, norm.mean, norm.var):
            variable.set_value(jax.device_put(variable[...], sharding))
        ours = nnx.clone(norm)
        jn.convert(ours)
        assert ours.scale.get_metadata() == norm.scale.get_metadata() and ours.scale.tag == 1
        x = jax.device_put(X, NamedSharding(mesh, PartitionSpec(None, None, "model")))
        actual, expected = ours(x), norm(x)
        assert ours.mean[...].sharding == sharding and actual.sharding == expected.sharding
        assert_close(actual, expected)


def test_an_abstract_model_and_one_that_a_compiled_function_creates():
    abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    assert jn.convert(abstract) == SWAPPED
    assert isinstance(abstract.shared.mean.get_value(), jax.ShapeDtypeStruct)

    @nnx.jit
    def create():
        model = Net(nnx.Rngs(0))
        jn.convert(model)
        return model

    created = create()
    assert type(created.shared) is jn.BatchNorm
    restored = nnx.merge(nnx.graphdef(abstract), nnx.state(created))
    assert_close(restored(X), Net(nnx.Rngs(0))(X))


def test_lists_dicts_and_copies():
    rngs = nnx.Rngs(0)
    norms = [nnx.LayerNorm(4, rngs=rngs), {"a": nnx.RMSNorm(4, rngs=rngs)}]
    assert jn.convert(norms) == [("0", "LayerNorm"), ("1/a", "RMSNorm")]
    assert type(pickle.loads(pickle.dumps(norms[0]))) is jn.LayerNorm
    assert type(copy.deepcopy(norms[0])) is jn.LayerNorm
    query = nnx.MultiHeadAttention(2, 4, normalize_qk=True, decode=False, rngs=rngs)
    assert jn.convert(query) == [("key_ln", "LayerNorm"), ("query_ln", "LayerNorm")]
    assert query(X).shape == X.shape


def test_a_model_of_an_outer_trace_is_an_error_and_unchanged():
    model = Net(nnx.Rngs(0))
    graph = nnx.graphdef(model)
    with pytest.raises(TraceContextError) as raised:
        jax.jit(lambda x: jn.convert(model))(X)
    assert raised.value.__notes__[0] == (
        "convert: the model was made outside of the function that is traced; convert it there."
    )
    assert nnx.graphdef(model) == graph


def converted(model):
    jn.convert(model)
    return 0.0


TRANSFORMS = {
    "jit": nnx.jit(converted),
    "grad": nnx.grad(converted),
    "remat": nnx.remat(converted),
    "remat in jit": nnx.jit(nnx.remat(converted)),
    "vmap": lambda model: nnx.vmap(lambda m, x: x + converted(m), in_axes=(None, 0))(model, X),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_argument_of_a_transformation_is_an_error_and_unchanged(name):
    model = Net(nnx.Rngs(0))
    graph = nnx.graphdef(model)
    with pytest.raises(ValueError, match="convert") as raised:
        TRANSFORMS[name](model)
    assert str(raised.value) == (
        "convert: the model is an argument of nnx.jit or of another transformation of Flax, which refuses "
        "arguments that change their class; convert it before the call."
    )
    assert nnx.graphdef(model) == graph and type(model.shared) is nnx.BatchNorm
    assert jn.convert(model) == SWAPPED
    TRANSFORMS[name](model)  # there is nothing to change


@pytest.mark.parametrize("model", [nn.BatchNorm(), nnx.state(Net(nnx.Rngs(0))), 3])
def test_what_is_no_module_is_an_error(model):
    with pytest.raises(TypeError) as raised:
        jn.convert(model)
    assert str(raised.value) == (
        f"convert: model must be an nnx.Module, got {type(model).__name__}; pass the model itself, "
        "not its state or its parameters."
    )
