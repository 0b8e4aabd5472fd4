"""Fold: a norm with stored statistics is affine, and so becomes part of a layer beside it."""

import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import plus, promoted, times, wide
from jaxnorm._base.compilation import compiled
from jaxnorm._base.messages import error
from jaxnorm._core.moments import Moments
from jaxnorm._core.standardize import standardize
from jaxnorm._norms.batch import sound

Axes = int | Iterable[int]


@compiled
def fold_batch_norm(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    stats: Moments,
    *,
    scale: ArrayLike | None = None,
    norm_bias: ArrayLike | None = None,
    epsilon: float | Array = 1e-5,
    feature_axis: Axes = -1,
) -> tuple[Array, Array]:
    """A batch norm as part of the layer before it: norm(x @ kernel + bias) = x @ kernel' + bias'.

    kernel' = kernel * factor,  bias' = (bias - mean) * factor + norm_bias,
    factor = scale * rsqrt(var + epsilon).

    The norm is that of evaluation, by stored statistics, with nothing between it and the layer: no
    activation, no dropout that is on, no other user of the layer's output. The layer is any that is linear in
    its kernel: dense, or a convolution, also grouped, depthwise, dilated, padded or transposed. Arithmetic is
    float32 or wider; each result is rounded once. Layers that are stacked on a leading axis: `jax.vmap`.

    Args:
      kernel: of Flax's Dense, [in, out], or of a Conv, [*window, in / groups, out].
      bias: of the sizes of the feature axes, or of the kernel's last axes; None counts as 0.
      stats: the norm's statistics, of the sizes of the feature axes. As in evaluation, a channel that was not
        seen, is not finite, or has a negative variance has mean 0 and variance 1.
      scale, norm_bias: the norm's parameters, of the same sizes; None is 1, and 0.
      epsilon: of the norm; a float >= 0.
      feature_axis: the kernel's axes of output features, that the norm keeps statistics of. It is -2 for a
        ConvTranspose with `transpose_kernel=True`, and (-2, -1) where a norm has both features of a
        DenseGeneral.

    Returns:
      kernel', in the kernel's dtype, and bias', in that of the bias, or else in the kernel's; both are
      complex where the norm is.

    Raises:
      ValueError: arrays whose sizes do not fit; an axis that the kernel does not have; a negative epsilon.
      TypeError: not numeric; stats that are no Moments.

    Jacob et al., 2018, arXiv:1712.05877.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 3.0]])
    >>> stats = jn.Moments(mean=jnp.array([1.0, 2.0]), var=jnp.array([4.0, 16.0]), weight=jnp.ones(2))
    >>> y, _ = jn.batch_norm(x @ kernel, stats, train=False, epsilon=0.0)
    >>> kernel, bias = jn.population.fold_batch_norm(kernel, None, stats, epsilon=0.0)
    >>> print(y, x @ kernel + bias[None])
    [[0. 1.]] [[0. 1.]]
    """
    kernel = check.numbers("kernel", kernel)
    features = check.axes(feature_axis, kernel, "feature_axis", "kernel")
    sizes = tuple(kernel.shape[a] for a in features)
    m = _stats(stats, kernel, features, sizes)
    scale = _vector("scale", scale, kernel, features, sizes)
    norm_bias = _vector("norm_bias", norm_bias, kernel, features, sizes)
    bias, places = _output_bias(bias, kernel, features, sizes)

    def standardized(v: Array, m: Moments, axes: tuple[int, ...], term: Array | None, dtype: Any) -> Array:
        """v by the norm, whose features are on these axes of v, with `term` as its bias."""
        shape = _expanded(sizes, axes, v.ndim)
        affine = {
            name: None if value is None else value.reshape(shape)
            for name, value in (("scale", scale), ("bias", term))
        }
        m = Moments(*(field.reshape(shape) for field in m))
        return standardize(v.astype(dtype), m, **affine, epsilon=epsilon)

    new_kernel = standardized(kernel, _uncentered(m), features, None, _dtype(kernel, scale))
    new_bias = standardized(bias, m, places, norm_bias, _dtype(bias, scale, norm_bias, m.mean))
    return new_kernel, new_bias


