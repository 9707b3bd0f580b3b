"""Any two settings together: short runs among which every pair of values stands.

With ``FASTSLOW_COMBINATIONS`` all are taken, as ``nox -s combinations`` does, else one.
Two ranks take the steps of each. Its losses are held to those of one rank in float32,
without what is there for speed, memory and parallelism; and taken up again from its
middle, it ends as it did, bit for bit.
"""

import json
import os
import random
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations, cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

from fastslow.qwen2_vl import VIDEO_TOKEN
from recipes.edge.data.clips import make_clips
from recipes.edge.reports.metrics import CLOCKED
from recipes.edge.reports.reproduction import differences
from recipes.edge.weights.tiny import tiny_config, train_tokenizer
from tests.media import write_picture
from tests.small_models import family_config

RECIPE = "recipes/qwen2vl_tiny.py"
RUNS = 28
TAKEN = range(RUNS) if "FASTSLOW_COMBINATIONS" in os.environ else (18,)
"""Of the runs by number, else one without a compiler and without dropout."""

STEPS = 4
DEADLINE = 900

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
DATA = {
    "clips": "clips/train.jsonl",
    "mixed": "clips/mixed.jsonl",
    "text": "clips/text.jsonl",
    "archives": "archives",
}

Settings = dict[str, Any]
"""Values by the names of YAML, dots leading into settings of settings."""

VALUES: Mapping[str, tuple[Any, ...]] = {
    "model_name_or_path": (None, *FAMILIES),
    "data_path": tuple(DATA),
    "archives_on_disk": (0, 3),
    "frame_sampling_strategy": (
        "interleave",
        "uniform",
        "repeat_strides(pattern=(1, 2))",
        "kernel_schedule(kernel=(2, 2, 2))",
        "schedule_for_budget(budget=16)",
    ),
    "mm_spatial_pool_mode": ("average", "max", "area", "bilinear"),
    "fast_scale": (1, 2),
    "video_fps": (0.0, 2.0),
    "add_time_instruction": (False, True),
    "attention": ("frame_causal", "causal"),
    "loss_weight": (0.15, 0.0),
    "next_frame_distance": ("cosine", "l1", "mse+cosine"),
    "gradient_accumulation_steps": (1, 2),
    "max_grad_norm": (1.0, 0.0),
    "eval_steps": (0, 1),
    "dataloader_num_workers": (0, 2),
    "async_save": (False, True),
    "parallel.compute": ("float32", "bfloat16"),
    "parallel.activation_checkpointing": ("none", "selective", "full"),
    "parallel.torch_compile": (False, True),
    "parallel.cpu_offload": (False, True),
    "parallel.replicate": (1, 2),
    "parallel.tower": ("frozen", "trained"),
    "parallel.lora_rank": (0, 4),
    "parallel.lora_dropout": (0.0, 0.2),
}

PLAIN: Settings = {
    "eval_steps": 0,
    "dataloader_num_workers": 0,
    "async_save": False,
    "parallel.compute": "float32",
    "parallel.activation_checkpointing": "none",
    "parallel.torch_compile": False,
    "parallel.cpu_offload": False,
    "parallel.replicate": 1,
}
"""What must not matter to a loss, but by rounding."""

NUMBERS = {
    "language_loss": 1,
    "autoregressive_loss": 1,
    "copy_loss": 1,
    "gradient_norm": 5,
}
"""What is compared, and how many times as far off as a loss it may be."""

SHORT: Settings = {
    "max_steps": STEPS,
    "save_steps": STEPS // 2,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
    "tokens_per_row": 640,
    "packing_window": 16,
}
"""What all runs have in common beside the settings of the tiny recipe."""

Pair = frozenset[tuple[str, Any]]


def goes(settings: Settings) -> bool:
    """Tell whether settings, all of them or two, stand together and mean something."""
    rank = settings.get("parallel.lora_rank")
    drops = settings.get("parallel.lora_dropout", 0) > 0
    trains_tower = settings.get("parallel.tower") == "trained"
    streams = settings.get("archives_on_disk", 0) > 0
    return not (
        ((rank or drops) and trains_tower)
        or (drops and rank == 0)
        or (streams and settings.get("data_path", "archives") != "archives")
    )


def pairs(settings: Settings) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(settings.items(), 2)}


@cache
def chosen_runs() -> list[Settings]:
    """Choose settings among which all pairs of values stand that may stand together.

    Each is the best of some that are drawn, so few are needed, not the fewest.
    """
    chance = random.Random(0)
    left = {
        frozenset([(a, x), (b, y)]): None
        for a, b in combinations(VALUES, 2)
        for x, y in product(VALUES[a], VALUES[b])
        if goes({a: x, b: y})
    }
    chosen = list[Settings]()
    while left:
        wanted = dict(next(iter(left)))
        drawn = [
            {name: chance.choice(each) for name, each in VALUES.items()} | wanted
            for _ in range(200)
        ]
        able = [settings for settings in drawn if goes(settings)]
        best = max(able, key=lambda settings: len(pairs(settings) & left.keys()))
        chosen.append(best)
        for pair in pairs(best):
            left.pop(pair, None)
    return chosen


def test_every_pair_of_values_stands_in_some_run() -> None:
    runs = chosen_runs()
    assert len(runs) == RUNS
    assert all(map(goes, runs))
    for (a, some), (b, others) in combinations(VALUES.items(), 2):
        for x, y in product(some, others):
            stands = any(run[a] == x and run[b] == y for run in runs)
            assert stands == goes({a: x, b: y}), (a, x, b, y)


