"""The examples run as scripts do, keep what they promise and refuse what makes no sense."""

import csv
import os
import re
import runpy
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from flax import nnx

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"

flexible = pytest.mark.flexible


@pytest.fixture(autouse=True)
def examples_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


def assert_pictures(output, *pictures):
    """Each picture is named in the output and is a PNG."""
    for picture in pictures:
        assert str(picture) in output
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@flexible
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_digits_learns_and_its_checkpoint_reads_back_in_either_api(api, tmp_path, capsys):
    digits = import_module("digits")
    digits.main(["--api", api, "--epochs", "1", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    checkpoint = tmp_path / f"digits-batch-{api}-checkpoint"
    assert_pictures(output, tmp_path / f"digits-batch-{api}.png")
    assert str(checkpoint) in output
    assert "shift" in output and "ratio" in output and "block3" in output

    _, test = digits.load_samples()
    for make_trainer in digits.TRAINERS.values():
        trainer = make_trainer("batch", seed=7, learning_rate=0.1, steps=40)
        trainer.restore(digits.read_checkpoint(checkpoint, trainer.variables))
        accuracy = digits.accuracy(trainer.predict(test.images), test.labels)
        assert accuracy > 0.8
        (row,) = re.findall(r"running\) statistics, read back.*", output)
        assert f"{accuracy:.2%}" in row


@pytest.mark.slow
@flexible
def test_digits_without_statistics(tmp_path, capsys):
    digits = import_module("digits")
    arguments = ["--norm", "none", "--epochs", "1", "--batch-size", "128", "--out", str(tmp_path)]
    digits.main(arguments)
    output = capsys.readouterr().out
    assert_pictures(output, tmp_path / "digits-none-linen.png")
    assert "no running statistics" in output and "shift" not in output


@pytest.mark.slow
@flexible
def test_digits_compares(tmp_path, capsys, monkeypatch):
    digits = import_module("digits")
    small = {"norms": ("none",), "batch_sizes": (128,), "learning_rates": (0.1, 1e4), "num_seeds": 2}
    monkeypatch.setattr(digits, "compare", partial(digits.compare, **small))
    digits.main(["--compare", "--epochs", "1", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    assert_pictures(output, tmp_path / "digits-compare.png")
    (row,) = re.findall(r".*none.*128.*", output)
    learned, diverged = map(float, re.findall(r"([\d.]+) \(", row))
    assert learned > diverged < 15


@flexible
@pytest.mark.parametrize("norm", ["batch", "layer", "group", "instance", "rms", "none"])
def test_digits_has_the_same_variables_in_linen_and_nnx(norm):
    linen, nnx_ = import_module("_digits_linen"), import_module("_digits_nnx")
    abstract = jax.eval_shape(partial(linen.init, linen.Net(norm)), jax.random.key(0))
    model = nnx.eval_shape(lambda: nnx_.Net(norm, rngs=nnx.Rngs(0)))
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    others = {name: nnx.to_pure_dict(nnx.state(model, kind)) for name, kind in kinds.items()}
    assert bool(others["batch_stats"]) == (norm == "batch")
    abstract.setdefault("batch_stats", {})
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, others)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "argument --batch-size: expected a whole number from 1 to 1280, got '0'"),
        (["--epochs", "2.5"], "argument --epochs: expected a whole number from 1 to 10000, got '2.5'"),
        (["--seed", "-1"], "argument --seed: expected a whole number from 0 to 2147483647, got '-1'"),
        (["--learning-rate", "nan"], "argument --learning-rate: expected a positive number, got 'nan'"),
        (["--learning-rate", "fast"], "argument --learning-rate: expected a positive number, got 'fast'"),
        (
            ["--compare", "--norm", "rms"],
            "argument --norm: --compare tries several; leave out one of the two",
        ),
        (["--norm", "bach"], "argument --norm: invalid choice: 'bach'"),
    ],
)
def test_digits_refuses_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        import_module("digits").main(arguments)
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"digits.py: error: {message}")
    if "choice" not in message:  # Python lists the choices, each version in its own way
        assert last == f"digits.py: error: {message}"


