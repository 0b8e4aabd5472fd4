"""A guess of the mean, which a TPU tries first.

Sums about a value that is known before x is are taken where x is written, in the epilogue of a convolution,
without another read of x. The running mean is such a value, but it may be far from the mean of the batch.
"""

from collections.abc import Callable
from typing import Any

from jax import Array, lax

# A name of this module: tests replace it to run on a CPU what a TPU runs.
platform_dependent = lax.platform_dependent


def sums_about_a_guess(
    sums: Callable[[Array, Array], list[Array]],
    near: Callable[[Array], Array],
    good: Callable[[Array, list[Array]], Array],
    x: Array,
    guess: Array,
) -> list[Any]:
    """[shift, *sums(x, shift)], with shift = guess if that is good enough on a TPU, else near(x).

    Args:
      sums: (x, shift) -> sums over x.
      near: x -> a shift near the mean of x, which costs a part of a read.
      good: (guess, sums about it) -> a boolean scalar: whether they tell the variance.
      x, guess: constants of the derivative. The guess is finite.
    """

    def about_near(x: Array, guess: Array) -> list[Array]:
        shift = near(x)
        return [shift, *sums(x, shift)]

    def about_guess(x: Array, guess: Array) -> list[Array]:
        found = sums(x, guess)
        # Only a guess that is far off costs a second read of x, in `about_near`.
        return lax.cond(
            good(guess, found), lambda x, found: [guess, *found], lambda x, _: about_near(x, guess), x, found
        )

    # By the platform that is compiled for, and not by the devices that are here: a program may be exported.
    return platform_dependent(x, guess, tpu=about_guess, default=about_near)
