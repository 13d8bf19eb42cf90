"""How Sphinx builds the site: `nox -s docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # _tables.py

import xpsoftmax

project = "xpsoftmax"
author = "the authors of xpsoftmax"
copyright = author  # noqa: A001 - Sphinx's name
version = release = xpsoftmax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",  # the site needs no network
    "_tables",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

default_role = "py:obj"  # `softmax` in a docstring is a link
autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say shapes, dtypes and devices
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_validation_checks = {"GL06", "GL07", "PR01", "PR02"}  # sections as they should be, parameters documented
numpydoc_validation_exclude = {r"xpsoftmax\.(Layer|PartialSums|Train[RS]|DivergenceError)"}  # they have attributes
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "xpsoftmax"
ALONE = ("start", "performance", "gpu-runs", "changelog")
html_sidebars: dict[str, list[str]] = {page: [] for page in ALONE}  # they have no pages below them
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "secondary_sidebar_items": ["page-toc"],
}
