"""Forms: one program for all backends, and forms of its parts for some, chosen while lowering.

What is not lowered is not traced, so that a program costs nothing for the backends that it does not run on.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxnorm._arithmetic import Maybe

# For the tests alone, that they may run the other backends' forms on a CPU.
CPU_AS = "cpu"


def lowered(primitive: Primitive, *, default: Callable[..., Any], **forms: Callable[..., Any]) -> None:
    """A primitive is one of `forms` on the platform of that name; `default` elsewhere, or if not lowered."""

    def on_cpu(*args: Any, **options: Any) -> Any:
        return forms.get(CPU_AS, default)(*args, **options)

    many = primitive.multiple_results
    primitive.def_impl(default)
    mlir.register_lowering(primitive, mlir.lower_fun(default, multiple_results=many))
    for platform, form in (forms | {"cpu": on_cpu}).items():
        mlir.register_lowering(primitive, mlir.lower_fun(form, multiple_results=many), platform=platform)


_chosen = Primitive("jaxnorm_chosen")
_chosen.multiple_results = True


class Forms(NamedTuple):
    """Ways to the same `results(over, *args)`, of which only the one that is lowered is traced."""

    cpu: Callable[..., Any]
    gpu: Callable[..., Any]
    tpu: Callable[..., Any]
    default: Callable[..., Any]
    tangent: Callable[..., Any]  # (over, args, results, dargs) -> dresults; None is an absent one


def chosen(forms: Forms, over: Any, dtypes: tuple[Any, ...], *args: Maybe) -> list[Array]:
    """The results of the form for the platform that the program is lowered for.

    They have the shape of the first argument; the second is an array that spans all. All have as many axes,
    and `over.behind()` says the same behind one more, where all of these two shapes are as many.
    """
    given = [v for v in args if v is not None]
    absent = tuple(v is None for v in args)
    return _chosen.bind(*given, forms=forms, over=over, dtypes=dtypes, absent=absent)


def _form(platform: str) -> Callable[..., Any]:
    def results(*given: Array, forms: Any, over: Any, dtypes: Any, absent: Any) -> list[Array]:
        return list(getattr(forms, platform)(over, *_all(given, absent)))

    return results


def _all(given: Sequence[Any], absent: Sequence[bool]) -> list[Maybe]:
    arrays = iter(given)
    return [None if a else next(arrays) for a in absent]


def _jvp(primals: Any, tangents: Any, **kw: Any) -> Any:
    results, absent = _chosen.bind(*primals, **kw), kw["absent"]
    tangents = [None if type(t) is ad.Zero else t for t in tangents]
    found = kw["forms"].tangent(kw["over"], _all(primals, absent), results, _all(tangents, absent))
    return results, [
        ad.Zero(jax.typeof(r).to_tangent_aval()) if t is None else t
        for r, t in zip(results, found, strict=True)
    ]


def _batch(args: Any, dims: Any, *, over: Any, **kw: Any) -> Any:
    size = next(v.shape[d] for v, d in zip(args, dims, strict=True) if d is not None)
    front = [v[None] if d is None else jnp.moveaxis(v, d, 0) for v, d in zip(args, dims, strict=True)]
    full = [v.shape[1:] for v in front[:2]]
    front = [jnp.broadcast_to(v, (size, *v.shape[1:])) if v.shape[1:] in full else v for v in front]
    out = _chosen.bind(*front, over=over.behind(), **kw)
    return out, [0] * len(out)


_chosen.def_abstract_eval(
    lambda v, *_, dtypes, **__: [v.update(dtype=jnp.dtype(d), weak_type=False) for d in dtypes]
)
ad.primitive_jvps[_chosen] = _jvp
batching.primitive_batchers[_chosen] = _batch
_gpu = _form("gpu")
lowered(_chosen, cpu=_form("cpu"), cuda=_gpu, rocm=_gpu, tpu=_form("tpu"), default=_form("default"))
