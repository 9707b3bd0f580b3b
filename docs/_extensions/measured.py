"""What is read from one result of a benchmark, and the chart of a family of them."""

import re
from itertools import groupby
from typing import Any

from drawing import INK, PAPER
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

Result = dict[str, Any]

LINE = 0.24
"""Inches from one line of a chart to the next."""

BEHIND = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
"""What keeps the line at 1 out of the words."""


def family(result: Result) -> str:
    """Give the short name of the benchmark that a result belongs to, if it has one."""
    name, colon, _ = result["group"].partition(": ")
    return str(name) if colon else ""


def workload(result: Result) -> str:
    """Say what was done."""
    return str(result["group"].rpartition(": ")[2])


def target_ratio(result: Result) -> float | None:
    """Read the ratio that was aimed at; None where the aim was no ratio."""
    target = str(result["extra_info"].get("target", ""))
    found = re.match(r"at least ([\d.,]+)x\b", target)
    return float(found[1].replace(",", "")) if found else None


def is_missed(result: Result) -> bool:
    """Tell whether less was found than was aimed at, as a ratio or in percent."""
    numbers, least = result["extra_info"], target_ratio(result)
    if least is not None:
        return bool(result["ratio"] < least)
    aim = re.match(r"ours at least (?:as many|(\d+)%)", numbers.get("target", ""))
    share = numbers.get("ours in % of it")
    return bool(aim and share and share < int(aim[1] or 100))


def ratio_chart(results: list[Result]) -> Figure | None:
    """Draw the ratios of a family: a bar for each other way, from ours on.

    Args:
        results: Those of one family, a workload after the other.

    Returns:
        The figure; None where nothing was compared.
    """
    bars = [result for result in results if not result["first"]]
    if not bars:
        return None
    lines = _lines(bars)
    figure = Figure(figsize=(8, LINE * (len(lines) + 4)))
    axes = figure.subplots()
    for place, line in enumerate(lines):
        if isinstance(line, str):
            across = axes.get_yaxis_transform()
            axes.text(0.01, place, line, transform=across, va="center", bbox=BEHIND)
        else:
            _bar(axes, place, line)
    ways = [(n, line["name"]) for n, line in enumerate(lines) if isinstance(line, dict)]
    axes.set_yticks([n for n, _ in ways], [name for _, name in ways])
    axes.set_xscale("log")
    axes.axvline(1, color="C2", linewidth=1)
    ratios = [bar["ratio"] for bar in bars]
    marks = [mark for bar in bars if (mark := target_ratio(bar)) is not None]
    least, most = min(0.5, *ratios, *marks) / 1.5, 3 * max(1, *ratios, *marks)
    axes.set_xlim(least, most)
    axes.set_ylim(len(lines) - 0.4, -0.8)
    steps = (1, 2, 5) if most / least < 1000 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time, as a multiple of ours (log scale); upright mark: target")
    return figure


def _lines(bars: list[Result]) -> list[str | Result]:
    """Put the name of each workload above its bars."""
    lines: list[str | Result] = []
    for group, members in groupby(bars, key=workload):
        lines += [group, *members]
    return lines


def _bar(axes: Axes, place: int, result: Result) -> None:
    """Draw a bar from 1 to the ratio, its number, and its target if there is one."""
    ratio, target = result["ratio"], target_ratio(result)
    colour = "C0" if ratio >= 1 else "C1"
    axes.barh(place, ratio - 1, left=1, height=0.7, color=colour)
    words = f"{ratio:,.3g}x" if ratio < 1000 else f"{ratio:,.0f}x"
    if target is not None and ratio < target:
        words += ", missed"
    axes.annotate(
        words,
        (max(ratio, target or 1, 1), place),  # to the left stand the names of the ways
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
    )
    if target is not None:
        axes.vlines(target, place - 0.45, place + 0.45, color=INK, linewidth=2)
