"""A report: the norms of a model, what is wrong with each, and the table."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import jax
import numpy as np

from jaxnorm._core.moments import Moments, merge
from jaxnorm.monitor.extras import imported
from jaxnorm.monitor.findings import Finding, Norm

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Report:
    """What `diagnose` or a checkpoint tells of the norms of a model.

    `findings` is plain data: an empty list is a healthy model. `norms` are the measures of every norm. `table()`
    and `print` show both, `plot(path)` draws them.

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

        The columns: the largest shift of a channel's mean, in stored deviations; the largest KL divergence; how
        many batches the average holds; the noise of the batch's mean, in deviations, and of its variance; the
        smallest variance (of a norm without statistics: the median sample's mean square); and the kinds of the
        findings. A dash: nothing is known.

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
        return "\n".join([out.getvalue().rstrip("\n"), *map(str, self.findings or ["No findings."])])

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
    return "-" if value is None else f"{value:.2g}"


# ---------------------------------------------------------------- of what was told, and of what is stored


def of_calls(told: Iterable[tuple[str, str, Mapping[str, Any], Arrays]], variables: Any) -> Report:
    """The report of `diagnose`: of the norms that were called, and of those that were not but have statistics.

    Args:
      told: what each call told: the norm's path, its class, its static options and its arrays.
      variables: of the model, as in `stored_norms`.

    Raises:
      ValueError: there are none.
    """
    calls: dict[str, list[Norm]] = {}
    for path, layer, options, arrays in told:
        calls.setdefault(path, []).append(_called(path, layer, options, arrays))
    norms = [_joined(each) for each in calls.values()]
    norms += [norm for norm in stored_norms(variables) if norm.path not in calls]
    if not norms:
        raise ValueError(
            "diagnose: the model calls no norm of jaxnorm and stores no statistics; replace Flax's norms by those of "
            "jaxnorm.linen or jaxnorm.nnx."
        )
    return Report(norms)


def stored_norms(tree: Any, *, epsilon: float = 1e-5) -> list[Norm]:
    """The norms whose statistics are in a tree: wherever there is a `mean` beside a `var`.

    Args:
      tree: arrays, as linen's variables or nnx's State name them, or a larger tree around these. "batch_stats" is
        left out of a norm's path.
      epsilon: of the norms.
    """
    stored = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    norms = []
    for place in [p[:-1] for p in stored if p[-1:] == ("mean",)]:
        mean, var = (stored.get((*place, name)) for name in ("mean", "var"))
        if var is None or np.ndim(mean) not in (np.ndim(var), np.ndim(var) - 1):
            continue
        beside = tuple("params" if part == "batch_stats" else part for part in place)
        scale = stored.get((*beside, "scale"))
        norms.append(
            Norm(
                path="/".join(part for part in place if part != "batch_stats"),
                # a layer with a kernel and statistics, which are those of its targets
                layer="PopArt" if (*beside, "kernel") in stored else "-",
                stored=_moments({"mean": np.asarray(mean), "var": np.asarray(var)}),
                scale=None if scale is None else np.asarray(scale),
                epsilon=epsilon,
            )
        )
    return norms


def path_of(keys: tuple[Any, ...]) -> tuple[str, ...]:
    """The names on a leaf's path in a tree, without the `value` of an nnx variable."""
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)
    return names[:-1] if names[-1:] == ("value",) else names


def _called(path: str, layer: str, options: Mapping[str, Any], arrays: Arrays) -> Norm:
    """The norm of one call."""

    def group(prefix: str) -> Moments | None:
        found = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        return _moments(found) if found else None

    numbers = {
        k: float(arrays[k])
        for k in ("epsilon", "momentum", "samples", "effective", "broken", "saturated")
        if k in arrays
    }
    values = {name: arrays[name] for name in ("scale", "bias") if name in arrays}
    if "square" in arrays:
        values["square"] = arrays["square"][arrays["seen"] > 0]
    stored, batch = group("stored_"), group("batch_")
    if stored is not None:  # evaluation uses it, whatever its weight
        stored = stored._replace(weight=np.ones_like(stored.var))
    return Norm(path=path, layer=layer, stored=stored, batch=batch, **options, **numbers, **values)


def _moments(values: Arrays) -> Moments:
    """Moments of one shape, one value a channel: of covariances the diagonals.

    Args:
      values: mean and var, and the weight, whose shape may be a prefix of theirs.
    """
    mean, var = (
        v if v.dtype.itemsize >= 4 else v.astype(np.float32) for v in (values["mean"], values["var"])
    )
    if var.ndim > mean.ndim:
        var = np.diagonal(var, axis1=-2, axis2=-1)
    weight = values.get("weight", np.ones(()))
    weight = weight.reshape(weight.shape + (1,) * (mean.ndim - weight.ndim))
    return Moments(mean, var, np.broadcast_to(weight, mean.shape).astype(var.dtype))


def _joined(calls: list[Norm]) -> Norm:
    """The calls of one norm as one.

    Calls by the same statistics are one batch. A norm inside of `lax.scan` is called by the statistics of one
    layer after the other: the channels of all layers are then side by side.
    """
    layers: dict[bytes, Norm] = {}
    for call in calls:
        key = b"" if call.stored is None else call.stored.mean.tobytes() + call.stored.var.tobytes()
        layers[key] = _together(layers[key], call) if key in layers else call
    first, *others = layers.values()
    if not others:
        return first
    every = first, *others
    return replace(
        first,
        stored=_side_by_side(norm.stored for norm in every),
        batch=_side_by_side(norm.batch for norm in every),
        samples=min(norm.samples or 0 for norm in every),
        effective=min(norm.effective or 0 for norm in every),
        broken=sum(norm.broken for norm in every),
        scale=None if first.scale is None else np.concatenate([np.ravel(norm.scale) for norm in every]),
        bias=None if first.bias is None else np.concatenate([np.ravel(norm.bias) for norm in every]),
    )


def _together(a: Norm, b: Norm) -> Norm:
    """Two calls by the same statistics."""
    if a.batch is None or b.batch is None:
        squares = [norm.square for norm in (a, b) if norm.square is not None]
        saturated = [norm.saturated for norm in (a, b) if norm.saturated is not None]
        return replace(a, square=np.concatenate(squares), saturated=max(saturated, default=None))
    return replace(
        a,
        batch=Moments(*map(np.asarray, merge(a.batch, b.batch))),
        samples=(a.samples or 0) + (b.samples or 0),
        effective=(a.effective or 0) + (b.effective or 0),
        broken=max(a.broken, b.broken),
    )


def _side_by_side(parts: Iterable[Moments | None]) -> Moments:
    """The channels of all on the first axis."""
    fields = zip(*(part for part in parts if part is not None), strict=True)
    return Moments(*(np.concatenate(list(map(np.atleast_1d, values))) for values in fields))
