"""A report: the norms of a model, what is wrong with each, and the table."""

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._base.arithmetic import wide
from jaxnorm._core.moments import Moments
from jaxnorm.monitor.extras import imported
from jaxnorm.monitor.findings import Finding, Norm

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Report:
    """What `diagnose` or a checkpoint tells of the norms of a model.

    `findings` is plain data: an empty list is a healthy model. `norms` are the measures of every norm.
    `table()` and `print` show both, `plot(path)` draws them.

    >>> import jaxnorm as jn
    >>> from jaxnorm.monitor import Norm, Report
    >>> report = Report([Norm(path="b/norm", layer="BatchNorm", stored=jn.initial_stats(4))])
    >>> [(finding.path, finding.kind, finding.value) for finding in report.findings]
    [('b/norm', 'never_updated', 4)]
    >>> report
    Report(1 norm, 1 finding)
    """

    norms: list[Norm]

    @property
    def findings(self) -> list[Finding]:
        """All that is wrong: norm by norm, in the order in which the model called them."""
        return [finding for norm in self.norms for finding in norm.findings]

    def __repr__(self) -> str:
        n, k = len(self.norms), len(self.findings)
        return f"Report({n} norm{'s' * (n != 1)}, {k} finding{'s' * (k != 1)})"

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """A row for every norm, healthy ones too, and beneath it each finding with what to do.

        The columns: the largest shift of a channel's mean, in stored deviations; the largest KL divergence;
        how many batches the average holds; the standard errors of the batch's mean, in deviations, and of its
        variance, in variances; the smallest variance (of a norm without statistics: the median sample's mean
        square); the kinds of the findings. A dash: nothing is known.

        Raises:
          ImportError: rich is not installed.
        """
        table = imported("rich.table", "Report.table").Table()
        for name in ("norm", "layer"):
            table.add_column(name, overflow="fold")
        for name in ("channels", "shift", "KL", "batches\nheld", "noise\nmean, var", "smallest\nvariance"):
            table.add_column(name, justify="right", vertical="bottom")
        table.add_column("findings")
        text = imported("rich.text", "Report.table").Text
        for norm in self.norms:
            table.add_row(*map(text, _row(norm)))
        out = io.StringIO()
        # as wide as the text, whatever the terminal: a path is never cut
        console = imported("rich.console", "Report.table").Console(
            file=out, width=10_000, color_system=None, force_terminal=False, legacy_windows=False
        )
        console.print(table)
        beneath = list(map(str, self.findings)) or ["No findings."]
        return "\n".join([out.getvalue().rstrip("\n"), *beneath])

    def plot(self, path: str | PathLike[str]) -> None:
        """Draws every channel of every norm, as a PNG.

        Its deviation, and how far the mean and the variance of the batch are from the stored ones.

        Args:
          path: of the file.

        Raises:
          ImportError: matplotlib is not installed.
        """
        imported("matplotlib", "Report.plot")
        from jaxnorm.monitor.picture import draw

        draw(self.norms, path)


def _row(norm: Norm) -> list[str]:
    """The cells of one norm."""
    shift, divergence = (norm.of_channels(name) for name in ("shift", "divergence"))
    noise = norm.noise
    values = norm.stored.mean if norm.stored is not None else norm.scale
    return [
        norm.path or "(the model)",
        norm.layer,
        "-" if values is None else str(np.size(values)),
        _number(None if shift is None or np.isnan(shift).all() else float(np.nanmax(shift))),
        _number(None if divergence is None or np.isnan(divergence).all() else float(np.nanmax(divergence))),
        _number(norm.held),
        "-" if noise is None else ", ".join(map(_number, noise)),
        _number(norm.smallest),
        ", ".join(finding.kind for finding in norm.findings) or "ok",
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if 100 <= abs(value) < 10_000 else f"{value:.2g}"


# ---------------------------------------------------------------- of what was told, and of what is stored


def of_calls(
    told: Iterable[tuple[str, str, Mapping[str, Any], Arrays]],
    variables: Any,
    batches: Mapping[str, Any],
    frozen: Collection[str],
) -> Report:
    """The report of `diagnose`: of norms that were called, and of others that have statistics.

    Args:
      told: of each call the norm's path, its class, its static options and its values, in order.
      variables: of the model, as in `stored_norms`.
      batches: the statistics of the batch, by the norm's path, of those that keep any.
      frozen: the paths of those whose statistics are frozen.

    Raises:
      ValueError: there are no norms.
    """
    calls: dict[str, list[Any]] = {}
    for path, *call in told:
        calls.setdefault(path, []).append(call)
    nodes = _nodes(variables)
    norms = [
        _called(path, each, nodes.get(path, {}), batches, path in frozen) for path, each in calls.items()
    ]
    norms += [norm for norm in stored_norms(variables) if norm.path not in calls]
    if not norms:
        raise ValueError("diagnose: the model has no norm; choose a model with norms of jaxnorm or of Flax.")
    return Report(norms)


def stored_norms(tree: Any, *, epsilon: float = 1e-5) -> list[Norm]:
    """The norms whose statistics are in a tree: wherever there is a `mean` beside a `var`.

    Args:
      tree: arrays, as linen's variables or nnx's State name them, or a larger tree around these.
      epsilon: of the norms.
    """
    norms = []
    for path, node in _nodes(tree).items():
        if "mean" in node and "var" in node and np.ndim(node["mean"]) in (n := np.ndim(node["var"]), n - 1):
            norms.append(
                Norm(
                    path=path,
                    # a layer with a kernel and statistics, which are those of its targets
                    layer="PopArt" if "kernel" in node else "-",
                    stored=_moments(node["mean"], node["var"]),
                    scale=_values(node.get("scale")),
                    epsilon=epsilon,
                )
            )
    return norms


def path_of(keys: tuple[Any, ...]) -> tuple[str, ...]:
    """The names on a leaf's path in a tree, without the `value` of an nnx variable."""
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)
    return names[:-1] if names[-1:] == ("value",) else names


