"""What the layers add to the functions: variables, modes, initialization, and Flax's transformations."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from layers import CASES, OURS, PLAIN, Case, draw, layer

import jaxnorm as jn

BATCH_NORM = Case("BatchNorm", (8, 4), 4)
LAYER_NORM = Case("LayerNorm", (8, 4), 4)

both = pytest.mark.parametrize("api", ["linen", "nnx"])
every_layer = pytest.mark.parametrize("case", PLAIN, ids=str)


def close(actual, expected, atol=1e-6):
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


def kinds(tree):
    return jax.tree.map(jax.typeof, tree)


# ------------------------------------------------------------------------------------ calls


@both
@every_layer
def test_shapes_need_no_data(api, case):
    side, x = layer(OURS, api, case), jax.ShapeDtypeStruct(case.shape, jnp.bfloat16)
    variables = jax.eval_shape(side.init, x)
    y, after = jax.eval_shape(side.call, variables, x)
    assert y.shape == x.shape
    assert kinds(after) == kinds(variables)


NAMES = {"axis": "feature_axis", "feature_axes": "feature_axis", "momentum": "decay"}


def direct(case, variables, x):
    """What the pure function makes of a layer's options and variables."""
    names = NAMES if case.name == "GroupNorm" else NAMES | {"reduction_axes": "axis"}
    options = {names.get(k, k): v for k, v in case.options.items() if not k.startswith("use_")}
    if case.name in ("LayerNorm", "RMSNorm"):
        options.setdefault("feature_axis", -1)
    axes = np.atleast_1d(options.get("feature_axis", -1)) % x.ndim
    shape = [x.shape[a] for a in sorted(axes)]  # nnx keeps several feature axes as one
    options |= {k: v.reshape(shape) for k, v in variables["params"].items()}
    if case.name != "BatchNorm":
        function = "rms_norm" if case.name == "RMSNorm" else case.name[:-4].lower() + "_norm"
        return getattr(jn, function)(x, **options), {}
    mean, var = (variables["batch_stats"][k].reshape(shape) for k in ("mean", "var"))
    y, stats = jn.batch_norm(x, jn.Moments(mean, var, jnp.ones_like(var)), train=True, **options)
    return y, {k: getattr(stats, k) for k in ("mean", "var")}


@both
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layer_gives_what_its_function_gives(api, case):
    side, x = layer(OURS, api, case), draw(case.shape)
    variables = {"params": {}} | side.init(x)
    for seed, (name, value) in enumerate(variables["params"].items()):
        variables["params"][name] = draw(value.shape, seed=seed)
    y, after = side.call(variables, x)
    expected, stats = direct(case, variables, x)
    # two programs, which a GPU may round differently
    rounding = {"rtol": 0, "atol": 0 if jax.default_backend() == "cpu" else 2e-6}
    np.testing.assert_allclose(y, expected, **rounding)
    for name, value in stats.items():
        np.testing.assert_allclose(after["batch_stats"][name].reshape(value.shape), value, **rounding)


@pytest.mark.parametrize("case", [c for c in PLAIN if c.name != "BatchNorm"], ids=str)
def test_a_layer_is_its_function(case):
    # the same program: nothing comes before the function that would cast or copy x
    x = draw(case.shape, jnp.bfloat16)
    module = getattr(OURS["linen"], case.name)(**case.options)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    function = {"RMSNorm": "rms_norm"}.get(case.name, case.name[:-4].lower() + "_norm")

    def direct(variables, x):
        # a layer's order: that of a program's arguments
        own = {name: variables["params"][name] for name in ("scale", "bias") if name in variables["params"]}
        return getattr(jn, function)(x, **own, **case.options, dtype=jnp.float32)

    found, expected = (str(jax.make_jaxpr(f)(variables, x)) for f in (module.apply, direct))
    assert found == expected


@both
@every_layer
def test_numpy_s_default_float_is_taken(api, case):
    side, x = layer(OURS, api, case), np.asarray(draw(case.shape), np.float64)
    variables = side.init(x)
    y, _ = jax.eval_shape(lambda: side.call(variables, x))
    assert y.dtype == jnp.float32


@both
@every_layer
def test_whole_weights_are_repetitions(api, case):
    axes = dict(reduction_axes=(1, 2)) if case.name in ("LayerNorm", "RMSNorm") else {}
    side = layer(OURS, api, case._replace(options=case.options | axes))
    x, times = draw(case.shape), np.arange(case.shape[1]) % 3
    variables = side.init(x)
    y, state = side.call(variables, x, weights=jnp.asarray(times, jnp.float32)[None, :, None])
    repeated = side.call(variables, jnp.repeat(x, times, axis=1))
    jax.tree.map(close, (jnp.repeat(y, times, axis=1), state), repeated)


