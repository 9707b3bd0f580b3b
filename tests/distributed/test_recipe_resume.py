"""A run that goes on from a checkpoint ends, bit for bit, as the undisturbed one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from recipes.edge.data.clips import make_clips
from recipes.edge.reports.metrics import CLOCKED


def train(preloaded: Any, folder: Path, data: Path, *flags: str) -> None:
    """Run the recipe on two ranks."""
    log = folder.with_suffix(".log")
    flags += ("--output-dir", str(folder), "--data-path", str(data))
    flags += ("--max-steps", "10", "--save-steps", "5", "--warmup-steps", "2")
    flags += ("--tokens-per-row", "250", "--packing-window", "5")
    preloaded.run_ranks(2, "recipes/qwen2vl_tiny.py", *flags, log=log)


def tensors(checkpoint: Path, folder: Path) -> dict[str, Tensor]:
    """Read every tensor of a checkpoint, whole, under its path."""
    file = folder / f"{checkpoint.parent.name}-{checkpoint.name}.pt"
    dcp_to_torch_save(checkpoint, file)
    found = dict[str, Tensor]()

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}/{key}", inner)

    walk("", torch.load(file, weights_only=False))
    return found


def steps(folder: Path) -> list[dict[str, Any]]:
    """Read the metrics, without those of the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in rows]


@pytest.mark.parametrize(
    "flags",
    [
        ("--gradient-accumulation-steps", "2"),
        ("--loss-weight", "0", "--parallel.tower", "trained"),
    ],
    ids=["two rows", "answers alone"],
)
def test_five_steps_and_five_more_are_ten(
    preloaded: Any, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    data = tmp_path / "clips"
    make_clips(data, num_clips=12, held_out=0, seed=0, num_frames=6, size=(56, 84))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(preloaded, whole, data / "train.jsonl", *flags)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-10")
    train(preloaded, resumed, data / "train.jsonl", *flags)

    expected = tensors(whole / "checkpoint-10", tmp_path)
    found = tensors(resumed / "checkpoint-10", tmp_path)
    assert len(expected) > 100
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    earlier = tensors(whole / "checkpoint-5", tmp_path)
    assert any(not torch.equal(expected[name], earlier[name]) for name in expected)
    assert [row["step"] for row in steps(resumed)] == list(range(1, 11))
    assert steps(resumed) == steps(whole)

    states = [
        json.loads((folder / "checkpoint-10" / "state.json").read_text())
        for folder in (whole, resumed)
    ]
    assert states[0]["state"]["stream"]["waiting"]
    for state in states:
        del state["state"]["settings"]["output_dir"]
    assert states[0] == states[1]
    assert ("autoregressive_loss" in steps(whole)[0]) == (flags[0] != "--loss-weight")
