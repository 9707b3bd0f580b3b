"""Settings by seed, and the checkpoints and data files that they name."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from recipes.edge.weights.tiny import train_tokenizer
from tests.oracles.whole_step.options import Options, Window
from tests.small_models import family_config, small_config

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WORDS = ("what", "does", "the cat", "do here?", "yes, it is.", "no.", "red", "3 dogs!")
SPECIAL = {
    "video_token_id": "<|video_pad|>",
    "image_token_id": "<|image_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}

THREE_FRAMES = (
    ("schedule_from_strides", {"strides": (1, 3, 2)}),
    ("schedule_from_grids", {"grids": ((2, 2), (1, 3), (1, 1))}),
    ("two_level_schedule", {"is_slow": (False, True, False)}),
)
"""Strategies for clips of three frames alone."""

GRIDS_IN_TURN = ("grids_in_turn", {})
UNNESTED = (*THREE_FRAMES, GRIDS_IN_TURN)
"""Strategies whose windows need not lie in one another, as a common grid asks."""

STRATEGIES = (
    *((rule, {}) for rule in ("interleave", "first_slow", "last_slow", "uniform")),
    ("interleave", {}),
    ("build_schedule", {"strategy": "uniform", "slow_stride": 1}),
    ("repeat_strides", {"pattern": (2, 4, 4), "phase": 1}),
    ("repeat_strides", {"pattern": (1, 8, 2, 8), "phase": -2}),
    ("kernel_schedule", {"kernel": (2, 2, 2), "is_slow": True}),
    ("kernel_schedule", {"kernel": (3, 1, 2)}),
    ("kernel_schedule", {"kernel": (2, 2, 3), "edge": "floor"}),
    ("schedule_for_budget", {"budget": 20}),
    ("schedule_for_budget", {"budget": 60, "strategy": "uniform"}),
    *THREE_FRAMES,
    ("every_other_frame", {}),
    ("two_streams", {"order": "time"}),
    ("two_streams", {"order": "stream"}),
    ("two_of_three_tokens", {}),
    GRIDS_IN_TURN,
)

VALUES: dict[str, tuple[Any, ...]] = {
    "family": FAMILIES,
    "is_tied": (False, False, True),
    "pool": (0, 1, 2, 3),
    "strategy": STRATEGIES,
    "slow_frame_ratio": (0.5, 0.25, 0.3, 1.0, 0.0, 0.7, 0.333),
    "mm_spatial_pool_stride": (2, 2, 4, 4, 6),
    "mm_spatial_pool_mode": ("average", "average", "max", "area", "bilinear"),
    "fast_scale": (1, 1, 1, 2, 3),
    "max_frames_num": (1, 3, 4, 6, 8, 16),
    "video_fps": (0.0, 0.0, 0.0, 1.0, 3.0, 7.5),
    "add_time_instruction": (False, False, True),
    "min_pixels": (64, 400, 1000),
    "max_pixels": (1600, 2500, 4500),
    "attention": ("frame_causal", "frame_causal", "causal"),
    "loss_weight": (0.15, 0.15, 1.7, 0.0),
    "next_frame_distance": ("cosine", "mse", "l1", "smooth_l1", "mse+cosine"),
    "tokens_per_row": (300, 600, 2000),
    "packing_window": (1, 4, 16),
    "gradient_accumulation_steps": (1, 2, 3),
    "activation_checkpointing": ("none", "none", "selective", "full"),
    "tower": ("frozen", "trained", "trained"),
    "lora_rank": (0, 0, 0, 1, 3),
    "lora_alpha": (4, 16),
}
"""Settings of a recipe."""

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "pairing": ("source_grid", "source_grid", "common_grid", "frame_mean"),
    "reduction": ("frame", "token", "video"),
    "normalize_targets": (False, True),
    "change_weights": (False, True),
    "after_video_rule": ("all_axes", "all_axes", "spatial_axes"),
    "window": (
        None,
        Window(frames=1, keep_text="prefix", keep_slow=False),
        Window(frames=2, keep_text="all", keep_slow=True),
        Window(frames=3, keep_text="none", keep_slow=True),
    ),
    "padding": (0, 0, 13),
}
"""Arguments that only the library has."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a step is taken with.

    Attributes:
        seed: Of weights and of the order of the data.
        options: What the reference has to know.
        others: Other settings, by name.
        is_planned_anew: Whether arguments are there that no recipe sets.
    """

    seed: int
    options: Options
    others: Mapping[str, Any]
    is_planned_anew: bool

    @property
    def pool(self) -> str:
        needs_three = self.options.strategy in THREE_FRAMES
        return "three frames" if needs_three else f"pool {self.others['pool']}"

    @property
    def checkpoint(self) -> str:
        tied = " tied" if self.others["is_tied"] else ""
        return f"{self.others['family']}{tied}"


def draw(seed: int) -> Setting:
    """Draw settings of a recipe; of odd seeds, arguments of the library as well."""
    chance = random.Random(seed)
    values = VALUES | ARGUMENTS if seed % 2 else VALUES
    drawn = {name: chance.choice(each) for name, each in values.items()}
    if drawn["strategy"] in THREE_FRAMES:
        drawn |= {"max_frames_num": 16, "video_fps": 0.0}
    if drawn["strategy"][1] == {"order": "stream"} and "window" in drawn:
        drawn["window"] = None  # which needs frames in the order of time
    if drawn.get("pairing") == "common_grid" and drawn["strategy"] in UNNESTED:
        drawn["pairing"] = "frame_mean"
    if drawn["lora_rank"]:
        drawn["tower"] = "frozen"
    return make_setting(seed, drawn)


def make_setting(seed: int, given: Mapping[str, Any]) -> Setting:
    """Take the first of the values of each setting that is not given."""
    values = {name: each[0] for name, each in VALUES.items()} | given
    known = {field.name for field in fields(Options)}
    return Setting(
        seed=seed,
        options=Options(**{k: v for k, v in values.items() if k in known}),
        others={k: v for k, v in values.items() if k not in known},
        is_planned_anew=not ARGUMENTS.keys().isdisjoint(given),
    )


def make_checkpoint(folder: Path, setting: Setting) -> Path:
    """Write random weights of a family, unless they are there."""
    path = folder / setting.checkpoint
    if path.exists():
        return path
    family = setting.others["family"]
    tokenizer = train_tokenizer([" ".join(WORDS)], vocabulary_size=300)
    if family == "qwen2_vl":
        config = small_config({"vocab_size": len(tokenizer)})
    else:
        config = family_config(family, len(tokenizer))
    config.vision_config.patch_size = 4
    if family == "qwen2_5_vl":
        config.vision_config.window_size = 16
        config.vision_config.tokens_per_second = 3
    for name, word in SPECIAL.items():
        setattr(config, name, tokenizer.convert_tokens_to_ids(word))
    for part in (config, config.text_config):
        part.tie_word_embeddings = setting.others["is_tied"]
    model = AutoModelForImageTextToText.from_config(config)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_norm = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(0.2 * torch.randn(weight.shape, generator=chance) + is_norm)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_pool(folder: Path, setting: Setting) -> Path:
    """Write a data file and all that it names, unless it is there."""
    path = folder / setting.pool / "rows.jsonl"
    if not path.exists():
        path.parent.mkdir()
        pool = _Pool(path.parent, has_three_frames=setting.pool == "three frames")
        rows = [pool.row(number) for number in range(14)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class _Pool:
    """Draws rows, and writes what they show."""

    def __init__(self, folder: Path, *, has_three_frames: bool) -> None:
        self._folder, self._has_three_frames = folder, has_three_frames
        self._chance = random.Random(folder.name)
        self._pixels = np.random.default_rng(self._chance.randrange(2**32))
        self._count = 0

    def row(self, number: int) -> dict[str, Any]:
        form = self._chance.choice(("video", "image", "two", "mixed", "text", "bare"))
        shown, question = self._shown(form)
        turns = [("user", question), ("assistant", self._say())]
        if form == "two":
            shown["videos"].append(self._video())
            turns += [("user", f"and <video>{self._say()}"), ("assistant", self._say())]
        for _ in range(self._chance.choice((0, 0, 1, 2))):
            turns += [("user", self._say()), ("assistant", self._say())]
        if self._chance.random() < 0.25:
            turns.insert(0, ("system", self._say()))
        if self._chance.random() < 0.15:
            turns.append(("user", self._say()))
        row = {"id": str(number), **shown}
        if self._chance.random() < 0.5:
            row["messages"] = [{"role": role, "content": said} for role, said in turns]
        else:
            names = {"user": "human", "assistant": "gpt", "system": "system"}
            told = [{"from": names[role], "value": said} for role, said in turns]
            row["conversations"] = told
        return row

    def _shown(self, form: str) -> tuple[dict[str, Any], str]:
        """Make what a row shows; give it with the first question."""
        say = self._say
        if form == "video":
            word = self._chance.choice(("<video>\n", "<image>\n", "<video>"))
            return {"video": self._video()}, word + say()
        if form == "image":
            return {"image": self._picture()}, f"{say()}\n<image>"
        if form == "two":
            both = {"videos": [self._video(), self._video()]}
            return both, f"<video>{self._chance.choice(('', ' and '))}<video>{say()}"
        if form == "text":
            return {}, say()
        pictures = [self._picture() for _ in range(2)]
        if form == "mixed":
            shown = {"video": [self._video()], "image": pictures}
            return shown, f"<image>{say()} <video>\n{say()}<image>"
        return {"video": self._video(), "image": pictures[:1]}, say()

    def _say(self) -> str:
        return " ".join(self._chance.choices(WORDS, k=self._chance.randint(1, 4)))

    def _file(self, suffix: str) -> Path:
        self._count += 1
        return self._folder / f"{self._count}{suffix}"

    def _noise(self) -> Any:
        sides = [self._chance.randrange(16, 66, 2) for _ in range(2)]
        return self._pixels.integers(0, 256, (*sides, 3), dtype=np.uint8)

    def _picture(self) -> str:
        path = self._file(".png")
        Image.fromarray(self._noise()).save(path)
        return path.name

    def _video(self) -> str:
        """Write noise that moves, or stands; some of it unevenly in time."""
        path, rate = self._file(".mp4"), self._chance.choice((2, 4, 5, 10, 25))
        count = self._chance.randint(*((5, 6) if self._has_three_frames else (1, 9)))
        steps = self._chance.choice(((0, 0), (1, 2), (2, 1)))
        gaps = [1.0] * count
        if self._chance.random() < 0.3:
            gaps = self._chance.choices((1, 1, 1.7, 2.9), k=count)
        noise, ticks = self._noise(), 0
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options={"bf": "0"})
            stream.height, stream.width, stream.pix_fmt = *noise.shape[:2], "yuv420p"
            stream.codec_context.time_base = Fraction(1, 600)
            for number, gap in enumerate(gaps):
                moved = np.roll(noise, [number * step for step in steps], (0, 1))
                frame = av.VideoFrame.from_ndarray(moved, format="rgb24")
                frame.pts, frame.time_base = ticks, Fraction(1, 600)
                ticks += int(gap * 600 / rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path.name
