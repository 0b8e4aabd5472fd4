"""Passes: where one read of x ends and the next begins. The only file that knows of backends.

GPU and TPU compilers fuse sibling sums into one read of x and want every shared value shared. XLA:CPU
fuses one plain sum, or one elementwise loop, at a time and writes out whatever two of them share: a
float32 copy of bf16 x, x - mean, a broadcast scale. Two linear maps, each the other's transpose, say
where the passes are:

    copies(v, n, dtype) -> (v, ..., v)          on CPU n values that XLA cannot merge again
    total(vs, dtype)    -> v1 + ... + vn        rounded once to `dtype`

Everywhere else they lower to one convert and to plain adds. The choice is made while lowering, so one
traced program serves every platform, and because the maps are linear and transpose to each other, the
backward pass of a program written with them is cut into passes too, at every order of derivative.

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
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

_copies, _total = Primitive("jaxnorm_copies"), Primitive("jaxnorm_total")
_copies.multiple_results = True

# `solid` says what a copy of a small array is: True, written out on its way to x; False, a sum on its way
# from x, and then its transpose is solid. None is a copy of an array as large as x.

# For the tests alone, that they may run the other backends' forms on a CPU.
CPU_DIFFERS = True
LIKE_TPU = False

SMALL = 100_000  # elements, below which a pass costs less than to begin one: then the CPU is no exception


def small(x: Array) -> bool:
    """Whether passes over x need not be told apart on any backend."""
    return isinstance(x.size, int) and x.size <= SMALL


def copies(v: Array, n: int, dtype: DTypeLike, *, first: int = 1) -> list[Array]:
    """`n` values equal to `v.astype(dtype)`, for the passes number `first`, `first + 1`, ..."""
    if small(v):
        return [v.astype(dtype)] * n
    return _copies.bind(v, n=n, dtype=jnp.dtype(dtype), first=first, solid=None)


def total(vs: Sequence[Array], dtype: DTypeLike) -> Array:
    """The sum of arrays of one shape and dtype, rounded once to `dtype`."""
    if small(vs[0]):
        return functools.reduce(lax.add, vs).astype(dtype)
    return _total.bind(*vs, dtype=jnp.dtype(dtype), first=1)


def own(v: Array, number: int, dtype: DTypeLike | None = None) -> Array:
    """`v` for the pass `number` alone."""
    return copies(v, 1, v.dtype if dtype is None else dtype, first=number)[0]


def written(v: Array, number: int = 1) -> Array:
    """A small array, computed once: a loop that computed it again could round it otherwise."""
    return _copies.bind(v, n=1, dtype=v.dtype, first=number, solid=True)[0]


def vector(v: Array, number: int, x: Array) -> Array:
    """A small array for the pass `number` over x, computed before the pass, not again for every element."""
    return v if small(x) else written(v, number)


def summed(v: Array, number: int, x: Array) -> Array:
    """A sum of the pass `number` over x: the transpose of `vector`, and its transpose is a vector."""
    if small(x):
        return v
    return _copies.bind(v, n=1, dtype=v.dtype, first=number, solid=False)[0]


def on_cpu(cpu: Callable[..., Any], default: Callable[..., Any], *args: Any) -> Any:
    """`cpu(*args)` where the program is lowered for the CPU, `default(*args)` elsewhere."""
    if not CPU_DIFFERS:
        return default(*args)
    return lax.platform_dependent(*args, cpu=cpu, default=default)


def on_tpu(tpu: Callable[..., Any], default: Callable[..., Any], *args: Any) -> Any:
    """`tpu(*args)` where the program is lowered for a TPU, `default(*args)` elsewhere."""
    if LIKE_TPU:
        return tpu(*args)
    return lax.platform_dependent(*args, tpu=tpu, default=default)


# ---------------------------------------------------------------- lowering


def _shared(v: Array, *, n: int, dtype: Any, first: int, solid: bool | None) -> list[Array]:
    return [v.astype(dtype)] * n


def _apart(v: Array, *, n: int, dtype: Any, first: int, solid: bool | None) -> list[Array]:
    if not CPU_DIFFERS:
        return _shared(v, n=n, dtype=dtype, first=first, solid=solid)
    if solid and not jnp.issubdtype(v.dtype, jnp.complexfloating):
        # v / 1, as a division that XLA neither simplifies nor repeats for every element of x
        one = jnp.ones((), v.dtype)
        v = v / lax.clamp(one, v, one)
    out = []
    for _ in range(first + n - 1):
        v = lax.optimization_barrier(v)
        out.append(v.astype(dtype))
    return out[first - 1 :]


def _add(*vs: Array, dtype: Any, first: int) -> Array:
    return functools.reduce(lax.add, vs).astype(dtype)


def _lower(rule: Callable[..., Any], many: bool) -> Any:
    return mlir.lower_fun(rule, multiple_results=many)


# ---------------------------------------------------------------- derivatives: both maps are linear


def _copies_transpose(cts: Any, v: Any, *, n: int, dtype: Any, first: int, solid: bool | None) -> Any:
    cts = [ct for ct in cts if type(ct) is not ad.Zero]
    if not cts:
        return [ad.Zero(v.aval)]
    if n == 1:
        # what is written out on its way to x is summed on its way back, and is small already
        flipped = None if solid is None else not solid
        return _copies.bind(cts[0], n=1, dtype=v.aval.dtype, first=first, solid=flipped)
    return [_total.bind(*cts, dtype=v.aval.dtype, first=first)]


def _total_transpose(ct: Any, *vs: Any, dtype: Any, first: int) -> Any:
    wanted = [ad.is_undefined_primal(v) for v in vs]
    if type(ct) is ad.Zero:
        return [ad.Zero(v.aval) if w else None for v, w in zip(vs, wanted, strict=True)]
    parts = iter(copies(ct, sum(wanted), vs[0].aval.dtype, first=first))
    return [next(parts) if w else None for w in wanted]


def _copies_jvp(primals: Any, tangents: Any, **kw: Any) -> Any:
    return _copies.bind(*primals, **kw), _copies.bind(*tangents, **kw)


def _total_jvp(primals: Any, tangents: Any, **kw: Any) -> Any:
    nonzero = [t for t in tangents if type(t) is not ad.Zero]
    return _total.bind(*primals, **kw), _total.bind(*nonzero, **kw)


def _copies_batch(args: Any, dims: Any, *, n: int, **kw: Any) -> Any:
    return _copies.bind(*args, n=n, **kw), dims * n


def _total_batch(args: Any, dims: Any, **kw: Any) -> Any:
    size = next(v.shape[d] for v, d in zip(args, dims, strict=True) if d is not None)
    front = [
        jnp.broadcast_to(v, (size, *v.shape)) if d is None else jnp.moveaxis(v, d, 0)
        for v, d in zip(args, dims, strict=True)
    ]
    return _total.bind(*front, **kw), 0


def _eager(primitive: Any) -> None:
    @functools.lru_cache
    def compiled(items: Any) -> Any:
        return jax.jit(functools.partial(primitive.bind, **dict(items)))

    primitive.def_impl(lambda *args, **kw: compiled(tuple(kw.items()))(*args))


_copies.def_abstract_eval(lambda v, *, n, dtype, **_: [v.update(dtype=dtype, weak_type=False)] * n)
_total.def_abstract_eval(lambda v, *_, dtype, **__: v.update(dtype=dtype, weak_type=False))
_eager(_copies)
_eager(_total)
ad.primitive_jvps[_copies] = _copies_jvp
ad.primitive_jvps[_total] = _total_jvp
ad.primitive_transposes[_copies] = _copies_transpose
ad.primitive_transposes[_total] = _total_transpose
batching.primitive_batchers[_copies] = _copies_batch
batching.primitive_batchers[_total] = _total_batch
mlir.register_lowering(_copies, _lower(_shared, True))
mlir.register_lowering(_copies, _lower(_apart, True), platform="cpu")
mlir.register_lowering(_total, _lower(_add, False))
