"""Process groups and the words that ranks exchange, on two real gloo ranks.

The file is its own worker: ``torchrun`` runs it with a case and a folder, and each
rank leaves what it saw in ``rank-{rank}.json``.
"""

import gc
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from recipes.edge.ranks.distributed import (
    World,
    broadcast_from_main,
    gather_from_ranks,
    process_group,
    sum_over_ranks,
)

ROOT = Path(__file__).parents[2]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what the CPU gives")


def torchrun(case: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a case of this file on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, case, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def error_of(call: Any) -> str:
    """Run a call that must raise; give the error in words."""
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def talk(folder: Path) -> None:
    """Worker: use every function once."""
    calls: list[int] = []
    with process_group() as world:
        rank = world.rank

        def make() -> dict[str, list[int]]:
            calls.append(rank)
            return {"plan": [3, 1, 2]}

        names = ("loss", "tokens") if rank == 0 else ("tokens", "loss")
        seen = {
            "rank": rank,
            "size": world.size,
            "is_main": world.is_main,
            "device": world.device.type,
            "mesh": world.mesh.size(),
            "axes": world.mesh.mesh_dim_names,
            "sums": sum_over_ranks({"loss": 0.1 + rank, "tokens": 2.0**40 + 1}, world),
            "other_names": error_of(
                lambda: sum_over_ranks(dict.fromkeys(names, 1.0), world)
            ),
            "plan": broadcast_from_main(make, world),
            "failure": error_of(
                lambda: broadcast_from_main(lambda: int("seven"), world)
            ),
            "after_failure": gather_from_ranks({"rank": rank}, world),
            "none": broadcast_from_main(lambda: None, world),
        }
    seen |= {"calls": calls, "left": not dist.is_initialized()}
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))


def die(folder: Path) -> None:
    """Worker: rank 1 fails while rank 0 waits for it."""
    with process_group() as world:
        if world.rank == 1:
            raise KeyError("clip-17")
        sum_over_ranks({"loss": 1.0}, world)


def plan_for_long(folder: Path) -> None:
    """Worker: one rank works for longer than a collective of tensors may wait."""

    def work() -> str:
        time.sleep(3)
        return "planned"

    with process_group() as world:
        _set_pg_timeout(timedelta(seconds=1))
        seen = [broadcast_from_main(work, world)]
        seen += gather_from_ranks(work() if world.rank else "at once", world)
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks saw in ``talk``."""
    folder = tmp_path_factory.mktemp("talk")
    done = torchrun("talk", folder)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank-{i}.json").read_text()) for i in range(2)]


@NO_GPU
def test_world_describes_each_rank(ranks: list[dict[str, Any]]) -> None:
    assert [seen["rank"] for seen in ranks] == [0, 1]
    assert [seen["is_main"] for seen in ranks] == [True, False]
    for seen in ranks:
        assert (seen["size"], seen["device"], seen["mesh"]) == (2, "cpu", 2)
        assert seen["axes"] == ["data"]
        assert seen["left"]


def test_sum_over_ranks_adds_in_float64(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        assert seen["sums"] == {"loss": 0.1 + 1.1, "tokens": 2.0**41 + 2}


def test_sum_over_ranks_refuses_other_names(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["other_names"] == (
        "ValueError: values of rank 0 has the names loss, tokens, which differ from "
        "another rank's; all ranks pass the same in the same order"
    )
    assert "values of rank 1 has the names tokens, loss" in ranks[1]["other_names"]


def test_broadcast_runs_once_and_reaches_all(ranks: list[dict[str, Any]]) -> None:
    assert [seen["calls"] for seen in ranks] == [[0], []]
    assert all(seen["plan"] == {"plan": [3, 1, 2]} for seen in ranks)
    assert all(seen["none"] is None for seen in ranks)


def test_failing_make_raises_the_same_on_every_rank(
    ranks: list[dict[str, Any]],
) -> None:
    assert ranks[0]["failure"] == ranks[1]["failure"]
    assert ranks[0]["failure"] == (
        "MainRankError: the main rank failed with ValueError: invalid literal for "
        "int() with base 10: 'seven'; every rank needs its result"
    )


def test_gather_gives_all_values_in_order(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        assert seen["after_failure"] == [{"rank": 0}, {"rank": 1}]


@NO_GPU
def test_objects_are_waited_for_longer_than_tensors(tmp_path: Path) -> None:
    done = torchrun("plan_for_long", tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert seen == ["planned", "at once", "planned"]


def test_a_failing_rank_ends_the_run(tmp_path: Path) -> None:
    start = time.monotonic()
    done = torchrun("die", tmp_path)
    assert done.returncode != 0
    assert "KeyError: 'clip-17'" in done.stderr
    assert time.monotonic() - start < 60


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment of a launcher."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_one_process_is_a_world_of_one() -> None:
    with process_group() as world:
        assert isinstance(world, World)
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert sum_over_ranks({}, world) == {}
        assert gather_from_ranks("a", world) == ["a"]
        with pytest.raises(RuntimeError, match=r"ValueError: .*'x'") as caught:
            broadcast_from_main(lambda: int("x"), world)
        assert isinstance(caught.value.__cause__, ValueError)
    assert not dist.is_initialized()


@pytest.mark.usefixtures("alone")
def test_an_exception_leaves_the_group_and_goes_on() -> None:
    with pytest.raises(LookupError, match="lost"), process_group():
        raise LookupError("lost")
    assert not dist.is_initialized()
    with process_group() as world:
        assert world.size == 1


def collect_beside_a_fork() -> None:
    """Fork once more before; that is not to undo what the first fork did."""
    process = get_context("fork").Process(target=gc.collect)
    process.start()
    process.join(60)
    gc.collect()
    sys.exit(process.exitcode)


@pytest.mark.usefixtures("alone")
def test_a_forked_process_does_not_end_a_group() -> None:
    """Its threads are not there; a worker that decodes clips would crash."""
    gc.disable()
    try:
        with process_group() as world:
            kept: list[Any] = [world]
        kept.append(kept)  # a cycle
        del kept, world
        process = get_context("fork").Process(target=collect_beside_a_fork)
        process.start()
        process.join(60)
    finally:
        gc.enable()
    assert process.exitcode == 0


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
