"""The tutorial's scripts run, print what the pages show, and draw their pictures."""

import json
import math
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


def write_steps(source: Path, change: Callable[[int, dict[str, object]], None]) -> None:
    """Write twenty steps of the run that is kept, each changed by its number."""
    source.parent.mkdir()
    lines = (FOLDER / "metrics.jsonl").read_text().splitlines()[:20]
    steps = [json.loads(line) for line in lines]
    for number, step in enumerate(steps, 1):
        change(number, step)
    source.write_text("".join(f"{json.dumps(step)}\n" for step in steps))


def test_a_run_without_the_next_frame_loss_is_drawn_without_it(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mine" / "metrics.jsonl"

    def drop(number: int, step: dict[str, object]) -> None:
        for name in ("autoregressive_loss", "copy_loss", "skill"):
            del step[name]

    write_steps(source, drop)
    run("curves", str(source))
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["steps", "language_loss", "gradient_norm"]
    assert said[-1] == (
        "of 20 steps without a number: autoregressive_loss in 20, copy_loss in 20, "
        "skill in 20"
    )
    picture = source.with_name("curves.svg").read_text()
    titles = re.findall(r'class="title"[^>]*>([^<]+)<', picture)
    assert titles == ["Language loss", "Gradient norm"]


def test_steps_whose_losses_are_not_finite_are_a_gap(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mine" / "metrics.jsonl"

    def lose(number: int, step: dict[str, object]) -> None:
        if 5 <= number <= 16:  # half of the first block of eight, all of the second
            step["language_loss"] = None

    write_steps(source, lose)
    run("curves", str(source))
    said = capsys.readouterr().out.splitlines()
    rows = {row[:10].strip(): row.split()[3] for row in said if row[3:7] == " to "}
    lines = source.read_text().splitlines()
    losses = [json.loads(line)["language_loss"] for line in lines]
    assert rows["1 to   8"] == f"{math.fsum(losses[:4]) / 4:.3f}"
    assert rows["9 to  16"] == "nan"
    assert said[-1] == "of 20 steps without a number: language_loss in 12"
    picture = source.with_name("curves.svg").read_text()
    drawn = re.findall(r'class="first" d="([^"]+)"', picture)
    loss, norm = drawn[0], drawn[-2]  # each before its key
    assert (loss.count("M"), loss.count("L")) == (2, 0)
    assert (norm.count("M"), norm.count("L")) == (1, 2)


def test_a_run_without_any_finite_number_is_said_to_have_none(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mine" / "metrics.jsonl"
    write_steps(
        source, lambda _, step: step.update(dict.fromkeys(set(step) - {"step"}))
    )
    run("curves", str(source))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "of 20 steps without a number: language_loss in 20, autoregressive_loss in 20, "
        "copy_loss in 20, skill in 20, gradient_norm in 20"
    )


def test_every_script_is_a_step() -> None:
    scripts = {file.stem for file in FOLDER.glob("*.py")} - {"drawing"}
    assert scripts == set(STEPS)
