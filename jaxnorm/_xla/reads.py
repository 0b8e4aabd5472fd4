"""Reads: one read of x after another, told apart for XLA:CPU. On a GPU and a TPU nothing is needed.

XLA:CPU fuses one sum, or one elementwise loop, at a time, and writes out whatever two of them share: a
float32 copy of bfloat16 x, or x - mean. An `optimization_barrier` in front of each read keeps it
one loop, as XLA merges equal values first, then drops the barriers, and fuses last. Equal barriers are
merged, too. What tells two reads of one array apart is therefore how many barriers are in front of them: the
number of the read.

Both primitives here are linear and are the identity but for rounding, so that JAX differentiates, batches
and partitions programs that use them as it does those without.
"""

import enum
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

from jaxnorm._base.arithmetic import promoted, wide


class Read(enum.IntEnum):
    """The reads of x in one norm. The value is how many barriers are in front of a read on a CPU."""

    SHIFT = 1  # the masked mean, to sum about
    SUM = 2  # the sum of x - shift
    SQUARES = 3  # the sum of |x - shift|^2
    OUTPUT = 4  # y


class Reads:
    """An array, to be read several times by loops of their own.

    x: of any shape and dtype. The reads see it in float32 or wider.
    clean: x with 0 in place of what no derivative may touch: masked values that are not finite.
    """

    def __init__(self, x: Array, clean: Array) -> None:
        self.x, self.clean, self.dtype = x, clean, wide(x.dtype)
        # These carry the derivative by x, one for each read, and no value. They are copies of one array, so
        # that JAX adds their cotangents, in float32, before it rounds the sum to x's dtype.
        self.tangents = dict(zip(Read, copies(x, len(Read), self.dtype), strict=True))

    def __call__(
        self,
        read: Read,
        f: Callable[..., Array],
        *small: Array | None,
        at: Array | None = None,
        value: Array | None = None,
        dtype: DTypeLike | None = None,
    ) -> Array:
        """f(x, *small) in a loop of its own; the derivative by each argument is a loop of its own, too.

        Args:
          read: which.
          f: of x in float32 or wider, and of `small`.
          small: arrays that are broadcast against x, or None. They are converted to x's wide dtype.
          at: what f is evaluated at instead of `clean`; the derivative is always that at `clean`.
          value: f(clean, *small), if it is known. Then f is differentiated there, and not evaluated.
          dtype: of the result; None: as f returns it.
        """

        def arguments(number: int, x: Array, small: Sequence[Array | None]) -> list[Any]:
            return [_apart(x, number, self.dtype), *(_apart(v, number, _like(v, self.dtype)) for v in small)]

        # Before the barriers: XLA:CPU makes of a product with a converted mask a select, and writes that out.
        small = tuple(v.astype(self.x.dtype) if v is not None and v.dtype == bool else v for v in small)

        # custom_jvp, and not JAX's derivative through the barriers: it puts each derivative in a read of its
        # own, and takes it at `clean` where the value is taken at x. The derivative itself is `jax.jvp` of f.
        @jax.custom_jvp
        def evaluate(
            x: Array, clean: Array, value: Array | None, tangent: Array, *small: Array | None
        ) -> Array:
            y = f(*arguments(read, x, small)) if value is None else value
            return y if dtype is None else y.astype(dtype)

        @functools.partial(evaluate.defjvp, symbolic_zeros=True)
        def _(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
            """JAX's own derivative of f, by one argument at a time, each in a read of its own."""
            _, clean, _, _, *small = primals
            y, parts = evaluate(*primals), []
            for i, tangent in enumerate(tangents[3:]):  # by x, for which `tangent` stands, and by `small`
                if tangent is None or isinstance(tangent, SymbolicZero):
                    continue
                # Numbers that no forward read has: the sums about SHIFT are differentiated as if it were a
                # constant, so that the least is that of SUM, 2 + 3, which is one more than OUTPUT.
                at = arguments(read + 3 + i, clean, small)
                tangent = tangent.astype(at[i].dtype)

                def by_one(v: Array, at: Sequence[Any] = at, i: int = i) -> Array:
                    return f(*at[:i], v, *at[i + 1 :])

                parts.append(jax.jvp(by_one, (at[i],), (tangent,))[1])
            return y, join(parts, y.dtype)

        return evaluate(self.clean if at is None else at, self.clean, value, self.tangents[read], *small)


def _apart(v: Array | None, number: int, dtype: DTypeLike) -> Any:
    """`v` in `dtype` for the read of that number alone; None stays None."""
    return None if v is None else copies(v, 1, dtype, first=number)[0]


def _like(v: Array | None, dtype: DTypeLike) -> Any:
    """`dtype`, or its real or complex kin if v is real or complex."""
    if v is None:
        return dtype
    real = jnp.finfo(dtype).dtype
    return promoted(real, jnp.complex64) if jnp.iscomplexobj(v) else real


def copies(v: Array, n: int, dtype: DTypeLike, *, first: int = 1) -> list[Array]:
    """`n` values equal to `v.astype(dtype)`, for the reads number `first`, `first + 1`, ..."""
    return _fan.bind(v, n=n, dtype=jnp.dtype(dtype), first=int(first))


def join(vs: list[Array], dtype: DTypeLike) -> Array:
    """The sum of arrays of one shape and dtype, rounded once to `dtype`."""
    return _fan.bind(*vs, n=1, dtype=jnp.dtype(dtype), first=1)[0]


def materialize(*vs: Array | None) -> list[Any]:
    """Small arrays that will be broadcast against x, computed once. None stays None.

    Otherwise XLA:CPU's loops over x would compute them again for every element.
    """
    return [None if v is None else _written.bind(v, forward=True) for v in vs]


def materialize_cotangents(*vs: Array) -> list[Array]:
    """Sums over x, whose cotangents are broadcast against x: these are computed once."""
    return [_written.bind(v, forward=False) for v in vs]


# ---------------------------------------------------------------- how they are lowered

_fan = Primitive("jaxnorm_reads")  # m arrays -> n copies of their sum. The transpose is the same, n -> m.
_fan.multiple_results = True
_written = Primitive(
    "jaxnorm_materialize"
)  # the identity. The transpose swaps the direction that is written.


def _fan_everywhere(*vs: Array, n: int, dtype: DTypeLike, first: int) -> list[Array]:
    return [functools.reduce(lax.add, vs).astype(dtype)] * n


def _fan_on_cpu(*vs: Array, n: int, dtype: DTypeLike, first: int) -> list[Array]:
    if len(vs) > 1:  # cotangents: they are added in one loop, and are not read again
        return _fan_everywhere(*vs, n=n, dtype=dtype, first=first)
    # Barriers in a chain. XLA merges equal values, two reads' first barriers too, and then finds that the
    # reads stand behind different ones.
    (v,), out = vs, []
    for _ in range(first + n - 1):
        v = lax.optimization_barrier(v)
        out.append(v.astype(dtype))
    return out[first - 1 :]


def _written_everywhere(v: Array, *, forward: bool) -> Array:
    """A barrier: a value that several kernels of a GPU use is then one number in all of them."""
    return lax.optimization_barrier(v) if forward else v


def _written_on_cpu(v: Array, *, forward: bool) -> Array:
    """The larger of v and v: XLA:CPU does not repeat a reduction in the loops that use it.

    Not by `lax.max`: of that reduction XLA:CPU makes a library call, which takes in what v is made of.
    """
    if not forward:
        return v
    # The reduction's operand, two stacked copies, is as small as v; the loops over x read its result.
    least = jnp.full((), -jnp.inf, v.dtype)
    return lax.reduce(jnp.stack([v, v]), least, _larger, (0,))


def _larger(u: Array, v: Array) -> Array:
    return lax.select(lax.gt(lax.real(u), lax.real(v)) if u.dtype.kind == "c" else lax.gt(u, v), u, v)


def _fan_transpose(cts: Sequence[Any], *vs: Any, n: int, dtype: DTypeLike, first: int) -> list[Any]:
    cts = [ct for ct in cts if type(ct) is not ad.Zero]  # of reads that the result does not depend on
    if not cts:
        return [ad.Zero(v.aval) for v in vs]
    return _fan.bind(*cts, n=len(vs), dtype=vs[0].aval.dtype, first=first if len(vs) == 1 else 1)


def _fan_jvp(primals: Sequence[Array], tangents: Sequence[Any], **how: Any) -> Any:
    nonzero = [t for t in tangents if type(t) is not ad.Zero]  # at least one: else JAX does not ask
    return _fan.bind(*primals, **how), _fan.bind(*nonzero, **how)


def _fan_batch(args: Sequence[Array], dims: Sequence[int | None], **how: Any) -> Any:
    size = next(v.shape[d] for v, d in zip(args, dims, strict=True) if d is not None)
    front = [
        jnp.broadcast_to(v, (size, *v.shape)) if d is None else jnp.moveaxis(v, d, 0)
        for v, d in zip(args, dims, strict=True)
    ]
    return _fan.bind(*front, **how), [0] * how["n"]


def register_lowerings(*, on_cpu: bool = True) -> None:
    """Say how the primitives are lowered: on a CPU as above, or, with `on_cpu=False`, as everywhere else."""
    for primitive, everywhere, cpu, many in (
        (_fan, _fan_everywhere, _fan_on_cpu, True),
        (_written, _written_everywhere, _written_on_cpu, False),
    ):
        mlir.register_lowering(primitive, mlir.lower_fun(everywhere, multiple_results=many))
        form = cpu if on_cpu else everywhere
        mlir.register_lowering(primitive, mlir.lower_fun(form, multiple_results=many), platform="cpu")


_fan.def_impl(_fan_everywhere)
_fan.def_abstract_eval(lambda v, *_, n, dtype, first: [v.update(dtype=dtype, weak_type=False)] * n)
ad.primitive_jvps[_fan] = _fan_jvp
ad.primitive_transposes[_fan] = _fan_transpose
batching.primitive_batchers[_fan] = _fan_batch

# Forward, v is written and its cotangent is not; the other way round for `materialize_cotangents`.
_written.def_impl(lambda v, *, forward: v)
_written.def_abstract_eval(lambda v, *, forward: v)
ad.deflinear2(_written, lambda ct, v, *, forward: [_written.bind(ct, forward=not forward)])
batching.primitive_batchers[_written] = lambda args, dims, **how: (_written.bind(*args, **how), *dims)

register_lowerings()