@pytest.mark.parametrize("example", ["digits", "evidence", "population"])
def test_an_output_folder_that_is_a_file(example, tmp_path, capsys):
    out = tmp_path / "file"
    out.touch()
    with pytest.raises(SystemExit):
        import_module(example).main(["--out", str(out)])
    message = f"{example}.py: error: argument --out: cannot create folder {out}: File exists"
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_population_statistics_are_what_they_claim():
    data = np.random.default_rng(1).normal(3.0, 2.0, (5, 20)).astype(np.float32)
    population = import_module("population")
    rows = population.statistics(data)
    exact = data.astype(np.float64)
    decay = population.DECAY
    for count, row in enumerate(rows, 1):
        seen = exact[:count]
        mass = decay ** np.arange(count)[::-1]
        for field, own, start in (("mean", seen.mean(1), 0.0), ("var", seen.var(1), 1.0)):
            plain = decay**count * start + (1 - decay) * mass @ own
            debiased = mass @ own / mass.sum()
            merged = getattr(seen, field)()
            expected = population.Row(own[-1], plain, debiased, merged)
            result = [getattr(moments, field) for moments in row]
            np.testing.assert_allclose(result, expected, rtol=population.TOLERANCE)


def test_population_runs_as_a_script(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "population.py", "--out", tmp_path],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert_pictures(done.stdout, tmp_path / "population.png")
    assert len(re.findall(r"^│ [1-5] ", done.stdout, re.MULTILINE)) == 5


def test_style_statistics(tmp_path, capsys):
    import_module("style_statistics").main(["--out", str(tmp_path)])
    output = capsys.readouterr().out
    assert_pictures(output, tmp_path / "style_statistics.png")
    ours = {name.strip(): v for name, v in re.findall(r"│ ([a-z ,]+?) +│ (.*) │", output)}
    assert ours["coffee, styled as the rocket"] == ours["rocket"] != ours["coffee"]


