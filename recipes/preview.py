"""The dry run of a recipe: what the settings ask for, and whether it fits."""

from collections.abc import Sequence
from math import isqrt
from pathlib import Path

import torch
from transformers import AutoTokenizer

from fastslow import Span, TextSpan
from fastslow.qwen2_vl import family_of, place_clip
from recipes.config import Config
from recipes.data import clip_settings
from recipes.edge.dataset import read_samples
from recipes.edge.devices import find_device
from recipes.edge.dry_run import Plan, first_that_fits, fits, forecast, report
from recipes.edge.published import model_config
from recipes.edge.samples import ClipSettings, plan_samples, schedule_clip

CHARACTERS_PER_TOKEN = 3
"""How text is counted where the model's tokenizer is not at hand; English has four."""

MADE_UP_TEXT = (100, 50)
"""Tokens of question and answer of a sample that stands for data."""


def preview(config: Config) -> tuple[str, bool]:
    """Say what a run with these settings takes, and what to change if it is too much.

    Args:
        config: The settings.

    Returns:
        Lines of text, and whether the run fits the GPU.

    Raises:
        ValueError: If the GPU is unknown, or the data have no sample that can be used.
    """
    plan = Plan(
        shape=model_config(config.model_name_or_path),
        parallel=config.parallel,
        num_gpus=config.num_gpus,
        device=find_device(config.device),
        tokens_per_row=config.tokens_per_row,
        rows=config.rows_per_step,
        mfu=config.assumed_mfu,
        window=config.packing_window,
        next_frame=config.loss_weight > 0,
    )
    settings = clip_settings(config, family_of(plan.shape), torch.device("cuda"))
    if config.data_path is None:
        samples = [largest_sample(settings)] * config.packing_window
        about = "no data: as if every clip were as long and large as settings allow"
    else:
        samples, about = _samples_of(Path(config.data_path), config, settings)
    found = forecast(plan, samples)
    text = f"{'data':14} {about}\n{report(plan, found, samples[0])}"
    if fits(plan, found):
        return f"{text}\n{'verdict':14} it fits", True
    change = first_that_fits(plan, samples)
    if change is None:
        return f"{text}\n{'verdict':14} it does not fit, whatever is changed", False
    flags, smaller = change
    verdict = f"it does not fit; {flags} would, with {smaller.memory.total / 2**30:.2f}"
    return f"{text}\n{'verdict':14} {verdict}", False


def largest_sample(settings: ClipSettings) -> tuple[Span, ...]:
    """Make up a sample whose clip is as long and as large as the settings allow."""
    side = isqrt(settings.family.geometry.max_pixels)
    frames = settings.max_frames
    grid, schedule = schedule_clip(frames, (side, side), settings)
    clip = place_clip(
        grid,
        schedule,
        [float(frame) for frame in range(frames)],
        family=settings.family,
        encode=_count_characters,
    )
    question, answer = MADE_UP_TEXT
    return (
        TextSpan(token_ids=(0,) * question),
        clip.span,
        TextSpan(token_ids=(0,) * answer, trained=True),
    )


def _samples_of(
    path: Path, config: Config, settings: ClipSettings
) -> tuple[list[tuple[Span, ...]], str]:
    """Plan the samples of a data file from the headers of its clips."""
    samples, bad = read_samples(path)
    folder, encode = config.model_name_or_path, _count_characters
    about = f"text counted as a token for {CHARACTERS_PER_TOKEN} characters"
    if folder is not None and Path(folder).is_dir():
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def encode(text: str) -> Sequence[int]:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return ids

        about = "text counted by the model's tokenizer"
    planned, unplanned = plan_samples(samples, settings, encode)
    if not planned:
        reasons = "; ".join({sample.reason for sample in (*bad, *unplanned)})
        raise ValueError(f"{path} has no sample that can be used: {reasons}")
    unusable = len(bad) + len(unplanned)
    counts = f"{len(planned)} samples, {unusable} unusable"
    return [sample.spans for sample in planned], f"{counts}; {about}"


def _count_characters(text: str) -> Sequence[int]:
    """Stand in for a tokenizer."""
    return (0,) * -(-len(text) // CHARACTERS_PER_TOKEN)
