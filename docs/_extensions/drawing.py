"""How the figures of the pages look, on light pages and on dark ones."""

from pathlib import Path

from cycler import cycler
from matplotlib import rc_context
from matplotlib.figure import Figure

PAPER, INK = "#ffffff", "#374151"
"""The background, and lines and words."""

COLOURS = ("#2f6fb7", "#c46f0c", "#7b8794", "#5aa469", "#b65fa8")
"""Slow, fast and text as the library draws them, then others."""

DARK = {PAPER: "#1b1e23", INK: "#d3d8de", COLOURS[1]: "#e3912f"}
"""What changes on a dark page."""

STYLE = {
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 200,
    "figure.facecolor": PAPER,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.alpha": 0.4,
    "grid.color": COLOURS[2],
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "fastslow",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
"""Settings of matplotlib; the same figure gives the same bytes."""


def save_svg(figure: Figure, file: Path) -> None:
    """Write a figure that follows the page into the dark."""
    with rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    file.write_text(follow_scheme(file.read_text()))


def follow_scheme(svg: str) -> str:
    """Let paper and ink change where dark pages are preferred."""
    rules = "".join(
        f'[style*="{part}: {light}"] {{ {part}: {dark} !important }}\n'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{\n{rules}}}</style>"
    head, end, body = svg.partition("<defs>")
    return f"{head}{style}{end}{body}"
