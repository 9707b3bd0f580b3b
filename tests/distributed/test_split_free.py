"""An optimizer step does not depend on how its samples were cut into rows and ranks.

The file is its own worker: ``torchrun`` runs it, and rank 0 leaves what every cut of
the same eight samples gave: six clips and two texts.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

from fastslow import StreamState
from recipes.config import Config
from recipes.data import plan_data
from recipes.edge.data.clips import make_clips
from recipes.edge.data.loader import PackedRows, count_rows
from recipes.edge.data.quarantine import Quarantine
from recipes.edge.ranks.distributed import (
    World,
    broadcast_from_main,
    process_group,
    sum_over_ranks,
)
from recipes.edge.training.optimization import SkippedSteps
from recipes.progress import Run
from recipes.qwen2vl_tiny import TINY
from recipes.train import build_model, train_step

Cut = list[list[tuple[int, ...]]]
"""The bins of every rank."""

ONE_RANK: dict[str, Cut] = {
    "one row": [[(0, 1, 2, 3, 4, 5, 6, 7)]],
    "three rows": [[(0, 1, 6), (2, 3, 4), (7, 5)]],
}
TWO_RANKS: dict[str, Cut] = {
    "unequal ranks": [[(0, 1, 2, 3)], [(4, 5, 6, 7)]],
    "two rows each": [[(5, 0, 6), (3,)], [(2, 7), (4, 1)]],
    "a rank without a sample": [[(0, 1, 2, 3, 4, 5, 6, 7)], [()]],
}
ODD_ROWS: Cut = [[(6,), (0, 1), ()], [(), (2, 3), (7,)], [(4,), (), (5,)], [(), (), ()]]
"""Rows of text alone, and without a sample, before, between and after others."""

FOUR_RANKS: dict[str, Cut] = {"copies": ODD_ROWS, "copies on the host": ODD_ROWS}
REPORTED = (
    "loss",
    "language_loss",
    "autoregressive_loss",
    "copy_loss",
    "gradient_norm",
)


class AllReduces(TorchDispatchMode):
    """Note over how many ranks each all-reduce inside goes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ranks: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.c10d.allreduce_.default:
            self.ranks.append(ProcessGroup.unbox(args[1]).size())
        return func(*args, **(kwargs or {}))


def one_step(config: Config, cut: Cut, world: World) -> dict[str, Any]:
    """Take a step of plain gradient descent; give its losses and what it changed."""
    data = broadcast_from_main(lambda: plan_data(config, world), world)
    model = build_model(config, data, world)
    before = {name: w.full_tensor().clone() for name, w in model.named_parameters()}
    samples = PackedRows(data.train)
    rows = [samples[chosen, StreamState()] for chosen in cut[world.rank]]
    counts = sum_over_ranks(count_rows(rows), world)
    optimizer: Any = torch.optim.SGD(w for w in model.parameters() if w.requires_grad)
    run = Run(
        config=config,
        data=data,
        model=model,
        optimizer=optimizer,
        quarantine=Quarantine(
            config.output_dir, num_samples=8, max_share=0.0, world=world
        ),
        world=world,
    )
    with AllReduces() as all_reduces:
        losses, *_ = train_step(run, 20, rows, counts, SkippedSteps())
    moved = {
        name: weight.full_tensor() - before[name]
        for name, weight in model.named_parameters()
    }
    return {
        "losses": [losses[name] for name in REPORTED],
        "moved": moved,
        "over two ranks": all_reduces.ranks.count(2),
        "layers": len(model.backbone.model.language_model.layers),
    }


def work(folder: Path) -> None:
    """Worker: take the step under every cut for this number of ranks."""
    config = replace(
        TINY,
        output_dir=folder / "run",
        data_path=str(folder / "clips" / "train.jsonl"),
        learning_rate=1.0,
    )
    with process_group() as world:
        cuts = {1: ONE_RANK, 2: TWO_RANKS, 4: FOUR_RANKS}[world.size]
        steps = {}
        for name, cut in cuts.items():
            parallel = replace(
                TINY.parallel,
                replicate=2 if "copies" in name else 1,
                cpu_offload="on the host" in name,
            )
            steps[name] = one_step(replace(config, parallel=parallel), cut, world)
        if world.is_main:
            torch.save(steps, folder / f"{world.size}.pt")


def text_alone(answer: str) -> str:
    """Give the line of a conversation about no clip."""
    said = ("human", "Count."), ("gpt", answer)
    turns = [{"from": role, "value": text} for role, text in said]
    return json.dumps({"id": answer, "conversations": turns}) + "\n"


@pytest.fixture(scope="module")
def steps(preloaded: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("split")
    make_clips(folder / "clips", num_clips=6, held_out=0, seed=0, size=(56, 84))
    with (folder / "clips" / "train.jsonl").open("a") as file:
        file.writelines(map(text_alone, ("one two", "one two three")))
    found: dict[str, Any] = {}
    for ranks in (1, 2, 4):
        log = folder / f"{ranks}.log"
        preloaded.run_ranks(ranks, __file__, str(folder), log=log)
        found |= torch.load(folder / f"{ranks}.pt")
    return found


@pytest.mark.parametrize("cut", [*ONE_RANK, *TWO_RANKS, *FOUR_RANKS][1:])
def test_a_step_is_the_same_however_its_samples_are_cut(
    steps: dict[str, Any], cut: str
) -> None:
    whole, found = steps["one row"], steps[cut]
    torch.testing.assert_close(found["losses"], whole["losses"], rtol=1e-5, atol=1e-6)
    scale = max(change.abs().max() for change in whole["moved"].values())
    assert scale > 1e-3
    for name, change in whole["moved"].items():
        difference = (found["moved"][name] - change).abs().max()
        assert difference <= 1e-5 * scale, f"{name}: {difference} beside {scale}"


@pytest.mark.parametrize(("name", "times"), [("copies", 1), ("copies on the host", 3)])
def test_copies_add_up_gradients_once_a_step_except_on_the_host(
    steps: dict[str, Any], name: str, times: int
) -> None:
    groups = steps[name]["layers"] + 1  # each layer by itself, the rest with the root
    assert steps[name]["over two ranks"] == times * groups


if __name__ == "__main__":
    work(Path(sys.argv[1]))
