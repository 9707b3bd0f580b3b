"""What a run is trained on: planned on the main rank, before a pixel is decoded."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from fastslow.qwen2_vl import Family, family_of
from recipes.config import Config
from recipes.edge.checkpoint import latest_checkpoint
from recipes.edge.clips import make_clips
from recipes.edge.dataset import BadSample, Sample, most_common_share, read_samples
from recipes.edge.distributed import World
from recipes.edge.loader import PackedRows
from recipes.edge.samples import ClipSettings, PlannedSample, plan_samples
from recipes.edge.tiny import VIDEO_TOKEN, train_tokenizer
from recipes.edge.weights import find_weights


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the main rank plans for all ranks.

    Attributes:
        checkpoint: Folder of the weights to begin with; None for random ones.
        family: What differs between backbones.
        tokenizer: Folder of the tokenizer: that of the checkpoint, or the run's own.
        train: Samples to train on.
        held_out: Samples to ask afterwards.
        bad: Samples that cannot be used.
        chance: Accuracy of always giving the most common answer of the training set.
        vocabulary_size: Tokens of the tokenizer.
        video_token_id: Its id for a video token.
    """

    checkpoint: Path | None
    family: Family
    tokenizer: Path
    train: list[PlannedSample]
    held_out: list[PlannedSample]
    bad: list[BadSample]
    chance: float
    vocabulary_size: int
    video_token_id: int


def plan_data(config: Config, world: World) -> Data:
    """Find weights, samples and tokenizer, and plan every token."""
    config.output_dir.mkdir(parents=True, exist_ok=True)
    name = config.model_name_or_path
    checkpoint = None if name is None else find_weights(name)
    train_path, held_out_path = map(_path, (config.data_path, config.eval_data_path))
    if train_path is None:
        clips = config.output_dir / "clips"
        make_clips(clips, num_clips=512, held_out=128, seed=config.seed)
        train_path, held_out_path = clips / "train.jsonl", clips / "held_out.jsonl"
    train, bad = read_samples(train_path)
    held_out, bad_held_out = read_samples(held_out_path) if held_out_path else ([], [])
    folder = checkpoint or _make_tokenizer(config, train)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    family = Family()
    if checkpoint is not None:
        family = family_of(AutoConfig.from_pretrained(checkpoint))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    settings = clip_settings(config, family, world.device)
    planned, unplanned = plan_samples(train, settings, encode)
    planned_held_out, unplanned_held_out = plan_samples(held_out, settings, encode)
    if not planned:
        found = dict.fromkeys(sample.reason for sample in bad + unplanned)
        reasons = "; ".join(list(found)[:3])
        raise ValueError(f"{train_path} has no sample that can be used: {reasons}")
    return Data(
        checkpoint=checkpoint,
        family=family,
        tokenizer=folder,
        train=planned,
        held_out=planned_held_out,
        bad=[*bad, *bad_held_out, *unplanned, *unplanned_held_out],
        chance=most_common_share(train, held_out),
        vocabulary_size=len(tokenizer),
        video_token_id=tokenizer.get_vocab()[VIDEO_TOKEN],
    )


def _path(name: str | None) -> Path | None:
    """Give the path that a setting names, if it names one."""
    return None if name is None else Path(name)


def _make_tokenizer(config: Config, train: list[Sample]) -> Path:
    """Train a tokenizer for a run that begins with nothing; a resumed run has one."""
    folder = config.output_dir / "tokenizer"
    if latest_checkpoint(config.output_dir) is None:
        texts = [turn.text for sample in train for turn in sample.turns]
        train_tokenizer(texts, vocabulary_size=512).save_pretrained(folder)
    return folder


def clip_settings(config: Config, family: Family, device: torch.device) -> ClipSettings:
    """Gather what turns a clip into tokens."""
    geometry = replace(
        family.geometry,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        grid_multiple=config.fast_scale,
    )
    return ClipSettings(
        family=replace(family, geometry=geometry),
        max_frames=config.max_frames_num,
        strategy=config.frame_sampling_strategy,
        slow_ratio=config.slow_frame_ratio,
        slow_stride=config.mm_spatial_pool_stride,
        fast_scale=config.fast_scale,
        attention=config.attention,
        capacity=config.tokens_per_row,
        row_buckets=4 if device.type == "cuda" else 0,
    )


def packed_rows(
    config: Config, data: Data, world: World, samples: list[PlannedSample]
) -> PackedRows:
    """Give the rows of some of the run's samples, to be asked for by bin."""
    settings = clip_settings(config, data.family, world.device)
    return PackedRows(samples, settings, data.video_token_id)
