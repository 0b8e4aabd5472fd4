"""One derivative rule: an op is a function and its tangent, and every other derivative follows.

`with_tangent(primal, tangent)` is a `jax.custom_jvp` whose tangent is linear and is recomputed from its
arguments in the backward pass. Reverse mode therefore keeps these arguments, x in its own dtype among
them, and nothing else; forward mode, every order, vmap, scan, remat and shard_map with and without
check_vma follow by themselves. (`jax.custom_vjp` would lose forward mode, and cannot be right both with
and without check_vma: in one the cotangents of a summed value are totals, in the other shares.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero, zero_from_primal


def with_tangent(primal: Callable[..., Any], tangent: Callable[..., Any]) -> Callable[..., Any]:
    """`primal(static, *args) -> outs`, a named tuple, with the given derivative.

    `tangent(static, args, outs) -> (linear, kept)`: `linear(kept, *dargs) -> douts` is linear in `dargs`;
    an absent tangent is None, on the way in and on the way out, and costs nothing. `kept` is all that
    reverse mode may keep.
    """

    op = jax.custom_jvp(primal, nondiff_argnums=(0,))

    @partial(op.defjvp, symbolic_zeros=True)
    def _jvp(static: Any, args: Any, dargs: Any) -> Any:
        outs = op(static, *args)  # itself: the rule of every higher order
        linear, kept = tangent(static, args, outs)
        # prevent_cse=False: no barrier, which would cut the fusion with the cotangent's producer; nothing
        # here is costly enough to be kept apart
        douts = jax.checkpoint(linear, prevent_cse=False)(kept, *jax.tree.map(absent, dargs))
        zeros = (zero_from_primal(out, symbolic_zeros=True) for out in outs)
        return outs, type(outs)(*(z if d is None else d for z, d in zip(zeros, douts, strict=True)))

    # inlined where it is traced; compiled once where it is called eagerly
    return jax.jit(op, static_argnums=0, inline=True)


def absent(tangent: Any) -> Any:
    """None for a tangent that JAX says is zero."""
    return None if isinstance(tangent, SymbolicZero) else tangent
