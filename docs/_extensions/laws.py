"""The laws of the library, read from its docstrings while the pages are built.

Gives pages the directive ``law-tables`` and docstrings the section ``Laws:``. A row of
the tables links to the test of its law, whose source becomes a page. A public name
without documentation, and a public function without a law or with a law that is no
test, are warnings. ``laws_tests`` in ``conf.py`` names the modules.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from law_tests import LawTest, collect_law_tests
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

PAGES = "_tests"
"""Folder of the pages that show the sources of tests."""

_LAW = re.compile(r"(\w+): (.+)")
_MEMBERS = {"attribute", "classmethod", "method", "module", "property", "staticmethod"}
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


def public_functions(module: str) -> Iterator[Callable[..., object]]:
    """Find the public functions that a module defines or passes on from its parts."""
    for public, value in vars(importlib.import_module(module)).items():
        is_function = inspect.isfunction(value) and not public.startswith("_")
        if is_function and value.__module__.startswith(module):
            yield value


class LawTables(SphinxDirective):
    """One table of laws for each function, in the order of modules."""

    def run(self) -> list[nodes.Node]:
        """Write the tables as reStructuredText and parse them."""
        root, folders = _root(self.env), sorted(set(self.config.laws_tests.values()))
        tests = self.env.laws_tests = collect_law_tests(root, folders)
        for file in {test.file for test in tests.values()}:
            self.env.note_dependency(str(root / file))
        by_module: dict[str, list[str]] = {}
        for name in self.config.laws_tests:
            for function in public_functions(name):
                module = function.__module__.partition("._")[0]
                target = f"{module}.{function.__name__}"
                lines = by_module.setdefault(module, [f".. rubric:: {module}", ""])
                lines += _table(target, _rows(target, function, tests))
        return self.parse_text_to_nodes(
            "\n".join(line for _, lines in sorted(by_module.items()) for line in lines)
        )


def _root(env: BuildEnvironment) -> Path:
    """Give the folder of the repository."""
    return Path(env.srcdir).parent


def _rows(
    target: str, function: Callable[..., object], tests: dict[str, LawTest]
) -> Iterator[str]:
    """Write a row for each law of a function."""
    laws = read_laws(function.__doc__ or "")
    if not laws:
        _log.warning("%s states no law", target)
    for law, statement in laws.items():
        test = tests.get(f"test_{function.__name__}__{law}")
        if test is None:
            _log.warning("the law %s of %s is no test", law, target)
            continue
        yield f"   * - `{law} <{_address(test)}>`__"
        yield from (f"     - {statement}", f"     - {_examples(test)}")


def _address(test: LawTest) -> str:
    """Give the place of a test among the pages, from the root of the pages."""
    return f"{_page(test.file)}.html#line-{test.line}"


def _page(file: str) -> str:
    """Name the page of a file: that of ``tests/laws/a.py`` is ``_tests/laws/a``."""
    return str(Path(PAGES, *Path(file).with_suffix("").parts[1:]))


def _examples(test: LawTest) -> str:
    """Say how many examples a test runs."""
    parts = {"drawn": test.drawn, "fixed": test.fixed}
    return ", ".join(f"{count} {kind}" for kind, count in parts.items() if count)


def _table(target: str, rows: Iterable[str]) -> Iterator[str]:
    """Write the table of one function, which heads its laws."""
    yield from (".. list-table::", "   :class: laws", "   :header-rows: 1")
    yield from ("   :widths: 30 54 16", "   :width: 100%", "")
    yield from (f"   * - :py:func:`~{target}`", "     - for all inputs")
    yield from ("     - examples", *rows, "")


def _show_tests(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Give every file that holds a test of a law a page with numbered lines."""
    tests = getattr(app.env, "laws_tests", {})
    for file in sorted({test.file for test in tests.values()}):
        source = (_root(app.env) / file).read_text()
        shown = app.builder.highlighter.highlight_block(
            source, "python", linenos="inline", lineanchors="line"
        )
        body = f"<h1>{escape(file)}</h1>{shown}"
        yield _page(file), {"title": file, "body": body}, "page.html"


def _check_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that no page documents."""
    objects = env.domains.python_domain.get_objects()
    documented = {name for name, _, kind, *_ in objects if kind not in _MEMBERS}
    for module in app.config.laws_tests:
        parts = {name for name in documented if name.startswith(f"{module}.")}
        for name in undocumented(module, {name.rpartition(".")[2] for name in parts}):
            _log.warning("%s has no documentation", name)


def undocumented(module: str, documented: set[str]) -> Iterator[str]:
    """Find public names of a module that have no documentation.

    Args:
        module: Dotted name.
        documented: Names of functions, classes and data that the pages document.

    Yields:
        Dotted names: of what is not among them, of dataclasses without words of their
        own, and of methods and properties without words.
    """
    found = importlib.import_module(module)
    functions = [function.__name__ for function in public_functions(module)]
    for name in getattr(found, "__all__", functions):
        value = getattr(found, name)
        if name not in documented or _is_made(value):
            yield f"{module}.{name}"
        for member, part in vars(value).items() if inspect.isclass(value) else ():
            speaks = inspect.isfunction(part) or isinstance(part, property)
            if speaks and not (member.startswith("_") or inspect.getdoc(part)):
                yield f"{module}.{name}.{member}"


def _is_made(value: object) -> bool:
    """Tell whether the docstring is the one that a dataclass makes of its fields."""
    is_class = inspect.isclass(value)
    return is_class and (value.__doc__ or "").startswith(f"{value.__name__}(")


def _add_section(_: Sphinx, config: Config) -> None:
    """Let docstrings have a section of laws, set as names with their statements."""
    sections = config.napoleon_custom_sections or []
    if not any("Laws" in section for section in sections):
        config.napoleon_custom_sections = [*sections, ("Laws", "params_style")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and the section, the pages of tests and the check."""
    app.setup_extension("sphinx.ext.napoleon")
    app.add_config_value("laws_tests", {}, "env", dict)
    app.add_directive("law-tables", LawTables)
    app.connect("config-inited", _add_section)
    app.connect("env-check-consistency", _check_names)
    app.connect("html-collect-pages", _show_tests)
    return {"parallel_read_safe": True}
