"""The documentation site: `make docs`. Nothing is fetched to build it, and no page loads anything from elsewhere."""

import sys
from pathlib import Path

from nfd_jax import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "nfd_jax"
author = "the authors of nfd_jax"
release = version = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "claim_pages",
    "copied_notebooks",
    "docstrings",
    "figures",
    "mathml",
]
exclude_patterns = ["_build", "claims/table.md"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!nfd_jax\.).*"),  # of other projects, whose inventories are not kept here; names of arguments
    ("py:.*", r"nfd_jax\.(.*\.)?_.*"),  # private
    ("py:class", r"nfd_jax\..*"),  # of annotations, which name where a class is defined
]

default_role = "py:obj"  # `name` in a docstring: a link where it is one, and code elsewhere
autodoc_member_order = "bysource"
autodoc_preserve_defaults = False  # it reads the source of what a decorator made
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # they would come from elsewhere: notebooks show their stored outputs

html_theme = "sphinx_book_theme"
html_title = "nfd_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],
    "navigation_with_keys": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
