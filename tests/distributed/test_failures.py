"""Ranks that disagree or fail end together, with one message, on two real gloo ranks.

No launcher watches here, so whatever ends a rank is the run's own doing. The file is
its own worker: both ranks go through some cases, each in a process group of its own,
and leave in ``ends.json`` how every case ended for them.
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from recipes.edge.ranks import distributed
from recipes.edge.ranks.distributed import process_group, sum_over_ranks
from tests.ports import free_port

SOON = 200
"""Seconds in which all cases have to end; one collective alone would wait for 1,800."""
LARGE = 5 * 2**28
"""Bytes, more than a rank of the tiny recipe takes."""


def train(name: str, **changes: Any) -> None:
    """Run the recipe on the clips beside this rank."""
    from recipes.qwen2vl_tiny import TINY
    from recipes.train import main

    settings = {"tokens_per_row": 300, "packing_window": 5, "max_steps": 9, **changes}
    data = "clips/train.jsonl"
    main(replace(TINY, output_dir=Path(name), data_path=data, **settings))


def in_a_collective(rank: int) -> None:
    """Rank 1 fails while rank 0 waits for it."""
    with process_group() as world:
        if rank == 1:
            raise KeyError("clip-17")
        sum_over_ranks({"loss": 1.0}, world)


def other_settings(rank: int) -> None:
    """Rank 1 was started with another learning rate."""
    train("other_settings", learning_rate=(3e-3, 1e-3)[rank])


def other_data(rank: int) -> None:
    """Rank 1 finds other samples in its output folder than the main rank wrote."""
    from recipes.data import dataset_of, read_samples
    from recipes.edge.data.archives import ArchiveStore

    if rank == 1:
        store, file = ArchiveStore(Path("archives")), Path("other_data/train.arrow")
        read_samples(dataset_of("fewer/train.jsonl"), store, file)
        read_samples([], store, file.with_name("held_out.arrow"))
    train("other_data")


def no_video(rank: int) -> None:
    """Rank 1 has no clips where rank 0 has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir((".", "blind")[rank])
        train("no_video")


def while_loading(rank: int) -> None:
    """The second row of rank 1 cannot be read, for a reason that nobody foresaw."""
    from recipes.edge.data.loader import PackedRows, Row

    read, rows = PackedRows.__getitem__, list[Row]()

    def fail(self: PackedRows, request: Any) -> Row:
        rows.append(read(self, request))
        if rank == 1 and len(rows) == 2:
            raise OSError("the disk is gone")
        return rows[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedRows, "__getitem__", fail)
        train("while_loading")


def a_slow_disk(rank: int) -> None:
    """Rank 1 reads its row in three quarters of every step, and takes more memory.

    A clock of their own says so, which no other work on this machine moves.
    """
    from recipes.edge.data.loader import PackedRows, Row
    from recipes.train import train_step

    read, now = PackedRows.__getitem__, 0.0
    assert len(b"1" * (rank * LARGE)) == rank * LARGE

    def read_slowly(self: PackedRows, request: Any) -> Row:
        nonlocal now
        now += 3 * rank
        return read(self, request)

    def step(*given: Any) -> Any:
        nonlocal now
        now += 4 - 3 * rank  # rank 0 waits for the other here
        return train_step(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedRows, "__getitem__", read_slowly)
        patch.setattr("recipes.train.train_step", step)
        clock = SimpleNamespace(perf_counter=lambda: now)
        patch.setattr("recipes.train.time", clock)
        train("a_slow_disk", max_steps=22, tokens_per_row=100)


def with_workers() -> None:
    """A step fails while other processes decode what comes next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipes.train.train_step", in_no_step)
        train("with_workers", dataloader_num_workers=2)


def in_no_step(*_: Any) -> None:
    raise FloatingPointError("a step fails")


def at_other_work(rank: int) -> None:
    """Rank 1 fails while rank 0 is in no collective, and would not be for long."""
    with process_group():
        if rank == 1:
            raise KeyError("clip-18")
        time.sleep(10 * SOON)


def work(rank: int, ports: list[int], names: list[str]) -> None:
    """Worker: go through cases; the last one may end the process."""
    ends = dict[str, str]()
    for name, port in zip(names, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        try:
            globals()[name](rank)
        except (Exception, SystemExit) as error:
            ends[name] = f"{type(error).__name__}: {error}"
        else:
            ends[name] = "it ends well"
        Path("ends.json").write_text(json.dumps(ends))


def make_folders(folder: Path) -> list[Path]:
    """Give each rank a working folder; only other data are the second's own."""
    from recipes.edge.data.clips import make_clips

    first, second = folders = [folder / f"rank-{rank}" for rank in range(2)]
    for size, place in ((8, first / "clips"), (6, second / "fewer")):
        make_clips(
            place, num_clips=size, held_out=0, seed=0, num_frames=4, size=(56, 84)
        )
    (second / "other_data").mkdir()
    (second / "blind").mkdir()
    for name in ("clips", "a_slow_disk", "other_settings", "while_loading"):
        (second / name).symlink_to(first / name)
    (second / "blind" / "no_video").symlink_to(first / "no_video")
    return folders