@compiled
def fold_into_next(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    stats: Moments,
    *,
    scale: ArrayLike | None = None,
    norm_bias: ArrayLike | None = None,
    epsilon: float | Array = 1e-5,
    feature_axis: Axes = -2,
    output_axis: Axes | None = None,
    groups: int = 1,
) -> tuple[Array, Array]:
    """A batch norm as part of the layer after it: norm(x) @ kernel + bias = x @ kernel' + bias'.

    kernel' = kernel * factor,  bias' = bias + sum(kernel * (norm_bias - mean * factor)),
    factor = scale * rsqrt(var + epsilon), with the sum over all axes of the kernel but its output features.

    The layer is a Dense, or a Conv that puts no zeros among its inputs: without padding ("VALID"), or with a
    padding that repeats the input ("CIRCULAR", "REFLECT"), and without `input_dilation`. With zeros, the norm
    has no effect on what is put in, so that no bias is right at the edges; the kernel does not show it, and
    the layers' `fold` refuses it. The same holds for a transposed convolution.

    Args:
      kernel: [in, out], or [*window, in / groups, out].
      bias: of the sizes of the axes of output features; None counts as 0.
      stats, scale, norm_bias, epsilon: of the norm, as in `fold_batch_norm`, one value an input feature.
      feature_axis: the kernel's axes of input features that the norm keeps statistics of.
      output_axis: the kernel's axes of output features; None: those after `feature_axis`, or, where that is
        the last, the one before it.
      groups: of a grouped Conv, `feature_group_count`: the norm has groups * kernel.shape[feature_axis]
        features.

    Returns:
      kernel', in the kernel's dtype, and bias', in that of the bias, or else in the kernel's.

    Raises:
      ValueError, TypeError: as in `fold_batch_norm`; groups that do not divide the output features.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x, kernel = jnp.array([[3.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 3.0]])
    >>> stats = jn.Moments(mean=jnp.array([1.0, -2.0]), var=jnp.array([4.0, 16.0]), weight=jnp.ones(2))
    >>> y, _ = jn.batch_norm(x, stats, train=False, epsilon=0.0)
    >>> folded, bias = jn.population.fold_into_next(kernel, None, stats, epsilon=0.0)
    >>> print(y @ kernel, x @ folded + bias[None])
    [[1. 3.]] [[1. 3.]]
    """
    into = _Next(kernel, bias, feature_axis, output_axis, groups)
    m = _stats(stats, into.kernel, into.features, into.sizes)
    scale, norm_bias = into.vector("scale", scale), into.vector("norm_bias", norm_bias)
    dtype = wide(_dtype(into.kernel, m.mean, scale, norm_bias))
    zero, one = jnp.zeros(into.sizes, dtype), jnp.ones(into.sizes, dtype)
    factor = standardize(one, _uncentered(m), scale=scale, epsilon=epsilon)
    term = standardize(zero, m, scale=scale, bias=norm_bias, epsilon=epsilon)
    new_kernel, new_bias = into.folded(factor, term)
    return new_kernel, jnp.zeros(into.output_sizes, new_kernel.dtype) if new_bias is None else new_bias


@compiled
def fold_scale(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    *,
    scale: ArrayLike | None = None,
    norm_bias: ArrayLike | None = None,
    feature_axis: Axes = -2,
    output_axis: Axes | None = None,
    groups: int = 1,
) -> tuple[Array, Array | None]:
    """The scale and bias of a norm before it as part of a layer: (x * scale + norm_bias) @ kernel + bias.

    kernel' = kernel * scale,  bias' = bias + sum(kernel * norm_bias). The norm, a layer or RMS norm for
    instance, is then called without them. A scale alone is right with every kind of padding; with a
    `norm_bias` what `fold_into_next` says of zeros holds.

    Args:
      kernel, bias, feature_axis, output_axis, groups: as in `fold_into_next`.
      scale, norm_bias: of the norm, of the sizes of the feature axes; None is 1, and 0. Where a
        zero-centred g is stored, the scale is 1 + g.

    Returns:
      kernel' and bias'. bias' is None where bias and `norm_bias` are None.

    Raises:
      ValueError, TypeError: as in `fold_into_next`.

    Graef, Clapp, Wasielewski, 2024, arXiv:2407.09577.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x, scale = jnp.array([[3.0, 3.0]]), jnp.array([2.0, 5.0])
    >>> kernel, _ = jn.population.fold_scale(jnp.array([[1.0], [1.0]]), None, scale=scale)
    >>> print(jn.rms_norm(x, scale=scale).sum(), jn.rms_norm(x) @ kernel)
    7.0 [[7.]]
    """
    into = _Next(kernel, bias, feature_axis, output_axis, groups)
    return into.folded(into.vector("scale", scale), into.vector("norm_bias", norm_bias))


