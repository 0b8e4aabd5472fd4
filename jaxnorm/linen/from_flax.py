"""Flax's norms in a linen model run as ours."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from flax import linen as nn
from flax.linen.module import InterceptorContext, run_interceptors

from jaxnorm._layers import from_flax as shared
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from jaxnorm.linen.weights import SpectralNorm, WeightNorm

_NORMS: dict[Any, Any] = {
    nn.BatchNorm: BatchNorm,
    nn.LayerNorm: LayerNorm,
    nn.RMSNorm: RMSNorm,
    nn.GroupNorm: GroupNorm,
    nn.InstanceNorm: InstanceNorm,
    nn.WeightNorm: WeightNorm,
    nn.SpectralNorm: SpectralNorm,
}

# Part of the key of what JAX has traced: no program of outside runs inside, nor one of inside outside.
_in_place = jax.make_user_context(default_value=False)


@contextmanager
def in_place_of_flax() -> Iterator[shared.Swapped]:
    """Inside, every norm of Flax that a linen model calls runs as a norm of jaxnorm.

    The model is not edited: it may be a library's. Its variables, and the names of its layers, are those that
    it has without; `init` works, too. Subclasses of Flax's norms are included. Functions compiled before are
    compiled anew inside, and what was compiled inside is not used outside. It holds in the thread that
    enters it.

    Returns:
      For `with ... as swapped`, a list of what was swapped, `(path, class name)` each. Its attribute `left`
      lists the norms that were not, `(path, class name, reason)` each: those of Flax whose subclass overrides
      the call, or has an attribute that jaxnorm's class needs, and classes called `...Norm` that are not
      Flax's. Both grow as layers are called. A compiled program calls them where it is traced, once.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from jaxnorm import linen as jn
    >>> model, x = nn.Sequential([nn.Dense(2), nn.LayerNorm()]), jnp.ones((1, 2))
    >>> variables = model.init(jax.random.key(0), x)
    >>> with jn.in_place_of_flax() as swapped:
    ...     y = model.apply(variables, x)
    >>> swapped, swapped.left
    ([('layers_1', 'LayerNorm')], [])
    """
    swapped = shared.Swapped()

    def run(next_call: Callable[..., Any], args: Any, kwargs: Any, context: InterceptorContext) -> Any:
        module: Any = context.module
        if context.method_name != "__call__":
            return next_call(*args, **kwargs)
        flax_s = type(module)
        cls, reason = shared.choose(module, _NORMS)
        if cls or reason:
            swapped.add(() if module.scope is None else module.path, flax_s.__name__, reason)
        if not cls:
            return next_call(*args, **kwargs)
        call = inspect.unwrap(cls.__call__)  # Flax has entered the layer's call
        object.__setattr__(module, "__class__", cls)
        try:
            if next_call is context.orig_method:
                return call(module, *args, **kwargs)
            # Interceptors inside this one, as of a nested context, see the norm as ours.
            return run_interceptors(call, module, *args, **kwargs)
        finally:
            object.__setattr__(module, "__class__", flax_s)

    with _in_place(True), nn.intercept_methods(run):
        yield swapped
