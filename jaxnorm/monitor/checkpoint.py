"""What the statistics in an orbax checkpoint tell."""

import os
import re
from typing import Any

import jax
import numpy as np

from jaxnorm.monitor.extras import imported
from jaxnorm.monitor.report import Report, path_of, stored_norms

# Leaves that are read. Of others only their names are.
READ = {"mean", "var", "scale"}


def read(checkpoint: str | os.PathLike[str], *, epsilon: float = 1e-5) -> Report:
    """A report of the statistics in a checkpoint that orbax wrote: of linen's variables or of an nnx State.

    They may be part of a larger tree, such as a TrainState. Of a checkpoint manager's folder the newest step
    is read. Statistics and scales are all that is loaded, into the host's memory.

    Without a batch it tells what was never updated, is not finite, explodes, is dead or below epsilon.

    Args:
      checkpoint: the path of its folder.
      epsilon: of the norms, which a checkpoint does not hold.

    Raises:
      ImportError: orbax is not installed.
      ValueError: there is no checkpoint, or it cannot be read, or it holds no statistics.

    >>> from jaxnorm import monitor
    >>> monitor.read("no/such/folder")
    Traceback (most recent call last):
    ValueError: read: no/such/folder is no checkpoint of orbax; give the folder that orbax wrote.
    """
    orbax, epath = imported("orbax.checkpoint", "read"), imported("etils.epath", "read")
    local = "://" not in os.fspath(checkpoint)
    items = _items(epath.Path(os.path.abspath(checkpoint) if local else checkpoint))
    if not items:
        raise ValueError(f"read: {checkpoint} is no checkpoint of orbax; give the folder that orbax wrote.")
    norms = []
    for item in items:
        try:
            tree = _tree(orbax, item)
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ValueError(f"read: {checkpoint} cannot be read, {first}; is it complete?") from error
        norms += stored_norms(tree, epsilon=epsilon)
    if not norms:
        raise ValueError(
            f"read: {checkpoint} holds no statistics, no `mean` beside a `var`; save batch_stats, or "
            "nnx.state(model)."
        )
    return Report(norms)


def _items(folder: Any, *, depth: int = 2) -> list[Any]:
    """The folders inside that hold one tree each: of numbered ones, steps, those of the last alone."""
    if not folder.is_dir():
        return []
    if (folder / "_METADATA").exists():
        return [folder]
    inside = sorted((f for f in folder.iterdir() if f.is_dir()), key=lambda f: f.name) if depth else []
    steps = [f for f in inside if re.search(r"\d$", f.name)]
    if steps:
        inside = [max(steps, key=lambda f: int(re.findall(r"\d+", f.name)[-1]))]
    return [item for f in inside for item in _items(f, depth=depth - 1)]


def _tree(orbax: Any, item: Any) -> Any:
    """The tree in a folder: the arrays that are read, and a placeholder for each of the others."""
    with orbax.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(item)
        tree = getattr(metadata, "item_metadata", metadata).tree
        wanted = jax.tree_util.tree_map_with_path(
            lambda keys, _: 0 if READ.intersection(path_of(keys)[-1:]) else orbax.PLACEHOLDER, tree
        )
        # as numpy's, since the devices that wrote them may not be here
        arrays = jax.tree.map(lambda _: orbax.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(item, args=orbax.args.PyTreeRestore(item=wanted, restore_args=arrays))