@pytest.mark.slow
@flexible
def test_sequences(tmp_path, capsys, monkeypatch):
    sequences = import_module("sequences")
    images, labels = sequences.digits()
    monkeypatch.setattr(sequences, "digits", lambda: (images[:1408], labels[:1408]))
    monkeypatch.setattr(sequences, "NORMS", {"batch, per step": sequences.LONGEST})
    monkeypatch.setattr(sequences, "LENGTHS", (16,))
    sequences.main(["--epochs", "2", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    assert_pictures(output, tmp_path / "sequences.png")
    (accuracy,) = re.findall(r"│ batch, per step │ ([\d.]+)", output)
    assert float(accuracy) > 20  # chance is 10


def read_columns(path):
    """A CSV file's columns by name; the numbers as floats."""
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    texts = {"norm", "where", "initial_weights", "weights", "estimate", "network"}
    return {name: values if name in texts else values.astype(float) for name, values in columns.items()}


@pytest.mark.slow
def test_evidence_finds_what_holds_for_every_seed(tmp_path, capsys):
    """The default run, whole: `make evidence` is no part of `make test-all` besides."""
    import_module("evidence").main(["--out", str(tmp_path)])
    output = capsys.readouterr().out
    names = "convergence learning-rates initial-weights quantiles gradients noise batch-size averages cost"
    paths = [
        tmp_path / f"{letter}-{name}.png" for letter, name in zip("abcdefghi", names.split(), strict=True)
    ]
    assert_pictures(output, *paths)
    tables = {path.stem[0]: read_columns(path.with_suffix(".csv")) for path in paths}
    for columns in tables.values():
        for name, values in columns.items():
            assert values.dtype.kind == "U" or np.isfinite(values).all(), name
    for letter, subject in zip("abcdefghi", ("convergence", "learning rates", "initial"), strict=False):
        assert re.search(rf"^│ {letter} │ {subject}", output, re.MULTILINE)

    def of(letter, **keys):
        """The rows of a table that have the values `keys`."""
        columns = tables[letter]
        rows = np.logical_and.reduce([np.isin(columns[name], [value]) for name, value in keys.items()])
        return {name: values[rows] for name, values in columns.items()}

    for letter, x in (("b", "learning_rate"), ("c", "initial_scale")):
        trains = {}
        for norm in ("batch", "none"):
            rows = of(letter, norm=norm)
            trains[norm] = rows[x][rows["high_training_error"] < 0.1]
        assert len(trains["batch"]) > len(trains["none"]) > 0
        assert trains["batch"].max() >= 4 * trains["none"].max()
    epochs = {norm: of("a", norm=norm)["mean_test_error"] for norm in ("batch", "none")}
    assert epochs["batch"].sum() < epochs["none"].sum()
    first = {norm: of("e", norm=norm, layer=1.0)["mean_gradient_norm"] for norm in ("batch", "layer", "none")}
    assert (first["batch"] > 10 * first["layer"]).all() and first["none"][0] < 1e-3  # [Flax's default, He's]
    noise = {norm: float(of("f", norm=norm)["mean_gap_nats"][0]) for norm in ("ghost 8", "batch", "none")}
    assert noise["ghost 8"] < noise["batch"] < noise["none"]
    small = {norm: of("g", norm=norm, batch_size=2.0)["low_test_error"] for norm in ("batch", "layer")}
    assert small["batch"] > 3 * small["layer"]
    frozen = {
        e: of("h", weights="weights frozen", estimate=e, step=32.0) for e in ("exact", "debiased", "plain")
    }
    exact, debiased, plain = (float(rows["high_kl_nats"][0]) for rows in frozen.values())
    assert exact < 1e-9 and 100 * exact < debiased < plain
    assert (tables["i"]["quartile_1_ms"] <= tables["i"]["median_ms"]).all()


@flexible
def test_quickstart(capsys):
    names = runpy.run_path(str(EXAMPLES / "quickstart.py"))
    chex.assert_trees_all_close(names["merged"], names["jaxnorm"].moments(names["x"], 0), rtol=1e-6)
    assert names["loss"] < 0.5 * np.var(names["x"][:, 0] ** 2)
    assert "finite: True True" in capsys.readouterr().out


@pytest.mark.slow
@flexible
def test_the_styles_of_data_parallel_training_agree(capsys):
    states = import_module("data_parallel").main(epochs=1)
    assert set(states) == {"one device", "jit", "shard_map", "pmap"}
    one = states.pop("one device")
    assert float(np.abs(one.batch_stats["block1"]["norm"]["mean"]).max()) > 0.01
    for state in states.values():
        for part in ("params", "batch_stats"):
            chex.assert_trees_all_close(getattr(state, part), getattr(one, part), rtol=0, atol=5e-6)
    assert len(re.findall(r"[\d.]+%.* [\d.]+e[-+]0\d", capsys.readouterr().out)) == 4


@pytest.mark.slow
@flexible
def test_test_time_adaptation(capsys):
    rows = import_module("test_time_adaptation").main([])
    output = capsys.readouterr().out
    assert next(iter(rows)) == "as in training" and min(rows.pop("as in training")) > 0.95
    for name, (source, batch, blended, adapted) in rows.items():
        assert batch > source + 0.1 < min(blended, adapted), name
        assert adapted > batch - 0.02, name
        assert f"{adapted:.1%}" in output


@pytest.mark.slow
@flexible
def test_averaged_weights_gain_by_recalibration(capsys):
    rows = {row.weights: row for row in import_module("averaged_weights").main([])}
    assert rows["SWA"].after > rows["SWA"].before + 0.02
    assert rows["SWA"].after > rows["last"].after
    assert rows["EMA"].after >= rows["EMA"].before - 0.005
    printed = re.findall(r"│ (\w+) +│ ([\d.]+)% +│ ([\d.]+)%", capsys.readouterr().out)
    assert {name: tuple(map(float, values)) for name, *values in printed} == {
        name: (round(100 * row.before, 2), round(100 * row.after, 2)) for name, row in rows.items()
    }


def test_averaged_weights_refuses_wrong_arguments(capsys):
    with pytest.raises(SystemExit):
        import_module("averaged_weights").main(["--epochs", "0"])
    message = "averaged_weights.py: error: argument --epochs: expected a whole number from 1, got '0'"
    assert capsys.readouterr().err.splitlines()[-1] == message


@pytest.mark.slow
@flexible
def test_what_is_served_is_what_was_trained(tmp_path, capsys):
    import_module("serve").main(["--epochs", "1", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    rows = re.findall(r"exact, ([\w-]+), loaded +│ ([\d.]+)% +│ ([\d.e-]+)", output)
    assert [name for name, *_ in rows] == ["with-norms", "folded"]
    assert all(float(right) > 80 and float(difference) < 1e-4 for _, right, difference in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"with-norms.jax", "folded.jax"}
