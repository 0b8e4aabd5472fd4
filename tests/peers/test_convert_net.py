"""A pretrained net of PyTorch in Flax, and the page about it."""

import re
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("torch")
REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.flexible


def test_the_pretrained_net(monkeypatch, capsys):
    pytest.importorskip("local_attention", reason="pip install 'jaxnorm[interop]'")
    monkeypatch.syspath_prepend(REPOSITORY / "examples")
    difference = import_module("from_pytorch").main()
    printed = capsys.readouterr().out
    assert difference < 1e-4
    assert f"greatest difference of a likelihood: {difference:.1e}" in printed
    assert "73 arrays: 59 come back bitwise, 14 are left out" in printed
    assert re.search(r"output_proj.weight_g \(360, 1\) +params/WeightNorm_0/Dense_0/kernel/scale", printed)
    for theirs, ours, tone in re.findall(r"([\d.]+) Hz +([\d.]+) Hz +([\d.]+) Hz", printed):
        assert theirs == ours and abs(float(ours) / float(tone) - 1) < 0.01


def test_the_blocks_of_the_page_run():
    text = (REPOSITORY / "docs" / "from_pytorch.md").read_text(encoding="utf-8")
    names = {"__name__": "from_pytorch"}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        exec(compile(block, "from_pytorch.md", "exec"), names)
    assert names["variables"]["batch_stats"]["mean"].shape == (8,)


def test_the_page_shows_what_a_report_says():
    from torch import nn

    from jaxnorm import convert

    told = []
    convert.from_torch(nn.BatchNorm2d(8, momentum=0.2), report=told.append)
    text = (REPOSITORY / "docs" / "from_pytorch.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (.*?) \| (.*?) \| ?(.*?) ?\|$", text.split("## Names")[0], re.M)[1:]
    assert table == [(row.theirs, row.ours or "left out", row.note) for row in told[0].rows]
