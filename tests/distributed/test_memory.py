"""The bytes that a dry run foretells for shards are those of real shards.

The file is its own worker: ``torchrun`` runs it on two and on 2 x 2 ranks.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fastslow.qwen2_vl import FastSlowQwen2VL
from recipes.edge.distributed import process_group
from recipes.edge.memory import shard_bytes
from recipes.edge.parallel import Parallel, choose_trained, parallelise
from recipes.edge.tiny import tiny_backbone
from recipes.edge.weights import meta_model

ROOT = Path(__file__).parents[2]
CASES = {
    "frozen tower": Parallel(),
    "trained tower": Parallel(tower="trained", compute="float32"),
    "adapters": Parallel(lora_rank=3),
    "replicated": Parallel(replicate=2),
}
WORDS = 517
"""A vocabulary that no number of ranks divides."""


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held(settings: Parallel, folder: Path) -> None:
    """Worker: take a step of AdamW, and note what rank 0 holds."""
    with process_group() as world:
        backbone = tiny_backbone(vocabulary_size=WORDS, video_token_id=6)
        model = FastSlowQwen2VL(backbone)
        parallelise(model, settings, world)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        for weight in trained:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        gradients = [weight.grad for weight in trained if weight.grad is not None]
        averages = [
            value
            for state in optimizer.state.values()
            for name, value in state.items()
            if name.startswith("exp_avg")
        ]
        found = [
            sum(local(tensor).nbytes for tensor in tensors)
            for tensors in (list(model.parameters()), gradients, averages)
        ]
        if world.is_main:
            (folder / "held.json").write_text(json.dumps(found))


@pytest.mark.parametrize("case", CASES)
def test_shards_hold_what_was_foretold(case: str, tmp_path: Path) -> None:
    settings = CASES[case]
    ranks = 2 * settings.replicate
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), __file__]
    command += [json.dumps(asdict(settings)), str(tmp_path)]
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command,
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    backbone = tiny_backbone(vocabulary_size=WORDS, video_token_id=6)
    model = meta_model(backbone.config)
    choose_trained(model, settings)
    assert json.loads((tmp_path / "held.json").read_text()) == list(
        shard_bytes(model, 2)
    )


if __name__ == "__main__":
    held(Parallel(**json.loads(sys.argv[1])), Path(sys.argv[2]))
