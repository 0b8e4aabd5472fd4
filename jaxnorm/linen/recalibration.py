"""Population statistics of a whole linen model."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
from flax.core import FrozenDict, meta
from flax.core.scope import union_filters

from jaxnorm._base.messages import calling, error
from jaxnorm._layers import recalibration as shared
from jaxnorm.linen.freezing import check_dict, inside, over_norms
from jaxnorm.linen.from_flax import in_place_of_flax

_STATS = "batch_stats"


def recalibrate(
    model: Any,
    variables: Any,
    batches: Iterable[Any],
    *,
    sequential: bool = False,
    progress: bool = False,
    **apply_kwargs: Any,
) -> Any:
    """Variables whose batch norms have the exact statistics of all batches together.

    mean and var of a norm are those of everything that it is called with, as if all batches were one: each
    batch counts by its number of places, masked ones left out, and the spread between the means of the
    batches is part of the variance. For averaged weights (SWA, EMA), whose statistics nobody has measured,
    and for any model whose moving averages lag behind. Wu and Johnson, 2021, arXiv:2105.07576 ("precise
    batch norm").

    Every norm normalizes by the batch's statistics meanwhile, whatever mode the model chooses: those of the
    layers of `jaxnorm.linen` that keep a mean and a variance or a covariance, and of Flax's BatchNorm. Norms
    behind others thus see what they see in training. With `sequential=True` they see what they see in
    evaluation: a norm is measured behind norms that use their final statistics. That takes as many passes
    over the batches as there are norms in a row, and one more.

    The step is compiled once for all batches of one shape. Statistics are float32 or wider. `unbiased=True`
    is PyTorch's variance over the whole count. A stored `weight` is the count if `momentum=None`, else 1.
    Parameters, other collections, frozen norms, `step`, PopArt and the vectors of SpectralNorm stay. A norm
    that no batch reaches keeps its statistics, and a warning names it.

    Args:
      model: a module, or anything with its `apply`.
      variables: as `init` returned them, or a checkpoint of Flax, without a `weight`.
      batches: an iterable of arrays, or of tuples of the model's positional arguments.
      sequential: measure layer after layer; the batches must be iterable more than once.
      progress: show a bar, by tqdm or rich.
      apply_kwargs: further arguments of `model.apply`, such as `train=False`, `method` or `rngs`, which are
        folded with the number of the batch from the second batch on.

    Returns:
      New variables of the same structure; the given ones are unchanged, also after any error. Inside
      `jax.jit` or `jax.shard_map` nothing can be raised: there statistics that are not finite leave all as
      it was.

    Raises:
      ValueError: no batch; no norm that keeps statistics; a batch that gives a statistic that is not finite.
      TypeError: variables is no dict; a batch is a list; `sequential` with a generator.
      ImportError: `progress` without tqdm and rich.

    >>> import jax, jax.numpy as jnp
    >>> from jaxnorm import linen as jn
    >>> batches = [jnp.asarray([[1.0], [3.0]]), jnp.asarray([[8.0]])]
    >>> norm = jn.BatchNorm(use_running_average=True)
    >>> variables = norm.init(jax.random.key(0), batches[0])
    >>> variables = jn.recalibrate(norm, variables, batches)
    >>> print(variables["batch_stats"]["mean"], variables["batch_stats"]["var"].round(3))
    [4.] [8.667]
    """
    with calling("recalibrate"):
        check_dict("variables", variables, "the variables that init returned")
        norms = _norms(variables)
    mutable = union_filters(apply_kwargs.pop("mutable", False), _STATS)
    rngs = apply_kwargs.pop("rngs", None)
    kwargs = shared.Arguments.of(apply_kwargs)

    @partial(jax.jit, static_argnames="evaluate")
    def program(
        variables: Any,
        norms: shared.Norms,
        arguments: shared.Arguments,
        kwargs: shared.Arguments,
        rngs: Any,
        evaluate: bool,
    ) -> Any:
        marked = {path: shared.marked(norm, evaluate, "frozen") for path, norm in norms.items()}
        stats = _with(variables[_STATS], marked)
        with in_place_of_flax():
            _, after = model.apply(
                {**variables, _STATS: stats}, *arguments.tree(), mutable=mutable, rngs=rngs, **kwargs.tree()
            )
        return shared.answer(_unboxed(after[_STATS]), norms)

    def step(norms: shared.Norms, evaluate: bool, number: int, arguments: tuple[Any, ...]) -> Any:
        keys = jax.tree.map(lambda key: jax.random.fold_in(key, number), rngs) if number else rngs
        return program(variables, norms, shared.Arguments.of(arguments), kwargs, keys, evaluate)

    found = shared.recalibrated(norms, step, batches, sequential=sequential, progress=progress)
    whole = {**variables, _STATS: _with(variables[_STATS], found)}
    return FrozenDict(whole) if isinstance(variables, FrozenDict) else whole


def _norms(variables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The statistics of each norm that is not frozen, by path; not PopArt's, which has a kernel, too."""
    stats = _unboxed(variables.get(_STATS, {}))
    if not stats:
        problem = "the model has no norm that keeps statistics in batch_stats"
        raise error(ValueError, problem, "pass all variables that init returned, or a model with batch norms")

    def is_pop_art(path: str, norm: Mapping[str, Any]) -> bool:
        parameters = variables.get("params", {})
        for name in path.split("/") if path else ():
            parameters = inside(parameters, name)
        return "kernel" in parameters and "weight" in norm

    return {path: v for path, v in stats.items() if "frozen" not in v and not is_pop_art(path, v)}


def _unboxed(stats: Any) -> dict[str, dict[str, Any]]:
    """The statistics of each norm, by path and name."""
    found: dict[str, dict[str, Any]] = {}

    def note(path: tuple[str, ...], node: Any) -> Any:
        found["/".join(path)] = {name: meta.unbox(v) for name, v in node.items()}
        return node

    over_norms(stats, note)
    return found


def _with(stats: Any, values: Mapping[str, Mapping[str, Any]]) -> Any:
    """A collection with other values of some norms, in the boxes of before."""

    def changed(path: tuple[str, ...], node: Any) -> Any:
        new = values.get("/".join(path))
        if new is None:
            return node
        return {name: meta.replace_boxed(node[name], v) if name in node else v for name, v in new.items()}

    return over_norms(stats, changed)
