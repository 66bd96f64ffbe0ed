"""How ``make docs`` builds these pages: warnings are errors."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

import optuna

import tuner

warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
logging.getLogger("alembic").setLevel(logging.WARNING)

project = "Tuner"
version = release = tuner.__version__
html_title = f"Tuner {tuner.__version__}"
html_theme = "furo"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["wide.css"]
pygments_style = "default"  # shows what a diff adds
smartquotes = False  # two dashes are an option
exclude_patterns = ["build"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the docstrings say what is expected; the signatures have the types
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def setup(app: Any) -> None:
    """The help of a command is text for a terminal: ``AWS_*`` in it is no markup."""

    def as_text(app: Any, context: Any, lines: list[str]) -> None:
        lines[:] = [
            re.sub(r"_?\*", lambda found: "".join(f"\\{sign}" for sign in found[0]), line) for line in lines
        ]

    for part in ("description", "options", "arguments"):
        app.connect(f"sphinx-click-process-{part}", as_text)
