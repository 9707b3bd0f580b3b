"""What a run's folder says of its numbers, and whether two runs are the same."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes.edge.data.clips import make_clips
from recipes.edge.files.provenance import git_state, record_start
from recipes.edge.reports.reproduction import _compare, differences
from recipes.qwen2vl_tiny import TINY
from recipes.settings.mappings import settings_as_json
from recipes.train import main


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two runs with the same settings."""
    folder = tmp_path_factory.mktemp("runs")
    make_clips(
        folder / "clips", num_clips=8, held_out=2, seed=0, num_frames=4, size=(56, 84)
    )
    runs = folder / "first", folder / "second"
    for run in runs:
        train(run, max_steps=2)
    return runs


def train(run: Path, **changes: Any) -> None:
    data = run.parent / "clips" / "train.jsonl"
    small = {"tokens_per_row": 100, "save_steps": 2, "seed": 3, **changes}
    main(replace(TINY, output_dir=run, data_path=str(data), **small))


def starts(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["starts"]
    return found


def test_a_run_says_where_its_numbers_come_from(twice: tuple[Path, Path]) -> None:
    (start,) = starts(twice[0])
    assert (start["first_step"], start["ranks"], start["seed"]) == (1, 1, 3)
    assert start["settings"]["tokens_per_row"] == 100
    assert start["command"] == sys.argv
    assert start["versions"]["torch"] == version("torch")
    assert start["versions"]["transformers"] == version("transformers")
    assert start["git"] == git_state()
    assert start["data"]["train"]["samples"] == 8
    assert start["data"]["unusable"] == 0
    assert start["data"] == starts(twice[1])[0]["data"]
    assert not list(twice[0].glob(".*.partial"))


def test_every_start_is_kept(twice: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(twice[0].parent / "clips", tmp_path / "clips")
    run = tmp_path / "run"
    shutil.copytree(twice[0], run)
    (before,) = starts(run)
    settings = settings_as_json(TINY)
    record_start(run, {"first_step": 3, "settings": settings})
    assert starts(run)[0] == before
    assert starts(run)[1]["first_step"] == 3
    for broken in ('{"starts": 3}', '{"starts": [3]}'):
        (run / "run.json").write_text(broken)
        with pytest.raises(
            ValueError, match=r"run\.json is no record of a run; it must be a"
        ):
            record_start(run, {})


def test_data_are_summed_up_by_what_they_say(
    twice: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(twice[0].parent / "clips", tmp_path / "clips")
    file = tmp_path / "clips" / "train.jsonl"
    train(tmp_path / "before", max_steps=1)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["conversations"], rows[1]["conversations"] = (
        rows[1]["conversations"],
        rows[0]["conversations"],
    )
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    train(tmp_path / "after", max_steps=1)
    (before,), (after,) = starts(tmp_path / "before"), starts(tmp_path / "after")
    assert after["data"]["train"]["samples"] == before["data"]["train"]["samples"]
    assert after["data"]["train"]["contents"] != before["data"]["train"]["contents"]


def git(folder: Path, *command: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", *who, *command], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_git_says_which_code_it_was(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("a = 1\n")
    assert git_state(file) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "without it")
    assert git_state(file) is None  # in a clone, but of something else
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "runs").mkdir()
    assert git_state(file) == {"commit": commit, "is_dirty": False}
    file.write_text("a = 2\n")
    assert git_state(file) == {"commit": commit, "is_dirty": True}


def test_a_run_repeated_is_the_same(twice: tuple[Path, Path]) -> None:
    assert differences(*twice) == []


def test_one_bit_is_a_difference(
    preloaded: Any, twice: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(twice[1], run)
    file = run / "model-2" / "next_frame_head.safetensors"
    tensors = load_file(file)
    name, tensor = min(tensors.items())
    tensor.view(-1)[:1].view(torch.int32).bitwise_xor_(1)
    save_file(tensors, file)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[0]["tokens_per_second"] += 1
    loss = rows[1]["loss"]
    rows[1]["loss"] += 1e-15
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    assert differences(twice[0], run) == [
        f"line of metrics.jsonl 2 differs: loss is {loss} and {loss + 1e-15}",
        f"exported weights model-2/{name} differs",
    ]
    words = ("recipes/reproduce.py", str(twice[0]), str(run))
    _, errors, code = preloaded.ask(*words, folder=tmp_path)
    assert code == 1
    assert errors.strip() == f"{twice[0]} and {run} differ in 2 places"


def test_a_number_that_is_null_is_not_one_that_is_absent() -> None:
    first, second = {"1": {"loss": None, "skill": 1}}, {"1": {"skill": 1}}
    assert list(_compare("line", first, second)) == [
        "line 1 differs: loss is None and absent"
    ]
    assert list(_compare("state", {"a": {}}, {"a": [1]})) == ["state a differs"]


def test_what_lies_beside_the_tensors_is_compared(
    twice: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(twice[1], run)
    file = run / "checkpoint-2" / "state.json"
    whole = json.loads(file.read_text())
    state = whole["state"]
    bad = {"sample_id": "a", "source": "b", "reason": "c"}
    changes: dict[str, Any] = {
        "stream": state["stream"] | {"epoch": 7},
        "skipped": state["skipped"] | {"total": 7},
        "quarantine": [bad],
        "settings": state["settings"] | {"packing_window": 7, "save_steps": 7},
    }
    random_states = [whole["random_states"][0] | {"torch": ""}]
    changed = whole | {"state": state | changes, "random_states": random_states}
    file.write_text(json.dumps(changed))
    config = run / "model-2" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"image_token_id": 7}))
    assert sorted(differences(twice[0], run)) == [
        "configuration model-2/image_token_id differs",
        *(
            f"state of checkpoint-2/{name} differs"
            for name in (
                "random_states",
                "state.quarantine",
                "state.settings.packing_window",
                "state.skipped.total",
                "state.stream.epoch",
            )
        ),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "metrics.jsonl",
            "line 1 of {file} is '{{\"'; it must be a JSON object with a ",
        ),
        (
            "checkpoint-2/state.json",
            "{folder} has no readable state.json; a checkpoint",
        ),
        ("model-2/config.json", "{file} is no whole JSON; an export has one"),
    ],
)
def test_a_file_that_breaks_off_is_named(
    twice: tuple[Path, Path], tmp_path: Path, name: str, words: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(twice[1], run)
    file = run / name
    file.write_text(file.read_text()[:2])
    with pytest.raises(ValueError) as caught:
        differences(twice[0], run)
    assert str(caught.value).startswith(words.format(file=file, folder=file.parent))


def test_another_seed_is_another_run(twice: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(twice[0].parent / "clips", tmp_path / "clips")
    train(tmp_path / "run", max_steps=2, seed=4)
    found = differences(twice[0], tmp_path / "run")
    for kind in (
        "line of metrics.jsonl 1",
        "checkpoint checkpoint-2/",
        "exported",
    ):
        assert any(line.startswith(kind) for line in found)


def test_what_is_no_run_is_named(
    twice: tuple[Path, Path], preloaded: Any, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"has no metrics\.jsonl; it must be a folder of"
    ) as caught:
        differences(twice[0], tmp_path)
    words = ("recipes/reproduce.py", str(twice[0]), str(tmp_path))
    _, errors, code = preloaded.ask(*words, folder=tmp_path)
    assert (errors.strip(), code) == (f"error: {caught.value}", 1)


@pytest.mark.parametrize(
    "words",
    [
        ("recipes/reproduce.py", "none", "none2"),
        ("recipes/inspect_data.py", "none.json", "--config", "none.yaml"),
        ("recipes/ablate.py", "none.yaml"),
    ],
)
def test_what_has_no_ranks_says_its_mistakes_whatever_the_rank(
    preloaded: Any, tmp_path: Path, words: tuple[str, ...]
) -> None:
    log = tmp_path / "log"
    assert preloaded.wait(preloaded.start(*words, log=log, RANK="1")) == 1
    assert log.read_text().startswith("error: ")
