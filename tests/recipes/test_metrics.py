"""What a run writes: the log, the table of metrics, the curves, the bar."""

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.edge.ranks.distributed import World
from recipes.edge.reports.metrics import RunLog

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ")


def log_lines(folder: Path) -> list[str]:
    """Read ``train.log`` without its time stamps, which every line must have."""
    lines = (folder / "train.log").read_text().splitlines()
    assert all(STAMP.match(line) for line in lines)
    return [STAMP.sub("", line) for line in lines]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl`` as strict JSON."""

    def refuse(word: str) -> object:
        raise AssertionError(f"{word} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Read one curve as TensorBoard shows it."""
    events = EventAccumulator(str(folder / "logs")).Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]


def test_a_step_is_one_line_of_each_kind(tmp_path: Path, world: World) -> None:
    folder = tmp_path / "deep" / "run"
    with RunLog(output_dir=folder, total_steps=200, first_step=1, world=world) as log:
        log.step(
            1,
            {
                "loss": 1.23456,
                "autoregressive_loss": 0.93119,
                "learning_rate": 2e-5,
                "samples": 16,
                "tokens_per_second": 5123.4,
            },
        )
        assert log_lines(folder) == [
            (
                "step 1/200 loss 1.2346 autoregressive_loss 0.9312 "
                "learning_rate 2.000e-05 samples 16 tokens_per_second 5123"
            )
        ]
        assert rows(folder) == [
            {
                "step": 1,
                "loss": 1.23456,
                "autoregressive_loss": 0.93119,
                "learning_rate": 2e-5,
                "samples": 16,
                "tokens_per_second": 5123.4,
            }
        ]
    assert curve(folder, "train/loss") == [(1, 1.23456)]
    assert curve(folder, "train/samples") == [(1, 16.0)]


def test_an_evaluation_has_its_event(tmp_path: Path, world: World) -> None:
    with RunLog(output_dir=tmp_path, total_steps=9, first_step=1, world=world) as log:
        log.scalars(0, {"accuracy": 0.25})
        log.step(1, {"accuracy": 0.5})
    assert rows(tmp_path) == [
        {"step": 0, "event": "evaluation", "accuracy": 0.25},
        {"step": 1, "accuracy": 0.5},
    ]
    assert curve(tmp_path, "evaluation/accuracy") == [(0, 0.25)]
    assert curve(tmp_path, "train/accuracy") == [(1, 0.5)]


def test_an_evaluation_is_known_again(tmp_path: Path, world: World) -> None:
    interrupted(tmp_path, world)
    with RunLog(output_dir=tmp_path, total_steps=8, first_step=5, world=world) as log:
        assert [log.has_evaluation(step) for step in (2, 3, 4, 5)] == [
            False,
            True,
            False,
            False,
        ]
        log.scalars(4, {"accuracy": 0.5})
        assert log.has_evaluation(4)


def test_a_warning_is_no_evaluation(tmp_path: Path, world: World) -> None:
    with RunLog(output_dir=tmp_path, total_steps=1, first_step=1, world=world) as log:
        log.step(1, {"gradient_norm": float("nan")})
        assert rows(tmp_path)[1]["event"] == "warning"
        assert not log.has_evaluation(1)


def test_after_a_sync_a_process_may_be_killed(tmp_path: Path, world: World) -> None:
    with RunLog(output_dir=tmp_path, total_steps=9, first_step=1, world=world) as log:
        log.step(1, {"loss": 0.5})
        log.sync()
        copy = shutil.copytree(tmp_path, tmp_path / "as a kill leaves it")
    assert rows(copy) == [{"step": 1, "loss": 0.5}]
    assert curve(copy, "train/loss") == [(1, 0.5)]


