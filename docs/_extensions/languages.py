"""The pages that exist in several languages, and the links between them.

The English build has all pages. A build in another language (``-D language=zh_CN``,
into a folder of that name beside the English pages) has those of ``TRANSLATED``, from
the same sources and ``locale``; what they link to beyond these is the English page.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config

LANGUAGES = {"en": "English", "zh_CN": "简体中文"}
TRANSLATED = ("index", "concepts", "recipes")


def address(page: str, language: str, of: str) -> str:
    """Give the address of a page of a language, seen from a page of another."""
    folder = "" if language == "en" else f"{language}/"
    return f"{'' if of == 'en' else '../'}{folder}{page}.html"


def _choose_pages(app: Sphinx, config: Config) -> None:
    """Leave the English pages to the English build, and let references find them."""
    if config.language != "en":
        config.include_patterns = [f"{page}.*" for page in TRANSLATED]
        config.suppress_warnings = [*config.suppress_warnings, "toc.not_readable"]
        config.laws_tests = {}
        if "plot_gallery" in config:
            config.plot_gallery = "False"
        inventory = str(Path(app.outdir).parent / "objects.inv")
        config.intersphinx_mapping = {"english": ("..", inventory)}


def _link_to_english(app: Sphinx, document: nodes.document) -> None:
    """Let links to pages that this language does not have lead to the English ones."""
    if app.config.language == "en":
        return  # a link to no page is a mistake
    for link in list(document.findall(addnodes.pending_xref)):
        page = link["reftarget"]
        if link["refdomain"] == "doc" and page not in app.env.found_docs:
            place = f"#{link['reftargetid']}" if link.get("reftargetid") else ""
            uri = address(page, "en", app.config.language) + place
            link.replace_self(nodes.reference("", "", *link.children, refuri=uri))


def _offer_languages(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], _tree: object
) -> None:
    """Tell the template which other languages a page has."""
    here = app.config.language
    others = [name for name in LANGUAGES if name != here and page in TRANSLATED]
    context["languages"] = [
        (name.replace("_", "-"), LANGUAGES[name], address(page, name, here))
        for name in others
    ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Choose pages before they are read, mend links before they are stored."""
    app.setup_extension("sphinx.ext.intersphinx")
    app.connect("config-inited", _choose_pages, priority=1)
    app.connect("doctree-read", _link_to_english)
    app.connect("html-page-context", _offer_languages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
