"""The pages as plain text, for language models and whoever reads without a browser.

A build of HTML leaves the text of each page beside it (``concepts.txt``), ``llms.txt``
with a line for each page (the form is that of llmstxt.org), and ``llms-full.txt`` with
all of them, one after the other.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders.text import TextBuilder
from sphinx.environment import BuildEnvironment
from sphinx.writers.text import TextTranslator


def pages_in_order(env: BuildEnvironment) -> Iterator[str]:
    """Walk the tables of contents from the start page."""
    waiting, seen = [env.config.root_doc], set[str]()
    while waiting:
        page = waiting.pop()
        if page not in seen and page in env.found_docs:
            seen.add(page)
            yield page
            waiting += reversed(env.toctree_includes.get(page, []))


class _Translator(TextTranslator):
    """Writes text, and leaves out what extensions show in HTML alone."""

    def unknown_visit(self, node: nodes.Node) -> None:
        """Pass over a node that has no form as text."""
        raise nodes.SkipNode


def text_of(page: str, env: BuildEnvironment, builder: TextBuilder) -> str:
    """Write one page as text."""
    tree = env.get_and_resolve_doctree(page, builder)
    translator = _Translator(tree, builder)
    tree.walkabout(translator)
    return f"{translator.body.strip()}\n"


def index_of(env: BuildEnvironment, pages: list[str]) -> str:
    """Write ``llms.txt``: a section for each page that has parts, a line for each."""
    opening = _opening(env, env.config.root_doc)
    lines = [f"# {env.config.project}", "", f"> {opening}", ""]
    lines += ["All pages in one file: [llms-full.txt](llms-full.txt)"]
    for parent in pages:
        parts = [page for page in env.toctree_includes.get(parent, []) if page in pages]
        lines += ["", f"## {_title(env, parent)}", ""] if parts else []
        lines += [
            f"- [{_title(env, page)}]({page}.txt): {_opening(env, page)}"
            for page in parts
        ]
    return "\n".join(lines) + "\n"


def _title(env: BuildEnvironment, page: str) -> str:
    """Give the title of a page."""
    return env.titles[page].astext()


def _opening(env: BuildEnvironment, page: str) -> str:
    """Give the first sentence of a page's first paragraph."""
    paragraph = next(env.get_doctree(page).findall(nodes.paragraph), None)
    words = " ".join(paragraph.astext().split()) if paragraph else ""
    return words.partition(". ")[0].removesuffix(".")


def _write(app: Sphinx, error: Exception | None) -> None:
    """Leave the files in the folder of the pages."""
    if error is not None or app.builder.format != "html":
        return
    folder, builder = Path(app.outdir), TextBuilder(app, app.env)
    builder.init()
    pages = list(pages_in_order(app.env))
    texts = [text_of(page, app.env, builder) for page in pages]
    for page, text in zip(pages, texts, strict=True):
        file = folder / f"{page}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "llms.txt").write_text(index_of(app.env, pages))
    (folder / "llms-full.txt").write_text("\n".join(texts))


def setup(app: Sphinx) -> dict[str, Any]:
    """Wait for the end of the build."""
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
