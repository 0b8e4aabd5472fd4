"""Population statistics of a whole model: what `linen.recalibrate` and `nnx.recalibrate` share.

Beside the statistics of each norm stands a variable, `SAMPLE`: the moments of what the norm was called with.
A norm that finds it normalizes by the batch, whatever its mode, or by the stored statistics if it is frozen,
merges the moments of the batch into it and stores nothing else. As the mode is a variable, it is part of what
JAX traces: it reaches layers inside of scan, vmap, remat and jit, and no compiled program is mistaken for
another. Every batch starts with an empty sample; those of the batches are merged in pairs.
"""

import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import choose
from jaxnorm._base.messages import calling, error
from jaxnorm._core.moments import Moments
from jaxnorm._core.moments import merge as merge_moments
from jaxnorm._layers import calls as layers
from jaxnorm._layers import state as state
from jaxnorm._layers import update as update
from jaxnorm._norms.batch import sample_variance
from jaxnorm._norms.whitening import Covariance, merge_covariances
from jaxnorm.population.merging import merge_batches

E = TypeVar("E", bound=Exception)

SAMPLE = state.SAMPLE


class Sample(NamedTuple):
    """What the calls of a norm showed, and what its options make of it."""

    stats: Any  # Moments, or a Covariance: merged
    places: Array  # [*weight] how many places were counted, of a norm that is `unbiased`; else 0
    cumulative: Array  # [*weight] bool: whether the weight to store is the count
    linear: Array  # [*weight] bool: whether var is a mean, too, as instance norm's is


# Of each norm, by its path: the stored variables by name, and in a step's answer the SAMPLE.
Norms: TypeAlias = Mapping[str, Mapping[str, Any]]
# (norms, evaluate, number of the batch, arguments) -> what the norms' calls showed, and which were finite.
Step: TypeAlias = Callable[[Norms, bool, int, tuple[Any, ...]], tuple[Norms, dict[str, Array]]]


# ---------------------------------------------------------------- in a call of a norm


def empty(mean: Array, var: Array) -> Sample:
    """The sample of a norm before the first call.

    Args:
      mean, var: as they are stored.
    """
    mean, var = jnp.zeros_like(layers.widen(mean)), jnp.zeros_like(layers.widen(var))
    if var.ndim > mean.ndim:
        weight = var[..., 0, 0]
        stats: Any = Covariance(mean, var, weight)
    else:
        weight = var
        stats = Moments(mean, var, weight)
    no = jnp.zeros_like(weight, bool)
    return Sample(stats, weight, no, no)


def marked(norm: Mapping[str, Any], evaluate: bool, frozen: str) -> dict[str, Any]:
    """The variables of a norm that is to be measured.

    Args:
      norm: those that are stored, by name.
      evaluate: whether it normalizes by them, as a frozen norm does, and not by the batch.
      frozen: the name of a frozen norm's mark.
    """
    mark = {frozen: state.mark(norm["var"])} if evaluate else {}
    return {**norm, **mark, SAMPLE: empty(norm["mean"], norm["var"])}


def measure(
    layer: Any,
    x: Array,
    parameters: dict[str, Array],
    stored: dict[str, Any],
    *,
    train: bool,
    updated: bool = False,
    **call: Any,
) -> tuple[Array, dict[str, Any]]:
    """y, and the variables after the call: the sample with x in it, and a stored weight as it was.

    Args:
      layer, x, parameters, stored, call: as for `update.normalize_and_update`; stored holds the SAMPLE, too.
      train: whether y is by the batch's statistics, and not by the stored ones.
      updated: whether the average is: it is not.
    """

    def norm(stats: Any, train: bool) -> tuple[Array, Any]:
        options = {"decay": None, "feature_axis": layers.feature_axes(layer), **each, **call}
        return layers.normalize(layer, x, parameters, stats, train=train, **options)

    sample: Sample = stored[SAMPLE]
    linear = layer.averages_instances
    each = {"unbiased": True} if layer.unbiased and linear else {}
    stats = state.moments(layer, x, stored, False)
    unseen = stats._replace(weight=jnp.zeros_like(stats.weight))
    y, new = norm(unseen if train else stats, train)
    if not train:
        _, new = norm(unseen, True)  # in a compiled program its y costs nothing
    # What is not finite has no weight in the norm's statistics. The places are counted without reading x.
    where = layers.where(call.get("mask"), call.get("weights"))
    initializing = call.get("initializing", False)
    positive = None if where is None else jnp.asarray(where).astype(bool)
    places = update.moments_of_batch(layer, x, stats, positive, initializing=initializing).weight
    places = choose(update.at_index(call.get("index"), places), places, 0)

    before = sample.stats
    mean, var, weight = (v.reshape(b.shape).astype(b.dtype) for v, b in zip(new, before, strict=True))
    count = places.reshape(weight.shape).astype(weight.dtype)
    left_out = (count > 0) & (weight == 0)
    new = type(before)(mean, choose(_beside(left_out, var), jnp.nan, var), choose(left_out, count, weight))
    counted = count if layer.unbiased and not linear else jnp.zeros_like(count)
    kinds = (jnp.full_like(sample.linear, kind) for kind in (layer.momentum is None, linear))
    after: dict[str, Any] = {SAMPLE: merge(sample, Sample(new, counted, *kinds))}
    return y, {**after, "weight": stored["weight"]} if "weight" in stored else after


