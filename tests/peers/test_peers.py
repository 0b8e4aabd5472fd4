"""Agreement with other people's code: y, gradients and the new state, float32 here against float64 there.

A library that is not installed skips its rows: `pip install 'jaxnorm[peers]'` brings all of them. Here are
the rows of PyTorch, and what the tables of the other test_peers files share.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

JAX = ("equinox", "flaxmodels", "haiku", "rlax")  # run under x64; the others are given tensors
# Modules that are imported without their packages, which run what cannot be imported everywhere.
ALONE = ("rlax", "timm")
# In units of the largest value: what float32 leaves of a reduction and of its derivative, 7.4e-7 at worst.
ROUNDING = 1e-6

EPS = 1e-3  # large enough that another place for it would show
RNG = np.random.default_rng(0)
MEAN, VAR = RNG.normal(size=4), RNG.uniform(0.5, 2.0, 4)
MASK = RNG.uniform(size=(6, 5, 1)) < 0.7

FIRST, LAST, CHANNELS = (3, 4, 5), (6, 5, 4), (4,)  # channels first, channels last
AFFINE = (CHANNELS, CHANNELS)
SECOND = {"feature_axis": 1}
TRAIN = {"train": True, "decay": 0.9, "epsilon": EPS}


class Row(NamedTuple):
    name: str  # ours, and what it is compared with
    library: str  # the module of theirs
    ours: Callable[..., Any]  # (*arrays) -> (y, *state)
    theirs: Callable[..., Any]  # (module, *arrays) -> the same
    shapes: tuple[tuple[int, ...], ...]  # of the arrays
    gradient: bool = True  # of y, in all arrays, is compared

    def __str__(self):
        return self.name


def over(rows):
    return pytest.mark.parametrize("row", rows, ids=str)


def borrowed(name):
    """A module of another library; without it the test is skipped."""
    library, *inner = name.split(".")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install 'jaxnorm[peers]'", allow_module_level=True)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they import is theirs to mend
        patch.setenv("KERAS_BACKEND", "torch")
        # All can do without it, and PyPI's cannot be imported beside a torch for the CPU alone.
        for package in ("torchaudio", "torchvision"):
            patch.setitem(sys.modules, package, None)
        for depth in range(len(inner) if library in ALONE else 0):
            package = importlib.util.find_spec(".".join([library, *inner[:depth]]))
            patch.setitem(sys.modules, package.name, importlib.util.module_from_spec(package))
        return importlib.import_module(name)


def tensor(value):
    torch = borrowed("torch")
    return value if torch.is_tensor(value) else torch.tensor(np.asarray(value), dtype=torch.float64)


def called(layer, parameters, *arguments):
    """A torch layer with these parameters and buffers; it writes into the buffers."""
    return borrowed("torch").func.functional_call(layer.double(), parameters, arguments)


def module(name, *arguments, names=("weight", "bias"), inputs=1, **options):
    """A torch layer: its inputs, then its parameters."""

    def call(library, *arrays):
        layer = getattr(library, name)(*arguments, **options)
        parameters = dict(zip(names, arrays[inputs:], strict=False))
        return (called(layer, parameters, *arrays[:inputs]),)

    return call


def through_torch(function, arrays, cotangent):
    arrays = [tensor(v).requires_grad_(cotangent is not None) for v in arrays]
    y, *state = function(*arrays)
    back = ()
    if cotangent is not None:
        back = borrowed("torch").autograd.grad((y * tensor(cotangent)).sum(), arrays)
    return [tensor(v).detach().numpy() for v in (y, *state, *back)]


def through_jax(function, arrays, cotangent, dtype):
    def call(*arrays):
        y, *state = function(*arrays)
        return y, state

    arrays = [jnp.asarray(v, dtype) for v in arrays]
    if cotangent is None:
        y, state = call(*arrays)
        return [y, *state]
    y, back, state = jax.vjp(call, *arrays, has_aux=True)
    return [y, *state, *back(jnp.asarray(cotangent, dtype))]


def assert_agrees(row):
    """y, the state and the gradients are the same, each to the rounding of its largest value."""
    theirs = partial(row.theirs, borrowed(row.library))
    rng = np.random.default_rng(1)
    arrays = [rng.normal(1.0, 1.0, shape).astype(np.float32) for shape in row.shapes]
    cotangent = None
    if row.gradient:
        cotangent = rng.normal(size=jax.eval_shape(row.ours, *arrays)[0].shape).astype(np.float32)
    if row.library.partition(".")[0] in JAX:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            expected = through_jax(theirs, arrays, cotangent, jnp.float64)
    else:
        expected = through_torch(theirs, arrays, cotangent)
    actual = through_jax(row.ours, arrays, cotangent, jnp.float32)
    for a, e in zip(actual, map(np.asarray, expected), strict=True):
        assert a.dtype == jnp.float32 and a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=0, atol=ROUNDING * max(1, np.abs(e).max()))


# ---------------------------------------------------------------- ours


def stats():
    return jn.Moments(*(jnp.asarray(v, jnp.float32) for v in (MEAN, VAR, np.ones(4))))


def forgets(function, **options):
    """(*arrays, of which the last may be scale and bias) -> y"""

    def call(x, scale=None, bias=None):
        affine = {"scale": scale} if bias is None else {"scale": scale, "bias": bias}
        return (function(x, **affine, **{"epsilon": EPS} | options),)

    return call


def alone(function, **options):
    """A function of arrays alone."""
    return lambda *arrays: (function(*arrays, **options),)


def remembers(function=jn.batch_norm, **options):
    def call(x, scale, bias):
        y, new = function(x, stats(), scale=scale, bias=bias, **TRAIN | options)
        return y, new.mean, new.var

    return call


def twice(**options):
    """Of two batches the second y, from a state that knows nothing."""

    def call(x, scale, bias):
        state = jn.initial_stats(4, weight=0.0)
        for batch in x:
            y, state = jn.batch_norm(batch, state, scale=scale, bias=bias, **TRAIN | options)
        return y, state.mean, state.var

    return call


# ---------------------------------------------------------------- theirs


def torch_batch(f, x, scale, bias, training=True):
    mean, var = tensor(MEAN), tensor(VAR)
    y = f.batch_norm(x, mean, var, scale, bias, training, 0.1, EPS)  # 0.1 is 1 - decay; writes into both
    return y, mean, var


def torch_instances(f, x, scale, bias, training=True):
    mean, var = tensor(MEAN), tensor(VAR)
    y = f.instance_norm(x, mean, var, scale, bias, training, 0.1, EPS)  # writes into both
    return y, mean, var


def torch_cumulative(nn, x, scale, bias):
    layer = nn.BatchNorm1d(4, EPS, momentum=None)
    buffers = dict(layer.double().named_buffers())
    for batch in x:
        y = called(layer, buffers | {"weight": scale, "bias": bias}, batch)
    return y, buffers["running_mean"]


def torch_partial(f, x):
    first = x[..., :2]
    return (x * (f.rms_norm(first, (2,), None, EPS) / first)[..., :1],)


F = "torch.nn.functional"
ROWS = (
    # torch's average takes the unbiased variance
    Row("batch", F, remembers(unbiased=True, **SECOND), torch_batch, (FIRST, *AFFINE)),
    Row(
        "batch evaluation",
        F,
        remembers(train=False, **SECOND),
        partial(torch_batch, training=False),
        (FIRST, *AFFINE),
    ),
    # its cumulative variance leaves out the spread between the means, so the means alone are compared
    Row(
        "batch cumulative",
        "torch.nn",
        lambda *v: twice(decay=None)(*v)[:2],
        torch_cumulative,
        ((2, 5, 4), *AFFINE),
    ),
    Row(
        "layer",
        F,
        forgets(jn.layer_norm, axis=(1, 2)),
        lambda f, x, scale, bias: (f.layer_norm(x, (5, 4), scale, bias, EPS),),
        (LAST, LAST[1:], LAST[1:]),
    ),
    Row(
        "rms",
        F,
        forgets(jn.rms_norm),
        lambda f, x, scale: (f.rms_norm(x, (4,), scale, EPS),),
        (LAST, CHANNELS),
    ),
    # torch knows no partial norm: what it makes of the first features is the factor of all
    Row("partial rms", F, forgets(jn.partial_rms_norm, num_features=2), torch_partial, (LAST,)),
    Row(
        "group",
        F,
        forgets(jn.group_norm, num_groups=2, **SECOND),
        lambda f, x, scale, bias: (f.group_norm(x, 2, scale, bias, EPS),),
        (FIRST, *AFFINE),
    ),
    Row(
        "instance",
        F,
        forgets(jn.instance_norm, **SECOND),
        lambda f, x, scale, bias: (f.instance_norm(x, weight=scale, bias=bias, eps=EPS),),
        (FIRST, *AFFINE),
    ),
    Row(
        "running instance",
        F,
        remembers(jn.running_instance_norm, unbiased=True, **SECOND),
        torch_instances,
        (FIRST, *AFFINE),
    ),
    Row(
        "running instance evaluation",
        F,
        remembers(jn.running_instance_norm, train=False, **SECOND),
        partial(torch_instances, training=False),
        (FIRST, *AFFINE),
    ),
    Row(
        "standardize",
        F,
        lambda x, scale, bias: (jn.standardize(x, stats(), scale=scale, bias=bias, epsilon=EPS),),
        lambda *arrays: torch_batch(*arrays, training=False)[:1],
        ((6, 4), *AFFINE),
    ),
)


@over(ROWS)
def test_agrees_with_torch(row):
    assert_agrees(row)
