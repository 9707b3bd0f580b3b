"""The gallery: short scripts, run while the pages are built, each with its picture.

A script draws with matplotlib, or leaves a string of SVG. Its docstring holds the
title, what to see, and, as a comment, words for who cannot: ``.. alt: ...``.
"""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from drawing import STYLE, save_svg
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry
from sphinx.environment import BuildEnvironment

import fastslow

ORDER = (
    "schedules",
    "budget_frontier",
    "strides",
    "ragged_edges",
    "packing_fill",
    "mask_text_and_video",
    "mask_packed_rows",
    "mask_windows",
    "mask_kept_frames",
    "intervals",
    "block_sparsity",
    "jacobian",
    "attention_weights",
    "positions",
    "copy_skill",
)
"""The scripts, as they are read one after the other."""

SETTINGS = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "within_subsection_order": "gallery.reading_order",
    "minigallery_sort_order": "gallery.reading_order",
    "image_scrapers": ("gallery.scrape",),
    "reset_modules": ("gallery.dress",),
    "capture_repr": (),
    "abort_on_example_error": True,
    "backreferences_dir": "examples/uses",
    "doc_module": ("fastslow",),
    "notebook_extensions": set(),
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": float("inf"),
}


_NOTE = re.compile(r"\.\. only:: html\n\n    \.\. note::(?s:.*?)\n(?=\S)")
_ARCHIVE = "    .. container:: sphx-glr-download sphx-glr-download-zip"


def reading_order(file: str) -> int:
    """Give the place of a script."""
    return ORDER.index(Path(file).stem.removeprefix("plot_"))


def alt_text(script: Path) -> str:
    """Read the words that stand for the picture of a script."""
    docstring = ast.get_docstring(ast.parse(script.read_text())) or ""
    found = re.search(r"^\.\. alt: (.+(?:\n +.+)*)", docstring, re.MULTILINE)
    if found is None:
        raise ValueError(f"{script.name} has no '.. alt:' in its docstring")
    return " ".join(found[1].split())


def dress(_settings: dict[str, Any], _script: str) -> None:
    """Let a script start with matplotlib's defaults in the style of the pages."""
    mpl.rcdefaults()
    plt.close("all")
    mpl.rcParams.update(STYLE)


def scrape(_block: object, script: dict[str, Any], settings: dict[str, Any]) -> str:
    """Write the picture of a script, and give the lines that show it."""
    file = Path(next(script["image_path_iterator"])).with_suffix(".svg")
    values = script["example_globals"].values()
    drawn = [v for v in values if isinstance(v, str) and v.startswith("<svg")]
    if drawn:
        (svg,) = drawn
        file.write_text(svg)
    else:
        (number,) = plt.get_fignums()
        save_svg(plt.figure(number), file)
        plt.close("all")
    source = file.relative_to(settings["src_dir"]).as_posix()
    alt = alt_text(Path(script["src_file"]))
    return f"\n.. image:: /{source}\n   :alt: {alt}\n   :class: sphx-glr-single-img\n\n"


def _show_uses(
    app: Sphinx, _what: str, name: str, value: object, _: object, lines: list[str]
) -> None:
    """End the description of a public function with the examples that use it."""
    short = name.rpartition(".")[2]
    uses = Path(app.srcdir, f"examples/uses/fastslow.{short}.examples")
    is_public = inspect.isfunction(value) and getattr(fastslow, short, None) is value
    if is_public and uses.exists() and uses.stat().st_size:
        lines += ["", ".. rubric:: In the gallery", ""]
        lines += [f".. minigallery:: fastslow.{short}"]


def _trim(_app: Sphinx, page: str, content: list[str]) -> None:
    """Drop the note above a script's page, and the archive beside its download."""
    if page.startswith("examples/plot_"):
        body, _, _ = content[0].partition(_ARCHIVE)
        content[0] = _NOTE.sub("", body)


def _name_publicly(_app: Sphinx, env: BuildEnvironment) -> None:
    """Let ``fastslow.f`` lead to the module that defines it, as scripts name it."""
    objects = env.domains.python_domain.objects
    for name in fastslow.__all__:
        module = getattr(getattr(fastslow, name), "__module__", "")
        found = objects.get(f"{module}.{name}")
        if found:
            objects[f"fastslow.{name}"] = ObjectEntry(*found[:3], aliased=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Set up the gallery, and its part in the pages of functions."""
    app.setup_extension("sphinx_gallery.gen_gallery")
    app.connect("autodoc-process-docstring", _show_uses, priority=900)
    app.connect("source-read", _trim)
    app.connect("env-updated", _name_publicly)
    app.add_css_file("gallery.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