def _beside(v: Array, var: Array) -> Array:
    """One value for each weight, with as many axes as var."""
    return v.reshape(v.shape + (1,) * (var.ndim - v.ndim))


def merge(a: Sample, b: Sample) -> Sample:
    """Both samples as one."""
    linear = a.linear | b.linear
    if isinstance(a.stats, Covariance):
        stats: Any = merge_covariances(a.stats, b.stats)
    else:
        stats = merge_moments(a.stats, b.stats)
        of_var = merge_moments(*(m._replace(mean=m.var.astype(m.mean.dtype)) for m in (a.stats, b.stats)))
        stats = stats._replace(var=choose(linear, of_var.mean.real, stats.var))
    return Sample(stats, a.places + b.places, a.cumulative | b.cumulative, linear)


# ---------------------------------------------------------------- over all batches


def answer(after: Norms, norms: Norms) -> tuple[Norms, dict[str, Array]]:
    """What a step returns: the sample of each norm, with its weight, and whether the sample is finite.

    Args:
      after: the variables after the call, by path and name.
      norms: those that are measured.
    """
    kept = {path: {n: v for n, v in after[path].items() if n in (SAMPLE, "weight")} for path in norms}
    return kept, {path: _is_finite(norm[SAMPLE]) for path, norm in kept.items()}


def _is_finite(sample: Sample) -> Array:
    """Whether the statistics of a sample are finite: a bool scalar."""
    return jnp.isfinite(sample.stats[0]).all() & jnp.isfinite(sample.stats[1]).all()


def recalibrated(
    norms: Norms, step: Step, batches: Iterable[Any], *, sequential: bool, progress: bool
) -> dict[str, dict[str, Any]]:
    """The variables of each norm, by path and name, with the statistics of all batches.

    Args:
      norms: the stored variables of those that may change.
      step: runs the model on a batch.
      batches: arrays, or tuples of the model's arguments.
      sequential: whether a norm is measured behind norms that evaluate by their final statistics.
      progress: whether a bar shows the batches.
    """
    if sequential and iter(batches) is batches:
        problem = f"sequential=True reads batches several times, and {_kind(batches)} can be read once"
        raise _error(TypeError, problem, "pass a list, or an object whose __iter__ starts from the beginning")
    found = _one_pass(norms, step, batches, False, progress)
    if sequential:
        # A norm's statistics are final one pass after those of the norms before it, wherever they are in the
        # model. So there are as many passes as norms in a row; one more finds that nothing changes.
        for _ in range(sum(_rows(**found[path]) for path in found) - 1):
            before, found = found, _one_pass(found, step, batches, True, progress)
            if _same(before, found):
                break
    return found


def _kind(batches: Iterable[Any]) -> str:
    name = type(batches).__name__
    return "a generator" if name == "generator" else f"an iterator ({name})"


def _rows(mean: Array, **_: Any) -> int:
    """How many norms this may be: a scanned one has as many rows as layers."""
    return int(np.prod(mean.shape[:-1]))


