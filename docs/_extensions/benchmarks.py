"""Pages of what was measured, written from JSON while they are built.

``benchmark-tables`` shows every file of ``docs/benchmarks``: the machine, then a figure
and a table for each family; ``benchmark-gaps`` names what none of them holds.
``ablation`` shows ``docs/ablations/ablation.json``.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from drawing import STYLE, follow_scheme, save_svg
from matplotlib import rc_context
from measured import Result, family, is_missed, ratio_chart, workload
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from recipes.ablation import markdown_table
from recipes.edge.reports.ablation_figure import draw_ablation

DRAWN = "_drawn"
"""Where figures are written, beside the sources of the pages; git ignores it."""

FAMILIES = {
    "A1": "Attention on the CPU",
    "A2": "Attention kernels",
    "A3": "Attention of the tower",
    "E1": "Cross entropy",
    "E2": "Next-frame loss",
    "L1": "Pooling, strides 1 and 3",
    "L2": "Pooling, strides 2 and 4",
    "M1": "BlockMask of one row",
    "M2": "BlockMask and intervals of long rows",
    "M3": "BlockMask of a planned row",
    "M4": "Counting live tiles",
    "P1": "Packing",
    "P2": "Balancing ranks",
    "T1": "Training step",
}
"""What each family measures; one that is not named here stands under its own name."""

OTHERS = "Others"
"""What the results without a family stand under."""

NO_ABLATION = (
    "No ablation of this version has been run yet. `recipes/ablate.py` writes the file "
    "that this page is made from."
)

MOST_VARIANTS = 8
"""Of an ablation in one figure, unless one axis has more."""

_COLUMNS = ("workload", "way", "ms", "ratio", "target", "numbers")


class BenchmarkTables(SphinxDirective):
    """The figures and tables of each machine."""

    def run(self) -> list[nodes.Node]:
        """Write them as Markdown and parse it."""
        lines: list[str] = []
        for file in _result_files(Path(self.env.srcdir)):
            self.env.note_dependency(str(file))
            lines += machine(file.stem, json.loads(file.read_text()))
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class BenchmarkGaps(SphinxDirective):
    """The families that no file holds."""

    def run(self) -> list[nodes.Node]:
        """Name them in a sentence."""
        files = _result_files(Path(self.env.srcdir))
        machines = [json.loads(file.read_text()) for file in files]
        names = {family(result) for each in machines for result in each["benchmarks"]}
        gaps = [f"{name} ({FAMILIES[name]})" for name in FAMILIES if name not in names]
        gpus = ", ".join(each["gpu"] for each in machines if each["gpu"])
        measured = f"Measured GPUs: {gpus}." if gpus else "Nothing yet on a GPU."
        listed = f" No file holds {', '.join(gaps)}." if gaps else ""
        return self.parse_text_to_nodes(measured + listed)


class Ablation(SphinxDirective):
    """The figure and the table of an ablation, or that there is none."""

    def run(self) -> list[nodes.Node]:
        """Write them as Markdown and parse it."""
        file = _ablation_file(Path(self.env.srcdir))
        self.env.note_dependency(str(file))
        if not file.exists():
            return self.parse_text_to_nodes(NO_ABLATION)
        rows = json.loads(file.read_text())
        lines = []
        for number, part in enumerate(ablation_parts(rows)):
            axes = ", ".join(dict.fromkeys(row["axis"] for row in part))
            alt = f"Panels for {axes}: a dot for each run. The table has the numbers."
            lines += [f"![{alt}](/{DRAWN}/ablation-{number}.svg)", ""]
        return self.parse_text_to_nodes("\n".join([*lines, markdown_table(rows)]))


def machine(name: str, found: dict[str, Any]) -> Iterator[str]:
    """Say on what was measured, then show its families."""
    yield f"## On {found['gpu'] or found['processor']}"
    yield ""
    facts = {
        "date": found["date"],
        "processor": f"{found['processor']}, {found['cores']} cores",
        "threads": found["threads"],
        "pages of memory": "huge" if found.get("huge_pages") else "as they come",
        "GPU": found["gpu"] or "none",
        "versions": f"Python {found['python']}, torch {found['torch']}, "
        f"fastslow {found['fastslow']}",
    }
    yield from (_row(("", "")), _row(("---", "---")))
    yield from (_row((f"**{key}**", str(value))) for key, value in facts.items())
    for identity, results in families(found):
        title = FAMILIES.get(identity)
        yield from ("", f"### {identity}: {title}" if title else f"### {identity}", "")
        bars = [result for result in results if not result["first"]]
        if bars:
            figure = _figure_name(name, identity)
            yield from (f"![{_alt(bars)}](/{DRAWN}/{figure})", "")
        yield from ("<details><summary>All numbers</summary>", "")
        yield from table(results)
        yield from ("", "</details>")
    yield ""


def table(results: list[Result]) -> Iterator[str]:
    """Write what a family's figure shows, and the numbers that it does not."""
    yield from (_row(_COLUMNS), _row(("---",) * len(_COLUMNS)))
    for result in results:
        numbers = dict(result["extra_info"])
        target = numbers.pop("target", "")
        if is_missed(result):
            target += " (missed)"
        yield _row(
            (
                workload(result) if result["first"] else "",
                result["name"],
                f"{1000 * result['min']:,.2f}",
                "ours" if result["first"] else f"{result['ratio']:,.2f}x",
                target,
                "; ".join(f"{key} {value:,}" for key, value in numbers.items()),
            )
        )