def talk(*turns: str) -> list[dict[str, str]]:
    """Write turns as rows of LLaVA hold them."""
    speakers = cycle(("human", "gpt"))
    return [
        {"from": speaker, "value": text}
        for speaker, text in zip(speakers, turns, strict=False)
    ]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    numbered = [row | {"id": str(number)} for number, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in numbered))


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_archives(folder: Path, rows: list[dict[str, Any]], clips: Path) -> None:
    """Write rows and their clips as the hub holds them, in five parts."""
    for number in range(5):
        part = folder / f"part{number}"
        part.mkdir(parents=True)
        mine = rows[number::5]
        (part / "qa.json").write_text(json.dumps(mine))
        with tarfile.open(part / "videos.tar.gz", "w:gz") as archive:
            for row in mine:
                archive.add(clips / row["video"], arcname=row["video"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make data of four kinds and checkpoints of three families, by their names."""
    folder = tmp_path_factory.mktemp("combinations")
    clips = folder / "clips"
    make_clips(clips, num_clips=30, held_out=6, seed=0, num_frames=8, size=(56, 84))
    rows = read_rows(clips / "train.jsonl")
    texts = [
        {"conversations": talk("Say it.", "No.", "More.", "Never. " * count)}
        for count in range(1, 9)
    ]
    asked = talk("<video>\n<video>\nThe same?", "No.")
    twos = [
        {"video": [one["video"], other["video"]], "conversations": asked}
        for one, other in zip(rows[:4], rows[4:8], strict=True)
    ]
    write_picture(clips / "grey.png", height=56, width=84)
    shown = {"image": "grey.png", "conversations": talk("<image>\nWhich?", "Grey.")}
    write_rows(clips / "mixed.jsonl", [*rows, *texts, *twos, shown, shown])
    write_rows(clips / "text.jsonl", [*texts * 4, *rows[:3]])
    write_archives(folder / "archives", rows, clips)
    said = [turn["value"] for row in [*rows, *texts] for turn in row["conversations"]]
    tokenizer = train_tokenizer(said, vocabulary_size=400)
    for name in FAMILIES:
        torch.manual_seed(0)
        shape = tiny_config(len(tokenizer))
        if name != shape.model_type:
            shape = family_config(name, len(tokenizer))
            shape.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        AutoModelForImageTextToText.from_config(shape).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@dataclass
class Runs:
    """Runs of one combination."""

    preloaded: Any
    data: Path
    output: Path

    def complete(self, name: str, settings: Settings, *, ranks: int) -> None:
        """Let a run end, or go on to its end."""
        (self.output / f"{name}.yaml").write_text(
            yaml.dump(self._nested(name, settings))
        )
        words = (RECIPE, "--config", str(self.output / f"{name}.yaml"))
        log = self.output / f"{name}.log"
        process = self.preloaded.start_ranks(ranks, *words, log=log)
        code = self.preloaded.wait(process, seconds=DEADLINE)
        assert code == 0, f"{settings}\n{log.read_text()}"

    def metrics(self, name: str, event: str | None = None) -> list[dict[str, Any]]:
        lines = read_rows(self.output / name / "metrics.jsonl")
        return [line for line in lines if line.get("event") == event]

    def _nested(self, name: str, settings: Settings) -> dict[str, Any]:
        """Write settings as a file of them does."""
        model, data = settings["model_name_or_path"], DATA[settings["data_path"]]
        found = dict[str, Any]()
        for setting, value in (SHORT | settings).items():
            *outer, own = setting.split(".")
            place = found.setdefault(outer[0], {}) if outer else found
            place[own] = value
        return found | {
            "output_dir": str(self.output / name),
            "model_name_or_path": model and str(self.data / model),
            "data_path": str(self.data / data),
            "eval_data_path": str(self.data / "clips" / "held_out.jsonl"),
        }


def rows_of_one(settings: Settings) -> Settings:
    """Let one rank take the rows of two, plainly."""
    rows = 2 * settings["gradient_accumulation_steps"]
    return settings | PLAIN | {"gradient_accumulation_steps": rows}


@pytest.mark.parametrize("number", TAKEN)
def test_settings_go_together(
    preloaded: Any, folder: Path, tmp_path: Path, number: int
) -> None:
    settings = chosen_runs()[number]
    print(settings)
    runs = Runs(preloaded, folder, tmp_path)
    runs.complete("straight", settings, ranks=2)
    middle = shutil.copytree(tmp_path / "straight", tmp_path / "middle")
    for name in (f"checkpoint-{STEPS}", f"model-{STEPS}"):
        shutil.rmtree(middle / name)
    runs.complete("middle", settings, ranks=2)
    assert differences(tmp_path / "straight", middle) == []

    runs.complete("plain", rows_of_one(settings), ranks=1)
    found, expected = runs.metrics("straight"), runs.metrics("plain")
    assert len(found) == len(expected) == STEPS
    asked = runs.metrics("straight", "evaluation")
    assert len(asked) == (STEPS if settings["eval_steps"] else 1)
    found, expected = (
        [*found, asked[-1]],
        [*expected, *runs.metrics("plain", "evaluation")],
    )
    rounding = 2e-3 if settings["parallel.compute"] == "float32" else 0.08
    for one, other in zip(found, expected, strict=True):
        assert one.keys() - CLOCKED == other.keys() - CLOCKED
        for name in ("tokens_per_clip", "fill", "epoch", "questions", "chance"):
            assert one.get(name) == other.get(name), name
        if settings["parallel.lora_dropout"]:
            continue  # each rank draws its own
        for name, times in NUMBERS.items():
            value = other.get(name)
            if value is None:  # it is off, or nothing is to be predicted
                assert one.get(name) is None, name
            else:
                near = pytest.approx(value, rel=times * rounding)
                assert one[name] == near, name
