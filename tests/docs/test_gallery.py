"""The gallery's scripts, and charts of what was measured, without building a page."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SCRIPTS = sorted((DOCS / "gallery").glob("plot_*.py"))
RESULTS = sorted((DOCS / "benchmarks").glob("*.json"))
TOO_LONG = 40
"""Lines of a script, docstring and all."""


@pytest.fixture(scope="module")
def extensions() -> Iterator[Any]:
    """Import from the folder of extensions, as the builder of the pages does."""
    for package in ("matplotlib", "sphinx", "sphinx_gallery"):
        pytest.importorskip(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_extensions"))
        yield importlib.import_module
        for name in ("benchmarks", "drawing", "gallery", "measured"):
            sys.modules.pop(name, None)


def result(group: str, name: str, ratio: float, **numbers: Any) -> dict[str, Any]:
    found = {"group": group, "name": name, "ratio": ratio}
    return found | {"min": ratio / 100, "extra_info": numbers}


FOUND = {
    "benchmarks": [
        result("Two: big", "ours", 1.0),
        result("Two: big", "loop", 4.0, target="at least 3x"),
        result("Two: big", "copy", 0.5, target="at least 0.25x, half the peak"),
        result("One: small", "ours", 1.0, target="5 ms"),
        result("One: small", "loop", 9.5, target="at least 1,000x"),
        result("Alone", "ours", 1.0),
    ]
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_short_and_says_what_it_shows(
    script: Path, extensions: Any
) -> None:
    assert len(script.read_text().splitlines()) < TOO_LONG
    alt = extensions("gallery").alt_text(script)
    assert 60 < len(alt) < 400
    assert alt.endswith(".")


def test_every_script_has_its_place(extensions: Any) -> None:
    order = extensions("gallery").ORDER
    assert {f"plot_{name}" for name in order} == {script.stem for script in SCRIPTS}
    assert len(set(order)) == len(order) >= 12


def test_a_script_without_words_is_refused(extensions: Any, tmp_path: Path) -> None:
    script = tmp_path / "plot_mute.py"
    script.write_text('"""\nMute\n====\n\nNothing to hear.\n"""\n')
    with pytest.raises(ValueError) as caught:
        extensions("gallery").alt_text(script)
    assert str(caught.value) == "plot_mute.py has no '.. alt:' in its docstring"


def test_a_picture_follows_the_page_into_the_dark(
    extensions: Any, tmp_path: Path
) -> None:
    drawing = extensions("drawing")
    figures = importlib.import_module("matplotlib.figure")
    files = [tmp_path / name for name in ("a.svg", "b.svg")]
    for file in files:
        with importlib.import_module("matplotlib").rc_context(drawing.STYLE):
            figure = figures.Figure()
            axes = figure.subplots()
            axes.set_xlabel("words")
            axes.plot([0, 1], color=drawing.COLOURS[1])
        drawing.save_svg(figure, file)
    drawn = files[0].read_text()
    assert drawn == files[1].read_text()
    body, rules = drawn.partition("</style>")[2], drawn.partition("</style>")[0]
    for light, dark in drawing.DARK.items():
        assert f": {light}" in body
        assert f'"fill: {light}"] {{ fill: {dark} !important }}' in rules
    colours = set(re.findall(r"(?:fill|stroke): (#\w+)", body))
    assert colours <= drawing.DARK.keys()


def test_results_stand_by_family_with_ours_first(extensions: Any) -> None:
    families = extensions("benchmarks").families(FOUND)
    first = {
        name: [member["first"] for member in members] for name, members in families
    }
    assert list(first) == ["One", "Others", "Two"]
    assert first["One"] == [True, False]
    assert first["Others"] == [True]
    assert first["Two"] == [True, False, False]


def test_a_ratio_below_its_target_is_a_miss(extensions: Any) -> None:
    families = dict(extensions("benchmarks").families(FOUND))
    lines = [*extensions("benchmarks").table(families["One"])]
    assert lines[2:] == [
        "| small | ours | 10.00 | ours | 5 ms |  |",
        "|  | loop | 95.00 | 9.50x | at least 1,000x (missed) |  |",
    ]
    assert "missed" not in "".join(extensions("benchmarks").table(families["Two"]))


def test_a_chart_has_a_bar_for_each_other_way(extensions: Any) -> None:
    families = dict(extensions("benchmarks").families(FOUND))
    chart = extensions("measured").ratio_chart
    assert chart(families["Others"]) is None
    (axes,) = chart(families["Two"]).axes
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx([4.0, 0.5])
    targets = [marks.get_segments()[0][0][0] for marks in axes.collections]
    assert targets == [3.0, 0.25]
    words = [text.get_text() for text in axes.texts]
    assert words == ["big", "4x", "0.5x"]
    (axes,) = chart(families["One"]).axes
    assert [text.get_text() for text in axes.texts] == ["small", "9.5x, missed"]


@pytest.mark.parametrize("file", RESULTS)
def test_numbers_of_a_chart_can_be_read(file: Path, extensions: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = extensions("benchmarks").families(json.loads(file.read_text()))
    charts = [extensions("measured").ratio_chart(results) for _, results in found]
    for chart in filter(None, charts):
        FigureCanvasAgg(chart).draw()
        (axes,) = chart.axes
        inside = axes.get_window_extent()
        for marks in axes.collections:
            assert axes.get_xlim()[0] < marks.get_segments()[0][0][0]
        for words in axes.texts:
            assert words.get_window_extent().x0 >= inside.x0, words.get_text()
            assert words.get_window_extent().x0 < inside.x1, words.get_text()


@pytest.mark.parametrize("file", RESULTS)
def test_every_file_of_results_makes_a_page(file: Path, extensions: Any) -> None:
    found = json.loads(file.read_text())
    page = "\n".join(extensions("benchmarks").machine(file.stem, found))
    assert found["date"] in page and found["torch"] in page
    for each in found["benchmarks"]:
        assert f"| {each['name']} | {1000 * each['min']:,.2f} |" in page


def test_an_ablation_is_cut_between_its_axes(extensions: Any) -> None:
    sizes = {"ratio": 5, "strategy": 3, "weight": 4, "loss": 2, "many": 9, "last": 1}
    rows = [{"axis": axis, "n": n} for axis, size in sizes.items() for n in range(size)]
    parts = extensions("benchmarks").ablation_parts(rows)
    assert [row for part in parts for row in part] == rows
    assert [list(dict.fromkeys(row["axis"] for row in part)) for part in parts] == [
        ["ratio", "strategy"],
        ["weight", "loss"],
        ["many"],
        ["last"],
    ]
