"""Population statistics of a whole nnx model."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
from flax import nnx

from jaxnorm._base.messages import calling, error
from jaxnorm._layers import recalibration as shared
from jaxnorm._layers import state as state
from jaxnorm.nnx.batch import MARK, Stateful
from jaxnorm.nnx.freezing import _modules
from jaxnorm.nnx.from_flax import convert
from jaxnorm.nnx.pop_art import PopArt


def recalibrate(
    model: Any,
    batches: Iterable[Any],
    *,
    sequential: bool = False,
    progress: bool = False,
    **call_kwargs: Any,
) -> None:
    """Gives the batch norms of a model the exact statistics of all batches together, in place.

    mean and var of a norm are those of everything that it is called with, as if all batches were one: each
    batch counts by its number of places, masked ones left out, and the spread between the means of the
    batches is part of the variance. For averaged weights (SWA, EMA), whose statistics nobody has measured,
    and for any model whose moving averages lag behind. Wu and Johnson, 2021, arXiv:2105.07576 ("precise
    batch norm").

    Every norm normalizes by the batch's statistics meanwhile, whatever mode it is in: those of the layers of
    `jaxnorm.nnx` that keep a mean and a variance or a covariance, and of Flax's BatchNorm. Norms behind
    others thus see what they see in training. With `sequential=True` they see what they see in evaluation: a
    norm is measured behind norms that use their final statistics. That takes as many passes over the batches
    as there are norms in a row, and one more.

    The step is compiled once for all batches of one shape. Statistics are float32 or wider. `unbiased=True`
    is PyTorch's variance over the whole count. A stored `weight` is the count if `momentum=None`, else 1.
    Nothing else of the model changes: parameters, modes, the counters of its `Rngs`, which each pass starts
    from, frozen norms, `step`, PopArt and the vectors of SpectralNorm stay. A norm that no batch reaches
    keeps its statistics, and a warning names it.

    Args:
      model: changed in place, and only at the end: after any error it is as before.
      batches: an iterable of arrays, or of tuples of the model's positional arguments.
      sequential: measure layer after layer; the batches must be iterable more than once.
      progress: show a bar, by tqdm or rich.
      call_kwargs: further arguments of the model's call.

    Raises:
      ValueError: no batch; no norm that keeps statistics; a batch that gives a statistic that is not finite
        (inside `nnx.jit` or `jax.shard_map` nothing can be raised: all then stays as it was).
      TypeError: the model is no module; a batch is a list; `sequential` with a generator.
      ImportError: `progress` without tqdm and rich.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jaxnorm import nnx as jn
    >>> norm = jn.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> jn.recalibrate(norm, [jnp.asarray([[1.0], [3.0]]), jnp.asarray([[8.0]])])
    >>> print(norm.mean[...], norm.var[...].round(3))
    [4.] [8.667]
    """
    with calling("recalibrate"):
        layers = _layers(model)
    norms = {path: _stored(layer) for path, layer in layers.items() if not hasattr(layer, MARK)}
    graph, *states = nnx.split(model, nnx.RngState, ...)
    start, rest = states
    kwargs = shared.Arguments.of(call_kwargs)
    rngs = start

    @partial(jax.jit, static_argnames="evaluate")
    def program(
        rngs: Any,
        rest: Any,
        norms: shared.Norms,
        arguments: shared.Arguments,
        kwargs: shared.Arguments,
        evaluate: bool,
    ) -> Any:
        copy: Any = nnx.merge(graph, rngs, rest)
        convert(copy)
        layers = _layers(copy)
        for path, norm in norms.items():
            _store(layers[path], shared.marked(norm, evaluate, MARK))
        copy(*arguments.tree(), **kwargs.tree())
        after = {path: _stored(layers[path]) for path in norms}
        return shared.answer(after, norms), nnx.state(copy, nnx.RngState)

    def step(norms: shared.Norms, evaluate: bool, number: int, arguments: tuple[Any, ...]) -> Any:
        nonlocal rngs
        rngs = rngs if number else start
        result, rngs = program(rngs, rest, norms, shared.Arguments.of(arguments), kwargs, evaluate)
        return result

    found = shared.recalibrated(norms, step, batches, sequential=sequential, progress=progress)
    for path, values in found.items():
        _store(layers[path], values)


def _layers(model: Any) -> dict[str, Any]:
    """The layers whose statistics can be measured, by path."""
    found = {"/".join(map(str, path)): module for path, module in _modules(model) if _measurable(module)}
    if not found:
        problem = "the model has no norm that keeps statistics"
        raise error(ValueError, problem, "pass a model with batch norms")
    return found


def _measurable(module: Any) -> bool:
    """Whether it keeps a mean and a variance, of what it is called with: PopArt's are of its targets."""
    kept = all(isinstance(getattr(module, name, None), nnx.BatchStat) for name in ("mean", "var"))
    return kept and not isinstance(module, PopArt)


def _stored(layer: Any) -> dict[str, Any]:
    """What the layer stores, by name, with the weight that its options ask for."""
    stored = {name: v.get_value() for name, v in vars(layer).items() if isinstance(v, nnx.BatchStat)}
    if isinstance(layer, Stateful) and "weight" in state.names(layer) and "weight" not in stored:
        stored["weight"] = shared.empty(stored["mean"], stored["var"]).stats[-1]
    return stored


def _store(layer: Any, values: Any) -> None:
    """Sets the layer's variables, and creates those that it lacks."""
    for name, value in values.items():
        if hasattr(layer, name):
            getattr(layer, name).set_value(value)
        else:
            setattr(layer, name, nnx.BatchStat(value))