def _same(a: Norms, b: Norms) -> bool:
    """Whether all is equal, bitwise; False if it is traced."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(not check.traced(u) and not check.traced(v) and bool((u == v).all()) for u, v in pairs)


def _one_pass(
    norms: Norms, step: Step, batches: Iterable[Any], evaluate: bool, progress: bool
) -> dict[str, dict[str, Any]]:
    """The variables of each norm after one pass; `evaluate`: all normalize by what is stored."""

    def parts() -> Iterator[Norms]:
        number, finite = -1, dict[str, Array]()
        for number, batch in enumerate(_shown(batches) if progress else batches):
            if isinstance(batch, list):
                problem = f"batch {number}, counted from 0, is a list"
                raise _error(
                    TypeError, problem, "give an array, or a tuple of the model's positional arguments"
                )
            part, now_finite = step(norms, evaluate, number, batch if isinstance(batch, tuple) else (batch,))
            # of the batch before: the device is busy with this one
            _check_finite(finite, f"batch {number - 1}, counted from 0, gives")
            finite = now_finite
            yield part
        if number < 0:
            raise _error(ValueError, "batches is empty", "give one batch or more")
        _check_finite(finite, f"batch {number}, counted from 0, gives")

    whole = merge_batches(parts(), by=_merge_norms)
    # batches whose means are some 1e19 apart have no variance together
    _check_finite({path: _is_finite(v[SAMPLE]) for path, v in whole.items()}, "all batches together give")
    unseen = [path for path in whole if not _is_seen(whole[path][SAMPLE])]
    if unseen and not evaluate:
        warnings.warn(
            f"recalibrate: {_listed(unseen)} keep their statistics: no batch reached them, or they are "
            "no batch norm of jaxnorm or Flax.",
            stacklevel=4,
        )
    return _settled(norms, whole)


@jax.jit
def _merge_norms(a: Norms, b: Norms) -> dict[str, dict[str, Any]]:
    """The samples of two batches as one; other variables as they are in a."""
    return {path: {**norm, SAMPLE: merge(norm[SAMPLE], b[path][SAMPLE])} for path, norm in a.items()}


@jax.jit
def _settled(norms: Norms, whole: Norms) -> dict[str, dict[str, Any]]:
    """The variables to store; inside a trace all stay if any statistic is not finite."""
    good = jnp.asarray(True)
    for norm in whole.values():
        good &= _is_finite(norm[SAMPLE])
    found = {}
    for path, before in norms.items():
        after = dict(whole[path])
        sample = after.pop(SAMPLE)
        old = {**after, **before}
        new = dict(zip(state.STATS, sample.stats, strict=True))
        seen = good & (new["weight"] > 0)
        new["var"] = sample_variance(new["var"], _beside(sample.places, new["var"]))
        new["weight"] = choose(sample.cumulative, new["weight"], 1)
        found[path] = {
            name: choose(_beside(seen, new[name]), new[name], layers.widen(v)) if name in new else v
            for name, v in state.without_pending(old).items()
        }
    return found


def _check_finite(finite: Mapping[str, Array], subject: str) -> None:
    """An error if a norm's statistics are not finite; none are read inside a trace.

    Args:
      finite: whether they are, by the norm's path.
      subject: the first words of the error.
    """
    if any(map(check.traced, finite.values())):
        return
    bad = [path for path, good in jax.device_get(finite).items() if not good]
    if bad:
        problem = f"{subject} {_listed(bad)} statistics that are not finite"
        raise _error(ValueError, problem, "leave out or mask what is not finite; nothing was changed")


def _is_seen(sample: Sample) -> bool:
    """Whether a norm was called with anything that is not masked; inside a trace it is taken for granted."""
    weight = sample.stats[-1]
    return check.traced(weight) or bool((weight > 0).any())


def _listed(paths: Iterable[str]) -> str:
    return ", ".join(path or "the model itself" for path in paths)


def _shown(batches: Iterable[Any]) -> Iterable[Any]:
    """The batches, with a bar of how many were read."""
    for package, bar in (("tqdm", "tqdm"), ("rich.progress", "track")):
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        label = "desc" if bar == "tqdm" else "description"
        return getattr(module, bar)(batches, **{label: "recalibrate"})
    raise _error(ImportError, "progress=True needs tqdm or rich", "install one of them, or jaxnorm[progress]")


def _error(kind: type[E], problem: str, remedy: str) -> E:
    """An error of `recalibrate`; what the model raises is named by the layers."""
    with calling("recalibrate"):
        return error(kind, problem, remedy)


# ---------------------------------------------------------------- arguments of a compiled step


@partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["static", "structure"])
@dataclass(frozen=True)
class Arguments:
    """Arguments of a compiled call: arrays are traced, and all else decides what is traced."""

    arrays: list[Any]  # None where a static value is
    static: tuple[Any, ...]  # (type, value), as 1 == True; None where an array is
    structure: Any

    @staticmethod
    def of(tree: Any) -> "Arguments":
        """The leaves of a tree; anything that numpy reads as an array counts as one."""
        leaves, structure = jax.tree.flatten(tree)
        arrays = [_as_array(v) for v in leaves]
        static = tuple((type(v), v) if a is None else None for v, a in zip(leaves, arrays, strict=True))
        return Arguments(arrays, static, structure)

    def tree(self) -> Any:
        """The tree."""
        pairs = zip(self.arrays, self.static, strict=True)
        return jax.tree.unflatten(self.structure, [v if s is None else s[1] for v, s in pairs])


def _as_array(v: Any) -> Any:
    """An array, also for one of another library; None: it is none."""
    if isinstance(v, jax.Array):
        return v
    return np.asarray(v) if hasattr(v, "__array__") else None
