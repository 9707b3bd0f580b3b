"""How Sphinx builds the pages; it needs no network."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import gallery

project = "fastslow"
project_copyright = "fastslow contributors"
release = version = installed_version("fastslow")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "benchmarks",
    "explorer",
    "gallery",
    "languages",
    "laws",
    "llms",
]
exclude_patterns = ["_build", "gallery"]
myst_heading_anchors = 3  # a heading can be linked, as on GitHub

html_theme = "furo"
html_title = f"fastslow {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/languages.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}

# Of a page in another language, what is still English can be told by its class.
locale_dirs = ["locale"]
translation_progress_classes = "untranslated"
gettext_location = False

sphinx_gallery_conf = gallery.SETTINGS

# Sources of tests are pages that only the builder of HTML makes.
linkcheck_ignore = ["_tests/.*"]

autodoc_member_order = "bysource"

nitpicky = True
nitpick_ignore_regex = [
    # What only the pages of other projects could resolve.
    ("py:.*", r"(collections|fractions|hypothesis|jaxtyping|pathlib|typing)\..*"),
    ("py:.*", r"(torch|transformers)\..*|Tensor"),
    # Type variables in signatures.
    ("py:class", r"fastslow\._plans\.P"),
]

# Where the tests of the laws of each module's public functions stand.
laws_tests = {
    "fastslow": "tests/laws",
    "fastslow.plotting": "tests/laws",
    "fastslow.qwen2_vl": "tests/models",
}

# Signatures show the types already.
napoleon_attr_annotations = False
napoleon_use_rtype = False
