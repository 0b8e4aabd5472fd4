"""The layers of the family that remember: batch norm's relatives, in any framework.

Each is one of these classes on the batch norm of its framework, whose fields, modes and variables it has.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxnorm import _banks, _conditional, _evonorm, _inputs, _renorm, _switchable, _whitening
from jaxnorm import _checks as check
from jaxnorm import _layer_parts as parts
from jaxnorm import _layers as layers
from jaxnorm import _state_layers as state
from jaxnorm._layer_parts import Shape, fields
from jaxnorm._moments import Moments


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
        either = inspect.Parameter.POSITIONAL_OR_KEYWORD
        known = [inspect.Parameter(name, either) for name in self.conditions]
        known.append(inspect.Parameter("use_running_average", either, default=None))
        rest = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
        named = inspect.Signature([*known, rest]).bind(*args, **options).arguments
        options = named.pop("options", {})
        return {name: named.pop(name) for name in self.conditions}, {**named, **options}

    def initial(self: Any, features: Shape, dtype: DTypeLike) -> dict[str, Callable[[], Array]]:
        """The statistics at the start, by name."""
        kept = state.initial_stats(self, features, dtype)
        if any(callable(getattr(self, name)) for name in self.scheduled):
            kept["step"] = partial(jnp.zeros, (), jnp.int32)
        return kept

    def stats(self, x: Array, *stored: Array) -> Any:
        """The function's state, made of mean, var and weight as they are stored."""
        return Moments(*(layers.per_feature(self, v, x, self.features) for v in stored))

    def weight_shape(self, var: Shape) -> Shape:
        """Where none is stored, as Flax stores none: its average begins at (0, 1) and has a mass of 1."""
        return var


def remembered(
    layer: Any,
    x: Array,
    mask: Any,
    weights: Any,
    *,
    kept: dict[str, Array],
    use_running_average: Any,
    update_stats: bool | None,
    frozen: bool,
    initializing: bool = False,
    **own: Any,
) -> tuple[Array, dict[str, Array]]:
    """y, and the statistics to store: `_state_layers.batch_norm`, for any norm that remembers."""
    if frozen:
        use_running_average, update_stats = True, False
    traced = check.traced(use_running_average)
    train = jnp.logical_not(use_running_average) if traced else not use_running_average
    mean, var = layers.widen(kept["mean"]), layers.widen(kept["var"])
    weight = kept["weight"] if "weight" in kept else np.ones(layer.weight_shape(var.shape), var.dtype)
    with layers.promotion():  # a schedule's own arithmetic
        now = {
            option: value(kept["step"]) if callable(value := getattr(layer, name)) else value
            for name, option in layer.scheduled.items()
        }
    if layer.unbiased:
        now["unbiased"] = True
    call = partial(layer.normalize, x, mask, weights, stats=layer.stats(x, mean, var, weight), **now, **own)
    y, new = call(train=train)
    updated = train if update_stats is None else bool(update_stats)
    if updated is False and train is False and not initializing:
        state.warn_if_untrained(layer, kept)
    if updated is False or initializing:
        return y, {}
    if update_stats and train is not True:
        _, new = call(train=True)
    values = dict(zip(("mean", "var", "weight"), new, strict=True))
    if "step" in kept:
        values["step"] = kept["step"] + jnp.asarray(updated, jnp.int32)
    return y, {name: values[name].reshape(v.shape) for name, v in kept.items()}


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

    def initial(self: Any, features: Shape, dtype: DTypeLike) -> dict[str, Callable[[], Array]]:
        return super().initial((getattr(self, self.size), *features), dtype)

    def stats(self, x: Array, *stored: Array) -> Any:
        return Moments(*jax.vmap(partial(super().stats, x))(*stored))


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
        return {name: (self.num_classes, *shape) for name, shape in super().shapes(features).items()}


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

    def initial(self: Any, features: Shape, dtype: DTypeLike) -> dict[str, Callable[[], Array]]:
        kept = super().initial(features, dtype)
        (size,) = features
        start = partial(
            _whitening.initial_covariance, size, group_size=self.group_size, weight=0.0, dtype=dtype
        )
        own = {"mean": lambda: start().mean, "var": lambda: start().cov, "weight": lambda: start().weight}
        return kept | {name: value for name, value in own.items() if name in kept}

    def stats(self, x: Array, *stored: Array) -> Any:
        return _whitening.Covariance(*stored)

    def weight_shape(self, var: Shape) -> Shape:
        return var[:-2]


@fields
class IterNorm(DecorrelatedBatchNorm):
    iterations: Any = 5
