"""Curves as a picture, drawn with text alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 150, 60, 46, 30
COLOURS = ("first", "second", "third")
STYLE = """
text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #374151 }
.title { font-weight: 600 }
.last { text-anchor: end }
.paper { fill: #ffffff }
path { fill: none; stroke-width: 2; stroke-linejoin: round }
.grid { stroke: #cdd2d8; stroke-width: 1 }
.first { stroke: #2f6fb7 }
.second { stroke: #c46f0c }
.third { stroke: #7b8794 }
@media (prefers-color-scheme: dark) {
  text { fill: #d3d8de }
  .paper { fill: #1b1e23 }
  .grid { stroke: #4a515b }
  .first { stroke: #6aa5e3 }
  .second { stroke: #e3912f }
  .third { stroke: #9aa4b0 }
}
"""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One diagram: curves by name over so many steps, between two heights.

    A curve has a gap where it is nan.
    """

    title: str
    steps: int
    curves: Mapping[str, Sequence[float]]
    low: float
    high: float


def curves_svg(panels: Sequence[Panel], words: str) -> str:
    """Draw panels below each other; a value beyond its panel is drawn at the edge."""
    height = len(panels) * (TOP + HEIGHT + BOTTOM)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{', '.join(panel.title for panel in panels)}</title>",
        f"<desc>{words}</desc>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
    ]
    for number, panel in enumerate(panels):
        shift = number * (TOP + HEIGHT + BOTTOM)
        parts.append(f'<g transform="translate(0 {shift})">{_panel(panel)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel) -> str:
    """Draw the lines of one panel, their names and its scale."""
    parts = [_text(LEFT, 16, panel.title, "title")]
    for share in (0, 0.5, 1):
        value = panel.low + share * (panel.high - panel.low)
        y = _height(value, panel)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - 12}"/>')
        parts.append(_text(8, y + 4, f"{value:.3g}"))
    below = TOP + HEIGHT + 16
    parts.append(_text(LEFT, below, "step 1"))
    parts.append(_text(WIDTH - 12, below, str(panel.steps), "last"))
    x = LEFT
    for colour, (name, values) in zip(COLOURS, panel.curves.items(), strict=False):
        step = (WIDTH - 12 - LEFT) / max(len(values) - 1, 1)
        line, pen = "", "M"
        for i, value in enumerate(values):
            if math.isnan(value):
                pen = "M"
                continue
            line += f"{pen}{LEFT + i * step:.0f} {_height(value, panel)}"
            pen = "L"
        parts.append(f'<path class="{colour}" d="{line}"/>')
        parts.append(f'<path class="{colour}" d="M{x} 30h16"/>')
        parts.append(_text(x + 22, 34, name))
        x += 50 + 7 * len(name)
    return "".join(parts)


def _height(value: float, panel: Panel) -> int:
    """Give where a value is drawn, from the top of its panel."""
    inside = min(max(value, panel.low), panel.high)
    share = (inside - panel.low) / (panel.high - panel.low)
    return round(TOP + HEIGHT * (1 - share))


def _text(x: int, y: int, words: str, kind: str = "label") -> str:
    """Write words at a baseline."""
    return f'<text class="{kind}" x="{x}" y="{y}">{words}</text>'