def families(found: dict[str, Any]) -> Iterator[tuple[str, list[Result]]]:
    """Sort results by family; mark the first way of a workload, which is ours."""
    results: list[Result] = []
    for result in sorted(found["benchmarks"], key=lambda r: family(r) or OTHERS):
        first = not results or results[-1]["group"] != result["group"]
        results.append(result | {"first": first})
    for identity, members in groupby(results, lambda r: family(r) or OTHERS):
        yield identity, list(members)


def _alt(bars: list[Result]) -> str:
    """Say in words what the bars of a family show."""
    ratios = [bar["ratio"] for bar in bars]
    return (
        f"{len(bars)} bars: other ways take {min(ratios):,.3g} to {max(ratios):,.3g} "
        "times the time of ours. The table has every number."
    )


def ablation_parts(rows: list[Result]) -> list[list[Result]]:
    """Cut a summary between its axes into figures that a page is wide enough for."""
    parts: list[list[Result]] = []
    for _, members in groupby(rows, key=lambda row: row["axis"]):
        axis = list(members)
        if parts and len(parts[-1]) + len(axis) <= MOST_VARIANTS:
            parts[-1] += axis
        else:
            parts.append(axis)
    return parts


def _draw(app: Sphinx) -> None:
    """Draw all figures before the pages are read."""
    source = Path(app.srcdir)
    folder = source / DRAWN
    folder.mkdir(exist_ok=True)
    for file in _result_files(source):
        for identity, results in families(json.loads(file.read_text())):
            with rc_context(STYLE):
                figure = ratio_chart(results)
            if figure is not None:
                save_svg(figure, folder / _figure_name(file.stem, identity))
    ablation = _ablation_file(source)
    if ablation.exists():
        for number, part in enumerate(ablation_parts(json.loads(ablation.read_text()))):
            drawn = folder / f"ablation-{number}.svg"
            with rc_context(STYLE):
                draw_ablation(part, drawn)
            drawn.write_text(follow_scheme(drawn.read_text()))


def _result_files(source: Path) -> list[Path]:
    """List the files of results, one for each machine."""
    return sorted((source / "benchmarks").glob("*.json"))


def _ablation_file(source: Path) -> Path:
    """Tell where the summary of an ablation is looked for."""
    return source / "ablations" / "ablation.json"


def _figure_name(machine: str, identity: str) -> str:
    """Name the figure of a family on a machine."""
    words = "".join(c if c.isalnum() else "-" for c in f"{machine}-{identity}".lower())
    return f"{words}.svg"


def _row(cells: tuple[str, ...]) -> str:
    """Write one row."""
    return f"| {' | '.join(cells)} |"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives, and draw before they are read."""
    app.add_directive("benchmark-tables", BenchmarkTables)
    app.add_directive("benchmark-gaps", BenchmarkGaps)
    app.add_directive("ablation", Ablation)
    app.connect("builder-inited", _draw)
    return {"parallel_read_safe": True}
