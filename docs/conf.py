"""How Sphinx builds the site: `make docs`. Every warning is an error, and every code cell is executed."""

from typing import Any

import jaxnorm

project = "jaxnorm"
author = "the jaxnorm authors"
copyright = "the jaxnorm authors"
version = release = jaxnorm.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "jaxnorm"
html_static_path = ["_static"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # which would fetch pages, and a browser refuses that where they are files

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# A failing cell fails the build. A page sets up eight CPU devices, and compiles: that takes a while.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
# The widgets' JavaScript would come from another host; the site makes no request but to its own.
nb_ipywidgets_js: dict[str, Any] = {}

default_role = "literal"  # `x` in a docstring is code, as in Markdown
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings name shapes and dtypes, which types cannot
napoleon_custom_sections = [("Returns", "params_style")]


def as_restructured_text(
    app: object, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Escape what a docstring means literally and reStructuredText would interpret: |x| and a * b.

    Args:
      app, what, name, thing, options: what Sphinx passes.
      lines: of the docstring, changed in place.
    """
    in_example = False
    for i, line in enumerate(lines):
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if not in_example:
            parts = line.split("`")
            parts[::2] = [part.replace("|", r"\|").replace("*", r"\*") for part in parts[::2]]
            lines[i] = "`".join(parts)


def setup(app: Any) -> None:
    """Register `as_restructured_text`, which runs before napoleon has split the sections."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)
