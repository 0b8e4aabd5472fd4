"""PopArt as a layer: the function's state and parameters, in their places."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import ModifyScopeVariableError
from layers import OURS, draw

import jaxnorm as jn

close = chex.assert_trees_all_close
OPTIONS = {"momentum": 0.75, "epsilon": 1e-2}


@partial(jax.jit, static_argnums=(0, 4))
def _of_linen(layer, variables, x, call, method):
    mutable = ["params", "batch_stats"] if method == "update" else []
    return layer.apply(variables, x, method=method, mutable=mutable, **call)


@partial(nnx.jit, static_argnums=3)
def _of_nnx(layer, x, call, method):
    return getattr(layer, method)(x, **call)


class Head:
    """One face for both layers, compiled."""

    def __init__(self, api: str, h: Any, **options: Any) -> None:
        self.api, options = api, OPTIONS | options
        if api == "linen":
            self.layer = OURS[api].PopArt(2, **options)
            self.variables = jax.jit(self.layer.init)(jax.random.key(0), h)
        else:
            self.layer = OURS[api].PopArt(h.shape[-1], 2, rngs=nnx.Rngs(0), **options)

    def __call__(self, x: Any, method: str = "__call__", **call: Any) -> Any:
        if self.api == "nnx":
            return _of_nnx(self.layer, x, call, method)
        out, changed = _of_linen(self.layer, self.variables, x, call, method)
        self.variables = self.variables | changed
        return out

    def values(self) -> dict[str, Any]:
        if self.api == "linen":
            return {**self.variables["params"], **self.variables["batch_stats"]}
        return dict(nnx.to_pure_dict(nnx.state(self.layer, (nnx.Param, nnx.BatchStat))))


@pytest.mark.parametrize("api", OURS)
@pytest.mark.parametrize("masked", ["mask", "weights", "mask and weights", "all"])
def test_a_layer_is_its_function_and_predicts_what_it_did(api, masked):
    h, targets = draw((6, 5)), 40 * draw((6, 2), seed=1)
    head = Head(api, h)
    whole = {"mask": jnp.arange(6)[:, None] < 4, "weights": jnp.arange(1.0, 7.0)[:, None]}
    call = {name: v for name, v in whole.items() if name in masked}
    where = {
        "mask": whole["mask"],
        "weights": whole["weights"],
        "mask and weights": jnp.where(whole["mask"], whole["weights"], 0),
        "all": None,
    }[masked]
    old = head.values()
    before = head(head(h), method="denormalize")
    head(targets, method="update", **call)
    stats = jn.Moments(*(old[name] for name in jn.Moments._fields))
    expected = jn.pop_art(old["kernel"], old["bias"], stats, targets, decay=0.75, epsilon=1e-2, where=where)
    new = head.values()
    close((new["kernel"], new["bias"], *(new[n] for n in jn.Moments._fields)), (*expected[:2], *expected[2]))
    assert float(jnp.abs(new["mean"]).min()) > 5
    close(head(head(h), method="denormalize"), before, rtol=1e-5, atol=1e-4)
    close(head(head(targets, method="normalize"), method="denormalize"), targets, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("api", OURS)
def test_a_narrow_head_keeps_wide_statistics(api):
    h = draw((6, 5), jnp.bfloat16)
    head = Head(api, h, dtype=jnp.bfloat16)
    assert head(h).dtype == jnp.bfloat16
    head(draw((6, 2)), method="update")
    assert {np.dtype(v.dtype).name for v in head.values().values()} == {"float32"}


@pytest.mark.parametrize("api", OURS)
def test_it_learns_targets_far_from_zero(api):
    h = draw((32, 3))
    targets = 1e4 + 200 * h[:, :2] - 100 * h[:, 1:]
    head = Head(api, h)

    for _ in range(20):
        head(targets, method="update")
    wanted = head(targets, method="normalize")

    def loss(values):
        return jnp.mean((h @ values["kernel"] + values["bias"][None] - wanted) ** 2)

    gradient = jax.jit(jax.grad(loss))
    first = head(head(h), method="denormalize")
    for _ in range(60):
        grads = gradient(head.values())
        for name in ("kernel", "bias"):
            value = head.values()[name] - 0.05 * grads[name]
            if api == "linen":
                head.variables = head.variables | {"params": head.variables["params"] | {name: value}}
            else:
                getattr(head.layer, name).set_value(value)
    errors = [float(jnp.abs(y - targets).mean()) for y in (first, head(head(h), method="denormalize"))]
    assert errors[1] < 0.2 * errors[0]


def test_an_update_of_what_may_not_change_tells_how_to_allow_it():
    head = Head("linen", draw((6, 5)))
    with pytest.raises(ModifyScopeVariableError) as caught:
        head.layer.apply(head.variables, draw((6, 2)), method="update")
    assert caught.value.__notes__[0] == (
        "PopArt: an update writes parameters and statistics; call apply(variables, targets, "
        "method='update', mutable=['params', 'batch_stats']) and keep what it returns."
    )
