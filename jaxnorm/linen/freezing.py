"""Which statistics of a linen model stand still, and which of its parameters are a norm's."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from flax.core import FrozenDict

from jaxnorm._base.messages import error, public
from jaxnorm._layers import state as state
from jaxnorm.linen.frozen import FrozenStats

Path = tuple[str, ...]


# The parameters of norms, by which they are known: linen's variables do not name their modules' classes.
_OWN = {
    *("scale", "bias", "alpha", "shift", "slope", "threshold", "learned_epsilon"),
    *("mean_logits", "var_logits", "query_scale", "key_scale"),
}


@public
def freeze(variables: Any, filter: Any) -> Any:
    """Variables whose chosen batch norms evaluate and keep their statistics, in every mode.

    Beside the statistics it writes their mark, `frozen`, which travels with them through training steps and
    checkpoints; a checkpoint loads into variables that are frozen likewise, and others refuse it. A frozen
    norm's statistics read like a dict and ignore what is written: `unfreeze` them first. Flax's own BatchNorm
    keeps its statistics, too, but training goes on to normalize by the batch's. PopArt's `update` then
    changes nothing. Parameters are frozen by the optimizer: `norm_labels` names them.

    Args:
      variables: as `init` returned them.
      filter: `(path, statistics) -> bool`, or a filter of `flax.nnx`: `nnx.PathContains("encoder")`, `...`.

    Raises:
      ValueError: nothing is chosen.
      TypeError: variables is no dict.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> norm, x = jn.BatchNorm(use_running_average=False, momentum=0.5), jnp.asarray([[1.0], [3.0]])
    >>> variables = norm.init(jax.random.key(0), x)
    >>> _, variables = norm.apply(variables, x, mutable=True)
    >>> _, variables = norm.apply(jn.freeze(variables, ...), x, mutable=True)
    >>> variables["batch_stats"]["mean"].tolist()
    [1.0]
    """
    return _marked(
        variables,
        filter,
        lambda stats: FrozenStats({**stats, "frozen": state.mark(stats["var"])}),
    )


@public
def unfreeze(variables: Any, filter: Any) -> Any:
    """Undoes `freeze` for the batch norms that `filter` chooses.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> variables = jn.BatchNorm(use_running_average=False).init(jax.random.key(0), jnp.ones((2, 1)))
    >>> jn.unfreeze(jn.freeze(variables, ...), ...) == variables
    True
    """
    return _marked(variables, filter, lambda stats: {k: v for k, v in stats.items() if k != "frozen"})


@public
def norm_labels(params: Any, *, filter: Any = ..., norm: Any = "norm", other: Any = "other") -> Any:
    """A tree like params that tells the scales and biases of norms from all other parameters, for optax.

    Parameters are known by their names. A norm's are its scale, or what else a norm of `jaxnorm.linen`
    learns (`slope`, `alpha`, `threshold`, `query_scale`, ...), and the bias beside them, in a module that has
    nothing else. A module whose only parameter is a bias is a norm if it has statistics, `mean` and `var`:
    pass whole variables, in place of the parameters, for norms without a scale. Otherwise such a bias is
    labelled `other`, and so is that of a layer norm without a scale.

    Labels are for `optax.multi_transform`, and with `norm=False, other=True` they are a mask:
    `optax.adamw(rate, mask=partial(norm_labels, norm=False, other=True))` decays no norm.

    Args:
      params: the parameters, or variables, `{"params": ..., "batch_stats": ...}`.
      filter: which norms, as in `freeze`; the others' parameters are labelled `other`.
      norm, other: the labels.

    Raises:
      TypeError: params is no dict.

    >>> from jaxnorm import linen as jn
    >>> jn.norm_labels({"dense": {"kernel": 1.0, "bias": 1.0}, "norm": {"scale": 1.0, "bias": 1.0}})
    {'dense': {'kernel': 'other', 'bias': 'other'}, 'norm': {'scale': 'norm', 'bias': 'norm'}}
    """
    check_dict("params", params, "the parameters, or the variables, that init returned")
    chosen = nnx.filterlib.to_predicate(filter)

    def labelled(path: Path, node: Any, stats: Any) -> Any:
        own = {name.rpartition("/")[2] for name, v in node.items() if not isinstance(v, Mapping)}
        known = any(name != "bias" for name in own) or {"mean", "var"} <= stats.keys()
        label = norm if known and own <= _OWN and chosen(path, node) else other
        return {
            name: labelled((*path, name), v, inside(stats, name))
            if isinstance(v, Mapping)
            else jax.tree.map(lambda _: label, v)
            for name, v in node.items()
        }

    if not isinstance(params.get("params"), Mapping):
        return type(params)(labelled((), params, {}))
    labels = {name: jax.tree.map(lambda _: other, v) for name, v in params.items()}
    return type(params)({**labels, "params": labelled((), params["params"], inside(params, "batch_stats"))})


def inside(node: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The dict of that name, empty where there is none."""
    found = node.get(name)
    return found if isinstance(found, Mapping) else {}


def over_norms(stats: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """A collection of statistics with `change(path, statistics)` in place of those of each norm.

    Args:
      stats: the collection, or what is inside of it at `path`.
      change: takes the path and the dict of a mean, a var and what else a norm stores.
      path: of stats.
    """
    if not isinstance(stats, Mapping):
        return stats
    if {"mean", "var"} <= stats.keys() and not any(isinstance(v, Mapping) for v in stats.values()):
        return change(path, stats)
    return {name: over_norms(v, change, (*path, name)) for name, v in stats.items()}


def check_dict(name: str, value: Any, remedy: str) -> None:
    """A TypeError if the value of that name is no dict, with what to pass."""
    if not isinstance(value, Mapping) or isinstance(value, nnx.State):
        raise error(TypeError, f"{name} must be a dict, got {type(value).__name__}", f"pass {remedy}")


def _marked(variables: Any, filter: Any, change: Callable[[Any], Any]) -> Any:
    check_dict("variables", variables, "the variables that init returned")
    chosen, found, changed = nnx.filterlib.to_predicate(filter), [], []

    def marked(path: Path, node: Any) -> Any:
        found.append("/".join(path))
        if not chosen(path, node):
            return node
        changed.append(path)
        return change(node)

    stats = over_norms(variables.get("batch_stats", {}), marked)
    if not changed:
        raise state.nothing_chosen(filter, found)
    whole = {**variables, "batch_stats": stats}
    return FrozenDict(whole) if isinstance(variables, FrozenDict) else whole