class _Next:
    """A layer that is applied to x * factor + term, with one factor and one term an input feature."""

    def __init__(
        self,
        kernel: ArrayLike,
        bias: ArrayLike | None,
        feature_axis: Axes,
        output_axis: Axes | None,
        groups: int,
    ) -> None:
        """The arguments of `fold_into_next`, checked."""
        self.kernel = check.numbers("kernel", kernel)
        kernel = self.kernel
        self.features = check.axes(feature_axis, kernel, "feature_axis", "kernel")
        if output_axis is None:
            last = self.features[-1]
            output_axis = range(last + 1, kernel.ndim) if last + 1 < kernel.ndim else (last - 1,)
        self.outputs = check.axes(output_axis, kernel, "output_axis", "kernel")
        if set(self.outputs) & set(self.features):
            problem = (
                f"feature_axis={feature_axis!r} and output_axis={output_axis!r} share an axis of kernel, "
            )
            raise error(ValueError, f"{problem}shape {kernel.shape}", "an axis is of one kind")
        self.output_sizes = tuple(kernel.shape[a] for a in self.outputs)
        self.groups = check.integer("groups", groups, least=1, remedy="choose 1 or more")
        self.sizes = tuple(kernel.shape[a] for a in self.features)
        if self.groups > 1:
            self._check_groups()
            self.sizes = (self.groups * self.sizes[0],)
        self.bias = None if bias is None else check.numbers("bias", bias)
        if self.bias is not None and self.bias.shape != self.output_sizes:
            problem = f"bias has shape {self.bias.shape}, but kernel, shape {kernel.shape}, has "
            problem += f"{self.output_sizes} on its axes of output features {self.outputs}"
            raise error(ValueError, problem, "give the bias of the same layer, or output_axis")

    def _check_groups(self) -> None:
        shape = self.kernel.shape
        if len(self.features) > 1 or len(self.outputs) > 1:
            problem = f"groups={self.groups} for a kernel, shape {shape}, with feature axes {self.features} "
            problem += f"and output axes {self.outputs}"
            raise error(ValueError, problem, "a grouped kernel has one of each")
        if self.output_sizes[0] % self.groups:
            problem = f"groups={self.groups} does not divide axis {self.outputs[0]} of kernel, shape {shape}"
            raise error(ValueError, problem, f"choose a divisor of {self.output_sizes[0]}")

    def vector(self, name: str, value: ArrayLike | None) -> Array | None:
        """One value an input feature."""
        return _vector(name, value, self.kernel, self.features, self.sizes, self.groups)

    def folded(self, factor: Array | None, term: Array | None) -> tuple[Array, Array | None]:
        """The kernel and the bias that do the same to x; None is a factor of 1, and 0."""
        kernel = self.kernel.astype(wide(self.kernel.dtype))
        new_kernel, new_bias = self.kernel, self.bias
        if term is not None:
            like = self.kernel if self.bias is None else self.bias
            inputs = tuple(a for a in range(kernel.ndim) if a not in self.outputs)
            shift = jnp.sum(times(kernel, self._beside_kernel(term)), inputs)
            new_bias = plus(self.bias, shift).astype(_dtype(like, factor, term))
        if factor is not None:
            new_kernel = times(kernel, self._beside_kernel(factor)).astype(_dtype(self.kernel, factor))
        return new_kernel, new_bias

    def _beside_kernel(self, v: Array) -> Array:
        """One value an input feature, beside the kernel's entries that it is multiplied with."""
        v = v.astype(wide(v.dtype))
        ndim = self.kernel.ndim
        if self.groups == 1:
            return v.reshape(_expanded(self.sizes, self.features, ndim))
        # output feature o is of the group o // (outputs / groups), and sees that group's inputs alone
        (outputs,) = self.output_sizes
        v = jnp.repeat(v.reshape(self.groups, -1), outputs // self.groups, axis=0)
        if self.features < self.outputs:
            v = v.T
        axes = (*self.features, *self.outputs)
        return v.reshape(
            _expanded(tuple(self.kernel.shape[a] for a in sorted(axes)), tuple(sorted(axes)), ndim)
        )


def _uncentered(m: Moments) -> Moments:
    """The same with mean 0: for a kernel, of which no mean is subtracted."""
    return m._replace(mean=jnp.zeros_like(m.mean))


def _dtype(like: Array, *others: Array | None) -> Any:
    """The dtype of a result: that of `like`, but complex if any other is."""
    return promoted(like.dtype, *(v.dtype for v in others if v is not None and jnp.iscomplexobj(v)))


def _expanded(sizes: tuple[int, ...], axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """A shape of `ndim` axes, with these sizes on these ascending axes, and 1 on the others."""
    at = dict(zip(axes, sizes, strict=True))
    return tuple(at.get(a, 1) for a in range(ndim))


def _misfit(
    name: str,
    shape: tuple[int, ...],
    kernel: Array,
    features: tuple[int, ...],
    sizes: tuple[int, ...],
    groups: int = 1,
) -> tuple[str, str]:
    """Problem and remedy, where an array of this shape has other sizes than the norm's features."""
    in_groups = f" and groups={groups} make {sizes}" if groups > 1 else ""
    on_axes = tuple(kernel.shape[a] for a in features)
    problem = (
        f"{name} has shape {shape}, but kernel, shape {kernel.shape}, has {on_axes} on its feature axes "
    )
    remedy = "give one value a feature of the norm"
    fitting = [a for a in range(kernel.ndim) if shape == kernel.shape[a : a + 1]]
    if fitting:
        remedy += f", or choose feature_axis={fitting[-1]}, which has that size"
    elif len(features) == 1 == len(shape) and on_axes[0] and shape[0] % on_axes[0] == 0:
        remedy += f", or groups={shape[0] // on_axes[0]} of a grouped Conv after the norm"
    return f"{problem}{features}{in_groups}", remedy


def _vector(
    name: str,
    value: ArrayLike | None,
    kernel: Array,
    features: tuple[int, ...],
    sizes: tuple[int, ...],
    groups: int = 1,
) -> Array | None:
    """A parameter of the norm: one value a feature, of shape `sizes`; None stays None."""
    if value is None:
        return None
    value = check.numbers(name, value)
    if value.shape != sizes:
        raise error(ValueError, *_misfit(name, value.shape, kernel, features, sizes, groups))
    return value


def _stats(stats: Moments, kernel: Array, features: tuple[int, ...], sizes: tuple[int, ...]) -> Moments:
    """The norm's statistics, of shape `sizes`, usable, and in float32 or wider."""
    m = check.one_shape("stats", stats)
    if m.mean.shape != sizes:
        groups = math.prod(sizes) // max(1, math.prod(kernel.shape[a] for a in features))
        misfit = _misfit("stats.mean", m.mean.shape, kernel, features, sizes, groups)
        raise error(ValueError, *misfit)
    return sound(Moments(*(v.astype(wide(v.dtype)) for v in m)))


def _output_bias(
    bias: ArrayLike | None,
    kernel: Array,
    features: tuple[int, ...],
    sizes: tuple[int, ...],
) -> tuple[Array, tuple[int, ...]]:
    """The bias of the layer before a norm, and those of its axes that are the norm's features.

    It has the sizes of the feature axes, or of the kernel's last axes, as a DenseGeneral's has.
    """
    if bias is None:
        return jnp.zeros(sizes, kernel.dtype), tuple(range(len(sizes)))
    bias = check.numbers("bias", bias)
    if bias.shape == sizes:
        return bias, tuple(range(len(sizes)))
    first = kernel.ndim - bias.ndim
    if first < 0 or bias.shape != kernel.shape[first:] or features[0] < first:
        problem = (
            f"bias has shape {bias.shape}, but kernel, shape {kernel.shape}, has {sizes} on its feature "
        )
        raise error(
            ValueError,
            f"{problem}axes {features}",
            "give the bias of the same layer, or feature_axis",
        )
    return bias, tuple(a - first for a in features)
