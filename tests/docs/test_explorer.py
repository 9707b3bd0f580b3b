"""The explorer says what the library says, by mouse, keyboard, on small and dark pages.

Its page is built in the theme of the documentation and driven in a headless Chromium;
where there is none, those tests are skipped.
"""

import contextlib
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlencode

import pytest

from fastslow.layouts import Attention, KeptText
from fastslow.schedules import Strategy
from fastslow.testing import reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXPLORER = runpy.run_path(str(DOCS / "_extensions" / "explorer.py"))

STANDARD: dict[str, Any] = {
    "frames": 8,
    "ratio": [1, 2],
    "strategy": "interleave",
    "slow_stride": 2,
    "fast_stride": 4,
    "height": 8,
    "width": 8,
    "text_before": 6,
    "text_after": 8,
    "window": 0,
    "keep_text": "prefix",
    "keep_slow": False,
    "attention": "frame_causal",
    "samples": 1,
}
ROWS: dict[str, dict[str, Any]] = {
    "standard": {},
    "ragged": {"height": 5, "width": 7, "fast_stride": 5, "ratio": [2, 5]},
    "packed": {"samples": 3, "frames": 4, "height": 4, "width": 4},
    "window": {"window": 2, "keep_text": "none"},
    "kept": {"window": 1, "keep_slow": True, "ratio": [1, 3], "keep_text": "all"},
    "kept in two": {"window": 1, "keep_slow": True, "samples": 2, "frames": 4},
    "causal": {"attention": "causal", "samples": 2, "frames": 3},
    "ends": {"strategy": "uniform", "ratio": [1, 4], "text_before": 0},
    "long": {"frames": 32, "slow_stride": 1, "fast_stride": 2, "samples": 2},
    "wide": {"frames": 20},
    "one": {"frames": 1, "height": 1, "width": 1, "text_before": 0, "text_after": 0},
}
WIDTHS = (360, 600, 768, 1100, 1600)


def answer(changed: dict[str, Any]) -> dict[str, Any]:
    """Give what the library says of a row."""
    return dict(EXPLORER["answer"](STANDARD | changed))


def reads(row: dict[str, Any], query: int) -> list[bool]:
    """Tell which keys the library lets a query read."""
    start, stop = row["start"][query], row["stop"][query]
    segment = row["segments"][query]
    return [
        (start <= key < stop)
        or bool(row["kept"][key] and key < start and row["segments"][key] == segment)
        for key in range(row["tokens"])
    ]


