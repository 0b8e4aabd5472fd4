"""Flax's norms in a built nnx model become ours."""

from itertools import chain
from typing import Any

from flax import nnx
from flax.errors import TraceContextError

from jaxnorm._base.messages import error, public
from jaxnorm._layers import from_flax as shared
from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.freezing import _modules
from jaxnorm.nnx.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from jaxnorm.nnx.weights import SpectralNorm, WeightNorm

_NORMS: dict[Any, Any] = {
    nnx.BatchNorm: BatchNorm,
    nnx.LayerNorm: LayerNorm,
    nnx.RMSNorm: RMSNorm,
    nnx.GroupNorm: GroupNorm,
    nnx.InstanceNorm: InstanceNorm,
    nnx.WeightNorm: WeightNorm,
    nnx.SpectralNorm: SpectralNorm,
}

_TRACED = "convert: the model was made outside of the function that is traced; convert it there."


@public
def convert(model: Any) -> shared.Swapped:
    """Makes every norm of Flax in a model, and the model itself if it is one, a norm of jaxnorm, in place.

    The layers stay the objects that they are and change their class, as if the model had been built with
    jaxnorm's: every reference to a layer holds, shared layers stay shared, options, modes and subclasses are
    kept. So are the Variables, their metadata and their shardings: optimizers and checkpoints of before go
    on. WeightNorm's scales stay arrays that no optimizer trains, as Flax made them. A second call changes
    nothing. Abstract models (`nnx.eval_shape`), and models that a function creates inside `nnx.jit`, are
    converted likewise.

    Args:
      model: a module, or a list or dict of modules.

    Returns:
      A list of what was swapped, `(path, class name)` each. Its attribute `left` lists the norms that were
      not, `(path, class name, reason)` each: those of Flax whose subclass overrides the call, or has an
      attribute that jaxnorm's class needs, and classes called `...Norm` that are not Flax's.

    Raises:
      TypeError: the model is no module.
      ValueError: the model is an argument of a function inside `nnx.jit` or another transformation.
      After any error the model is unchanged.

    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs))
    >>> jn.convert(model)
    [('layers/1', 'BatchNorm')]
    >>> isinstance(model.layers[1], jn.BatchNorm)
    True
    """
    swapped, chosen = shared.Swapped(), []
    for path, module in _modules(model):
        cls, reason = shared.choose(module, _NORMS)
        if cls or reason:
            swapped.add(path, type(module).__name__, reason)
        if cls:
            chosen.append((module, cls, shared.missing(module, cls)))
    if any(_is_argument(module) for module, *_ in chosen):
        problem = (
            "the model is an argument of nnx.jit or of another transformation of Flax, which refuses "
            "arguments that change their class"
        )
        raise error(ValueError, problem, "convert it before the call")
    before = [(module, type(module), dict(vars(module))) for module, *_ in chosen]
    try:
        for module, cls, fields in chosen:
            object.__setattr__(module, "__class__", cls)
            for name, value in fields.items():
                setattr(module, name, value)
    except Exception as raised:
        if isinstance(raised, TraceContextError):
            raised.add_note(_TRACED)
        for module, cls, attributes in before:
            object.__setattr__(module, "__class__", cls)
            vars(module).clear()
            vars(module).update(attributes)
        raise
    return swapped


def _is_argument(module: nnx.Module) -> bool:
    """Whether Flax will write this module back to one outside, when the function that is traced returns.

    Flax would refuse another class only after it has emptied the model outside.
    """
    contexts = chain.from_iterable(nnx.graph.GRAPH_CONTEXT.update_context_stacks.values())
    return any(module in (context.inner_ref_outer_index or ()) for context in contexts)
