"""From the measures of one norm to its findings, each with what to do."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxnorm._core.moments import Moments
from jaxnorm.monitor import measures as m

# Norms of observations or targets, which have any unit and are averaged over all that was seen.
OF_INPUTS = {"InputNorm", "PopArt"}

KINDS = (
    "non_finite",
    "never_updated",
    "momentum",
    "small_batch",
    "shift",
    "exploding",
    "dead_channels",
    "small_variance",
    "saturated",
)


class Finding(NamedTuple):
    """What is wrong with one norm.

    >>> from jaxnorm.monitor import Finding
    >>> print(Finding("b/norm", "momentum", 1.1, "Choose momentum=0.9."))
    b/norm: momentum 1.1. Choose momentum=0.9.
    """

    path: str  # of the norm in the model, "b/norm"; "" is the model itself
    kind: str  # one of KINDS
    value: float  # the measure that tells it, which `advice` names
    advice: str  # what it means, and what to do

    def __str__(self) -> str:
        return f"{self.path or 'the model'}: {self.kind} {self.value:.3g}. {self.advice}"


@dataclass(frozen=True, kw_only=True)
class Norm:
    """What is known of one norm, and what is measured of it. What is not known is None.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> from jaxnorm.monitor import Norm
    >>> norm = Norm(path="norm", layer="BatchNorm", stored=jn.initial_stats(4))
    >>> [finding.kind for finding in norm.findings]
    ['never_updated']
    """

    path: str
    layer: str  # the name of its class
    stored: Moments | None = None  # [*stats]
    batch: Moments | None = None  # [*stats], their weight 0 where the batch has none
    epsilon: float = 1e-5
    momentum: float | None = None  # Flax's: the fraction of the OLD value that is kept
    frozen: bool = False
    by_batch: bool = True  # whether training normalizes by the batch's statistics
    samples: float | None = None  # how many the batch has
    effective: float | None = None  # as how many independent values they count
    scale: np.ndarray | None = None  # [channels], or any shape
    bias: np.ndarray | None = None
    square: np.ndarray | None = None  # of a norm without statistics: the mean square of each sample
    saturated: float | None = None  # of a tanh: the share of the elements beyond +-0.97

    @cached_property
    def flags(self) -> m.Flags | None:
        """What is wrong with each channel; None for a norm without statistics."""
        if self.stored is None:
            return None
        scale = self.scale
        if scale is not None and scale.size != 1 and scale.shape != self.stored.var.shape[-scale.ndim :]:
            scale = None  # of each place of x, or otherwise not one a channel
        return m.flags(
            self.stored,
            batch=self.batch,
            scale=scale,
            epsilon=self.epsilon,
            samples=self.samples,
            effective=self.effective,
            decay=self.momentum if self.momentum is None or 0 <= self.momentum < 1 else None,
        )

    def of_channels(self, measure: str) -> np.ndarray | None:
        """`shift` or `divergence`, one value a channel: NaN where there is none; None without a batch."""
        if self.flags is None or self.batch is None or self.stored is None:
            return None
        value = np.asarray(getattr(m, measure)(self.batch, self.stored, epsilon=self.epsilon))
        wrong = self.flags.non_finite | self.flags.never_updated | (np.asarray(self.batch.weight) == 0)
        return np.where(wrong, np.nan, value)

    @property
    def held(self) -> float | None:
        """How many batches the average holds; None for a norm that holds all, or none."""
        return None if self.momentum is None else float(m.batches_held(self.momentum))

    @property
    def noise(self) -> tuple[float, float] | None:
        """The standard errors of the batch's mean and variance, in deviations and in variances."""
        if self.effective is None:
            return None
        mean, var = m.standard_errors(self.effective)
        return float(mean), float(var)

    @property
    def small_batch(self) -> bool:
        """Whether the batch has too few samples for this norm's statistics."""
        by_batch = self.by_batch and not self.frozen and self.layer not in OF_INPUTS
        return by_batch and self.samples is not None and self.samples < m.SMALL_BATCH

    @property
    def smallest(self) -> float | None:
        """The smallest variance, of the batch or else stored, or the median sample's mean square."""
        if self.stored is None:
            return None if self.square is None or not self.square.size else float(np.median(self.square))
        var = np.asarray(self.stored.var)
        if self.batch is not None:
            var = np.where(np.asarray(self.batch.weight) > 0, self.batch.var, var)
        return float(np.min(var)) if var.size else None

    @cached_property
    def findings(self) -> list[Finding]:
        """All that is wrong, in the order of `KINDS`."""
        found = {**self._of_values(), **self._of_options()}
        if self.flags is not None:
            found |= self._of_statistics(self.flags)
        return [Finding(self.path, kind, *found[kind]) for kind in KINDS if kind in found]

    def _of_options(self) -> dict[str, tuple[float, str]]:
        """What the options and the size of the batch tell: by kind the value and the advice."""
        found: dict[str, tuple[float, str]] = {}
        held, momentum = self.held, self.momentum
        if held is not None and momentum is not None and not self.frozen:
            if momentum >= 1:
                found["momentum"] = (
                    held,
                    f"momentum={momentum:g} keeps the old statistics for ever; choose less, such as 0.9.",
                )
            elif held <= m.FEW_BATCHES:
                found["momentum"] = (
                    held,
                    f"momentum={momentum:.3g} is the fraction of the OLD value that is kept, so that the "
                    f"average holds {held:.2g} batches. PyTorch's momentum={momentum:.3g} is "
                    f"momentum={1 - momentum:.3g} here: set that, then train on, or recalibrate.",
                )
        if self.small_batch and self.samples is not None and self.noise is not None:
            mean, var = self.noise
            found["small_batch"] = (
                self.samples,
                f"Statistics of {_counted(self.samples, 'sample')} are noisy: by {mean:.2g} deviations in "
                f"the mean and by {100 * var:.0f} % in the variance. Train with GroupNorm, BatchRenorm, or "
                "axis_name across devices; every_k steadies the average. Whether the data have shifted shows "
                f"from {m.SMALL_BATCH} samples on.",
            )
        return found

    def _of_values(self) -> dict[str, tuple[float, str]]:
        """What the parameters and the input of a norm without statistics tell."""
        found: dict[str, tuple[float, str]] = {}
        broken = [name for name in ("scale", "bias") if _broken(getattr(self, name))]
        if _broken(self.square):
            broken.append("input")
        if broken:
            count = sum(
                int((~np.isfinite(v)).sum()) for v in (self.scale, self.bias, self.square) if v is not None
            )
            found["non_finite"] = (count, f"NaN or infinity in its {' and its '.join(broken)}. {_LOST}")
        if self.stored is None and self.scale is not None and (self.scale == 0).any():
            dead = int((self.scale == 0).sum())
            found["dead_channels"] = (dead, f"{_part(dead, self.scale.size)} have scale 0. {_DEAD}")
        if self.saturated is not None and self.saturated > m.SATURATED:
            found["saturated"] = (
                self.saturated,
                f"{100 * self.saturated:.0f} % of the elements are on the flat part of the tanh, where "
                "gradients vanish. Start from a smaller alpha, lower the learning rate, or use RMSNorm.",
            )
        if self.square is not None and self.square.size and not _broken(self.square):
            typical, largest = float(np.median(self.square)), float(np.sqrt(self.square.max()))
            if typical < self.epsilon:
                found["small_variance"] = (
                    typical,
                    f"The mean square of most samples is below epsilon={self.epsilon:g}. {_SMALL}",
                )
            if largest > m.EXPLODING:
                found["exploding"] = (largest, f"Its input reaches {largest:.2g}. {_EXPLODING}")
        return found

    def _of_statistics(self, flags: m.Flags) -> dict[str, tuple[float, str]]:
        """What the statistics tell."""
        found: dict[str, tuple[float, str]] = {}
        size = flags.dead.size
        counts = {name: int(flag.sum()) for name, flag in flags._asdict().items()}
        if n := counts["non_finite"]:
            text = "have a mean or variance that is NaN or infinite, or a negative variance"
            found["non_finite"] = (n, f"{_part(n, size)} {text}. {_LOST}")
        if n := counts["never_updated"]:
            found["never_updated"] = (
                n,
                f"{_part(n, size)} still have mean 0 and variance 1, the start. Train with "
                "use_running_average=False and keep the batch_stats that apply returns (nnx: after "
                "model.train()), or compute the statistics with recalibrate.",
            )
        if (n := counts["exploding"]) and self.layer not in OF_INPUTS:
            reached = float(np.nanmax([_largest(v) for v in (self.stored, self.batch) if v is not None]))
            found["exploding"] = (
                reached,
                f"{_part(n, size)} have a mean or deviation above {m.EXPLODING:g}, up to {reached:.2g}. "
                f"{_EXPLODING}",
            )
        if n := counts["dead"]:
            found["dead_channels"] = (n, f"{_part(n, size)} have variance 0 or scale 0. {_DEAD}")
        if (n := counts["small_variance"]) >= m.SHARE * size and n and self.smallest is not None:
            found["small_variance"] = (
                self.smallest,
                f"{_part(n, size)} have a variance below epsilon={self.epsilon:g}, down to "
                f"{self.smallest:.2g}. {_SMALL}",
            )
        if not self.small_batch and (counts["shifted"] >= max(m.SHARE * size, 1) or counts["far"]):
            found["shift"] = self._shift(flags, counts["shifted"])
        return found

    def _shift(self, flags: m.Flags, shifted: int) -> tuple[float, str]:
        """The value and the advice of a shift.

        The value is sqrt(2 * KL): so many deviations is the shift of a mean alone with that divergence.
        """
        stored, batch = self.stored, self.batch
        moved, divergence = self.of_channels("shift"), self.of_channels("divergence")
        assert stored is not None and batch is not None and moved is not None and divergence is not None
        ratio = (np.asarray(batch.var) + self.epsilon) / (np.asarray(stored.var) + self.epsilon)
        chosen = ratio[flags.shifted]
        furthest = float(moved[flags.shifted].max())
        return float(np.sqrt(2 * divergence[flags.shifted].max())), (
            f"In {_part(shifted, moved.size)} the batch differs from the stored statistics: the mean by up "
            f"to {furthest:.2g} deviations, the variance by a factor of {chosen.min():.2g} to "
            f"{chosen.max():.2g}. If the data have changed, recalibrate on them or evaluate with blend; if "
            "training was short, train on, with a lower momentum or debias=True, or recalibrate."
        )


_LOST = "Go back to a checkpoint before, and lower the learning rate or clip the gradients."
_DEAD = (
    "They pass nothing on. Look for weights that are 0 and for units that never fire in the layer before; "
    "lower the learning rate, or remove the channels."
)
_SMALL = (
    "Epsilon outweighs it, so that the output's variance is below 1. Scale the input up, or choose a "
    "smaller epsilon."
)
_EXPLODING = (
    "Training diverges, or the data are not scaled: lower the learning rate, clip gradients, scale the data."
)


def _broken(values: np.ndarray | None) -> bool:
    return values is not None and not np.isfinite(values).all()


def _largest(m: Moments) -> float:
    """The largest |mean| or deviation."""
    with np.errstate(invalid="ignore"):
        values = np.abs(np.asarray(m.mean)), np.sqrt(np.maximum(np.asarray(m.var), 0))
    return float(np.nanmax(np.concatenate([np.ravel(v) for v in values])))


def _counted(count: float, noun: str) -> str:
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"


def _part(count: int, size: int) -> str:
    return f"{count} of {_counted(size, 'channel')}"
