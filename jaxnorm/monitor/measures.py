"""Measures of stored statistics and of a batch, on Moments, and from where on a measure is a finding.

All are functions of arrays and run under `jax.jit`, also in a training step of one's own.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxnorm._base.arithmetic import abs2
from jaxnorm._core.moments import Moments

# From where on a measure is a finding, and why there.

# A mean that has moved by half a standard deviation, or a variance by a factor of two: each is a KL
# divergence of about 0.1 between the Gaussians. The averages of a healthy training stay well below.
SHIFT = 0.5
RATIO = 2.0
# One channel alone is a finding only if its mean has moved by as much as this: rare features vary by less.
FAR = 2.0
# Otherwise so many of the channels must have moved, or have a variance below epsilon.
SHARE = 0.1
# Less than this many standard errors may be the noise of the batch: at four, one in 16 000 Gaussian channels.
NOISE = 4.0
# Batch norm's error rises clearly below batches of 8 (Wu and He 2018, arXiv:1803.08494, figure 1).
SMALL_BATCH = 8
# A variance this far below epsilon, and below the largest of the norm's: y varies by less than 1 %.
DEAD = 1e-4
# A mean or deviation this large: float16 ends at 65504, and the gradients of the layer before grow alike.
EXPLODING = 1e4
# An average of two batches or fewer is as noisy as a batch. PyTorch's usual 0.1, read as Flax's, holds 1.1.
FEW_BATCHES = 2.0
# A tanh with more than half of its input beyond +-0.97 passes almost no gradient to the layers before.
SATURATED = 0.5


class Flags(NamedTuple):
    """What is wrong with each channel: boolean arrays of the statistics' shape. One channel may have several.

    >>> import jax, jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> from jaxnorm import monitor
    >>> stored = jn.Moments(jnp.asarray([0.0, 5.0, 5.0]), jnp.asarray([1.0, 2.0, -1.0]), jnp.ones(3))
    >>> found = jax.jit(monitor.flags)(stored)
    >>> found.never_updated.tolist(), found.non_finite.tolist()
    ([True, False, False], [False, False, True])
    """

    non_finite: Array  # [*stats] a mean or variance that is not finite, or a negative variance
    never_updated: Array  # [*stats] mean 0 and variance 1 exactly, or weight 0
    exploding: Array  # [*stats] |mean| or deviation above EXPLODING
    dead: Array  # [*stats] variance about 0, or scale 0
    small_variance: Array  # [*stats] variance below epsilon, but not dead
    shifted: Array  # [*stats] the batch's mean or variance differs from the stored one
    far: Array  # [*stats] its mean by more than FAR


def shift(batch: Moments, stored: Moments, *, epsilon: ArrayLike = 1e-5) -> Array:
    """How far the batch's mean is from the stored one, in stored standard deviations.

    |batch.mean - stored.mean| / sqrt(stored.var + epsilon)

    Args:
      batch, stored: Moments of one shape.
      epsilon: the norm's.

    Returns:
      [*stats], at least 0.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> from jaxnorm import monitor
    >>> batch = jn.moments(jnp.asarray([2.0, 4.0]), 0)
    >>> print(monitor.shift(batch, jn.initial_stats(()), epsilon=0.0))
    3.0
    """
    return jnp.abs(batch.mean - stored.mean) / jnp.sqrt(stored.var + epsilon)


def divergence(batch: Moments, stored: Moments, *, epsilon: ArrayLike = 1e-5) -> Array:
    """The Kullback-Leibler divergence of the batch's Gaussian from the stored one, in nats.

    (log(s / b) + (b + |batch.mean - stored.mean|^2) / s - 1) / 2,  with b, s = the variances + epsilon

    Args:
      batch, stored: Moments of one shape.
      epsilon: the norm's.

    Returns:
      [*stats], at least 0.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> from jaxnorm import monitor
    >>> batch = jn.moments(jnp.asarray([2.0, 4.0]), 0)
    >>> print(monitor.divergence(batch, jn.initial_stats(()), epsilon=0.0))
    4.5
    """
    b, s = batch.var + epsilon, stored.var + epsilon
    return (jnp.log(s / b) + (b + abs2(batch.mean - stored.mean)) / s - 1) / 2


def batches_held(decay: ArrayLike) -> Array:
    """How many batches a moving average holds: 1 / (1 - decay), decay being Flax's `momentum`.

    >>> from jaxnorm import monitor
    >>> print(monitor.batches_held(0.9).round(1), monitor.batches_held(0.1).round(1))
    10.0 1.1
    """
    return 1 / (1 - jnp.asarray(decay, jnp.float32))


def standard_errors(count: ArrayLike) -> tuple[Array, Array]:
    """The noise of statistics of `count` independent Gaussian values.

    Returns:
      That of the mean in standard deviations, 1 / sqrt(count), and that of the variance in variances,
      sqrt(2 / (count - 1)).

    >>> from jaxnorm import monitor
    >>> mean, var = monitor.standard_errors(2)
    >>> print(mean.round(2), var.round(2))
    0.71 1.41
    """
    count = jnp.asarray(count, jnp.float32)
    return 1 / jnp.sqrt(count), jnp.sqrt(2 / jnp.maximum(count - 1, 0))


def flags(
    stored: Moments,
    *,
    batch: Moments | None = None,
    scale: ArrayLike | None = None,
    epsilon: ArrayLike = 1e-5,
    samples: ArrayLike | None = None,
    effective: ArrayLike | None = None,
    decay: ArrayLike | None = None,
) -> Flags:
    """What is wrong with each channel's statistics.

    Args:
      stored: the stored statistics.
      batch: those of a batch, of the same shape; of weight 0 where the batch has no such channel. None: there
        is no batch.
      scale: the norm's, broadcastable to the statistics.
      epsilon: the norm's.
      samples: how many samples the batch has, by default its weight. Below SMALL_BATCH the batch is too noisy
        to say that a channel is dead, small or shifted.
      effective: as how many independent values the batch counts, by default `samples`.
      decay: of the stored average, Flax's `momentum`, for its noise; None: it has none.

    Returns:
      Flags, boolean arrays of the statistics' shape.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> from jaxnorm import monitor
    >>> values = jnp.linspace(-1.0, 1.0, 64)
    >>> x = jnp.stack([values, jnp.zeros(64), values + 3], axis=1)
    >>> stored = jn.Moments(jnp.zeros(3), jnp.full(3, 0.3), jnp.ones(3))
    >>> found = monitor.flags(stored, batch=jn.moments(x, 0))
    >>> found.dead.tolist(), found.shifted.tolist()
    ([False, True, False], [False, False, True])
    """
    seen = jnp.zeros_like(stored.var, bool) if batch is None else batch.weight > 0
    b = stored if batch is None else _chosen(seen, batch, stored)
    samples = b.weight if samples is None else jnp.asarray(samples)
    effective = samples if effective is None else jnp.asarray(effective)
    trusted = seen & (samples >= SMALL_BATCH)

    non_finite = _not_finite(stored) | _not_finite(b)
    initial = (stored.mean == 0) & (stored.var == 1)
    never_updated = initial | (stored.weight == 0)
    exploding = (_size(stored) > EXPLODING) | (_size(b) > EXPLODING)

    now = jnp.where(trusted, b.var, stored.var)
    dead = _still(now, epsilon)
    if scale is not None:
        dead |= jnp.broadcast_to(jnp.asarray(scale) == 0, dead.shape)
    # of what was never stored the batch alone can say anything
    small_variance = (now < epsilon) & ~dead & (trusted | ~never_updated)

    mean_error, var_error = standard_errors(effective)
    if decay is not None:  # an average of as many batches as (1 + decay) / (1 - decay), which are noisy, too
        rest = jnp.sqrt(1 + (1 - jnp.asarray(decay)) / (1 + jnp.asarray(decay)))
        mean_error, var_error = mean_error * rest, var_error * rest
    # by the larger of the variances: a rare feature, once in the batch, is no shift
    moved = jnp.abs(b.mean - stored.mean) / jnp.sqrt(jnp.maximum(b.var, stored.var) + epsilon)
    ratio = jnp.abs(jnp.log((b.var + epsilon) / (stored.var + epsilon)))
    usable = trusted & ~(non_finite | never_updated | exploding | dead)
    shifted = (moved > SHIFT + NOISE * mean_error) | (ratio > jnp.log(RATIO) + NOISE * var_error)
    far = moved > FAR + NOISE * mean_error
    finite = ~non_finite
    return Flags(
        non_finite,
        never_updated,
        exploding & finite,
        dead & finite,
        small_variance,
        shifted & usable,
        far & usable,
    )


def _chosen(condition: Array, a: Moments, b: Moments) -> Moments:
    """The channels of a where the condition holds, else those of b."""
    return Moments(*(jnp.where(condition, v, w) for v, w in zip(a, b, strict=True)))


def _not_finite(m: Moments) -> Array:
    return ~(jnp.isfinite(m.mean) & jnp.isfinite(m.var)) | (m.var < 0)


def _size(m: Moments) -> Array:
    """|mean| or the deviation, whichever is larger."""
    return jnp.maximum(jnp.abs(m.mean), jnp.sqrt(jnp.maximum(m.var, 0)))


def _still(var: Array, epsilon: ArrayLike) -> Array:
    """Whether a channel does not vary: its variance is 0, or small beside epsilon and beside the largest."""
    largest = jnp.max(var, where=jnp.isfinite(var), initial=0.0)
    return (var == 0) | ((var <= DEAD * epsilon) & (var <= DEAD * largest))
