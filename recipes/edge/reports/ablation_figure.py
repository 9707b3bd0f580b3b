"""The figure of an ablation: a column for each axis, a dot for each seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANELS = (
    ("held-out accuracy", "accuracy"),
    ("held-out language loss", "held_out_language_loss"),
    ("skill", "skill"),
    ("tokens per clip", "tokens_per_clip"),
)
"""What each row of panels shows."""

COLOUR, BASE = "#2a6fb0", "#c4572a"
"""Of variants, and of the base."""

SHORT = 5
"""Letters of a variant, such as a number, that stand beside the next one's."""


def draw_ablation(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw a summary: each run a dot, each variant's mean a line.

    Args:
        rows: What ``summarise`` gave.
        file: SVG file to write; the same rows give the same bytes.
    """
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    groups = [[row for row in rows if row["axis"] == name] for name in axes_names]
    figure = Figure(
        figsize=(1.2 + sum(0.62 * len(group) + 0.9 for group in groups), 8.4),
        layout="constrained",
    )
    panels = figure.subplots(
        len(PANELS),
        len(groups),
        squeeze=False,
        sharey="row",
        sharex="col",
        width_ratios=[len(group) + 0.6 for group in groups],
    )
    for line, (title, name) in zip(panels, PANELS, strict=True):
        for panel, group in zip(line, groups, strict=True):
            _draw(panel, group, name)
        line[0].set_ylabel(title)
    for panel, name in zip(panels[0], axes_names, strict=True):
        panel.set_title(name, fontsize=10)
    figure.supxlabel(
        "dot: one seed; line: mean of the seeds; orange: base; dotted: chance",
        fontsize=8,
    )
    with mpl.rc_context({"svg.hashsalt": "ablation"}):
        figure.savefig(file, format="svg", metadata={"Date": None})


def _draw(panel: Axes, group: Sequence[Mapping[str, Any]], name: str) -> None:
    """Draw one number of the variants of one axis."""
    for place, row in enumerate(group):
        values = row[name]["values"]
        colour = BASE if row["is_base"] else COLOUR
        panel.plot([place] * len(values), values, "o", ms=4, alpha=0.6, color=colour)
        mean = row[name]["mean"]
        if mean is not None:
            panel.hlines(mean, place - 0.3, place + 0.3, color=colour, linewidth=2)
    if name == "accuracy":
        chance = [value for row in group for value in row["chance"]["values"]]
        if chance:
            panel.axhline(max(chance), color="grey", linestyle=":", linewidth=1)
        panel.set_ylim(-0.03, 1.03)
    if name == "tokens_per_clip":
        panel.set_ylim(bottom=0)
    panel.set_xlim(-0.6, len(group) - 0.4)
    labels = [_short(row["variant"]) for row in group]
    turn = 90 if max(map(len, labels)) > SHORT else 0
    panel.set_xticks(range(len(group)), labels, rotation=turn, fontsize=8)
    panel.grid(axis="y", linewidth=0.4)
    panel.spines[["top", "right"]].set_visible(False)


def _short(label: str) -> str:
    """Leave out the name of a setting where there is but one."""
    return label if set(label) & set(",{") else label.rpartition(" ")[2]
