"""The table, the picture, and what is said where a package is missing."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image

import jaxnorm
from jaxnorm import Moments, monitor
from jaxnorm import linen as jn
from jaxnorm.monitor import Norm, Report


def norm(path="b/norm", mean=0.5, var=1.0, **options):
    stored = Moments(jnp.full(4, mean), jnp.full(4, var), jnp.ones(4))
    return Norm(path=path, layer="BatchNorm", stored=stored, **options)


def broken():
    batch = Moments(jnp.full(4, 5.5), jnp.full(4, 2.0), jnp.full(4, 64.0))
    return Report(
        [
            norm("a/norm", batch=batch, samples=64, effective=64, momentum=0.99),
            norm("b/norm", 0.0),
            norm("c/norm", momentum=0.99),
            Norm(path="tanh", layer="DynamicTanh", square=np.ones(3), saturated=0.7, scale=np.ones(4)),
        ]
    )


TABLE = """
┏━━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━┳━━━━┳━━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━━━━━━┓
┃        ┃             ┃          ┃       ┃    ┃ batches ┃      noise ┃ smallest ┃               ┃
┃ norm   ┃ layer       ┃ channels ┃ shift ┃ KL ┃    held ┃  mean, var ┃ variance ┃ findings      ┃
┡━━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━╇━━━━╇━━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━━━━━━┩
│ a/norm │ BatchNorm   │        4 │     5 │ 13 │     100 │ 0.12, 0.18 │        2 │ shift         │
│ b/norm │ BatchNorm   │        4 │     - │  - │       - │          - │        1 │ never_updated │
│ c/norm │ BatchNorm   │        4 │     - │  - │     100 │          - │        1 │ ok            │
│ tanh   │ DynamicTanh │        4 │     - │  - │       - │          - │        1 │ saturated     │
└────────┴─────────────┴──────────┴───────┴────┴─────────┴────────────┴──────────┴───────────────┘
a/norm: shift 5.03. In 4 of 4 channels the batch differs from the stored statistics: the mean by up to 5 \
deviations, the variance by a factor of 2 to 2. If the data have changed, recalibrate on them or evaluate \
with blend; if training was short, train on, with a lower momentum or debias=True, or recalibrate.
b/norm: never_updated 4. 4 of 4 channels still have mean 0 and variance 1, the start. Train with \
use_running_average=False and keep the batch_stats that apply returns (nnx: after model.train()), or \
compute the statistics with recalibrate.
tanh: saturated 0.7. 70 % of the elements are on the flat part of the tanh, where gradients vanish. Start \
from a smaller alpha, lower the learning rate, or use RMSNorm.
""".strip()


def test_the_table_has_a_row_for_every_norm_and_the_advice(monkeypatch):
    report = broken()
    assert report.table() == str(report) == TABLE
    for name, value in {"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    assert report.table() == TABLE
    assert repr(report) == "Report(4 norms, 3 findings)"


def test_a_healthy_table():
    table = Report([norm()]).table()
    assert "b/norm" in table and "ok" in table
    assert table.endswith("\nNo findings.")
    assert repr(Report([norm()])) == "Report(1 norm, 0 findings)"


def test_a_path_is_shown_as_it_is():
    """Brackets are markup to rich."""
    long = "/".join(["encoder"] * 40)
    table = Report([norm("layers[0]/[red]norm"), norm(long)]).table()
    assert "layers[0]/[red]norm" in table and long in table


def test_findings_are_plain_data():
    (finding, *_) = broken().findings
    path, kind, value, advice = finding
    assert (path, kind, type(value)) == ("a/norm", "shift", float)
    assert str(finding) == f"a/norm: shift 5.03. {advice}"
    kinds = {"never_updated", "shift", "momentum", "small_batch", "dead_channels", "non_finite"}
    assert set(monitor.KINDS) == kinds | {"small_variance", "exploding", "saturated"}


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (
            {"var": jnp.inf},
            "4 of 4 channels have a mean or variance that is NaN or infinite, or a negative variance. "
            "Go back to "
            ""
            "a checkpoint before, and lower the learning rate or clip the gradients.",
        ),
        (
            {"mean": 1e6},
            "4 of 4 channels have a mean or deviation above 10000, up to 1e+06. Training diverges, or "
            "the data "
            ""
            "are not scaled: lower the learning rate, clip gradients, scale the data.",
        ),
        (
            {"scale": np.asarray([0.0, 1.0, 1.0, 1.0])},
            "1 of 4 channels have variance 0 or scale 0. They pass nothing on. Look for weights that "
            "are 0 and "
            ""
            "for units that never fire in the layer before; lower the learning rate, or remove the channels.",
        ),
        (
            {"var": 1e-7},
            "4 of 4 channels have a variance below epsilon=1e-05, down to 1e-07. Epsilon outweighs it, "
            "so that "
            ""
            "the output's variance is below 1. Scale the input up, or choose a smaller epsilon.",
        ),
        (
            {"momentum": 1.0},
            "momentum=1 keeps the old statistics for ever; choose less, such as 0.9.",
        ),
        (
            {"bias": np.full(4, np.nan)},
            "NaN or infinity in its bias. Go back to a checkpoint before, and lower the learning rate "
            "or clip "
            ""
            "the gradients.",
        ),
    ],
    ids=str,
)
def test_the_advice(options, advice):
    (finding,) = norm(**options).findings
    assert finding.advice == advice


@pytest.mark.parametrize(
    "report",
    [
        broken(),
        Report([norm()]),
        Report([norm(var=jnp.nan), norm("", var=-1.0), norm("z", var=0.0)]),
        Report([norm(f"layer{i}/norm") for i in range(40)]),
    ],
    ids=["broken", "healthy", "nothing to draw", "many"],
)
def test_the_picture_is_a_png(report, tmp_path):
    path = tmp_path / "report.png"
    report.plot(path)
    picture = image.imread(path)
    assert picture.ndim == 3 and min(picture.shape[:2]) > 200
    assert picture.std() > 0.01


def test_the_picture_of_a_batch(tmp_path):
    x = jax.random.normal(jax.random.key(0), (64, 4))
    layer = jn.BatchNorm(use_running_average=True)
    report = jn.diagnose(layer, layer.init(jax.random.key(0), x), x)
    report.plot(str(tmp_path / "report.png"))
    assert (tmp_path / "report.png").exists()


@pytest.mark.parametrize(
    ("module", "call", "text"),
    [
        ("rich", Report.table, "Report.table: rich is not installed; run pip install 'jaxnorm[monitor]'."),
        (
            "matplotlib",
            lambda report: report.plot("no.png"),
            "Report.plot: matplotlib is not installed; run pip install 'jaxnorm[monitor]'.",
        ),
        (
            "orbax",
            lambda report: monitor.read("checkpoint"),
            "read: orbax is not installed; run pip install 'jaxnorm[monitor]'.",
        ),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, call, text):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        call(Report([norm()]))
    assert str(caught.value) == text


def test_the_monitor_is_imported_when_it_is_asked_for():
    assert jaxnorm.monitor is monitor
    assert "monitor" in dir(jaxnorm)