def test_a_mask_hides_weights():
    norm, x = OURS["nnx"].LayerNorm(4, rngs=nnx.Rngs(0)), draw((8, 4))
    mask, weights = jnp.asarray([1, 0, 2, 1]), jnp.asarray([0.5, 7.0, 1.0, 2.0])
    both = norm(x, mask=mask[None], weights=weights[None])
    np.testing.assert_array_equal(both, norm(x, weights=jnp.where(mask > 0, weights, 0)[None]))


@pytest.mark.parametrize("case", [BATCH_NORM, LAYER_NORM], ids=str)
def test_nnx_features_must_fit(case):
    side = layer(OURS, "nnx", case)
    with pytest.raises(ValueError, match="features") as found:
        side.call(side.init(draw(case.shape)), jnp.ones((8, 5)))
    assert str(found.value) == (
        f"{case.name}: 4 stored features do not fit axis -1 of x, shape (8, 5); choose a layer of 5 features."
    )


# ------------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize(
    ("x", "mean", "var"),
    [
        (jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.int32, jnp.float32, jnp.float32),
        (jnp.float64, jnp.float32, jnp.float32),  # as Flax's
        (jnp.complex64, jnp.complex64, jnp.float32),
        (jnp.complex128, jnp.complex128, jnp.float64),
    ],
    ids=lambda dtype: dtype.__name__,
)
def test_linen_takes_the_dtype_of_statistics_from_x(x, mean, var):
    with jax.enable_x64(True):
        side = layer(OURS, "linen", BATCH_NORM)
        x = jax.ShapeDtypeStruct((8, 4), x)
        variables = jax.eval_shape(side.init, x)
        _, after = jax.eval_shape(side.call, variables, x)
        assert kinds(after) == kinds(variables)
    stats = variables["batch_stats"]
    assert (stats["mean"].dtype, stats["var"].dtype) == (mean, var)


@both
@pytest.mark.parametrize("which", ["dtype", "param_dtype"])
def test_a_complex_layer_has_a_complex_mean(api, which):
    side = layer(OURS, api, BATCH_NORM, **{which: jnp.complex64}, momentum=0.0)
    for x in (draw((8, 4), jnp.complex64), draw((8, 4))):
        y, after = side.call(side.init(x), x)
        assert y.dtype == jnp.complex64
        close(after["batch_stats"]["mean"], x.mean(0))
        close(jnp.square(jnp.abs(y)).mean(0), 1.0, atol=1e-4)


def test_promote_dtype_chooses_the_dtype_of_y():
    seen = []

    def promote(arrays, *, dtype):
        seen.append(([jnp.shape(a) for a in arrays], dtype))
        return tuple(a.astype(jnp.float16) for a in arrays)

    norm = OURS["nnx"].BatchNorm(4, promote_dtype=promote, dtype=None, rngs=nnx.Rngs(0))
    y = norm(draw((8, 4)) + 1e5)  # float16 has no such number, and x is not made one
    assert y.dtype == jnp.float16
    close(y.astype(jnp.float32).std(0), 1.0, atol=1e-3)
    assert seen == [([(8, 4), (4,), (4,), (4,), (4,)], None)]


# ------------------------------------------------------------------------------------ modes


def test_linen_init_updates_nothing_and_meets_no_device():
    norm, x = OURS["linen"].BatchNorm(axis_name="nowhere"), draw((8, 4)) + 5
    y, variables = norm.init_with_output(jax.random.key(0), x, use_running_average=False)
    close(y.mean(0), 0.0, atol=1e-5)
    close(variables["batch_stats"]["mean"], 0.0)
    close(variables["batch_stats"]["var"], 1.0)
    with pytest.raises(ValueError, match="axis_name='nowhere' is not bound here"):
        norm.apply(variables, x, use_running_average=False, mutable="batch_stats")


def test_linen_evaluates_without_mutable_statistics():
    norm, x = OURS["linen"].BatchNorm(), draw((8, 4))
    variables = norm.init(jax.random.key(0), x, use_running_average=True)
    variables["batch_stats"]["mean"] += 1
    close(norm.apply(variables, x, use_running_average=True), x - 1, atol=1e-4)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        norm.apply(variables, x, use_running_average=False)


