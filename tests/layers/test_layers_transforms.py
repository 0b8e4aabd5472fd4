"""Our layers inside Flax's transformations, bridges and sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal
from flax import linen as nn
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from layers import OURS, PLAIN, Case, draw, layer, variables_of

import jaxnorm as jn

pytestmark = pytest.mark.flexible  # of nnx.Linear and nn.Dense

X = draw((8, 4))
every_layer = pytest.mark.parametrize("case", PLAIN, ids=str)


def kinds(tree):
    return jax.tree.map(jax.typeof, tree)


class Block(nnx.Module):
    """Norms of activations and of weights that remember."""

    def __init__(self, rngs):
        self.batch = OURS["nnx"].BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dense = OURS["nnx"].WeightNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
        self.head = OURS["nnx"].SpectralNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.head(self.dense(self.batch(x)))


def state_of(model):
    return nnx.to_pure_dict(nnx.state(model))


def test_nnx_scan_over_blocks_is_a_loop():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def stack(rngs):
        return Block(rngs)

    @nnx.jit
    def loss(blocks, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        @nnx.remat
        def forward(block, x):
            return block(x)

        return jnp.sum(jnp.sin(forward(blocks, x)))

    blocks, apart = stack(nnx.Rngs(0)), stack(nnx.Rngs(0))
    each = [jax.tree.map(lambda v, i=i: v[i], nnx.split(apart)) for i in range(3)]
    each = [nnx.merge(*parts) for parts in each]

    @nnx.jit
    def loop(blocks, x):
        for block in blocks:
            x = block(x)
        return jnp.sum(jnp.sin(x))

    value, grads = nnx.value_and_grad(loss)(blocks, X)
    expected, parts = nnx.value_and_grad(loop)(each, X)
    stacked = jax.tree.map(lambda *v: jnp.stack(v), *map(nnx.to_pure_dict, parts))
    assert_trees_all_close(value, expected, atol=1e-5)
    assert_trees_all_close(nnx.to_pure_dict(grads), stacked, atol=1e-4)
    after = jax.tree.map(lambda *v: jnp.stack(v), *map(state_of, each))
    assert_trees_all_close(state_of(blocks), after, atol=1e-5)


def test_nnx_abstract_split_and_merge():
    model = Block(nnx.Rngs(0))
    abstract = nnx.eval_shape(lambda: Block(nnx.Rngs(0)))
    assert kinds(state_of(abstract)) == kinds(state_of(model))
    graph, state = nnx.split(abstract)
    nnx.replace_by_pure_dict(state, state_of(model))
    merged = nnx.merge(graph, state)
    assert_trees_all_equal(merged(X), model(X))
    assert_trees_all_equal(state_of(merged), state_of(model))


@every_layer
def test_layers_cross_the_bridge(case):
    x, mode = draw(case.shape), {"use_running_average": False} if case.name == "BatchNorm" else {}
    inner = getattr(OURS["nnx"], case.name)
    as_linen = nnx.bridge.to_linen(inner, case.features, **case.options, **mode)
    variables = as_linen.init(jax.random.key(0), x)
    y, updated = as_linen.apply(variables, x, mutable="batch_stats")

    as_nnx = nnx.bridge.ToNNX(getattr(OURS["linen"], case.name)(**case.options, **mode), rngs=nnx.Rngs(0))
    as_nnx.lazy_init(x)
    kept = {"mutable": ["batch_stats"]} if mode else {}
    assert_trees_all_close(as_nnx(x, **kept), y, atol=1e-6)
    assert kinds(variables_of(as_nnx)["params"]) == kinds(variables["params"])
    if case.name == "BatchNorm":
        _, stats = jn.batch_norm(x, jn.initial_stats(4), train=True)
        assert_trees_all_close(as_nnx.mean[...], stats.mean, atol=1e-6)
        assert_trees_all_close(updated["batch_stats"]["mean"], stats.mean, atol=1e-6)


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm"])
def test_linen_parameters_are_born_sharded(name):
    mesh = Mesh(np.array(jax.devices("cpu")[:2]), ("model",))
    init = nn.with_partitioning(nn.initializers.ones, ("model",))
    mode = {"use_running_average": False} if name == "BatchNorm" else {}
    norm = getattr(OURS["linen"], name)(scale_init=init, **mode)
    start = functools.partial(norm.init, jax.random.key(0))
    specs = nn.get_partition_spec(jax.eval_shape(start, X))
    assert specs["params"]["scale"] == PartitionSpec("model")
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    variables = jax.jit(start, out_shardings=shardings)(X)
    assert variables["params"]["scale"].value.sharding.spec == PartitionSpec("model")
    y, _ = jax.jit(functools.partial(norm.apply, mutable="batch_stats"))(variables, X)
    plain = layer(OURS, "linen", Case(name, (8, 4), 4))
    assert_trees_all_close(y, plain.call(plain.init(X), X)[0], atol=1e-6)


@pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm"])
def test_nnx_parameters_are_born_sharded(name):
    mesh = Mesh(np.array(jax.devices("cpu")[:2]), ("model",))
    metadata = {"out_sharding": ("model",), "owner": "me"}

    @nnx.jit
    def make():
        return getattr(OURS["nnx"], name)(
            4, scale_metadata=metadata, bias_metadata=metadata, rngs=nnx.Rngs(0)
        )

    with jax.set_mesh(mesh):
        norm = make()
        y = nnx.jit(lambda norm, x: norm(x))(norm, X)
    assert norm.scale.sharding.spec == PartitionSpec("model")
    assert norm.bias.get_metadata()["owner"] == "me"
    plain = layer(OURS, "nnx", Case(name, (8, 4), 4))
    assert_trees_all_close(y, plain.call(plain.init(X), X)[0], atol=1e-6)


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_groups_of_an_axis(api):
    side = layer(OURS, api, Case("BatchNorm", (2, 4), 4), axis_name="i", axis_index_groups=[[0, 1], [2, 3]])
    x = draw((4, 2, 4))
    plain = layer(OURS, api, Case("BatchNorm", (2, 4), 4))
    variables = plain.init(x[0])
    y, _ = jax.pmap(lambda x: side.call(variables, x), axis_name="i", devices=jax.devices("cpu")[:4])(x)
    halves = [plain.call(variables, x[i : i + 2].reshape(4, 4))[0] for i in (0, 2)]
    assert_trees_all_close(y.reshape(2, 4, 4), jnp.stack(halves), atol=1e-5)
