"""Short runs of the tiny recipe, and what they leave behind."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.qwen2vl_tiny import TINY
from recipes.train import main


def train(output_dir: Path, data_path: Path, **changes: Any) -> None:
    settings: dict[str, Any] = {
        "max_steps": 2,
        "save_steps": 2,
        "tokens_per_row": 300,
        "warmup_steps": 1,
        **changes,
    }
    main(replace(TINY, output_dir=output_dir, data_path=str(data_path), **settings))


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_jsonl(file: Path, rows: Sequence[object]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def metrics(output_dir: Path) -> list[dict[str, Any]]:
    return read_jsonl(output_dir / "metrics.jsonl")
