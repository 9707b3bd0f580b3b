"""The laws of the library, read from its docstrings while the pages are built.

Gives pages the directive ``law-tables`` and docstrings the section ``Laws:``. A public
function without a law is a warning.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

MODULES = ("fastslow", "fastslow.plotting", "fastslow.qwen2_vl")
"""Modules whose public functions are listed, under the module that defines them."""

_LAW = re.compile(r"(\w+): (.+)")
_log = logging.getLogger(__name__)


def read_laws(docstring: str) -> dict[str, str]:
    r"""Give the laws of a docstring: what each is called, and what it says.

    Args:
        docstring: In Google form, with or without a section ``Laws:``.

    Returns:
        Each law's statement by its name, in order.

    Example:
        >>> read_laws("Do it.\n\nLaws:\n    a: one\n        line\n    b: two\n")
        {'a': 'one line', 'b': 'two'}
    """
    laws: dict[str, str] = {}
    name = None
    _, _, section = inspect.cleandoc(docstring).partition("\nLaws:\n")
    for line in section.splitlines():
        if not line.startswith("    "):
            break
        start = _LAW.fullmatch(line[4:])
        if start:
            name = start[1]
            laws[name] = start[2]
        elif name:
            laws[name] += f" {line.strip()}"
    return laws


def public_functions() -> Iterator[Callable[..., object]]:
    """Find the public functions of the library, each once, module by module."""
    for name in MODULES:
        for public, value in vars(importlib.import_module(name)).items():
            is_function = inspect.isfunction(value) and not public.startswith("_")
            if is_function and value.__module__.startswith(name):
                yield value


class LawTables(SphinxDirective):
    """One table of laws for each module."""

    def run(self) -> list[nodes.Node]:
        """Write the tables as reStructuredText and parse them."""
        by_module: dict[str, list[str]] = {}
        for function in public_functions():
            laws = read_laws(function.__doc__ or "")
            if not laws:
                _log.warning("%s states no law", function.__qualname__)
            module = function.__module__.partition("._")[0]
            lines = by_module.setdefault(module, [])
            for number, (law, statement) in enumerate(laws.items()):
                target = f"{module}.{function.__name__}"
                link = f":py:func:`~{target}`" if number == 0 else ""
                lines += [f"   * - {link}", f"     - {law}", f"     - {statement}"]
        text = "\n".join(
            line
            for module, rows in sorted(by_module.items())
            for line in _table(module, rows)
        )
        return self.parse_text_to_nodes(text)


def _table(module: str, rows: list[str]) -> list[str]:
    """Write one table."""
    head = [f".. rubric:: {module}", "", ".. list-table::", "   :header-rows: 1"]
    columns = ["   :widths: 26 22 52", "", "   * - function", "     - law"]
    return [*head, *columns, "     - what holds for all inputs", *rows, ""]


def _add_section(_: Sphinx, config: Config) -> None:
    """Let docstrings have a section of laws, set as names with their statements."""
    sections = config.napoleon_custom_sections or []
    if not any("Laws" in section for section in sections):
        config.napoleon_custom_sections = [*sections, ("Laws", "params_style")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and the section."""
    app.setup_extension("sphinx.ext.napoleon")
    app.add_directive("law-tables", LawTables)
    app.connect("config-inited", _add_section)
    return {"parallel_read_safe": True}
