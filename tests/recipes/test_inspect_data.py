"""What a dataset is said to hold, and the drawing of one of its samples."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.edge.clips import make_clips

ROOT = Path(__file__).parents[2]


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


def inspect(data: Path, *flags: str) -> tuple[str, str, int]:
    command = [sys.executable, "recipes/inspect_data.py", str(data), *flags]
    command += ["--config", "recipes/configs/qwen2vl_tiny.yaml"]
    done = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    return done.stdout, done.stderr, done.returncode


def test_what_a_dataset_holds(data: Path) -> None:
    said, errors, code = inspect(data)
    assert (errors, code) == ("", 0)
    lines = [line.split(maxsplit=1) for line in said.splitlines() if line[0] != " "]
    found = {name: words for name, words in lines if name != "unusable"}
    assert found["data"] == "5 samples, 4 unusable"
    assert found["shown"] == "video 4, text alone 1"
    assert found["categories"] == "none 4, talk 1"
    assert found["sizes"] == "84 x 56 4"
    assert found["seconds"] == "1.0 to 1.0, half of them below 1.0"
    assert found["rows"].startswith("1 of 640 tokens, ")
    assert found["first"].startswith("clip   S.S.  4 frames")
    lost, mute = [words for name, words in lines if name == "unusable"]
    assert lost.startswith(f"3 like {data}:6: ")
    assert "lost0.mp4 cannot be opened: No such file" in lost
    assert mute.startswith(f"1 like {data}:9: the row has no conversation")
    bars = [line for line in said.splitlines() if "#" in line]
    assert sum(int(line.split()[-1]) for line in bars) == 5


@pytest.mark.parametrize("name", ["00001", "text"])
def test_a_sample_is_drawn(data: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "sample.svg"
    _, errors, code = inspect(data, "--show", name, "--output", str(file))
    assert (errors, code) == ("", 0)
    drawn = file.read_text()
    assert drawn.count("<image") == (6 if name == "00001" else 2)


def test_a_sample_that_is_not_there(data: Path) -> None:
    _, errors, code = inspect(data, "--show", "lost 1")
    assert (errors, code) == ("error: no usable sample has the id 'lost 1'\n", 1)
