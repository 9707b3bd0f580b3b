"""Runs that are harmed at random instants end as an undisturbed one, bit for bit.

``FASTSLOW_FAULTS`` says how many instants; ``nox -s faults`` takes fifty, and with them
the tests that take longer. Each run is harmed a few times, given the same command after
each time, and compared at its end: every recorded number but those of the clock, the
curves, the place in the data, model, optimizer and exported weights.
"""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.edge.data.clips import make_clips
from recipes.edge.reports.metrics import CLOCKED

RECIPE = "recipes/qwen2vl_tiny.py"
INSTANTS = int(os.environ.get("FASTSLOW_FAULTS", "3"))
IN_A_RUN = 5
STEPS = 18
EVERY = 3
ASKED = 2
DEADLINE = 240

long_form = pytest.mark.skipif(INSTANTS < 50, reason="nox -s faults runs it")


@dataclass
class Runs:
    """A folder of runs, all by the same command but for their own folders."""

    preloaded: Any
    folder: Path
    flags: tuple[str, ...]

    def start(self, name: str, *flags: str, ranks: int = 2) -> "Attempt":
        """Give the command of a run."""
        log = self.folder / f"{name}-{len(list(self.folder.glob('*.log')))}.log"
        log.touch()
        output = self.folder / name
        words = ("--output-dir", str(output), *self.flags, *flags)
        launcher = self.preloaded.start_ranks(ranks, RECIPE, *words, log=log)
        return Attempt(self.preloaded, launcher, log, output)

    def complete(self, name: str, *flags: str, ranks: int = 2) -> "Outcome":
        """Let a run end; give all that it says about itself."""
        attempt = self.start(name, *flags, ranks=ranks)
        assert attempt.end() == 0, attempt.log.read_text()
        return outcome(attempt.output)


@dataclass
class Attempt:
    """One start of a run, from which it may not come back."""

    preloaded: Any
    launcher: int
    log: Path
    output: Path

    def code(self) -> int | None:
        code: int | None = self.preloaded.exit_code(self.launcher)
        return code

    def ranks(self) -> list[int]:
        """Give the processes of the ranks, those that there are."""
        return children(self.launcher)

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait for something that has to come before the run ends."""
        end = time.monotonic() + DEADLINE
        while not done():
            assert self.code() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)

    def is_under_way(self) -> bool:
        """Tell whether this attempt trains."""
        return re.search("the run (begins|goes on)", self.log.read_text()) is not None

    def wait_for_step(self, step: int) -> None:
        """Wait until a step is recorded; 0 stands for the beginning."""
        self.wait_until(lambda: self.is_under_way() and self.last_step() >= step)

    def last_step(self) -> int:
        """Give the last step that is recorded."""
        return max(steps_in(self.output), default=0)

    def is_writing(self) -> bool:
        """Tell whether a checkpoint is being written."""
        return any(self.output.glob(".checkpoint-*.partial"))

    def end(self) -> int:
        """Wait for torchrun, and for ranks that have lost it."""
        end = time.monotonic() + DEADLINE
        while (code := self.code()) is None:
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        return code


def children(process: int) -> list[int]:
    """Give the processes that one has started, those that there are."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


Outcome = dict[str, Any]


def steps_in(output: Path) -> list[int]:
    """Read the steps of the lines that are complete."""
    try:
        *lines, _ = (output / "metrics.jsonl").read_text().split("\n")
    except OSError:
        return []
    return [json.loads(line)["step"] for line in lines]


def outcome(output: Path) -> Outcome:
    """Give what must not depend on faults."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    last = output / f"checkpoint-{STEPS}"
    state = json.loads((last / "state.json").read_text())
    for name in ("output_dir", "async_save"):
        del state["state"]["settings"][name]
    curves = EventAccumulator(str(output / "logs"))
    curves.Reload()
    model = output / f"model-{STEPS}" / "model.safetensors"
    return {
        "metrics": [{k: v for k, v in row.items() if k not in CLOCKED} for row in rows],
        "curve": [(each.step, each.value) for each in curves.Scalars("train/loss")],
        "state": state,
        "tensors": {file.name: digest(file) for file in last.glob("*.distcp")},
        "model": digest(model),
        "checkpoints": sorted(folder.name for folder in output.glob("*checkpoint-*")),
        "partial": [file.name for file in output.rglob("*.partial")],
    }


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def is_alive(process: int) -> bool:
    """Tell whether a process runs; one that waits to be collected does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.fixture(scope="module")
