"""An error names function, invariant, what came and the remedy: the whole text of each."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import mesh_of

import jaxnorm as jn

X = jnp.ones((2, 3, 4))
STATS = jn.initial_stats((4,))
train = partial(jn.batch_norm, X, STATS, train=True)

VALUES = [
    # groups
    (
        lambda: jn.group_norm(jnp.ones((2, 8)), 5),
        "group_norm: num_groups=5 does not divide axis -1 of x, shape (2, 8); choose a divisor of 8.",
    ),
    (
        lambda: jn.group_norm(jnp.ones((2, 8, 3)), group_size=3, feature_axis=1),
        "group_norm: group_size=3 does not divide axis 1 of x, shape (2, 8, 3); choose a divisor of 8.",
    ),
    (
        lambda: jn.group_norm(X),
        "group_norm: Either `num_groups` or `group_size` should be specified, got "
        "num_groups=None and group_size=None; give exactly one.",
    ),
    (
        lambda: jn.group_norm(X, 2, group_size=2),
        "group_norm: Either `num_groups` or `group_size` should be specified, got num_groups=2 "
        "and group_size=2; give exactly one.",
    ),
    # axes
    (
        lambda: jn.layer_norm(X, axis=3),
        "layer_norm: axis=3 is out of range for x, shape (2, 3, 4); choose from -3 to 2.",
    ),
    (
        lambda: jn.moments(X, 5),
        "moments: axis=5 is out of range for x, shape (2, 3, 4); choose from -3 to 2.",
    ),
    (
        lambda: jn.layer_norm(jnp.float32(1)),
        "layer_norm: axis=-1 is out of range for x, shape (); a scalar has no axes.",
    ),
    (
        lambda: train(feature_axis=3),
        "batch_norm: feature_axis=3 is out of range for x, shape (2, 3, 4); choose from -3 to 2.",
    ),
    (
        lambda: jn.layer_norm(X, axis=(-1, 2)),
        "layer_norm: axis=(-1, 2) names an axis of x, shape (2, 3, 4), twice; name each once.",
    ),
    (
        lambda: train(feature_axis=(1, -2)),
        "batch_norm: feature_axis=(1, -2) names an axis of x, shape (2, 3, 4), twice; name each once.",
    ),
    (
        lambda: jn.instance_norm(X, feature_axis=0),
        "instance_norm: The channel axes cannot include the leading dimension as this is "
        "assumed to be the batch axis, got feature_axis=0 for x, shape (2, 3, 4); choose from 1 "
        "to 2.",
    ),
    # arrays that are broadcast against x
    (
        lambda: jn.layer_norm(X, scale=jnp.ones(3)),
        "layer_norm: scale of shape (3,) is neither the sizes (4,) of the feature axes (2,) nor "
        "broadcastable to x, shape (2, 3, 4); give it one of these shapes, or choose feature_axis=1, which "
        "has that size.",
    ),
    (
        lambda: jn.layer_norm(X, scale=jnp.ones(5)),
        "layer_norm: scale of shape (5,) is neither the sizes (4,) of the feature axes (2,) nor "
        "broadcastable to x, shape (2, 3, 4); give it one of these shapes.",
    ),
    (
        lambda: jn.adaptive_layer_norm(X, jnp.ones(3), jnp.ones(4)),
        "adaptive_layer_norm: scale of shape (3,) is neither the sizes (4,) of the feature axes (2,) nor "
        "broadcastable to x, shape (2, 3, 4); give it one of these shapes, or choose axis=1, which has that "
        "size.",
    ),
    (
        lambda: jn.layer_norm(X, where=jnp.ones((2, 3), bool)),
        "layer_norm: where of shape (2, 3) does not broadcast to x, shape (2, 3, 4); it has the sizes of x's "
        "first axes: give where[..., None].",
    ),
    (
        lambda: train(where=jnp.ones(2)),
        "batch_norm: where of shape (2,) does not broadcast to x, shape (2, 3, 4); it has the sizes of x's "
        "first axes: give where[..., None, None].",
    ),
    (
        lambda: jn.adaptive_instance_norm(X, X, style_where=jnp.ones((2, 3))),
        "adaptive_instance_norm: style_where of shape (2, 3) does not broadcast to style, shape (2, 3, 4); "
        "it has the sizes of style's first axes: give style_where[..., None].",
    ),
    (
        lambda: jn.group_norm(X, 2, where=jnp.ones((3, 3, 1), bool)),
        "group_norm: where of shape (3, 3, 1) does not broadcast to x, shape (2, 3, 4); give it "
        "the sizes of x, or 1, on x's last axes.",
    ),
    (
        lambda: jn.standardize(X, jn.initial_stats((3,))),
        "standardize: m.mean of shape (3,) does not broadcast to x, shape (2, 3, 4); take the moments with "
        "keepdims=True, or give it the sizes of x, or 1, on x's last axes.",
    ),
    (
        lambda: jn.standardize(X, jn.moments(X, 2)),
        "standardize: m.mean of shape (2, 3) does not broadcast to x, shape (2, 3, 4); take the moments with "
        "keepdims=True, or give it the sizes of x, or 1, on x's last axes.",
    ),
    (
        lambda: jn.unstandardize(X, STATS, bias=jnp.ones(5)),
        "unstandardize: bias of shape (5,) does not broadcast to y, shape (2, 3, 4); give it "
        "the sizes of y, or 1, on y's last axes.",
    ),
    # states
    (
        lambda: jn.batch_norm(X, jn.initial_stats((3,)), train=True),
        "batch_norm: stats.mean has shape (3,), but x, shape (2, 3, 4), has (4,) on its feature "
        "axes (2,); start from initial_stats((4,)), or choose feature_axis=1, which has that size.",
    ),
    (
        lambda: jn.batch_norm(X, jn.initial_stats((5,)), train=True),
        "batch_norm: stats.mean has shape (5,), but x, shape (2, 3, 4), has (4,) on its feature "
        "axes (2,); start from initial_stats((4,)), or choose feature_axis.",
    ),
    (
        lambda: jn.ema(STATS, jn.initial_stats((3,)), decay=0.9),
        "ema: old.mean has shape (4,), new.mean (3,); the two must be alike.",
    ),
    (
        lambda: jn.ema(*[STATS._replace(weight=jnp.ones(3))] * 2, decay=0.9),
        "ema: weight of shape (3,) is not a prefix of the shape of mean, (4,); give one weight "
        "for all, or one for each entry of mean's first axes.",
    ),
    (
        lambda: jn.merge(STATS, jn.initial_stats((3,))),
        "merge: b has fields of shapes [(3,), (3,), (3,)], which must be one shape, (4,); "
        "broadcast them first.",
    ),
    (
        lambda: jn.combine(STATS._replace(weight=jnp.ones(()))),
        "combine: parts has fields of shapes [(4,), (4,), ()], which must be one shape; "
        "broadcast them first.",
    ),
    (
        lambda: jn.initial_stats((4,), weight=-1.0),
        "initial_stats: weight=-1.0 is too small; choose 0 or more.",
    ),
    # numbers
    (
        lambda: jn.layer_norm(X, epsilon=-1e-5),
        "layer_norm: epsilon=-1e-05 is not a number >= 0; it is added to the variance: choose, "
        "for example, 1e-5.",
    ),
    (
        lambda: jn.layer_norm(X, epsilon="small"),
        "layer_norm: epsilon='small' is not a number >= 0; it is added to the variance: choose, "
        "for example, 1e-5.",
    ),
    (
        lambda: jn.batch_norm(X, STATS, train=False, epsilon=float("nan")),
        "batch_norm: epsilon=nan is not a number >= 0; it is added to the variance: choose, for "
        "example, 1e-5.",
    ),
    (
        lambda: train(decay=1.5),
        "batch_norm: decay=1.5 is outside [0, 1]; it is the fraction of the OLD average that is "
        "kept, 1 - PyTorch's momentum: choose, for example, 0.99.",
    ),
    (
        lambda: jn.unit_norm(X, ord=3),
        "unit_norm: ord=3 is not known; choose 1 or 2.",
    ),
    (
        lambda: jn.local_response_norm(X, size=0),
        "local_response_norm: size=0 is too small; choose 1 or more.",
    ),
    # devices
    (
        lambda: train(axis_name="batch"),
        "batch_norm: axis_name='batch' is not bound here; call it inside jax.shard_map, jax.pmap or "
        "jax.vmap with that axis name, leave axis_name out (plain jit with sharded arrays needs none), or "
        "give IfBound('batch'), which is local where the name is missing.",
    ),
    (
        lambda: jax.vmap(partial(jn.layer_norm, axis_name=("a", "b")), axis_name="a")(X),
        "layer_norm: axis_name='b' is not bound here; call it inside jax.shard_map, jax.pmap or "
        "jax.vmap with that axis name, leave axis_name out (plain jit with sharded arrays needs none), or "
        "give IfBound('b'), which is local where the name is missing.",
    ),
    (
        lambda: train(axis_index_groups=[[0, 1], [2, 3]]),
        "batch_norm: axis_index_groups=[[0, 1], [2, 3]] divides a named axis, but axis_name is "
        "None; give the axis's name as axis_name.",
    ),
    (
        lambda: jn.layer_norm(X, axis_name=jn.InGroups("rows", [[0, 1]])),
        "layer_norm: axis_name='rows' is not bound here; call it inside jax.shard_map, jax.pmap or "
        "jax.vmap with that axis name, leave axis_name out (plain jit with sharded arrays needs none), or "
        "give IfBound('rows'), which is local where the name is missing.",
    ),
]

TYPES = [
    (
        lambda: jn.InGroups("a", [0, 1]),
        "InGroups: groups=[0, 1] are not lists of device numbers; give, for example, ((0, 1), (2, 3)).",
    ),
    (
        lambda: jn.IfBound(("a", "b")),
        "IfBound: name=('a', 'b') is not one name; give axis_name=(IfBound('a'), IfBound('b')).",
    ),
    (
        lambda: jn.moments(X, 0, where=X.astype(jnp.complex64)),
        "moments: where must be a boolean mask or real weights, got dtype complex64; convert it "
        "first, for example with where.astype(bool).",
    ),
    (
        lambda: jn.layer_norm(X, scale=jnp.ones(4, jnp.complex64)),
        "layer_norm: scale is complex64 but x is float32; make x complex, or take the real part of scale.",
    ),
    (
        lambda: jn.batch_norm(X.astype(jnp.complex64), STATS, train=True),
        "batch_norm: x is complex64 but stats.mean is float32; start from initial_stats((4,), "
        "dtype=jnp.complex64).",
    ),
    (
        lambda: jn.batch_norm(X, (0.0, 1.0), train=True),
        "batch_norm: stats must be Moments, got tuple; start from initial_stats((4,)).",
    ),
    (
        lambda: jn.batch_norm(X, jax.tree.map(jnp.float16, STATS), train=True),
        "batch_norm: stats.mean is float16, in which averages stall; keep statistics in float32 "
        "or wider, for example jnp.float32.",
    ),
    (
        lambda: jn.initial_stats((4,), dtype=jnp.bfloat16),
        "initial_stats: dtype is bfloat16, in which averages stall; keep statistics in float32 "
        "or wider, for example jnp.float32.",
    ),
    (
        lambda: jn.layer_norm(X, axis="features"),
        "layer_norm: axis must be an int or several, got 'features'; name axes of x by number.",
    ),
    (
        lambda: jn.group_norm(X, 2.0),
        "group_norm: num_groups must be an int, got 2.0; choose a divisor of 4.",
    ),
    (
        lambda: jn.batch_norm(X, STATS, train="yes"),
        "batch_norm: train must be a bool, got 'yes'; pass True for the batch's statistics, "
        "False for the stored ones, or a traced boolean scalar.",
    ),
    (
        lambda: jn.ema({"mean": X}, {"mean": X}, decay=0.9),
        "ema: old must be a NamedTuple with a field `weight`, got dict; use, for example, jaxnorm.Moments.",
    ),
]


EVERY = {
    "moments": lambda x: jn.moments(x, 0),
    "standardize": lambda x: jn.standardize(x, STATS),
    "layer_norm": jn.layer_norm,
    "rms_norm": jn.rms_norm,
    "group_norm": lambda x: jn.group_norm(x, 2),
    "instance_norm": jn.instance_norm,
    "batch_norm": lambda x: jn.batch_norm(x, STATS, train=True),
    "unit_norm": jn.unit_norm,
    "local_response_norm": lambda x: jn.local_response_norm(x, size=2),
}


def assert_raises(error, call, text):
    with pytest.raises(error, match=re.escape(text)) as caught:
        call()
    assert str(caught.value) == text


def over(table):
    return pytest.mark.parametrize(("call", "text"), table, ids=[text[:50] for _, text in table])


@over(VALUES)
def test_value_errors(call, text):
    assert_raises(ValueError, call, text)


@over(TYPES)
def test_type_errors(call, text):
    assert_raises(TypeError, call, text)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_no_number(name):
    for x in (np.asarray([["a", "b"]]), X > 0):
        text = (
            f"{name}: x must hold numbers, got dtype {x.dtype}; convert it first, for example with "
            "x.astype(jnp.float32)."
        )
        assert_raises(TypeError, partial(EVERY[name], x), text)


def grouped(x):
    return train(axis_name="a", axis_index_groups=[[0, 1], [2, 3]])[0] + x


def mapped(x):
    mesh = mesh_of((4,), ("a",))
    return jax.shard_map(grouped, mesh=mesh, in_specs=P("a"), out_specs=P("a"))(x)


@pytest.mark.parametrize("call", [jax.vmap(grouped, axis_name="a"), mapped], ids=["vmap", "shard_map"])
def test_groups_where_jax_takes_none(call):
    text = (
        "batch_norm: axis_index_groups=((0, 1), (2, 3)): JAX takes groups only under jax.pmap and "
        "under jax.shard_map(check_vma=False); instead, make the mesh axis ('a',) two axes, one "
        "across the groups and one within, and give the inner one as axis_name."
    )
    assert_raises(ValueError, partial(call, jnp.ones((4, 3, 4))), text)


def test_a_name_of_vmap_where_jax_takes_none():
    inner = jax.vmap(partial(jn.layer_norm, axis_name=("a", "b")), axis_name="b")
    mesh = mesh_of((4,), ("a",))
    text = (
        "layer_norm: axis_name='b' is an axis of jax.vmap, over which JAX sums inside of "
        "jax.shard_map(check_vma=False) only; use that, or reduce that axis as an axis of x."
    )
    call = jax.shard_map(inner, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    assert_raises(ValueError, partial(call, jnp.ones((4, 3))), text)


def test_errors_come_at_trace_time():
    with pytest.raises(ValueError, match=r"num_groups=5 does not divide"):
        jax.eval_shape(lambda x: jn.group_norm(x, 5), X)


def test_traced_options_are_not_checked():
    y, state = jax.jit(lambda e, d: train(epsilon=e, decay=d))(1e-5, 0.9)
    assert jnp.isfinite(y).all()
    assert jnp.isfinite(state.mean).all()