def test_ranks_that_start_again_do_not_end_with_the_failure_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store is that of a torchrun, which keeps it when it starts ranks again."""
    kept = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for name, value in {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(kept.port),
        "RANK": "0",
        "WORLD_SIZE": "1",
        "GROUP_WORLD_SIZE": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    for start in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        with pytest.raises(KeyError, match=f"clip-{start}"), process_group():
            raise KeyError(f"clip-{start}")


def test_a_rank_whose_torchrun_has_gone_with_its_store_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would look for half an hour, on a port that another run may be given."""
    for name, value in {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "RANK": "1",
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    assert dist.constants.default_pg_timeout / 10 > distributed.STORE_IS_FOUND
    monkeypatch.setattr(distributed, "STORE_IS_FOUND", timedelta(seconds=1))
    with pytest.raises(dist.DistError, match=r"1000 ?ms"), process_group():
        raise AssertionError


THE_END = "all ranks of the run end with it"
Ends = list[dict[str, str]]


def ends_of(preloaded: Any, folders: list[Path], *names: str) -> Ends:
    """Let two ranks go through cases; tell how each case ended for each of them."""
    ports = json.dumps([free_port() for _ in names])
    ranks = [
        preloaded.start(
            *(__file__, str(rank), ports, *names),
            log=folder / "output.log",
            errors=folder / "errors.log",
            cwd=folder,
            WORLD_SIZE="2",
            MASTER_ADDR="localhost",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank, folder in enumerate(folders)
    ]
    try:
        codes = [preloaded.wait(rank, seconds=SOON) for rank in ranks]
    finally:
        for rank in ranks:
            if preloaded.exit_code(rank) is None:
                os.kill(rank, signal.SIGKILL)
    errors = [(folder / "errors.log").read_text() for folder in folders]
    found: Ends = [json.loads((each / "ends.json").read_text()) for each in folders]
    if codes[0]:  # another rank's failure has ended it
        assert codes[0] == 1
        found[0][names[-1]] = f"RuntimeError: {errors[0].splitlines()[-1]}"
    assert all(each.keys() == set(names) for each in found), errors
    return found


def test_a_failure_is_everyones_wherever_they_are(
    preloaded: Any, tmp_path: Path
) -> None:
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    first, second = ends_of(preloaded, folders, "in_a_collective", "at_other_work")
    for name, clip in (("in_a_collective", 17), ("at_other_work", 18)):
        words = f"KeyError: 'clip-{clip}'"
        assert second[name] == words
        assert first[name] == f"RuntimeError: rank 1 failed with {words}; {THE_END}"


def test_a_rank_that_fails_takes_its_workers_along(
    preloaded: Any, tmp_path: Path
) -> None:
    """An error that nobody catches keeps the loader to the end of the process."""
    first, _ = make_folders(tmp_path)
    rank = preloaded.start(
        *(__file__, "with_workers"),
        log=first / "output.log",
        errors=first / "errors.log",
        cwd=first,
    )
    try:
        assert preloaded.wait(rank, seconds=SOON) == 1
    finally:
        if preloaded.exit_code(rank) is None:
            os.killpg(rank, signal.SIGKILL)
    assert "FloatingPointError: a step fails" in (first / "errors.log").read_text()


@pytest.fixture(scope="module")
def ends(preloaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """How each case of training ended for each rank."""
    folders = make_folders(tmp_path_factory.mktemp("ranks"))
    names = ("a_slow_disk", "other_settings", "other_data", "no_video", "while_loading")
    found = ends_of(preloaded, folders, *names)
    return [
        each | {"folder": str(folder)}
        for each, folder in zip(found, folders, strict=True)
    ]


def test_a_rank_that_waits_is_named(ends: Ends) -> None:
    assert [each["a_slow_disk"] for each in ends] == ["it ends well"] * 2
    (metrics,) = Path(ends[0]["folder"]).glob("a_slow_disk/metrics.jsonl")
    rows = map(json.loads, metrics.read_text().splitlines())
    found = [row for row in rows if row.get("rule") == "waiting_rank"]
    assert [row["step"] for row in found] == [20]
    assert found[0]["message"].startswith(
        "rank 1 waits for its rows in 75% of the step, the others in 0%, "
    )


def test_the_peak_of_memory_is_that_of_the_rank_with_most(ends: Ends) -> None:
    (metrics,) = Path(ends[0]["folder"]).glob("a_slow_disk/metrics.jsonl")
    rows = map(json.loads, metrics.read_text().splitlines())
    peaks = [row["peak_memory_gib"] for row in rows if "event" not in row]
    assert len(peaks) == 22
    assert min(peaks) > LARGE / 2**30


def test_other_settings_end_the_run(ends: Ends) -> None:
    words = (
        "SystemExit: error: learning_rate is 0.003 on rank 0 but 0.001 on rank 1; all "
        "ranks of a run have the same"
    )
    assert [each["other_settings"] for each in ends] == [words, "SystemExit: 1"]


def test_other_data_end_the_run(ends: Ends) -> None:
    first, second = (each["other_data"] for each in ends)
    assert second == "SystemExit: 1"
    assert first.startswith("SystemExit: error: train is {'samples': 8, 'order': '")
    assert "on rank 0 but {'samples': 8, " in first


def test_a_rank_without_videos_ends_the_run(ends: Ends) -> None:
    first, second = (each["no_video"] for each in ends)
    assert first == second
    assert "of 8 samples cannot be used" in first
    assert "clips/videos/0000" in first and "No such file or directory" in first


def test_a_failure_while_loading_ends_the_run(ends: Ends) -> None:
    assert [each["while_loading"] for each in ends] == [
        f"RuntimeError: rank 1 failed with OSError: the disk is gone; {THE_END}",
        "OSError: the disk is gone",
    ]


if __name__ == "__main__":
    if sys.argv[1] == "with_workers":
        with_workers()
    work(int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
