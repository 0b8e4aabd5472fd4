"""python -m jaxnorm.monitor on checkpoints that orbax wrote."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from runs import LinenNet, NnxNet, held_out, train_linen, train_nnx

import jaxnorm
from jaxnorm import linen as jn
from jaxnorm import monitor
from jaxnorm.monitor.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of orbax's own


def save(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


@pytest.fixture
def fresh():
    return LinenNet(options={}).init(jax.random.key(0), held_out(64))


def kinds(report):
    return {(f.path, f.kind) for f in report.findings}


NEVER = {("a/norm", "never_updated"), ("b/norm", "never_updated")}


def test_a_healthy_checkpoint(tmp_path, capsys):
    _, variables = train_linen()
    assert main([str(save(tmp_path / "c", variables))]) == 0
    printed = capsys.readouterr()
    assert "a/norm" in printed.out and "b/norm" in printed.out and "No findings." in printed.out
    assert printed.err == ""


def test_findings(tmp_path, capsys, fresh):
    picture = tmp_path / "report.png"
    assert main([str(save(tmp_path / "c", fresh)), "--plot", str(picture)]) == 1
    assert "a/norm: never_updated 32. 32 of 32 channels still" in capsys.readouterr().out
    assert picture.exists()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda stats: {**stats, "var": stats["var"].at[0].set(-1)}, "non_finite"),
        (lambda stats: {**stats, "mean": stats["mean"].at[0].set(jnp.nan)}, "non_finite"),
        (lambda stats: {**stats, "var": stats["var"].at[0].set(0)}, "dead_channels"),
        (lambda stats: {**stats, "var": stats["var"] * 1e-7}, "small_variance"),
        (lambda stats: {**stats, "mean": stats["mean"] + 1e5}, "exploding"),
        (lambda stats: {"mean": 0 * stats["mean"], "var": 0 * stats["var"] + 1}, "never_updated"),
    ],
)
def test_what_the_stored_statistics_alone_tell(tmp_path, change, kind):
    _, variables = train_linen()
    stats = {**variables["batch_stats"], "b": {"norm": change(variables["batch_stats"]["b"]["norm"])}}
    path = save(tmp_path / "c", {**variables, "batch_stats": stats})
    assert kinds(monitor.read(path)) == {("b/norm", kind)}


def test_a_larger_epsilon(tmp_path):
    _, variables = train_linen()
    path = str(save(tmp_path / "c", variables))
    assert main([path, "--epsilon", "1e6"]) == 1


def test_trees_around_the_variables(tmp_path, fresh):
    """A state of training, with what orbax keeps beside arrays; a mean without a var is no norm's."""
    tree = {
        "step": 3,
        "name": "run",
        "nothing": None,
        "model": fresh,
        "momenta": [fresh["params"], {"mean": jnp.ones(3)}],
    }
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", tree)
    assert kinds(monitor.read(tmp_path / "c")) == {(f"model/{path}", kind) for path, kind in NEVER}


def test_scales_and_frozen_statistics(tmp_path, fresh):
    params = {**fresh["params"], "a": {**fresh["params"]["a"], "norm": {"scale": jnp.zeros(32)}}}
    path = save(tmp_path / "c", jn.freeze({**fresh, "params": params}, ...))
    assert kinds(monitor.read(path)) == NEVER | {("a/norm", "dead_channels")}


def test_the_newest_step_of_a_manager(tmp_path, fresh):
    _, trained = train_linen()
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(9, args=ocp.args.StandardSave(fresh))
        manager.save(10, args=ocp.args.StandardSave(trained))
        manager.wait_until_finished()
    assert kinds(monitor.read(tmp_path / "run")) == set()
    assert kinds(monitor.read(tmp_path / "run" / "9")) == NEVER


def test_a_manager_of_several_items(tmp_path, fresh):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        items = {"model": ocp.args.StandardSave(fresh), "data": ocp.args.JsonSave({"epoch": 1})}
        manager.save(3, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    assert kinds(monitor.read(tmp_path / "run")) == NEVER


@pytest.mark.parametrize("pure", [False, True])
def test_nnx_states(tmp_path, pure):
    def state(model):
        found = nnx.state(model)
        return nnx.to_pure_dict(found) if pure else found

    assert kinds(monitor.read(save(tmp_path / "a", state(NnxNet(rngs=nnx.Rngs(0)))))) == NEVER
    assert kinds(monitor.read(save(tmp_path / "b", state(train_nnx())))) == set()


def test_a_checkpoint_from_other_devices(tmp_path, fresh):
    mesh = jax.sharding.Mesh(jax.devices("cpu")[:8], "x")
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    stats = jax.tree.map(lambda v: jax.device_put(v, spread), fresh["batch_stats"])
    path = save(tmp_path / "c", {**fresh, "batch_stats": stats})
    assert kinds(monitor.read(path)) == NEVER
    code = f"from jaxnorm import monitor; print(len(monitor.read({str(path)!r}).findings))"
    done = run("-W", "ignore", "-c", code)
    assert done.stdout.split() == ["2"], done.stderr


def run(*arguments):
    """Python, with this jaxnorm and one device."""
    environment = {**os.environ, "PYTHONPATH": str(Path(jaxnorm.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_the_command(tmp_path, fresh):
    path = save(tmp_path / "c", fresh)
    done = run("-m", "jaxnorm.monitor", str(path))
    assert done.returncode == 1
    assert "never_updated" in done.stdout and done.stderr == ""
    done = run("-m", "jaxnorm.monitor", str(tmp_path / "missing"))
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"read: {tmp_path}/missing is no checkpoint of orbax; give the folder that orbax wrote.\n"
    )


def test_what_cannot_be_read(tmp_path, capsys, fresh):
    def said(path):
        assert main([str(path)]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        return printed.err.strip()

    none = "is no checkpoint of orbax; give the folder that orbax wrote."
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    for name in ("missing", "empty", "file"):
        assert said(tmp_path / name) == f"read: {tmp_path / name} {none}"

    dense = save(tmp_path / "dense", nn.Dense(2).init(jax.random.key(0), jnp.ones((1, 2))))
    assert said(dense) == (
        f"read: {dense} holds no statistics, no `mean` beside a `var`; save batch_stats, or nnx.state(model)."
    )

    cut = save(tmp_path / "cut", fresh)
    (cut / "_METADATA").write_text("{")
    text = said(cut)
    assert text.startswith(f"read: {cut} cannot be read, ") and text.endswith("; is it complete?")


def test_a_wrong_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--epsilon", "small"])
    assert caught.value.code == 2
