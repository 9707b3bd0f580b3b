"""A folder that two runs want to write to, in two real processes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.edge.files import output_lock
from recipes.edge.files.output_lock import LOCK, only_run
from recipes.edge.ranks.distributed import MainRankError, World
from recipes.qwen2vl_tiny import TINY
from recipes.train import main

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on elsewhere")
file.flush()
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """Let another process have the lock."""
    command = [sys.executable, "-c", HOLD, str(folder / LOCK), str(seconds)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_another_run_is_kept_out_and_named(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_lock, "PATIENCE", 0.3)
    with hold(tmp_path, 60) as holder:
        with (
            pytest.raises(MainRankError, match=f"{tmp_path} is in use by process 7 on"),
            only_run(tmp_path, world),
        ):
            pass
        holder.kill()


def test_a_run_says_in_a_sentence_where_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_lock, "PATIENCE", 0.0)
    words = f"^error: {tmp_path} is in use by process 7 on elsewhere; one run at a time"
    with hold(tmp_path, 60) as holder:
        with pytest.raises(SystemExit, match=words):
            main(replace(TINY, output_dir=tmp_path))
        holder.kill()
    words = f"^error: output_dir is {tmp_path / LOCK}, where no file can be written"
    with pytest.raises(SystemExit, match=words):
        main(replace(TINY, output_dir=tmp_path / LOCK))


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path, world: World) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "run"):
        words = f"output_dir is {folder}, where no file can be written"
        with (
            pytest.raises(MainRankError) as caught,
            only_run(folder, world),
        ):
            pass
        assert (caught.value.refusal or "").startswith(words)


def test_a_run_that_ends_is_waited_for(tmp_path: Path, world: World) -> None:
    with hold(tmp_path, 0.5), only_run(tmp_path, world):
        words = (tmp_path / LOCK).read_text()
        assert words.startswith("process ")
        assert "elsewhere" not in words


def test_the_lock_is_let_go(tmp_path: Path, world: World) -> None:
    run = tmp_path / "runs" / "run"
    with only_run(run, world):
        assert (run / LOCK).is_file()
    hold(run, 0).communicate()
