"""Colours of our own stand out from their paper, computed as WCAG 2 does.

Where a Chromium is installed, ``test_pages`` and ``test_explorer`` read the colours of
whole pages.
"""

import re
import runpy
from pathlib import Path

import pytest

from fastslow import build_schedule
from fastslow.plotting import schedule_svg

TESTS = Path(__file__).parent
EXPLORER = TESTS.parents[1] / "docs" / "_static" / "explorer" / "explorer.css"
contrast = runpy.run_path(str(TESTS / "browser.py"))["contrast"]

WORDS, SHAPES = 4.5, 3
"""The least contrast of words, and of shapes that tell something."""


def as_rgb(colour: str) -> str:
    """Write ``#rrggbb`` as style sheets compute it."""
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgb({', '.join(map(str, parts))})"


def stands_out(colours: dict[str, str], name: str, least: float) -> bool:
    """Tell whether a colour has enough contrast with the paper."""
    return bool(contrast(as_rgb(colours[name]), as_rgb(colours["paper"])) >= least)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_stand_out(scheme: str) -> None:
    picture = schedule_svg((4, 4), build_schedule(2, slow_stride=1, fast_stride=2))
    light, _, dark = picture.partition("@media (prefers-color-scheme: dark)")
    rule = r"\n *(\.?\w+) \{[^}]*fill: (#\w{6})"
    colours = dict(re.findall(rule, light))
    if scheme == "dark":
        colours |= dict(re.findall(rule, dark))
    words = {name.removeprefix("."): value for name, value in colours.items()}
    shapes = words | {"text": colours[".text"]}
    assert stands_out(words | {"text": colours["text"]}, "text", WORDS)
    for name in ("text", "slow", "fast"):
        assert stands_out(shapes, name, SHAPES), name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_explorer_stands_out(scheme: str) -> None:
    blocks = re.findall(r"\.explorer \{\n(.*?)\}", EXPLORER.read_text(), re.DOTALL)
    block = blocks[0 if scheme == "light" else 1]
    colours = dict(re.findall(r"--explorer-([\w-]+): (#\w{6});", block))
    assert stands_out(colours, "ink", WORDS)
    for name in ("text", "slow", "fast"):
        assert stands_out(colours, name, SHAPES), name
