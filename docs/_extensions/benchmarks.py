"""Tables of measured ratios, read from ``docs/benchmarks`` while the pages are built.

Gives pages in Markdown the directive ``benchmark-tables``.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_COLUMNS = ("workload", "way", "ms", "ratio", "target", "numbers")


class BenchmarkTables(SphinxDirective):
    """A table for each benchmark of each machine."""

    def run(self) -> list[nodes.Node]:
        """Write the tables as Markdown and parse them."""
        lines: list[str] = []
        for file in sorted(Path(self.env.srcdir, "benchmarks").glob("*.json")):
            self.env.note_dependency(str(file))
            lines += _machine(json.loads(file.read_text()))
        return self.parse_text_to_nodes("\n".join(lines))


def _machine(found: dict[str, Any]) -> Iterator[str]:
    """Say on what was measured, then write its tables."""
    yield (
        f"Measured on {found['date']}: {found['processor']}, {found['cores']} cores, "
        f"{found['threads']} thread(s); {found['gpu'] or 'no GPU'}; "
        f"Python {found['python']}, torch {found['torch']}, "
        f"fastslow {found['fastslow']}."
    )
    benchmarks = sorted(found["benchmarks"], key=_identity)
    for identity, members in groupby(benchmarks, _identity):
        yield from ("", f"**{identity}**", "")
        yield from (_row(_COLUMNS), _row(("---",) * len(_COLUMNS)))
        workload = None
        for result in members:
            is_first = result["group"] != workload
            workload = result["group"]
            numbers = dict(result["extra_info"])
            target = numbers.pop("target", "")
            yield _row(
                (
                    workload.removeprefix(f"{identity}: ") if is_first else "",
                    result["name"],
                    f"{1000 * result['min']:,.2f}",
                    "ours" if is_first else f"{result['ratio']:,.2f}x",
                    target,
                    "; ".join(f"{key} {value:,}" for key, value in numbers.items()),
                )
            )
    yield ""


def _identity(result: dict[str, Any]) -> str:
    """Give the short name of a benchmark."""
    return str(result["group"]).partition(":")[0]


def _row(cells: tuple[str, ...]) -> str:
    """Write one row."""
    return f"| {' | '.join(cells)} |"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("benchmark-tables", BenchmarkTables)
    return {"parallel_read_safe": True}