def test_nnx_modes():
    norm, x = OURS["nnx"].BatchNorm(4, momentum=0.5, rngs=nnx.Rngs(0)), draw((8, 4))
    trained = norm(x)
    mean = norm.mean[...]
    close(mean, x.mean(0) / 2)
    norm.eval()
    evaluated = norm(x)
    close(norm.mean[...], mean)
    close(norm(x, use_running_average=False), trained)  # the call comes first
    close(norm.mean[...], x.mean(0) * 0.75)
    norm.train()
    close(norm(x), trained)
    norm.mean.set_value(mean)
    norm.var.set_value(1 + (x.var(0) - 1) / 2)
    close(nnx.view(norm, use_running_average=True)(x), evaluated, atol=1e-5)


# ------------------------------------------------------------------------------------ transformations


class Block(nn.Module):
    """A user's module, with the layers' automatic names."""

    @nn.compact
    def __call__(self, x, _=None):
        x = OURS["linen"].BatchNorm(use_running_average=False)(nn.Dense(4)(x))
        return jnp.tanh(OURS["linen"].LayerNorm()(x)), None


AXES = dict(variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True})


@pytest.mark.parametrize(
    "stack",
    [
        nn.scan(Block, length=3, **AXES),
        nn.scan(nn.remat(Block), length=3, **AXES),
        nn.vmap(Block, in_axes=0, out_axes=0, **AXES),
    ],
    ids=["scan", "scan of remat", "vmap"],
)
@pytest.mark.flexible  # of nn.Dense
def test_linen_transformations(stack):
    model, mapped = stack(), "Vmap" in stack.__name__
    x = draw((3, 8, 4) if mapped else (8, 4))
    variables = jax.jit(model.init)(jax.random.key(0), x, None)
    run, step = (
        jax.jit(lambda v, x, m=m: m.apply(v, x, None, mutable="batch_stats")) for m in (model, Block())
    )
    (y, _), state = run(variables, x)
    assert kinds(state["batch_stats"]) == kinds(variables["batch_stats"])

    h = x
    for i in range(3):
        variables_i, state_i = jax.tree.map(lambda v, i=i: v[i], (variables, state))
        (h, _), after = step(variables_i, x[i] if mapped else h)
        jax.tree.map(close, state_i, after)
        if mapped:
            close(y[i], h, atol=1e-5)
    if not mapped:
        close(y, h, atol=1e-5)


@pytest.mark.flexible
def test_linen_names_and_table():
    x = draw((8, 4))
    variables = jax.eval_shape(Block().init, jax.random.key(0), x)
    assert sorted(variables["params"]) == ["BatchNorm_0", "Dense_0", "LayerNorm_0"]
    table = Block().tabulate(jax.random.key(0), x, console_kwargs={"width": 200})
    assert "BatchNorm_0" in table
    assert "batch_stats" in table


@pytest.mark.parametrize("transform", [lambda f: f, nnx.remat], ids=["grad", "grad of remat"])
@pytest.mark.flexible  # of nnx.Linear
def test_nnx_gradients(transform):
    x, rngs = draw((8, 4)), nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), OURS["nnx"].BatchNorm(4, rngs=rngs))
    kernel = model.layers[0].kernel[...]

    def loss(m, x):
        return jnp.sum(m(x) ** 3)

    @jax.value_and_grad
    def pure(kernel):
        return jnp.sum(jn.batch_norm(x @ kernel, jn.initial_stats(4), train=True)[0] ** 3)

    value, grads = nnx.jit(nnx.value_and_grad(transform(loss)))(model, x)
    expected, dkernel = jax.jit(pure)(kernel)
    close(value, expected, atol=1e-4)
    close(grads["layers"][0]["kernel"][...], dkernel, atol=1e-4)
    close(model.layers[1].mean[...], 0.01 * (x @ kernel).mean(0))


def test_nnx_ensemble_and_table():
    x = draw((3, 8, 4))

    @nnx.jit
    def ensemble(keys, x):
        norms = nnx.vmap(lambda key: OURS["nnx"].BatchNorm(4, rngs=nnx.Rngs(key)))(keys)
        return nnx.vmap(lambda norm, x: norm(x))(norms, x), norms

    y, norms = ensemble(jax.random.split(jax.random.key(0), 3), x)
    close(y.mean(1), 0.0, atol=1e-5)
    close(y.std(1), 1.0, atol=1e-4)
    close(norms.mean[...], 0.01 * x.mean(1))
    assert "BatchNorm" in nnx.tabulate(OURS["nnx"].BatchNorm(4, rngs=nnx.Rngs(0)), x[0])
