"""Two photographs swap their colours: adaptive instance norm on the pixels themselves.

    python examples/style_statistics.py

The six numbers that move, a mean and a deviation for each of three channels, are what style transfer by
adaptive instance norm moves in the features of a network (Huang, Belongie 2017, arXiv:1703.06868).
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from _style import STYLE
from jax import Array
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from skimage import data

from jaxnorm import adaptive_instance_norm, moments

CHANNELS = ("red", "green", "blue")
TOLERANCE = 1e-5  # of statistics of pixels in [0, 1]


def photographs() -> dict[str, Array]:
    """scikit-image's, [1, height, width, channels] in [0, 1]."""
    both = {"coffee": data.coffee(), "rocket": data.rocket()}
    return {name: jnp.asarray(photo[None], jnp.float32) / 255 for name, photo in both.items()}


def statistics(photo: Array) -> np.ndarray:
    """Mean and deviation of every channel, [2, channels]."""
    m = moments(photo, (0, 1, 2))
    return np.stack([m.mean, np.sqrt(m.var)])


def table(named: dict[str, Array]) -> Table:
    result = Table()
    result.add_column("photograph")
    for channel in CHANNELS:
        result.add_column(f"{channel}\nmean", justify="right")
        result.add_column("\ndeviation", justify="right")
    for name, photo in named.items():
        result.add_row(name, *(f"{v:.3f}" for v in statistics(photo).T.ravel()))
    return result


def plot(named: dict[str, Array], path: Path) -> None:
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9, 6), layout="constrained")
        for panel, (name, photo) in zip(figure.subplots(2, 2).flat, named.items(), strict=True):
            panel.imshow(np.clip(photo[0], 0, 1))
            panel.set_title(name)
            panel.axis("off")
        figure.suptitle("Left: two photographs. Right: each with the channel statistics of the other")
        figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="style_statistics.py", description="Two photographs swap colours.")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot create folder {options.out}: {error.strerror}")

    adapt = jax.jit(partial(adaptive_instance_norm, epsilon=0.0))
    photos = photographs()
    named = {}
    for content, style in (("coffee", "rocket"), ("rocket", "coffee")):
        named[content] = photos[content]
        named[f"{content}, styled as the {style}"] = adapt(photos[content], photos[style])
    Console(width=110).print(table(named))

    differences = [
        np.abs(statistics(named[f"{content}, styled as the {style}"]) - statistics(photos[style])).max()
        for content, style in (("coffee", "rocket"), ("rocket", "coffee"))
    ]
    print(
        f"largest difference between a styled photograph's statistics and the style's: {max(differences):.1e}"
    )
    if max(differences) > TOLERANCE:
        raise SystemExit(f"statistics differ from the style's by more than {TOLERANCE:g}")
    picture = options.out / "style_statistics.png"
    plot(named, picture)
    print(f"picture  {picture}")


if __name__ == "__main__":
    main()
