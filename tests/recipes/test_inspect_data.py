"""What a dataset is said to hold, and the drawing of one of its samples."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.edge.data.clips import make_clips
from recipes.inspect_data import MOST_LINES, main
from tests.recipes.broken import without_pixels

ROOT = Path(__file__).parents[2]

Inspect = Callable[..., tuple[str, object]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_clips(folder, num_clips=4, held_out=0, seed=0, num_frames=8, size=(56, 84))
    file = folder / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    text = {key: value for key, value in rows[0].items() if key != "video"}
    text["conversations"] = [
        {"from": "human", "value": "Hello."},
        {"from": "gpt", "value": "Hello. " * 20},
    ]
    rows.append(text | {"id": "text", "category": "talk"})
    rows += [rows[1] | {"id": f"lost {n}", "video": f"lost{n}.mp4"} for n in range(3)]
    rows.append(rows[2] | {"id": "mute", "conversations": []})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


TINY = ROOT / "recipes/configs/qwen2vl_tiny.yaml"


def flags_of(data: Path, *flags: str, config: Path = TINY) -> list[str]:
    return ["recipes/inspect_data.py", str(data), *flags, "--config", str(config)]


@pytest.fixture
def inspect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Inspect:
    """Run the script in this process; give what it says, and its exit status."""

    def run(data: Path, *flags: str, config: Path = TINY) -> tuple[str, object]:
        monkeypatch.setattr(sys, "argv", flags_of(data, *flags, config=config))
        try:
            main()
        except SystemExit as end:
            return capsys.readouterr().out, end.code
        return capsys.readouterr().out, 0

    return run


def test_what_a_dataset_holds(data: Path, preloaded: Any, tmp_path: Path) -> None:
    said, errors, code = preloaded.ask(*flags_of(data), folder=tmp_path)
    assert (errors, code) == ("", 0)
    lines = [line.split(maxsplit=1) for line in said.splitlines() if line[0] != " "]
    found = {name: words for name, words in lines if name != "unusable"}
    assert found["data"] == "5 samples, 4 unusable"
    assert found["shown"] == "video 4, text alone 1"
    assert found["categories"] == "none 4, talk 1"
    assert found["sizes"] == "84 x 56 4"
    assert found["seconds"] == "1.0 to 1.0, median 1.0"
    assert found["rows"].startswith("1 of 640 tokens, ")
    assert found["first"].startswith("clip   S.S.  4 frames")
    lost, mute = [words for name, words in lines if name == "unusable"]
    assert lost.startswith(f"3 like {data}:6: ")
    assert "lost0.mp4 cannot be opened: No such file" in lost
    assert mute.startswith(f"1 like {data}:9: the row has no conversation")
    assert found["verdict"].startswith("a run would refuse these data: 4 of 9 samples ")
    bars = [line for line in said.splitlines() if "#" in line]
    assert sum(int(line.split()[-1]) for line in bars) == 5


@pytest.mark.parametrize("name", ["00001", "text"])
def test_a_sample_is_drawn(
    data: Path, tmp_path: Path, name: str, inspect: Inspect
) -> None:
    file = tmp_path / "drawn" / "sample.svg"
    _, status = inspect(data, "--show", name, "--output", str(file))
    assert status == 0
    drawn = file.read_text()
    assert drawn.count("<image") == (6 if name == "00001" else 2)


@pytest.mark.parametrize(
    ("strategy", "captions"),
    [
        ("interleave", ["stride 1", "stride 2", "stride 1", "stride 2"]),
        ("kernel_schedule(kernel=(1, 1, 2))", ["grid 2 x 2"] * 4),
        ("kernel_schedule(kernel=(4, 2, 2))", ["stride 2"]),
        (
            "schedule_from_grids(grids=((2, 3), (1, 1), (2, 2), (1, 3)))",
            ["grid 2 x 3", "grid 1 x 1", "grid 2 x 2", "grid 1 x 3"],
        ),
    ],
)
def test_a_drawing_says_how_each_frame_is_pooled(
    data: Path, tmp_path: Path, inspect: Inspect, strategy: str, captions: list[str]
) -> None:
    file, config = tmp_path / "sample.svg", tmp_path / "settings.yaml"
    key = "frame_sampling_strategy"
    config.write_text(
        TINY.read_text().replace(f"{key}: interleave", f"{key}: {strategy}")
    )
    _, status = inspect(data, "--show", "00001", "--output", str(file), config=config)
    assert status == 0
    said = re.findall(r"<!-- [0-9.]+ s, (.+) -->", file.read_text())
    assert said == captions


def test_a_sample_that_is_not_there(data: Path, inspect: Inspect) -> None:
    _, status = inspect(data, "--show", "lost")
    assert status == (
        "error: no sample has the id 'lost'; ids are like '00000', '00001', '00002'"
    )


def test_a_sample_that_cannot_be_used_says_why(data: Path, inspect: Inspect) -> None:
    _, status = inspect(data, "--show", "lost 1")
    file = data.parent / "lost1.mp4"
    reason = f"{file} cannot be opened: No such file or directory"
    assert status == f"error: sample 'lost 1' cannot be used: {reason}"


def test_a_sample_whose_pixels_are_broken_says_why(
    data: Path, tmp_path: Path, inspect: Inspect
) -> None:
    row = json.loads(data.read_text().splitlines()[0])
    (tmp_path / "broken.mp4").write_bytes(without_pixels(data.parent / row["video"]))
    file = tmp_path / "broken.jsonl"
    file.write_text(json.dumps(row | {"video": "broken.mp4"}) + "\n")
    _, status = inspect(file, "--show", row["id"])
    assert str(status).startswith(f"error: {tmp_path / 'broken.mp4'} breaks before")


def test_no_kind_of_unusable_rows_is_passed_over(
    tmp_path: Path, inspect: Inspect
) -> None:
    turns: list[object] = [
        {},
        None,
        [],
        [1],
        [2],
        [{}],
        [{"from": "human", "value": 1}],
        "many",
    ]
    file = tmp_path / "bad.jsonl"
    file.write_text("".join(f"{json.dumps({'conversations': t})}\n" for t in turns))
    said, status = inspect(file)
    assert status == 0
    lines = [line.split(maxsplit=2) for line in said.splitlines() if line[0] != " "]
    counts = [int(count) for name, count, _ in lines if name == "unusable"]
    assert len(counts) == MOST_LINES + 1
    assert sum(counts) == len(turns)
    assert lines[-2][2] == "for 1 other reason"


def test_all_rows_that_cannot_be_used_are_named_on_demand(
    data: Path, inspect: Inspect, tmp_path: Path
) -> None:
    file = tmp_path / "unusable.jsonl"
    said, status = inspect(data, "--unusable", str(file))
    assert (status, f"named        {file}\n" in said) == (0, True)
    rows = data.read_text().splitlines()[:5]
    whole = data.with_name("whole.jsonl")
    whole.write_text("".join(f"{row}\n" for row in rows))
    said, _ = inspect(whole)
    assert said.endswith("verdict      a run would take these data\n")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["sample_id"] for row in rows] == ["lost 0", "lost 1", "lost 2", "mute"]
    assert rows[0]["source"] == f"{data}:6"
    assert rows[0]["reason"].startswith(f"{data.parent / 'lost0.mp4'} ")
