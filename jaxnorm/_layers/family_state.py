"""The layers of the family that remember: batch norm's relatives, in any framework.

Each is one of these classes on the batch norm of its framework, whose fields, modes and variables it has.
"""

import inspect
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._core.moments import Moments
from jaxnorm._layers import parts as parts
from jaxnorm._layers import state as state
from jaxnorm._layers.parts import Shape, fields
from jaxnorm._norms import banks as _banks
from jaxnorm._norms import conditional as _conditional
from jaxnorm._norms import evonorm as _evonorm
from jaxnorm._norms import inputs as _inputs
from jaxnorm._norms import renorm as _renorm
from jaxnorm._norms import switchable as _switchable
from jaxnorm._norms import whitening as _whitening


@fields
class Remembering(parts.Affine, parts.Measured):
    """A layer whose `function` is `(x, stats, *, train, decay, ...) -> (y, stats)`."""

    # what may be a schedule, of the updates counted in `step`, and the function's name for it
    scheduled: ClassVar[Mapping[str, str]] = {"momentum": "decay"}
    conditions: ClassVar[tuple[str, ...]] = ()  # what a call has before `use_running_average`
    epsilon: Any = 1e-5

    @property
    def features(self: Any) -> Any:
        return self.axis

    def called(self, *args: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The conditions of a call, and all else that came with it, by name."""
        named = _signature(self.conditions).bind(*args, **options).arguments
        options = named.pop("options", {})
        return {name: named.pop(name) for name in self.conditions}, {**named, **options}

    def remember(
        self: Any, x: Array, mask: Any, weights: Any, kept: dict[str, Array], *, train: Any, **own: Any
    ) -> Any:
        """The call of the function: `_state_layers.batch_norm`, for any norm that remembers."""
        for name, option in self.scheduled.items():
            own[option] = state.scheduled(getattr(self, name), kept)
        if self.unbiased:
            own["unbiased"] = True
        stats = self.stats(x, *state.widened(self, kept, train))
        return self.normalize(x, mask, weights, stats=stats, train=train, **own)

    def stats(self, x: Array, mean: Array, var: Array, weight: Any) -> Any:
        """The function's state, made of what is stored."""
        return state.moments(self, x, self.features, mean, var, weight)

    def initial(self, features: Shape, dtype: DTypeLike) -> dict[str, Array]:
        """All that may be stored, at the start."""
        return state.initial_stats(features, dtype)


@lru_cache
def _signature(conditions: tuple[str, ...]) -> inspect.Signature:
    """What a call has after x."""
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    known = [inspect.Parameter(name, either) for name in conditions]
    known.append(inspect.Parameter("use_running_average", either, default=None))
    return inspect.Signature([*known, inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)])


def _count(layer: Any, field: str) -> int:
    """A field that says how many there are."""
    name, remedy = type(layer).__name__, "choose 1 or more"
    return check.integer(name, field, getattr(layer, field), least=1, remedy=remedy)


@fields
class BatchRenorm(Remembering):
    function = staticmethod(_renorm.batch_renorm)
    scheduled: ClassVar = {"momentum": "decay", "r_max": "r_max", "d_max": "d_max"}
    r_max: Any = 3.0
    d_max: Any = 5.0


@fields
class GhostBatchNorm(Remembering):
    function = staticmethod(_renorm.ghost_batch_norm)
    options = ("num_ghosts",)
    num_ghosts: int


@fields
class Bank(Remembering):
    """One state for every index."""

    function = staticmethod(_banks.bank_norm)
    conditions = ("index",)
    size: ClassVar[str]  # the field that tells how many

    def initial(self, features: Shape, dtype: DTypeLike) -> dict[str, Array]:
        return super().initial((_count(self, self.size), *features), dtype)

    def stats(self, x: Array, mean: Array, var: Array, weight: Any) -> Any:
        return Moments(*jax.vmap(partial(super().stats, x))(mean, var, weight))


@fields
class DomainBatchNorm(Bank):
    size = "num_domains"
    num_domains: int


@fields
class RecurrentBatchNorm(Bank):
    size = "max_length"
    max_length: int
    scale_init: Any = initializers.constant(0.1)


@fields
class ConditionalBatchNorm(Remembering):
    function = staticmethod(_conditional.conditional_batch_norm)
    conditions = ("labels",)
    num_classes: int

    def shapes(self, features: Shape) -> dict[str, Shape]:
        classes = _count(self, "num_classes")
        return {name: (classes, *shape) for name, shape in super().shapes(features).items()}


@fields
class SPADE(parts.Projected, Remembering):
    function = staticmethod(_conditional.spade)
    conditions = ("segmentation",)
    hidden: Any = 128
    kernel_size: Any = (3, 3)
    activation: Any = jax.nn.relu
    use_scale: Any = False
    use_bias: Any = False

    def resized(self, x: Array, segmentation: Array) -> Array:
        """The map at every place of x."""
        return jax.image.resize(segmentation, (*x.shape[:-1], segmentation.shape[-1]), "nearest")


@fields
class EvoNormB0(Remembering):
    function = staticmethod(_evonorm.evonorm_b0)
    slope_init: Any = initializers.ones

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"slope": features, **super().shapes(features)}


@fields
class SwitchableNorm(Remembering):
    function = staticmethod(_switchable.switchable_norm)
    mean_logits_init: Any = initializers.ones
    var_logits_init: Any = initializers.ones

    def shapes(self, features: Shape) -> dict[str, Shape]:
        return {"mean_logits": (3,), "var_logits": (3,), **super().shapes(features)}


@fields
class InputNorm(Remembering):
    function = staticmethod(_inputs.input_norm)
    options = ("clip",)
    clip: Any = None
    momentum: Any = None
    epsilon: Any = 1e-8
    use_scale: Any = False
    use_bias: Any = False


@fields
class DecorrelatedBatchNorm(Remembering):
    """Its `var` are the covariances of the groups."""

    function = staticmethod(_whitening.decorrelated_batch_norm)
    options = ("iterations",)
    iterations: Any = None
    group_size: Any = None

    def initial(self, features: Shape, dtype: DTypeLike) -> dict[str, Array]:
        (size,) = features
        options = {"group_size": self.group_size, "weight": 0.0, "dtype": dtype}
        mean, cov, weight = _whitening.initial_covariance(size, **options)
        return {**super().initial(features, dtype), "mean": mean, "var": cov, "weight": weight}

    def stats(self, x: Array, mean: Array, var: Array, weight: Any) -> Any:
        if weight is None:
            weight = np.ones(var.shape[:-2], var.dtype)
        return _whitening.Covariance(mean, var, weight)


@fields
class IterNorm(DecorrelatedBatchNorm):
    iterations: Any = 5