def runs(preloaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("faults")
    make_clips(
        folder / "clips", num_clips=12, held_out=2, seed=0, num_frames=4, size=(56, 56)
    )
    flags = ("--data-path", str(folder / "clips" / "train.jsonl"))
    flags += ("--eval-data-path", str(folder / "clips" / "held_out.jsonl"))
    flags += ("--max-steps", str(STEPS), "--save-steps", str(EVERY))
    flags += (
        "--save-total-limit",
        "2",
        "--warmup-steps",
        "2",
        "--eval-steps",
        str(ASKED),
    )
    flags += ("--tokens-per-row", "160", "--packing-window", "5")
    return Runs(preloaded, folder, flags)


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> Outcome:
    found = runs.complete("undisturbed")
    steps, asked = range(1, STEPS + 1), range(ASKED, STEPS + 1, ASKED)
    assert [row["step"] for row in found["metrics"]] == sorted([*steps, *asked])
    assert [step for step, _ in found["curve"]] == list(range(1, STEPS + 1))
    assert found["checkpoints"] == [f"checkpoint-{s}" for s in (STEPS - EVERY, STEPS)]
    assert found["partial"] == []
    return found


def kill(*processes: int) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


def fill_disk(attempt: Attempt, chance: random.Random) -> None:
    """Let no file grow beyond a size; Linux refuses the write as on a full disk."""
    size = chance.choice((1, 5_000, 200_000, 2_000_000))
    for rank in attempt.ranks():
        _, hard = resource.prlimit(rank, resource.RLIMIT_FSIZE)
        resource.prlimit(rank, resource.RLIMIT_FSIZE, (size, hard))


Harm = Callable[[Attempt, random.Random], object]

HARMS: dict[str, Harm] = {
    "all ranks in a write": lambda attempt, _: kill(*attempt.ranks()),
    "torchrun": lambda attempt, _: kill(attempt.launcher),
    "full disk": fill_disk,
    "one rank": lambda attempt, chance: kill(chance.choice(attempt.ranks())),
    "SIGTERM": lambda attempt, _: os.kill(attempt.launcher, signal.SIGTERM),
    "one rank in a write": lambda attempt, chance: kill(chance.choice(attempt.ranks())),
    "read-only folder": lambda attempt, _: attempt.output.chmod(0o555),
    "all ranks": lambda attempt, _: kill(*attempt.ranks()),
    "folder vanishes": lambda attempt, _: attempt.output.rename(gone(attempt)),
    "torchrun in a write": lambda attempt, _: kill(attempt.launcher),
}
"""What is done to a run, in the order in which runs get it."""


def gone(attempt: Attempt) -> Path:
    return attempt.output.with_name(f"{attempt.output.name}-gone")


def harm(attempt: Attempt, kind: str, step: int, chance: random.Random) -> None:
    """Do it at a random instant after a step; before the first one where it is 0."""
    needs_folder = kind in {"read-only folder", "folder vanishes"}
    if step or needs_folder or "write" in kind:
        attempt.wait_for_step(step)
    if "write" in kind:
        attempt.wait_until(attempt.is_writing)
        time.sleep(chance.random() / 30)
    else:
        attempt.wait_until(lambda: len(attempt.ranks()) == 2)
        time.sleep(chance.random() * (0.2 if step or needs_folder else 2))
    assert attempt.code() is None, attempt.log.read_text()
    HARMS[kind](attempt, chance)
    code = attempt.end()
    assert code != 0, attempt.log.read_text()
    if kind == "read-only folder":
        attempt.output.chmod(0o755)
    elif kind == "folder vanishes":
        assert not attempt.output.exists()
        gone(attempt).rename(attempt.output)


@pytest.mark.parametrize("number", range(-(-INSTANTS // IN_A_RUN)))
def test_a_harmed_run_ends_as_an_undisturbed_one(
    runs: Runs, undisturbed: Outcome, number: int
) -> None:
    chance = random.Random(number)
    first = number * IN_A_RUN
    kinds = [
        list(HARMS)[instant % len(HARMS)]
        for instant in range(first, min(first + IN_A_RUN, INSTANTS))
    ]
    flags = ("--async-save",) if number % 4 in {2, 3} else ()
    steps = sorted(chance.choices(range(STEPS - 8), k=len(kinds)))
    name = f"harmed-{number}"
    for kind, step in zip(kinds, steps, strict=True):
        print(f"{kind} after step {step}")
        harm(runs.start(name, *flags), kind, step, chance)
    assert runs.complete(name, *flags) == undisturbed


@pytest.mark.parametrize(
    "how", ["SIGTERM", pytest.param("torchrun dies", marks=long_form)]
)
def test_a_run_that_is_asked_to_stop_saves_first(runs: Runs, how: str) -> None:
    flags = ("--dataloader-num-workers", "1")
    attempt = runs.start(f"stopped-{how.replace(' ', '-')}", *flags)
    attempt.wait_for_step(EVERY + 1)
    ranks = attempt.ranks()
    number = signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL
    if how == "SIGTERM":  # a torchrun that forks its ranks signals them alone
        workers = [worker for rank in ranks for worker in children(rank)]
        assert len(workers) >= len(ranks)
        for worker in workers:  # those of held-out questions come and go
            with suppress(ProcessLookupError):
                os.kill(worker, number)
    os.kill(attempt.launcher, number)
    assert attempt.end() == (1 if how == "SIGTERM" else -number)
    end = time.monotonic() + DEADLINE
    while any(map(is_alive, ranks)):
        assert time.monotonic() < end, "a rank outlives its launcher"
        time.sleep(0.02)
    last = steps_in(attempt.output)[-1]
    log = (attempt.output / "train.log").read_text()
    assert log.endswith(f"stopped after step {last}, as asked; it goes on from there\n")
    assert (attempt.output / f"checkpoint-{last}").is_dir()


def test_one_rank_goes_on_where_two_were_and_passes_over_what_is_damaged(
    runs: Runs, undisturbed: Outcome
) -> None:
    output = shutil.copytree(runs.folder / "undisturbed", runs.folder / "on-one")
    shutil.rmtree(output / f"model-{STEPS}")
    found = runs.complete("on-one", ranks=1)
    assert found == undisturbed  # it took no step, and exported the same weights

    shutil.rmtree(output / f"model-{STEPS}")
    damaged = output / f"checkpoint-{STEPS}"
    (damaged / "__1_0.distcp").write_bytes(b"")
    found = runs.complete("on-one", ranks=1)
    log = (output / "train.log").read_text()
    assert f"{damaged} is passed over: __1_0.distcp has 0 bytes, not " in log
    assert "a step takes 2 packed rows, 2 on each rank" in log
    assert (output / f"checkpoint-{STEPS}.damaged").is_dir()
    assert found["state"]["state"] == undisturbed["state"]["state"]
    assert_close(found, undisturbed)


def assert_close(found: Outcome, expected: Outcome) -> None:
    """Compare what ranks add up in another order."""
    for one, other in zip(found["metrics"], expected["metrics"], strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            exact = name in {"step", "event"}
            assert one[name] == (
                value if exact else pytest.approx(value, rel=1e-5, abs=1e-5)
            ), name
    steps = [[step for step, _ in each["curve"]] for each in (found, expected)]
    assert steps[0] == steps[1]


@long_form
def test_four_ranks_then_two_then_one_then_four(runs: Runs) -> None:
    expected = runs.complete("four", ranks=4)
    for step, ranks in ((4, 4), (8, 2), (12, 1)):
        attempt = runs.start("changing", ranks=ranks)
        attempt.wait_for_step(step)
        os.kill(attempt.launcher, signal.SIGTERM)
        assert attempt.end() == 1
    found = runs.complete("changing", ranks=4)
    assert found["state"]["state"] == expected["state"]["state"]
    assert_close(found, expected)
    log = (runs.folder / "changing" / "train.log").read_text()
    shares = re.findall("a step takes (.*) on each rank", log)
    assert shares == [f"4 packed rows, {rows}" for rows in (1, 2, 4, 1)]

    attempt = runs.start("four", ranks=3)
    assert attempt.end() == 1
    assert "takes 4 packed rows, which 3 ranks cannot share" in attempt.log.read_text()


@long_form
def test_a_disk_that_is_full_for_a_while(runs: Runs, undisturbed: Outcome) -> None:
    output = runs.folder / "small-disk"
    output.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(output)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        attempt = runs.start("small-disk")
        assert attempt.end() == 1
        assert "No space left on device" in attempt.log.read_text()
        assert steps_in(output)[-1] < STEPS
        subprocess.run(["mount", "-o", "remount,size=99m", str(output)], check=True)
        assert runs.complete("small-disk") == undisturbed
    finally:
        subprocess.run(["umount", str(output)], check=True)


@long_form
def test_only_one_run_writes_to_a_folder(runs: Runs, undisturbed: Outcome) -> None:
    first = runs.start("twice")
    first.wait_for_step(1)
    for rank in first.ranks():
        os.kill(rank, signal.SIGSTOP)
    second = runs.start("twice")
    assert second.end() == 1
    assert "twice is in use by process" in second.log.read_text()
    for rank in first.ranks():
        os.kill(rank, signal.SIGCONT)
    assert first.end() == 0
    assert outcome(first.output) == undisturbed
