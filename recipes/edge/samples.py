"""Samples whose every token is planned from metadata, their pixels still on disk."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastslow import (
    FrameSchedule,
    Grid,
    Span,
    count_tokens,
    merged_grid,
    merged_stride,
    scale_fast_frames,
)
from fastslow.layouts import Attention
from fastslow.qwen2_vl import (
    Family,
    clip_grid,
    encode_conversation,
    place_clip,
)
from recipes.edge.dataset import BadSample, Sample
from recipes.edge.strategies import schedule_frames
from recipes.edge.video import (
    VideoError,
    probe_video,
    sample_frame_indices,
)


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How a clip becomes tokens.

    Attributes:
        family: How pixels become patches, and how the backbone tells the time.
        max_frames: Raw frames sampled from a clip at most.
        strategy: Which frames are slow.
        slow_ratio: Share of slow frames.
        slow_stride: Pooling stride of slow frames, in patches; fast frames use twice
            that.
        fast_scale: How many times smaller fast frames are encoded along each side.
        attention: Whether the tokens of a frame share one rank.
        capacity: Tokens of a packed row at most.
        row_buckets: Lengths at most that rows are padded to, each a multiple of 128
            tokens; 0 pads no row.
    """

    family: Family
    max_frames: int
    strategy: str
    slow_ratio: float
    slow_stride: int
    fast_scale: int
    attention: Attention
    capacity: int
    row_buckets: int


@dataclass(frozen=True, kw_only=True)
class PlannedSample:
    """A sample whose every token is known, its pixels still on disk.

    Attributes:
        sample: Where it comes from.
        frame_indices: Raw frames that will be decoded.
        schedule: Which of the frames that they make are slow.
        spans: Its text and its clip.
        num_tokens: Its length in a packed row.
    """

    sample: Sample
    frame_indices: tuple[int, ...]
    schedule: FrameSchedule
    spans: tuple[Span, ...]
    num_tokens: int


def plan_samples(
    samples: Sequence[Sample],
    settings: ClipSettings,
    encode: Callable[[str], Sequence[int]],
) -> tuple[list[PlannedSample], list[BadSample]]:
    """Read each clip's metadata and plan its tokens.

    Args:
        samples: Conversations about clips.
        settings: How a clip becomes tokens.
        encode: Gives a text's token ids.

    Returns:
        The samples that can be trained on, and those that cannot, each with its
        reason.
    """
    planned, bad = [], []
    for sample in samples:
        try:
            planned.append(_plan_sample(sample, settings, encode))
        except (VideoError, ValueError) as error:
            bad.append(unusable(sample, error))
    return planned, bad


def schedule_clip(
    num_frames: int, size: tuple[int, int], settings: ClipSettings
) -> tuple[Grid, FrameSchedule]:
    """Plan what becomes of a clip's frames.

    Args:
        num_frames: Raw frames that are sampled from it.
        size: Height and width of the video, in pixels.
        settings: How a clip becomes tokens.

    Returns:
        Merged grid of a frame, and the schedule.
    """
    geometry = settings.family.geometry
    frames, height, width = clip_grid(num_frames, *size, geometry)
    stride = merged_stride(settings.slow_stride, merge_size=geometry.merge_size)
    grid = merged_grid((height, width), merge_size=geometry.merge_size)
    schedule = schedule_frames(
        frames,
        grid=grid,
        strategy=settings.strategy,
        slow_ratio=settings.slow_ratio,
        slow_stride=stride,
        fast_stride=2 * stride,
    )
    if settings.fast_scale > 1:
        schedule = scale_fast_frames(schedule, settings.fast_scale)
    return grid, schedule


def unusable(sample: Sample, error: Exception) -> BadSample:
    """Name a sample whose clip cannot be used."""
    return BadSample(
        sample_id=sample.sample_id, source=str(sample.video), reason=str(error)
    )


def _plan_sample(
    sample: Sample, settings: ClipSettings, encode: Callable[[str], Sequence[int]]
) -> PlannedSample:
    """Plan one sample from its clip's metadata."""
    info = probe_video(sample.video)
    indices = sample_frame_indices(info.num_frames, settings.max_frames)
    grid, schedule = schedule_clip(len(indices), (info.height, info.width), settings)
    turns = [(turn.role, turn.text) for turn in sample.turns]
    seconds = [index / info.fps for index in indices]
    clip = place_clip(grid, schedule, seconds, family=settings.family, encode=encode)
    spans = encode_conversation(turns, clip.span, encode, opening=clip.opening)
    num_tokens = count_tokens(spans)
    if num_tokens > settings.capacity:
        raise ValueError(
            f"the sample has {num_tokens} tokens; a row holds {settings.capacity}"
        )
    return PlannedSample(
        sample=sample,
        frame_indices=indices,
        schedule=schedule,
        spans=spans,
        num_tokens=num_tokens,
    )


def fingerprint(samples: Sequence[PlannedSample]) -> str:
    """Sum up which samples there are, in which order and how long."""
    planned = [(each.sample.sample_id, each.num_tokens) for each in samples]
    return hashlib.sha256(repr(planned).encode()).hexdigest()
