"""A training loop that is killed goes on from its checkpoint, bitwise; so do two of which one dies.

train.py saves by orbax's CheckpointManager. It writes a checkpoint under another name, and renames it
when it is whole.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from train import EVERY_K, PLACES, STEPS

PROGRAM = Path(__file__).with_name("train.py")
REPOSITORY = Path(__file__).parents[2]
SECONDS = 120
pytestmark = [pytest.mark.slow, pytest.mark.flexible]
both = pytest.mark.parametrize("api", ["linen", "nnx"])


def launch(api, folder, *arguments):
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(
        [sys.executable, PROGRAM, api, folder, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **quick},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(processes, deadline=SECONDS):
    """The exit codes and what was printed. What is not done by the deadline is killed."""
    end, ends = time.monotonic() + deadline, []
    for process in processes:
        try:
            text, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
        ends.append((process.returncode, text))
    return ends


def run(api, folder, *arguments):
    ((code, text),) = finished([launch(api, folder, *arguments)])
    return code, text


def steps(folder):
    """The steps of which the folder has checkpoints, as orbax finds them."""
    with ocp.CheckpointManager(folder) as manager:
        return list(manager.all_steps())


def load(folder, step):
    """A checkpoint as a tree of numpy arrays, by a process that knows no model and no other device."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        path = folder / str(step) / "default"
        tree = checkpointer.metadata(path).item_metadata.tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path, ocp.args.PyTreeRestore(restore_args=numpy))


def named(tree):
    """The arrays by their path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(v) for path, v in leaves}


def assert_bitwise(found, expected):
    assert steps(found) == steps(expected) == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        one, other = named(load(found, step)), named(load(expected, step))
        chex.assert_trees_all_equal_shapes_and_dtypes(one, other)
        assert {name: v.tobytes() for name, v in one.items()} == {
            name: v.tobytes() for name, v in other.items()
        }


def values(tree, ending):
    """The arrays whose names end so: there is one or more."""
    found = {name: v for name, v in named(tree).items() if name.endswith(ending)}
    assert found, (ending, sorted(named(tree)))
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """By API, the folder of a run of one process that nobody kills."""
    folders = {api: tmp_path_factory.mktemp(api) for api in ("linen", "nnx")}
    for code, text in finished([launch(api, folder) for api, folder in folders.items()]):
        assert code == 0, text
    return folders


@both
def test_the_checkpoints_hold_all_that_training_needs(api, undisturbed):
    """Moments and gradients wait between updates, and steps count: otherwise the tests below show nothing."""
    for step in range(1, STEPS + 1):
        tree = load(undisturbed[api], step)
        waiting, updates = step % EVERY_K, step // EVERY_K
        for ending in ("pending_calls", "mini_step"):
            assert all(np.all(v == waiting) for v in values(tree, ending).values()), ending
        for ending in ("norm.step" if api == "nnx" else "BatchNorm_0.step", "gradient_step"):
            assert all(np.all(v == updates) for v in values(tree, ending).values()), ending
        for ending in ("pending_mean", "pending_var", "pending_weight"):
            assert all(np.all(v != 0) == bool(waiting) for v in values(tree, ending).values()), ending


@both
def test_killed_at_every_step(api, undisturbed, tmp_path):
    """Between two steps, after the update, and while orbax writes: each of them in turn."""
    for step in range(STEPS):
        place = PLACES[(step + (api == "nnx")) % len(PLACES)]
        code, text = run(api, tmp_path, "--die", step, place)
        assert code == -signal.SIGKILL, text
        assert f"step {max(0, step - 1)} of {STEPS}" in text or step == 0
        assert steps(tmp_path) == list(range(1, step + 1)), place
    code, text = run(api, tmp_path)
    assert code == 0, text
    assert_bitwise(tmp_path, undisturbed[api])


def test_what_waits_is_needed(undisturbed, tmp_path):
    """A run that goes on from a checkpoint without the moments that wait ends with other statistics."""
    for step in range(1, EVERY_K + 2):
        shutil.copytree(undisturbed["linen"] / str(step), tmp_path / str(step))
    tree = load(tmp_path, EVERY_K + 1)
    for name in [name for name in tree["batch_stats"]["BatchNorm_0"] if name.startswith("pending_")]:
        tree["batch_stats"]["BatchNorm_0"][name] = np.zeros_like(tree["batch_stats"]["BatchNorm_0"][name])
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.delete(EVERY_K + 1)
        manager.save(EVERY_K + 1, args=ocp.args.StandardSave(tree))
    code, text = run("linen", tmp_path)
    assert code == 0, text
    one, other = load(tmp_path, STEPS), load(undisturbed["linen"], STEPS)
    chex.assert_trees_all_equal(one["params"], other["params"])  # of batches alone
    for name in ("mean", "var"):
        assert not np.allclose(
            one["batch_stats"]["BatchNorm_0"][name], other["batch_stats"]["BatchNorm_0"][name]
        )


# ------------------------------------------------------------------------------------------- two processes


def launch_two(folder, dies=None, *death):
    """Both processes, of which the one with the index `dies` dies as `death` says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        launch("linen", folder, "--coordinator", where, "--process-id", i, *(death if i == dies else ()))
        for i in range(2)
    ]


def test_one_of_two_dies(tmp_path):
    """The newest checkpoint is whole, whatever the other one did, and two new processes go on, bitwise."""
    expected, found = tmp_path / "undisturbed", tmp_path / "killed"
    expected.mkdir()
    found.mkdir()
    for code, text in finished(launch_two(expected)):
        assert code == 0, text
    # The second in the middle of a step; the first, which renames for both, in the middle of a save.
    for dies, step, place in ((1, 1, "before"), (0, EVERY_K + 1, "commit")):
        processes = launch_two(found, dies, "--die", step, place)
        ((code, text),) = finished([processes[dies]])
        assert code == -signal.SIGKILL, text
        ((code, text),) = finished([processes[1 - dies]], deadline=40)
        assert code != 0, text  # it cannot go on alone
        assert any("tmp" in path.name for path in found.iterdir()) == (place == "commit")
        assert steps(found) == list(range(1, step + 1))
        newest = named(load(found, step))
        chex.assert_trees_all_equal(newest, named(load(expected, step)))
    for code, text in finished(launch_two(found)):
        assert code == 0, text
    assert_bitwise(found, expected)