def _nodes(tree: Any) -> dict[str, dict[str, Any]]:
    """The leaves of each module, by name, by its path: linen's parameters and statistics are one module's."""
    nodes: dict[str, dict[str, Any]] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *path, name = ["", *path_of(keys)]
        place = "/".join(part for part in path[1:] if part not in ("params", "batch_stats"))
        nodes.setdefault(place, {})[name] = leaf
    return nodes


def _called(
    path: str, calls: Sequence[Any], node: Mapping[str, Any], batches: Mapping[str, Any], frozen: bool
) -> Norm:
    """The norm of one or more calls.

    Args:
      path: of the norm.
      calls: of each its class, its static options and its values.
      node: its variables, by name.
      batches, frozen: as in `of_calls`.
    """
    layer, options, values = calls[0]

    def every(name: str) -> np.ndarray:
        return np.concatenate([np.ravel(v[name]) for _, _, v in calls])

    norm = Norm(
        path=path,
        layer=layer,
        epsilon=float(values.get("epsilon", 0.0)),
        momentum=float(values["momentum"]) if "momentum" in values else None,
        scale=_values(node.get("scale")),
        bias=_values(node.get("bias")),
    )
    if "size" not in options:
        if options["zero_centered"] and norm.scale is not None:
            norm = replace(norm, scale=1 + norm.scale)
        square = every("square")[every("seen") > 0]
        return replace(
            norm, square=square, saturated=every("saturated").max() if "saturated" in values else None
        )
    samples, effective = every("samples").sum(), every("effective").sum()
    if not options["size"]:
        return replace(norm, momentum=None, samples=float(samples), effective=float(effective))
    stored = _moments(node["mean"], node["var"])
    # a norm inside of lax.scan is called once for each layer, which has its share of what is stored
    layers = stored.mean.size // options["size"]
    return replace(
        norm,
        stored=stored,
        batch=_moments(*batches[path]),
        samples=float(samples / layers),
        effective=float(effective / layers),
        frozen=frozen,
        by_batch=options["by_batch"],
    )


def _moments(mean: Any, var: Any, weight: Any = 1.0) -> Moments:
    """Moments of one shape, in float32 or wider: of covariances the diagonals.

    Args:
      mean, var: arrays.
      weight: its shape may be a prefix of theirs.
    """
    mean, var, weight = (jnp.asarray(v) for v in (mean, var, weight))
    mean, var = mean.astype(wide(mean.dtype)), var.astype(wide(var.dtype))
    if var.ndim > mean.ndim:
        var = jnp.diagonal(var, axis1=-2, axis2=-1)
    weight = weight.reshape(weight.shape + (1,) * (mean.ndim - weight.ndim))
    return Moments(mean, var, jnp.broadcast_to(weight, mean.shape).astype(var.dtype))


def _values(stored: Any) -> np.ndarray | None:
    """A parameter as numpy has it, in float32 or wider."""
    if stored is None or stored is Ellipsis:
        return None
    value = jnp.asarray(stored)
    return np.asarray(value.astype(wide(value.dtype)))
