"""Passes: where one read of x ends and the next begins. What backends need; `_forms` chooses.

GPU and TPU compilers fuse sibling sums into one read of x and want every shared value shared. XLA:CPU
fuses one plain sum, or one elementwise loop, at a time and writes out whatever two of them share: a
float32 copy of bf16 x, x - mean, a broadcast scale. Two linear maps, each the other's transpose, say
where the passes are:

    copies(v, n, dtype) -> (v, ..., v)          on CPU n values that XLA cannot merge again
    total(vs, dtype)    -> v1 + ... + vn        rounded once to `dtype`

and what is small and meets x is `written` before the pass, whose transpose, a sum over x, is `returned`.

Everywhere else they lower to one convert and to plain adds, but for what says `everywhere`, which is behind
a barrier: what must be one number in all kernels, and the passes that a GPU is better off not to unite. The
choice is made while lowering, so one traced program serves every platform, and because the maps are linear
and transpose to each other, the backward pass of a program written with them is cut into passes too, at every
order of derivative.

XLA merges equal barriers, so what tells two copies apart is the number of barriers in front of them:
`copies` takes consecutive numbers from `first` on, and each pass over the same array has its own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jax.typing import DTypeLike

from jaxnorm._arithmetic import Maybe
from jaxnorm._forms import lowered

_copies, _total, _small = (Primitive(f"jaxnorm_{name}") for name in ("copies", "total", "small"))
_copies.multiple_results = _small.multiple_results = True

SMALL = 100_000  # elements of x; see `few`


def copies(v: Array, n: int, dtype: DTypeLike, *, first: int = 1, everywhere: bool = False) -> list[Array]:
    """`n` values equal to `v.astype(dtype)`, for the passes number `first`, `first + 1`, ..."""
    return _copies.bind(v, n=n, dtype=jnp.dtype(dtype), first=first, everywhere=everywhere)


def total(vs: Sequence[Array], dtype: DTypeLike) -> Array:
    """The sum of arrays of one shape and dtype, rounded once to `dtype`."""
    return _total.bind(*vs, dtype=jnp.dtype(dtype), first=1, everywhere=False)


def own(v: Array, number: int, dtype: DTypeLike | None = None, *, everywhere: bool = False) -> Array:
    """`v` for the pass `number` alone.

    `everywhere`: not on CPU alone; for the last pass backward, which a GPU is slower at if it writes y, too.
    """
    return copies(v, 1, v.dtype if dtype is None else dtype, first=number, everywhere=everywhere)[0]


def apart(number: int, *vs: Maybe) -> list[Maybe]:
    """Small arrays that passes over x share, for the pass `number` alone."""
    return _each(vs, number=number, solid=False, everywhere=False)


def written(*vs: Maybe, everywhere: bool = False) -> list[Maybe]:
    """Small arrays that meet x, computed once: loops would compute them again, and may round otherwise.

    `everywhere`: not on CPU alone. A GPU computes again what is cheap, a sum of 24 numbers in another order.
    """
    return _each(vs, number=0, solid=True, everywhere=everywhere)


def together(
    f: Callable[..., Any], *args: Any, moved: Sequence[Maybe] = (), everywhere: bool = False, **options: Any
) -> Any:
    """f(*args), of small arrays that meet x, whose results are written at once.

    With `moved`, which f is linear in, f(moved, *args), and the transpose's results are written likewise.
    """
    if moved:
        args = returned(*moved), *args
    results, tree = jax.tree.flatten(f(*args, **options))
    return jax.tree.unflatten(tree, written(*results, everywhere=everywhere))


def returned(*vs: Maybe) -> list[Maybe]:
    """Small arrays, sums over x, whose transposes are `written` before they meet it.

    Those of the first one's shape: what is alone of its shape would have a kernel to itself, to copy it.
    """
    shape = next((v.shape for v in vs if v is not None), None)
    alike = [v if v is not None and v.shape == shape else None for v in vs]
    back = _each(alike, number=0, solid=False, everywhere=False)
    return [v if b is None else b for v, b in zip(vs, back, strict=True)]


def few(x: Array) -> bool:
    """Whether x has few elements: a microsecond counts, and a second read costs less than slices."""
    return isinstance(x.size, int) and x.size <= SMALL


def _each(vs: Sequence[Maybe], **how: Any) -> list[Maybe]:
    given = [v for v in vs if v is not None]
    out = iter(_small.bind(*given, **how) if given else ())
    return [None if v is None else next(out) for v in vs]


# ---------------------------------------------------------------- lowering


def _shared(v: Array, *, n: int, dtype: Any, first: int, everywhere: bool) -> list[Array]:
    return [(lax.optimization_barrier(v) if everywhere else v).astype(dtype)] * n


def _apart(v: Array, *, n: int, dtype: Any, first: int, everywhere: bool) -> list[Array]:
    out = []
    for _ in range(first + n - 1):
        v = lax.optimization_barrier(v)
        out.append(v.astype(dtype))
    return out[first - 1 :]


def _same(*vs: Array, everywhere: bool, **_: Any) -> list[Array]:
    return lax.optimization_barrier(list(vs)) if everywhere else list(vs)


def _beside(*vs: Array, number: int, solid: bool, everywhere: bool) -> list[Array]:
    out = _written(vs) if solid else list(vs)
    for _ in range(number):
        out = [lax.optimization_barrier(v) for v in out]
    return out


def _written(vs: Sequence[Array]) -> list[Array]:
    """Arrays that XLA does not compute again in the loops that use them; those of a shape, in one kernel.

    Each is the larger of itself and itself: a reduction is not repeated, and this one's kernel has no
    branches, so that what several arrays are made of is computed once. XLA wants them of one precision.
    """
    out = list(vs)
    kinds = [(v.shape, jnp.finfo(v.dtype).bits) for v in vs]
    for kind in dict.fromkeys(kinds):  # in order: equal programs are one text
        alike = [i for i, k in enumerate(kinds) if k == kind]
        twice = [jnp.broadcast_to(vs[i], (2, *kind[0])) for i in alike]
        least = [jnp.full((), -jnp.inf, v.dtype) for v in twice]
        for i, v in zip(alike, lax.reduce(twice, least, _larger, (0,)), strict=True):
            out[i] = v
    return out


def _larger(us: Sequence[Array], vs: Sequence[Array]) -> list[Array]:
    """v, of u = -inf or v; not by `lax.max`, of which XLA:CPU makes a library call that takes x in, too."""

    def larger(u: Array, v: Array) -> Array:
        return lax.select(lax.gt(*(lax.real(a) if a.dtype.kind == "c" else a for a in (u, v))), u, v)

    return [larger(u, v) for u, v in zip(us, vs, strict=True)]


def _add(*vs: Array, dtype: Any, first: int, everywhere: bool) -> Array:
    return functools.reduce(lax.add, vs).astype(dtype)


# ---------------------------------------------------------------- derivatives: both maps are linear


def _copies_transpose(cts: Any, v: Any, *, n: int, dtype: Any, **kw: Any) -> Any:
    cts = [ct for ct in cts if type(ct) is not ad.Zero]
    if not cts:
        return [ad.Zero(v.aval)]
    if n == 1:
        return _copies.bind(cts[0], n=1, dtype=v.aval.dtype, **kw)
    return [_total.bind(*cts, dtype=v.aval.dtype, **kw)]


def _small_transpose(cts: Any, *vs: Any, solid: bool, **kw: Any) -> Any:
    given = [ct for ct in cts if type(ct) is not ad.Zero]
    # what is small on its way to x is a sum on its way back
    out = iter(_small.bind(*given, solid=not solid, **kw) if given else ())
    return [
        None if not ad.is_undefined_primal(v) else ad.Zero(v.aval) if type(ct) is ad.Zero else next(out)
        for ct, v in zip(cts, vs, strict=True)
    ]


def _total_transpose(ct: Any, *vs: Any, dtype: Any, **kw: Any) -> Any:
    wanted = [ad.is_undefined_primal(v) for v in vs]
    if type(ct) is ad.Zero:
        return [ad.Zero(v.aval) if w else None for v, w in zip(vs, wanted, strict=True)]
    parts = iter(copies(ct, sum(wanted), vs[0].aval.dtype, **kw))
    return [next(parts) if w else None for w in wanted]


def _copies_jvp(primals: Any, tangents: Any, **kw: Any) -> Any:
    return _copies.bind(*primals, **kw), _copies.bind(*tangents, **kw)


def _total_jvp(primals: Any, tangents: Any, **kw: Any) -> Any:
    nonzero = [t for t in tangents if type(t) is not ad.Zero]
    return _total.bind(*primals, **kw), _total.bind(*nonzero, **kw)


def _small_jvp(primals: Any, tangents: Any, **kw: Any) -> Any:
    out = iter(_small.bind(*(t for t in tangents if type(t) is not ad.Zero), **kw))
    return _small.bind(*primals, **kw), [t if type(t) is ad.Zero else next(out) for t in tangents]


def _small_batch(args: Any, dims: Any, **kw: Any) -> Any:
    return _small.bind(*args, **kw), dims


def _copies_batch(args: Any, dims: Any, *, n: int, **kw: Any) -> Any:
    return _copies.bind(*args, n=n, **kw), dims * n


def _total_batch(args: Any, dims: Any, **kw: Any) -> Any:
    size = next(v.shape[d] for v, d in zip(args, dims, strict=True) if d is not None)
    front = [
        jnp.broadcast_to(v, (size, *v.shape)) if d is None else jnp.moveaxis(v, d, 0)
        for v, d in zip(args, dims, strict=True)
    ]
    return _total.bind(*front, **kw), 0


_copies.def_abstract_eval(lambda v, *, n, dtype, **_: [v.update(dtype=dtype, weak_type=False)] * n)
_small.def_abstract_eval(lambda *vs, **_: list(vs))
_total.def_abstract_eval(lambda v, *_, dtype, **__: v.update(dtype=dtype, weak_type=False))
_copies.def_impl(_shared)
_small.def_impl(_same)
_total.def_impl(_add)
ad.primitive_jvps[_copies] = _copies_jvp
ad.primitive_jvps[_small] = _small_jvp
ad.primitive_jvps[_total] = _total_jvp
ad.primitive_transposes[_copies] = _copies_transpose
ad.primitive_transposes[_small] = _small_transpose
ad.primitive_transposes[_total] = _total_transpose
batching.primitive_batchers[_copies] = _copies_batch
batching.primitive_batchers[_small] = _small_batch
batching.primitive_batchers[_total] = _total_batch
lowered(_copies, cpu=_apart, default=_shared)
lowered(_small, cpu=_beside, default=_same)
lowered(_total, cpu=_add, default=_add)
