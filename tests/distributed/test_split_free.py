"""An optimizer step does not depend on how its samples were cut into rows and ranks.

The file is its own worker: ``torchrun`` runs it, and rank 0 leaves what every cut of
the same six samples gave.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastslow import StreamState
from recipes.config import Config
from recipes.data import plan_data
from recipes.edge.clips import make_clips
from recipes.edge.distributed import (
    World,
    broadcast_from_main,
    process_group,
    sum_over_ranks,
)
from recipes.edge.loader import PackedRows, count_rows
from recipes.edge.optimization import SkippedSteps
from recipes.edge.quarantine import Quarantine
from recipes.progress import Run
from recipes.qwen2vl_tiny import TINY
from recipes.train import build_model, train_step

Cut = list[list[tuple[int, ...]]]
"""The bins of every rank."""

ONE_RANK: dict[str, Cut] = {
    "one row": [[(0, 1, 2, 3, 4, 5)]],
    "three rows": [[(0, 1), (2, 3, 4), (5,)]],
}
TWO_RANKS: dict[str, Cut] = {
    "unequal ranks": [[(0, 1, 2, 3)], [(4, 5)]],
    "two rows each": [[(5, 0), (3,)], [(2,), (4, 1)]],
    "a rank without a sample": [[(0, 1, 2, 3, 4, 5)], [()]],
}
REPORTED = (
    "loss",
    "language_loss",
    "autoregressive_loss",
    "copy_loss",
    "gradient_norm",
)


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
            config.output_dir, num_samples=6, max_share=0.0, world=world
        ),
        world=world,
    )
    losses, _ = train_step(run, 20, rows, counts, SkippedSteps())
    moved = {
        name: weight.full_tensor() - before[name]
        for name, weight in model.named_parameters()
    }
    return {"losses": [losses[name] for name in REPORTED], "moved": moved}


def work(folder: Path) -> None:
    """Worker: take the step under every cut for this number of ranks."""
    config = replace(
        TINY,
        output_dir=folder / "run",
        data_path=str(folder / "clips" / "train.jsonl"),
        learning_rate=1.0,
    )
    with process_group() as world:
        cuts = ONE_RANK if world.size == 1 else TWO_RANKS
        steps = {name: one_step(config, cut, world) for name, cut in cuts.items()}
        if world.is_main:
            torch.save(steps, folder / f"{world.size}.pt")


@pytest.fixture(scope="module")
def steps(preloaded: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("split")
    make_clips(folder / "clips", num_clips=6, held_out=0, seed=0, size=(56, 84))
    found: dict[str, Any] = {}
    for ranks in (1, 2):
        log = folder / f"{ranks}.log"
        preloaded.run_ranks(ranks, __file__, str(folder), log=log)
        found |= torch.load(folder / f"{ranks}.pt")
    return found


@pytest.mark.parametrize("cut", [*ONE_RANK, *TWO_RANKS][1:])
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


if __name__ == "__main__":
    work(Path(sys.argv[1]))
