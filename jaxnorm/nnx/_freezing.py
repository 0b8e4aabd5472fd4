"""Which statistics of an nnx model stand still, and which of its parameters are a norm's."""

from typing import Any

from flax import nnx

from jaxnorm import _layer_parts as parts
from jaxnorm import _layers as layers
from jaxnorm.nnx._batch import BatchNorm

_NORMS = (nnx.BatchNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.LayerNorm, nnx.RMSNorm, parts.Layer)


def freeze(model: nnx.Module, filter: Any) -> None:
    """Makes the chosen batch norms evaluate and keep their statistics, in train() and in every call, too.

    Parameters are frozen by the optimizer: `norm_labels` names them.

    Args:
      model: changed in place, as by train() and eval().
      filter: `(path, module) -> bool`, or a filter of nnx: `nnx.PathContains("encoder")`, a class, `...`.

    Raises:
      ValueError: nothing is chosen.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> norm, x = jn.BatchNorm(1, momentum=0.5, rngs=nnx.Rngs(0)), jnp.asarray([[1.0], [3.0]])
    >>> y = norm(x)
    >>> jn.freeze(norm, ...)
    >>> norm.train()
    >>> y = norm(x)
    >>> norm.mean[...].tolist()
    [1.0]
    """
    _mark("freeze", model, filter, True)


def unfreeze(model: nnx.Module, filter: Any) -> None:
    """Undoes `freeze` for the batch norms that `filter` chooses.

    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> norm = jn.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> jn.freeze(norm, ...)
    >>> jn.unfreeze(norm, ...)
    >>> norm.frozen
    False
    """
    _mark("unfreeze", model, filter, False)


def norm_labels(model: Any, *, filter: Any = ..., norm: Any = "norm", other: Any = "other") -> Any:
    """A state like `nnx.state(model, nnx.Param)` that tells norms from all other parameters, for optax.

    A norm's parameters are the scale and the bias of Flax's norms and of their subclasses, and the scales of
    WeightNorm. Labels are for `optax.multi_transform`, and with `norm=False, other=True` they are a mask:
    `optax.adamw(rate, mask=norm_labels(model, norm=False, other=True))` decays no norm.

    Args:
      model: a module.
      filter: which norms, as in `freeze`; the others' parameters are labelled `other`.
      norm, other: the labels.

    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Dict(dense=nnx.Linear(1, 1, rngs=rngs), norm=jn.RMSNorm(1, rngs=rngs))
    >>> nnx.to_pure_dict(jn.norm_labels(model))
    {'dense': {'bias': 'other', 'kernel': 'other'}, 'norm': {'scale': 'norm'}}
    """
    chosen = nnx.filterlib.to_predicate(filter)
    own: set[int] = set()
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.WeightNorm) and chosen(path, module):
            own.update(map(id, (module.scales or {}).values()))
        elif isinstance(module, _NORMS) and chosen(path, module):
            own.update(id(v) for v in vars(module).values() if isinstance(v, nnx.Param))

    return nnx.map_state(lambda _, v: norm if id(v) in own else other, nnx.state(model, nnx.Param))


def _mark(function: str, model: nnx.Module, filter: Any, frozen: bool) -> None:
    chosen = nnx.filterlib.to_predicate(filter)
    norms = [(path, module) for path, module in nnx.iter_modules(model) if isinstance(module, BatchNorm)]
    changed = [module for path, module in norms if chosen(path, module)]
    if not changed:
        raise ValueError(layers.nothing_chosen(function, filter, ["/".join(map(str, p)) for p, _ in norms]))
    for module in changed:
        module.frozen = frozen
