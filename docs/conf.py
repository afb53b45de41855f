"""How Sphinx builds the site: `nox -s docs`."""

from __future__ import annotations

import importlib.metadata
import os
import re
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

project = "guidax"
author = "The guidax developers"
copyright = "2026, the guidax developers"
release = version = importlib.metadata.version("guidax")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "sg_execution_times.rst", "gallery/sg_execution_times.rst"]
suppress_warnings = ["config.cache"]  # the gallery's function of the file order cannot be pickled

# Markdown
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Docstrings: in Google's style, with code between single backticks.
default_role = "py:obj"  # a link where the name is known, else code
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

GALLERY_ORDER = [
    "eight_schools.py",
    "numpyro_model.py",
    "log_density.py",
    "logistic_regression.py",
    "hierarchy.py",
    "funnel.py",
    "neural_network.py",
    "vae.py",
    "ensemble.py",
    "streaming.py",
    "sharding.py",
    "many_hosts.py",
]

# The gallery: each file of examples/ runs once, and its pictures and output are kept.
sphinx_gallery_conf: dict[str, Any] = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["gallery"],
    "within_subsection_order": GALLERY_ORDER.index,
    "filename_pattern": r"/(?!many_hosts)\w+\.py$",  # that one starts processes of its own
    "matplotlib_animations": False,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": False,  # an example that fails makes the build fail in the end
    "reset_modules": ("matplotlib",),
}

# Appearance
html_theme = "pydata_sphinx_theme"
html_title = "guidax"
html_show_sourcelink = False
html_copy_source = False
html_css_files = ["site.css"]
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"
html_theme_options = {
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_nav_level": 2,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}

PUBLIC = re.compile(r"(?<!`)`gx\.([\w.]+)`(?!`)")
QUALIFIED_ARRAY = re.compile(r"~?(?:jax\.)?jaxlib\._jax\.Array")
QUALIFIED_PART = re.compile(r"~(?:jaxtyping\.|numpy\.(?=ndarray|bool|number))")
ARRAY_LIKE = "Array | ndarray | bool | number | bool | int | float | complex"
KEY = re.compile(r"Key\[[^\]]*\](?: \| UInt32\[[^\]]*\])+")


def link_public_names(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Let `gx.fit` in a docstring lead to the page of `guidax.fit`."""
    linked = [PUBLIC.sub(r":py:obj:`gx.\1 <guidax.\1>`", line) for line in lines]
    lines[:] = [re.sub(r"`(?=s\b)", r"`\\ ", line) for line in linked]  # plurals of code


def shorten_types(
    app: Any,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Write types as the source does: `Key`, and `Float[Array, 'dim']`."""

    def shorten(text: str | None) -> str | None:
        if text is None:
            return None
        text = QUALIFIED_ARRAY.sub("Array", QUALIFIED_PART.sub("", text))
        text = KEY.sub("Key", text).replace(ARRAY_LIKE, "ArrayLike")
        if "UInt32" in text or "jaxlib" in text:
            raise ValueError(f"{name}: a type is not written as the source does: {text}")
        return re.sub(r"(?<=Array, ')\s+", "", text)

    return shorten(signature), shorten(returned)


def setup(app: Any) -> None:
    """Connect the hooks."""
    app.connect("autodoc-process-docstring", link_public_names)
    app.connect("autodoc-process-signature", shorten_types)
