"""A recipe runs on a GPU from its first step to its last, stops, and goes on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.edge.data.clips import make_clips

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ROOT = Path(__file__).parents[2]
FLAGS = (
    *("--parallel.compute", "bfloat16", "--async-save"),
    *("--parallel.activation-checkpointing", "selective"),
    *("--dataloader-num-workers", "2", "--gradient-accumulation-steps", "2"),
    *("--max-steps", "20", "--save-steps", "10", "--warmup-steps", "2"),
)


def train(folder: Path, *flags: str) -> None:
    """Run the recipe on one rank."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    finished = subprocess.run(
        [*launch, "recipes/qwen2vl_tiny.py", "--output-dir", str(folder), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def steps(folder: Path) -> list[dict[str, Any]]:
    """Read what was logged of the steps, without evaluations."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for line in lines if "event" not in (row := json.loads(line))]


def assert_learns(rows: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in rows] == list(range(1, 21))
    first, last = (
        sum(row["language_loss"] for row in part) for part in (rows[:4], rows[-4:])
    )
    assert last < 0.8 * first
    assert not any(row["skipped_steps"] for row in rows)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clips")
    make_clips(folder, num_clips=64, held_out=0, seed=0)
    return str(folder / "train.jsonl")


def test_a_trained_tower_learns_and_goes_on(tmp_path: Path, clips: str) -> None:
    """Workers decode, and checkpoints are written, beside the steps."""
    run = tmp_path / "run"
    flags = (*FLAGS, "--data-path", clips, "--parallel.tower", "trained")
    train(run, *flags)
    found = steps(run)
    assert_learns(found)

    shutil.rmtree(run / "checkpoint-20")
    train(run, *flags)
    again = steps(run)
    assert [row["step"] for row in again] == list(range(1, 21))
    assert again[:10] == found[:10]
    for one, other in zip(again[10:], found[10:], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.2)


def test_adapters_learn(tmp_path: Path, clips: str) -> None:
    flags = (*FLAGS, "--data-path", clips, "--parallel.lora-rank", "16")
    train(tmp_path / "run", *flags, "--learning-rate", "1e-2")
    assert_learns(steps(tmp_path / "run"))
