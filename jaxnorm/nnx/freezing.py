"""Which statistics of an nnx model stand still, and which of its parameters are a norm's."""

from typing import Any

from flax import nnx

from jaxnorm._base.messages import error, public
from jaxnorm._layers import state as state
from jaxnorm.nnx.batch import MARK, Stateful
from jaxnorm.nnx.parameters import Layer
from jaxnorm.nnx.pop_art import PopArt

_NORMS = (nnx.BatchNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.LayerNorm, nnx.RMSNorm, Layer)
_OURS = (Stateful, PopArt)


@public
def freeze(model: nnx.Module, filter: Any) -> None:
    """Makes the chosen batch norms evaluate and keep their statistics, in train() and in every call, too.

    The mark is a variable, an `nnx.BatchStat`, so that it is part of the model's state: `nnx.update` of
    another model by that state freezes it, too. PopArt's `update` then changes nothing. Parameters are frozen
    by the optimizer: `norm_labels` names them.

    Args:
      model: changed in place, as by train() and eval().
      filter: `(path, module) -> bool`, or a filter of nnx: `nnx.PathContains("encoder")`, a class, `...`.

    Raises:
      ValueError: nothing is chosen, or a batch norm of Flax's own, which cannot be frozen.
      TypeError: the model is no module.

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
    chosen = _chosen(model, filter)
    theirs = [path or "the model itself" for path, m in chosen.items() if not isinstance(m, _OURS)]
    if theirs:
        raise ValueError(
            f"freeze: filter={filter!r} chooses batch norms of Flax's own, which do not stand still: "
            f"{', '.join(theirs)}; make them those of jaxnorm.nnx, or choose others."
        )
    for module in chosen.values():
        setattr(module, MARK, nnx.BatchStat(state.mark(module.var[...])))


@public
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
    for module in _chosen(model, filter).values():
        if isinstance(module, _OURS) and module.frozen:
            delattr(module, MARK)


@public
def norm_labels(model: Any, *, filter: Any = ..., norm: Any = "norm", other: Any = "other") -> Any:
    """A state like `nnx.state(model, nnx.Param)` that tells norms from all other parameters, for optax.

    A norm's parameters are the scale and the bias of Flax's norms and of their subclasses, and the scales of
    WeightNorm. Labels are for `optax.multi_transform`, and with `norm=False, other=True` they are a mask:
    `optax.adamw(rate, mask=norm_labels(model, norm=False, other=True))` decays no norm.

    Args:
      model: a module.
      filter: which norms, as in `freeze`; the others' parameters are labelled `other`.
      norm, other: the labels.

    Raises:
      TypeError: the model is no module; a state does not tell which parameters are a norm's.

    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Dict(dense=nnx.Linear(1, 1, rngs=rngs), norm=jn.RMSNorm(1, rngs=rngs))
    >>> nnx.to_pure_dict(jn.norm_labels(model))
    {'dense': {'bias': 'other', 'kernel': 'other'}, 'norm': {'scale': 'norm'}}
    """
    chosen = nnx.filterlib.to_predicate(filter)
    own: set[int] = set()
    for path, module in _modules(model):
        if isinstance(module, nnx.WeightNorm) and chosen(path, module):
            own.update(map(id, (module.scales or {}).values()))
        elif isinstance(module, _NORMS) and chosen(path, module):
            own.update(id(v) for v in vars(module).values() if isinstance(v, nnx.Param))

    return nnx.map_state(lambda _, v: norm if id(v) in own else other, nnx.state(model, nnx.Param))


def _modules(model: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """The modules of a model, with their paths."""
    modules = list(nnx.iter_modules(model))
    if not modules:
        problem = f"model must be an nnx.Module, got {type(model).__name__}"
        raise error(TypeError, problem, "pass the model itself, not its state or its parameters")
    return modules


def _chosen(model: Any, filter: Any) -> dict[str, Any]:
    """The layers with statistics that `filter` chooses, by path, Flax's own batch norms among them."""
    predicate = nnx.filterlib.to_predicate(filter)
    norms = [(path, m) for path, m in _modules(model) if isinstance(m, (nnx.BatchNorm, *_OURS))]
    kept = [(path, m) for path, m in norms if hasattr(m, "var")]  # others keep no statistics
    chosen = {_name(path): m for path, m in kept if predicate(path, m)}
    if not chosen:
        raise state.nothing_chosen(filter, [_name(path) for path, _ in kept])
    return chosen


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))
