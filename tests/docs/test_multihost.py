"""Two processes of four devices each train as one process with one device does."""

import os
import socket
import subprocess
import sys
import time
from functools import cache
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from variants import assert_close

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
PROCESSES, SECONDS = 2, 240
# Batches of 80, 80 and 43: of the last, the second process has 3 samples on one device and 0 on three.
SAMPLES, BATCH, STEPS = 203, 80, 3


@pytest.fixture(autouse=True)
def examples_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


def launch(*arguments):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, EXAMPLES / "multihost.py", "--coordinator", f"127.0.0.1:{port}"]
    options = ["--num-processes", str(PROCESSES), "--cpu-devices", "4", "--timeout", str(SECONDS // 2)]
    return [
        subprocess.Popen(
            [*command, *options, "--process-id", str(i), *arguments],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(PROCESSES)
    ]


def outputs(processes):
    """What each has printed; one that hangs or fails takes the test with it."""
    deadline = time.monotonic() + SECONDS
    try:
        texts = [p.communicate(timeout=max(1, deadline - time.monotonic()))[0] for p in processes]
    except subprocess.TimeoutExpired:
        for p in processes:
            p.kill()
        texts = [p.communicate()[0] for p in processes]
        pytest.fail("\n".join([f"not finished after {SECONDS} s", *texts]))
    assert [p.returncode for p in processes] == [0] * PROCESSES, "\n".join(texts)
    return texts


@cache
def alone():
    """Parameters and statistics after the same batches on one device."""
    common, parallel = import_module("_digits_common"), import_module("_digits_parallel")
    data, _ = common.load_samples()
    data = common.Samples(data.images[:SAMPLES], data.labels[:SAMPLES])
    state = parallel.initial_state(seed=0, learning_rate=0.1, steps=STEPS)
    step = jax.jit(parallel.train_step)
    batches = list(parallel.batches(data, BATCH, np.random.default_rng(0)))
    assert [int(batch.mask.sum()) for batch in batches] == [80, 80, 43]
    for batch in batches:
        state, _ = step(state, batch)
    return {"params": state.params, "batch_stats": state.batch_stats}


@pytest.mark.slow
@pytest.mark.flexible
@pytest.mark.parametrize("style", ["jit", "shard_map"])
def test_two_processes_are_one_device(style, tmp_path):
    out = tmp_path / "variables.npz"
    small = ["--samples", str(SAMPLES), "--batch-size", str(BATCH), "--epochs", "1"]
    processes = launch("--style", style, *small, "--out", str(out))
    expected = alone()  # meanwhile
    first, second = outputs(processes)
    assert "process 0 of 2: 4 of 8 devices" in first and "process 1 of 2: 4 of 8 devices" in second
    assert "epoch 1, step 3 of 3: 43 samples, loss " in first and "loss" not in second
    with np.load(out) as found:
        assert_close(dict(found), flatten_dict(expected, sep="/"), 5e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--coordinator", "127.0.0.1:8476"],
            "--coordinator, --num-processes and --process-id go together: give all three or none",
        ),
        (["--style", "pmap"], "argument --style: invalid choice: 'pmap'"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        import_module("multihost").main(arguments)
    assert stop.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err