def test_a_message_goes_to_the_log_and_to_standard_output(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(output_dir=tmp_path, total_steps=9, first_step=1, world=world) as log:
        log.message("held-out accuracy 0.75\nchance 0.25")
        log.step(1, {"loss": 1.0})
    assert log_lines(tmp_path)[:2] == ["held-out accuracy 0.75", "chance 0.25"]
    assert capsys.readouterr() == ("held-out accuracy 0.75\nchance 0.25\n", "")


def test_numbers_that_are_not_finite_stay_valid_json(
    tmp_path: Path, world: World
) -> None:
    metrics = {"loss": float("nan"), "norm": float("inf"), "skill": float("-inf")}
    with RunLog(output_dir=tmp_path, total_steps=9, first_step=1, world=world) as log:
        log.step(1, metrics)
        log.scalars(1, metrics)
    nothing = {"loss": None, "norm": None, "skill": None}
    assert rows(tmp_path) == [
        {"step": 1, **nothing},
        {"step": 1, "event": "evaluation", **nothing},
    ]
    assert log_lines(tmp_path) == ["step 1/9 loss nan norm inf skill -inf"]


def interrupted(folder: Path, world: World) -> None:
    """Do 6 steps, evaluate after 3 and 5, and die in the middle of a line."""
    with RunLog(output_dir=folder, total_steps=8, first_step=1, world=world) as log:
        for step in range(1, 7):
            log.step(step, {"loss": float(step)})
            if step in (3, 5):
                log.scalars(step, {"accuracy": step / 10})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')


def test_a_resumed_run_has_every_step_once(tmp_path: Path, world: World) -> None:
    interrupted(tmp_path, world)
    with RunLog(output_dir=tmp_path, total_steps=8, first_step=4, world=world) as log:
        for step in range(4, 9):
            log.step(step, {"loss": step + 0.5})
    losses = [1.0, 2.0, 3.0, 4.5, 5.5, 6.5, 7.5, 8.5]
    expected: list[dict[str, Any]] = [
        {"step": i + 1, "loss": loss} for i, loss in enumerate(losses)
    ]
    expected.insert(3, {"step": 3, "event": "evaluation", "accuracy": 0.3})
    assert rows(tmp_path) == expected
    assert curve(tmp_path, "train/loss") == list(enumerate(losses, start=1))
    assert curve(tmp_path, "evaluation/accuracy") == [(3, 0.3)]
    lines = log_lines(tmp_path)
    assert lines[:6] == [f"step {i}/8 loss {i}.0000" for i in range(1, 7)]
    assert lines[6] == "metrics.jsonl: dropped 1 unreadable lines"
    assert lines[7:] == [f"step {i}/8 loss {i}.5000" for i in range(4, 9)]


def test_a_new_run_in_an_old_folder_starts_anew(tmp_path: Path, world: World) -> None:
    interrupted(tmp_path, world)
    with RunLog(output_dir=tmp_path, total_steps=8, first_step=1, world=world) as log:
        log.step(1, {"loss": 9.0})
    assert rows(tmp_path) == [{"step": 1, "loss": 9.0}]
    assert log_lines(tmp_path) == ["step 1/8 loss 9.0000"]
    assert curve(tmp_path, "train/loss") == [(1, 9.0)]


def test_other_ranks_write_nothing(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    other = dataclasses.replace(world, rank=1, size=2)
    folder = tmp_path / "run"
    with RunLog(output_dir=folder, total_steps=9, first_step=1, world=other) as log:
        log.step(1, {"loss": 1.0})
        log.scalars(1, {"accuracy": 1.0})
        log.message("hello")
        log.sync()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_an_exception_goes_on_and_keeps_what_was_written(
    tmp_path: Path, world: World
) -> None:
    with (
        pytest.raises(KeyError, match="clip"),
        RunLog(output_dir=tmp_path, total_steps=9, first_step=1, world=world) as log,
    ):
        log.step(1, {"loss": 1.0})
        raise KeyError("clip")
    assert curve(tmp_path, "train/loss") == [(1, 1.0)]
    last = (tmp_path / "train.log").read_text().splitlines()[-1]
    assert last.endswith(" the run ends with KeyError: 'clip'")
    with pytest.raises(ValueError, match="closed file"):
        log.step(2, {"loss": 1.0})


class Full(io.StringIO):
    """A file on a disk without space."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_does_not_hide_what_ends_a_run(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(KeyError, match="clip"),
        RunLog(output_dir=tmp_path, total_steps=9, first_step=1, world=world) as log,
    ):
        assert log._outputs is not None
        metrics = log._outputs.metrics
        filled = dataclasses.replace(log._outputs, log=Full())
        monkeypatch.setattr(log, "_outputs", filled)
        raise KeyError("clip")
    assert metrics.closed


def test_a_terminal_gets_a_bar(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 100))
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with RunLog(
            output_dir=tmp_path, total_steps=8, first_step=4, world=world
        ) as log:
            for step in range(4, 9):
                log.step(step, {"loss": 0.125})
        print("end", file=terminal, flush=True)
    written = b""
    while b"end" not in written:  # other processes may keep the terminal open
        written += os.read(reader, 65536)  # what has arrived, which may be a part
    os.close(reader)
    shown = written.decode()
    assert "| 3/8 [" in shown
    assert "| 8/8 [" in shown
    assert "loss=0.1250" in shown


def test_a_message_is_there_at_once(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    with said.open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with RunLog(
            output_dir=tmp_path, total_steps=1, first_step=1, world=world
        ) as log:
            log.message("begins")
            assert said.read_text() == "begins\n"