def address(changed: dict[str, Any], **more: object) -> str:
    """Write settings as the page does."""
    words = {name: int(v) if isinstance(v, bool) else v for name, v in changed.items()}
    if "ratio" in words:
        words["ratio"] = "/".join(map(str, changed["ratio"]))
    return urlencode(words | more, safe="/")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the page alone, in its theme."""
    for package in ("furo", "myst_parser", "sphinx"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    settings = {
        "extensions": "myst_parser,explorer",
        "include_patterns": "explorer.md",
        "root_doc": "explorer",
        "suppress_warnings": "myst.xref_missing",
    }
    options = [part for pair in settings.items() for part in ("-D", "=".join(pair))]
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", *options, str(DOCS), str(folder)],
        check=True,
    )
    return folder


class Explorer:
    """The page, its parts by name."""

    def __init__(self, page: Any, site: Path) -> None:
        """Keep the browser's page and the address of ours."""
        self.page = page
        self.url = (site / "explorer.html").as_uri()

    def open(self, changed: dict[str, Any], **more: object) -> None:
        """Load the page with settings in its address."""
        self.page.open(f"{self.url}#{address(changed, **more)}")
        self.page.settle()

    def text(self, name: str) -> str:
        """Give the words of a part."""
        found = self.page.evaluate(
            f"document.getElementById('explorer-{name}').innerText"
        )
        return str(found)

    def counts(self) -> dict[str, str]:
        """Read the table of counts."""
        lines = self.page.evaluate(
            "[...document.querySelectorAll('.explorer-counts div')]"
            ".map((line) => [...line.children].map((part) => part.textContent))"
        )
        return dict(lines)

    def setting(self, name: str) -> str:
        """Give the value of a control."""
        controls = "document.getElementById('explorer-controls')"
        return str(self.page.evaluate(f"{controls}.elements.{name}.value"))

    def focus(self, selector: str) -> None:
        """Bring a part into view and focus it."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.page.evaluate(
            f"{element}.scrollIntoView({{block: 'start', behavior: 'instant'}})"
        )
        self.page.evaluate(f"{element}.focus({{preventScroll: true}})")
        self.page.settle()

    def corner(self, name: str) -> tuple[float, float]:
        """Give the upper left corner of a picture, in the window."""
        self.focus(f"#explorer-{name}")
        box = f"document.getElementById('explorer-{name}').getBoundingClientRect()"
        left, top = self.page.evaluate(f"(({{x, y}}) => [x, y])({box})")
        return left, top

    def pixels(self, name: str) -> list[list[int]]:
        """Read a picture: its lines of pixels, each one number."""
        return list(
            self.page.evaluate(
                f"""(() => {{
                const canvas = document.getElementById('explorer-{name}');
                const {{ width, height }} = canvas;
                const {{ data }} = canvas.getContext('2d')
                    .getImageData(0, 0, width, height);
                const words = new Uint32Array(data.buffer);
                return Array.from({{ length: height }},
                    (_, y) => Array.from(words.subarray(y * width, (y + 1) * width)));
                }})()"""
            )
        )

    def colours(self) -> dict[str, int]:
        """Give the colours of the style sheet as the pixels have them."""
        return dict(
            self.page.evaluate(
                """(() => {
                const style = getComputedStyle(document.querySelector('.explorer'));
                const names = ['text', 'slow', 'fast', 'text-dim', 'slow-dim',
                    'fast-dim', 'hidden', 'ink'];
                return Object.fromEntries(names.map((name) => {
                    const word = style.getPropertyValue(`--explorer-${name}`).trim();
                    const [r, g, b] = [1, 3, 5].map(
                        (i) => parseInt(word.slice(i, i + 2), 16));
                    return [name, ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0];
                }));
                })()"""
            )
        )


@pytest.fixture
def explorer(browser: Any, site: Path) -> Explorer:
    """Give a page of a common size."""
    browser.resize(1100, 900)
    browser.prefer("light")
    return Explorer(browser, site)


def test_cases_are_written_and_varied(site: Path) -> None:
    cases = json.loads((site / "_static" / "explorer" / "cases.json").read_text())
    assert cases == EXPLORER["make_cases"]()
    settings = [case["settings"] for case in cases]
    assert len({json.dumps(one) for one in settings}) == len(cases) >= 200
    for name, values in (
        ("strategy", get_args(Strategy)),
        ("keep_text", get_args(KeptText)),
        ("attention", get_args(Attention)),
        ("keep_slow", (False, True)),
        ("samples", (1, 2, 3, 4)),
        ("text_before", (0, 1, 2)),
        ("window", (0, 1, 2, 3)),
    ):
        assert {one[name] for one in settings} >= set(values), name
    assert {one.keys() == STANDARD.keys() for one in settings} == {True}
    assert any(one["height"] % one["slow_stride"] for one in settings)
    assert any(one["ratio"][0] == 0 for one in settings)
    assert any(one["ratio"][0] == one["ratio"][1] for one in settings)


def test_answers_are_those_of_the_references() -> None:
    cases = EXPLORER["make_cases"]()
    short = [case for case in cases if case["answers"]["tokens"] <= 80]
    assert len(short) > 100
    for case in short:
        row, settings = case["answers"], case["settings"]
        columns = row["ranks"], row["segments"]
        expected = reference.visible_pairs(*columns)
        if settings["window"]:
            kept = [key == 1 for key in row["kept"]]
            window = (row["frames"], settings["window"], kept)
            expected = reference.window_pairs(*columns, *window)
        found = [reads(row, query) for query in range(row["tokens"])]
        assert found == expected, settings
        assert row["pairs"] == sum(map(sum, expected))


def test_choices_are_those_of_the_library() -> None:
    source = (DOCS / "explorer.md").read_text()
    found = {
        name: tuple(re.findall(r"<option>(\w+)</option>", options))
        for name, options in re.findall(
            r'<select name="(\w+)">(.*?)</select>', source, re.DOTALL
        )
    }
    assert found == {
        "strategy": get_args(Strategy),
        "attention": get_args(Attention),
        "keep_text": get_args(KeptText),
    }
    assert set(re.findall(r' name="(\w+)"', source)) == STANDARD.keys()


def test_rule_answers_every_case_as_the_library(explorer: Explorer, site: Path) -> None:
    cases = json.loads((site / "_static" / "explorer" / "cases.json").read_text())
    explorer.open({})
    settings = json.dumps([case["settings"] for case in cases])
    found = explorer.page.evaluate(f"{settings}.map(explorerRule.plan)")
    for case, plan in zip(cases, found, strict=True):
        for name, expected in case["answers"].items():
            assert plan[name] == expected, (name, case["settings"])


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_rule_answers_every_case_outside_a_browser_too() -> None:
    cases = EXPLORER["make_cases"]()
    script = """
        const { readFileSync } = require("fs"), { runInThisContext } = require("vm");
        const rule = readFileSync(process.argv[1], "utf8") + ";explorerRule";
        const settings = JSON.parse(readFileSync(0, "utf8"));
        console.log(JSON.stringify(settings.map(runInThisContext(rule).plan)));
    """
    done = subprocess.run(
        ["node", "-e", script, str(DOCS / "_static" / "explorer" / "rule.js")],
        input=json.dumps([case["settings"] for case in cases]),
        capture_output=True,
        text=True,
        check=True,
    )
    for case, plan in zip(cases, json.loads(done.stdout), strict=True):
        for name, expected in case["answers"].items():
            assert plan[name] == expected, (name, case["settings"])


def test_page_asks_for_nothing_but_its_files(explorer: Explorer, site: Path) -> None:
    explorer.open({})
    events = explorer.page.events
    assert not [e for e in events if e["method"] == "Runtime.exceptionThrown"]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.endswith("rule.js") or "rule.js?" in url for url in urls)
    inside = (f"{site.as_uri()}/", "data:")
    assert [url for url in urls if not url.startswith(inside)] == []


@pytest.mark.parametrize("name", ROWS)
def test_counts_are_the_librarys(explorer: Explorer, name: str) -> None:
    explorer.open(ROWS[name])
    row, shown = answer(ROWS[name]), explorer.counts()
    share = 100 * row["pairs"] / row["tokens"] ** 2
    assert shown["tokens in the row"] == f"{row['tokens']:,}"
    assert shown["video tokens, pooled"] == f"{row['pooled']:,}"
    assert shown["video tokens, unpooled"] == f"{row['unpooled']:,}"
    pairs, percent = shown["visible pairs"].split(" (")
    assert pairs == f"{row['pairs']:,}"
    assert float(percent.removesuffix("%)")) == pytest.approx(share, abs=0.051)


def test_slider_moves_by_keyboard(explorer: Explorer) -> None:
    explorer.open({})
    explorer.focus("input[name=frames]")
    explorer.page.press("ArrowRight")
    explorer.page.press("ArrowRight")
    row = answer({"frames": 10})
    assert explorer.counts()["tokens in the row"] == str(row["tokens"])
    explorer.page.wait("location.hash === '#frames=10'")
    explorer.focus("input[name=slow_stride]")
    explorer.page.press("End")
    assert (explorer.setting("slow_stride"), explorer.setting("fast_stride")) == (
        "12",
        "12",
    )
    explorer.focus("input[name=fast_stride]")
    explorer.page.press("Home")
    assert (explorer.setting("slow_stride"), explorer.setting("fast_stride")) == (
        "1",
        "1",
    )
    row = answer({"frames": 10, "slow_stride": 1, "fast_stride": 1})
    assert explorer.counts()["tokens in the row"] == str(row["tokens"])
    explorer.page.evaluate("document.querySelector('button[type=reset]').click()")
    explorer.page.settle()
    row = answer({})
    assert explorer.counts()["tokens in the row"] == str(row["tokens"])
    explorer.page.wait("location.hash === ''")


def said_of(row: dict[str, Any], query: int) -> str:
    """Give the last part of what the page says of a query."""
    seen = reads(row, query)
    kinds = [kind for kind, read in zip(row["kinds"], seen, strict=True) if read]
    text, slow, fast = (kinds.count(kind) for kind in range(3))
    return (
        f"reads {len(kinds)} of {row['tokens']} tokens: "
        f"{text} text, {slow} slow, {fast} fast."
    )


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("name", ["standard", "packed", "kept", "causal"])
def test_hovered_query_is_told_what_it_reads(
    explorer: Explorer, name: str, scale: int
) -> None:
    explorer.page.resize(1100, 900, scale=scale)
    explorer.open(ROWS[name])
    row = answer(ROWS[name])
    left, top = explorer.corner("mask")
    size = len(explorer.pixels("mask"))
    edge = 11 * scale
    cell = (size - edge) / row["tokens"]
    for query in range(0, row["tokens"], 5):
        y = top + (edge + (query + 0.5) * cell) / scale
        explorer.page.point(left + 60, y)
        said = explorer.text("query")
        assert said.startswith(f"Token {query}, ")
        assert said.endswith(said_of(row, query))
    explorer.page.point(1, 1)
    assert explorer.text("query").startswith("Point at the mask")


def test_query_is_named(explorer: Explorer) -> None:
    row = answer(ROWS["packed"])
    for query in (0, 6, row["tokens"] - 1):
        explorer.open(ROWS["packed"], query=query)
        kind = ("text", "slow frame", "fast frame")[row["kinds"][query]]
        frame = f" {row['frames'][query]}" if row["frames"][query] >= 0 else ""
        sample = row["segments"][query] + 1
        name = f"Token {query}, {kind}{frame} of sample {sample}, "
        assert explorer.text("query") == name + said_of(row, query)


def test_query_moves_by_keyboard(explorer: Explorer) -> None:
    row = answer({})
    explorer.open({})
    explorer.focus("#explorer-mask")
    last = row["tokens"] - 1
    for key, expected in (
        ("ArrowDown", 0),
        ("ArrowRight", 1),
        ("ArrowUp", 0),
        ("ArrowUp", 0),
        ("End", last),
        ("ArrowDown", last),
        ("Home", 0),
        ("PageDown", 1),
        *(("PageDown", query) for query in (2, 3, 4, 5, 6, 22, 26, 42)),
        ("ArrowLeft", 41),
        ("PageUp", 22),
        ("PageUp", 6),
        ("PageUp", 5),
    ):
        explorer.page.press(key)
        now = explorer.page.evaluate(
            "document.getElementById('explorer-mask').getAttribute('aria-valuenow')"
        )
        assert now == str(expected), key
        assert explorer.text("query").endswith(said_of(row, expected))
    explorer.page.press("Escape")
    assert explorer.text("query").startswith("Point at the mask")


def test_tab_reaches_every_control_and_the_mask(explorer: Explorer) -> None:
    explorer.open({"window": 1})
    explorer.focus("input[name=frames]")
    reached = []
    for _ in range(20):
        reached.append(
            explorer.page.evaluate(
                "document.activeElement.name || document.activeElement.id"
            )
        )
        explorer.page.press("Tab")
    assert set(reached) >= STANDARD.keys() | {"explorer-mask"}


@pytest.mark.parametrize(
    "name", ["standard", "ragged", "packed", "window", "kept", "kept in two", "wide"]
)
@pytest.mark.parametrize("query", [None, 7])
def test_mask_is_drawn_as_the_library_has_it(
    explorer: Explorer, name: str, query: int | None
) -> None:
    explorer.open(ROWS[name], **({} if query is None else {"query": query}))
    row, colours = answer(ROWS[name]), explorer.colours()
    pixels, edge = explorer.pixels("mask"), 11
    side, tokens = len(pixels) - edge, row["tokens"]
    places = [edge - (-key * side // tokens) for key in range(tokens)]
    lit = [colours[kind] for kind in ("text", "slow", "fast")]
    dim = [colours[f"{kind}-dim"] for kind in ("text", "slow", "fast")]
    for q, y in enumerate(places):
        if query is not None and 0 < y - places[query] < 3:
            continue  # the line of the query is never thinner
        shades = lit if query in {None, q} else dim
        expected = [
            shades[kind] if seen else colours["hidden"]
            for kind, seen in zip(row["kinds"], reads(row, q), strict=True)
        ]
        assert [pixels[y][x] for x in places] == expected


@pytest.mark.parametrize("name", ["standard", "packed", "ragged", "kept in two"])
def test_strip_is_lit_and_pointed_at(explorer: Explorer, name: str) -> None:
    row = answer(ROWS[name])
    query = row["tokens"] - 4
    explorer.open(ROWS[name], query=query)
    colours = explorer.colours()
    left, top = explorer.corner("strip")
    pixels = explorer.pixels("strip")
    lit = [colours[kind] for kind in ("text", "slow", "fast")]
    dim = [colours[f"{kind}-dim"] for kind in ("text", "slow", "fast")]
    cell, between = 18, 6  # rows this short are drawn at full size
    across = len(pixels[0]) // cell
    x = y = 0
    for k, seen in enumerate(reads(row, query)):
        if k and row["segments"][k] != row["segments"][k - 1]:
            x, y = 0, y + cell + between
        elif x == across:
            x, y = 0, y + cell
        shade = (
            colours["ink"] if k == query else (lit if seen else dim)[row["kinds"][k]]
        )
        assert pixels[y + 5][x * cell + 5] == shade, k
        if k % 11 == 0:
            explorer.page.point(left + x * cell + 5, top + y + 5)
            assert explorer.text("query").startswith(f"Token {k}, ")
        x += 1
    explorer.page.point(1, 1)
    assert explorer.text("query").startswith(f"Token {query}, ")


def test_schedule_is_pointed_at(explorer: Explorer) -> None:
    explorer.open(ROWS["ragged"])
    left, top = explorer.corner("schedule")
    explorer.page.point(left + 5, top + 5)
    assert explorer.text("query").startswith("Token 6, slow frame 0, ")


def test_click_keeps_a_query_lit(explorer: Explorer) -> None:
    explorer.open({})
    left, top = explorer.corner("strip")
    explorer.page.point(left + 5, top + 5, press=True)
    explorer.page.point(left + 23, top + 5)
    assert explorer.text("query").startswith("Token 1, ")
    explorer.page.point(1, 1)
    assert explorer.text("query").startswith("Token 0, ")
    explorer.page.wait("location.hash === '#query=0'")
    explorer.page.point(left + 5, top + 5, press=True)
    explorer.page.point(1, 1)
    assert explorer.text("query").startswith("Point at the mask")


def test_link_brings_settings_back(explorer: Explorer) -> None:
    explorer.open(ROWS["kept"], query=30)
    assert explorer.setting("keep_text") == "all"
    assert explorer.page.evaluate("document.querySelector('[name=keep_slow]').checked")
    before = explorer.text("query")
    assert before.startswith("Token 30, ")
    explorer.page.evaluate("location.hash = '#frames=3'")
    explorer.page.settle()
    assert explorer.setting("keep_text") == "prefix"
    assert explorer.counts()["tokens in the row"] == str(
        answer({"frames": 3})["tokens"]
    )


def test_senseless_link_is_put_right(explorer: Explorer) -> None:
    wrong = {"frames": 999, "height": -3, "ratio": [5, 3], "strategy": "<b>"}
    explorer.open(wrong | {"slow_stride": 9, "fast_stride": 3}, query="none")
    row = answer({"frames": 32, "slow_stride": 9, "fast_stride": 9})
    assert explorer.counts()["tokens in the row"] == str(row["tokens"])
    explorer.open(ROWS["one"], query=10**9)
    assert explorer.text("query") == (
        "Token 0, slow frame 0, reads 1 of 1 tokens: 0 text, 1 slow, 0 fast."
    )


@pytest.mark.parametrize("name", ROWS)
def test_python_prints_what_it_says(explorer: Explorer, name: str) -> None:
    explorer.open(ROWS[name])
    source = explorer.text("python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "explorer", "exec"), {})
    assert source.strip().splitlines()[-1] == f"# {printed.getvalue().strip()}"
    row = answer(ROWS[name])
    assert printed.getvalue() == f"{row['tokens']} {row['pairs']}\n"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["standard", "long"])
def test_page_fits_its_width(explorer: Explorer, width: int, name: str) -> None:
    explorer.page.resize(width, 800)
    explorer.open(ROWS[name], query=20)
    found = explorer.page.evaluate(
        "[document.documentElement.scrollWidth, Math.max(...[...document"
        ".querySelectorAll('.explorer *')].filter((part) => !part.closest('pre code'))"
        ".map((part) => part.getBoundingClientRect().right))]"
    )
    assert found[0] <= width
    assert found[1] <= width


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_theme(explorer: Explorer, theme: str, scheme: str) -> None:
    explorer.page.prefer(scheme)
    explorer.open(ROWS["standard"], query=60)
    explorer.page.evaluate(f"document.body.dataset.theme = '{theme}'")
    explorer.page.settle()
    is_dark = theme == "dark" or (theme == "auto" and scheme == "dark")
    colours = explorer.colours()
    assert colours["ink"] == (0xFFFFFFFF if is_dark else 0xFF231E1B)
    drawn = {pixel for line in explorer.pixels("mask") for pixel in line}
    assert drawn - {0} == set(colours.values())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(explorer: Explorer, contrast: Any, scheme: str) -> None:
    explorer.page.prefer(scheme)
    explorer.open({"window": 2}, query=20)
    words = explorer.page.evaluate(
        """(() => {
        const behind = (part) => {
            for (; part; part = part.parentElement) {
                const colour = getComputedStyle(part).backgroundColor;
                if (!/, 0\\)$/.test(colour)) return colour;
            }
        };
        return [...document.querySelectorAll('.explorer *')]
            .filter((part) => [...part.childNodes].some(
                (node) => node.nodeType === 3 && node.textContent.trim()))
            .map((part) => [part.textContent, getComputedStyle(part).color,
                behind(part)]);
        })()"""
    )
    assert len(words) > 30
    for text, colour, behind in words:
        assert contrast(colour, behind) >= 4.5, text
    paper = words[0][2]
    for name in ("text", "slow", "fast", "ink"):
        value = explorer.colours()[name]
        shade = ", ".join(str(value >> shift & 255) for shift in (0, 8, 16))
        assert contrast(f"rgb({shade})", paper) >= 3, name
