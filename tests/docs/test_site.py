"""The site's pages of the reference name every public function and class, once."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

API = Path(__file__).parents[2] / "docs" / "api"
PAGES = {
    "functions": "jaxnorm",
    **{n: f"jaxnorm.{n}" for n in ("linen", "nnx", "population", "convert", "monitor")},
}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_reference_names_all_that_is_public(page):
    module = importlib.import_module(PAGES[page])
    public = [
        name
        for name, value in vars(module).items()
        if name[0] != "_"
        and not inspect.ismodule(value)
        and getattr(value, "__module__", "").startswith("jaxnorm")
    ]
    text = (API / f"{page}.md").read_text("utf-8")
    assert sorted(re.findall(r"^\.\. auto(?:class|function):: (\w+)", text, re.M)) == sorted(public)
