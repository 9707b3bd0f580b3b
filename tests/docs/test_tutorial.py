"""The tutorial's scripts run, print what the pages show, and draw their pictures."""

import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "tutorial"
STEPS = ("clip", "schedule", "row", "next_frame", "curves")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Run a copy of a script, so that its picture is not drawn over the one kept."""
    for name in (*(f"{step}.py" for step in STEPS), "drawing.py", "metrics.jsonl"):
        shutil.copy(FOLDER / name, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(tmp_path / f"{name}.py"), run_name="__main__")

    yield run
    sys.modules.pop("drawing", None)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_shows_what_its_script_does(
    name: str,
    run: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(name)
    page = (FOLDER / f"{name}.md").read_text()
    shown = re.findall(r"^```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert shown == [capsys.readouterr().out]
    drawn = (tmp_path / f"{name}.svg").read_text()
    kept = (FOLDER / f"{name}.svg").read_text()
    assert drawn == kept, f"python docs/tutorial/{name}.py draws it anew"


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_curves_of_any_run_are_drawn(
    steps: int, named: bool, run: Callable[..., None], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    source = folder / "metrics.jsonl"
    picture = folder / ("mine.svg" if named else "curves.svg")
    lines = (FOLDER / "metrics.jsonl").read_text().splitlines()
    source.write_text("\n".join(lines[:steps]))
    run("curves", str(source), *([str(picture)] if named else []))
    ends = re.findall(r'class="last"[^>]*>(\d+)<', picture.read_text())
    assert ends == [str(steps)] * 4


def test_every_script_is_a_step() -> None:
    scripts = {file.stem for file in FOLDER.glob("*.py")} - {"drawing"}
    assert scripts == set(STEPS)
