"""Moments: the mean, the variance and the weight of a sample."""

from typing import NamedTuple

from jax import Array

from jaxnorm._base.exported import exportable


@exportable
class Moments(NamedTuple):
    """Mean, variance and weight of a weighted sample: three arrays of one shape.

    The variance is the population variance, which divides by the weight. A weight of 0 is the empty
    sample: its mean and var are ignored, whatever they hold. Of complex numbers the mean is complex, the
    variance is that of the distance, E|x - mean|^2, and real.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.moments(jnp.array([1.0, 2.0, 3.0, 6.0]), axis=0)
    Moments(mean=Array(3., dtype=float32), var=Array(3.5, dtype=float32), weight=Array(4., dtype=float32))
    """

    mean: Array  # [*stats]
    var: Array  # [*stats] population variance: divides by the weight
    weight: Array  # [*stats] of the whole sample; 0 is the empty sample
