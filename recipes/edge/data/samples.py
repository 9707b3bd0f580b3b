"""A sample whose every token is planned from metadata, its pixels still on disk."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fastslow import (
    FrameSchedule,
    Grid,
    Span,
    VideoSpan,
    count_tokens,
    encoded_grids,
    merged_stride,
    scale_fast_frames,
)
from fastslow.grids import Mode
from fastslow.layouts import Attention
from fastslow.qwen2_vl import (
    Family,
    clip_grid,
    encode_conversation,
    place_clip,
    place_image,
)
from recipes.config import Config
from recipes.edge.data.headers import Clip
from recipes.edge.data.index import Sample
from recipes.edge.media.video import VideoInfo, sample_frame_indices
from recipes.settings.strategies import schedule_frames


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How a clip becomes tokens.

    Attributes:
        family: How pixels become patches, and how the backbone tells the time.
        max_frames: Raw frames sampled from a clip at most.
        video_fps: Raw frames sampled from each second; 0 spreads ``max_frames`` over
            the clip, whatever its length.
        add_time_instruction: Whether the text after a clip says how long it is, and
            when its frames were taken.
        strategy: Which frames are slow.
        slow_ratio: Share of slow frames.
        patch_stride: Pooling stride of slow frames, in patches; fast frames use twice
            that.
        pool_mode: How the tokens of a window become one.
        fast_scale: How many times smaller fast frames are encoded along each side.
        attention: Whether the tokens of a frame share one rank.
        capacity: Tokens of a packed row at most.
        row_buckets: Lengths at most that rows are padded to, each a multiple of 128
            tokens; 0 pads no row.
    """

    family: Family
    max_frames: int
    video_fps: float = 0.0
    add_time_instruction: bool = False
    strategy: str
    slow_ratio: float
    patch_stride: int
    pool_mode: Mode = "average"
    fast_scale: int
    attention: Attention
    capacity: int
    row_buckets: int


def clip_settings(
    config: Config, family: Family, *, pad_rows: bool = False
) -> ClipSettings:
    """Gather what turns a clip into tokens.

    Args:
        config: The settings of a run.
        family: What the model is.
        pad_rows: Whether rows get one of few lengths, as they should on a GPU.

    Returns:
        The settings of clips.
    """
    geometry = replace(
        family.geometry,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        grid_multiple=config.fast_scale,
    )
    return ClipSettings(
        family=replace(family, geometry=geometry),
        max_frames=config.max_frames_num,
        video_fps=config.video_fps,
        add_time_instruction=config.add_time_instruction,
        strategy=config.frame_sampling_strategy,
        slow_ratio=config.slow_frame_ratio,
        patch_stride=config.mm_spatial_pool_stride,
        pool_mode=config.mm_spatial_pool_mode,
        fast_scale=config.fast_scale,
        attention=config.attention,
        capacity=config.tokens_per_row,
        row_buckets=4 if pad_rows else 0,
    )


@dataclass(frozen=True, kw_only=True)
class PlannedClip:
    """What will be decoded of a clip.

    Attributes:
        clip: Where it is.
        frame_indices: Raw frames to decode.
        span: The tokens that they become.
    """

    clip: Clip
    frame_indices: tuple[int, ...]
    span: VideoSpan


@dataclass(frozen=True, kw_only=True)
class PlannedSample:
    """A sample whose every token is known, its pixels still on disk.

    Attributes:
        sample: Where it comes from.
        clips: What will be decoded, in order.
        spans: Its text and its clips.
        num_tokens: Its length in a packed row.
    """

    sample: Sample
    clips: tuple[PlannedClip, ...]
    spans: tuple[Span, ...]
    num_tokens: int


def plan_sample(
    sample: Sample, settings: ClipSettings, tokenizer: PreTrainedTokenizerBase
) -> PlannedSample:
    """Plan every token of a sample from the headers of its clips.

    Args:
        sample: A conversation about clips.
        settings: How a clip becomes tokens.
        tokenizer: The model's.

    Returns:
        The plan.

    Raises:
        ValueError: If the sample does not fit a row, or its text has no place in the
            chat format.
    """
    planned, placed, said = [], [], list[str]()
    for clip in sample.clips:
        indices = choose_frames(clip, settings)
        seconds = clip.info.seconds_at(indices)
        size = clip.info.height, clip.info.width
        if clip.kind == "image":
            place = place_image(clip_grid(1, *size, settings.family.geometry)[1])
        else:
            grid, schedule = schedule_clip(len(indices), size, settings)
            length = clip.info.length
            place = place_clip(
                grid,
                schedule,
                seconds,
                family=settings.family,
                encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
                sampled_fps=len(indices) / length if length else None,
            )
            wanted = settings.add_time_instruction
            said.append(f"\n{time_instruction(clip, seconds)}" if wanted else "")
        placed.append(place)
        planned.append(PlannedClip(clip=clip, frame_indices=indices, span=place.span))
    turns = list(_turns(sample, said))
    try:
        spans = encode_conversation(turns, placed, tokenizer)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the turns: {error}") from error
    num_tokens = count_tokens(spans)
    if num_tokens > settings.capacity:
        raise ValueError(
            f"the sample has {num_tokens} tokens; a row holds {settings.capacity}, "
            "which is tokens_per_row"
        )
    return PlannedSample(
        sample=sample, clips=tuple(planned), spans=spans, num_tokens=num_tokens
    )


def choose_frames(clip: Clip, settings: ClipSettings) -> tuple[int, ...]:
    """Choose the raw frames of a clip; of a picture that moves, the first.

    With a rate, the first frame of every ``1 / video_fps`` seconds is taken; where that
    gives too many, they are thinned out evenly.

    Args:
        clip: A video or a picture.
        settings: How many frames there may be, and how dense.

    Returns:
        Strictly increasing indices, at most ``max_frames`` of them.

    Laws:
        still: a picture is one frame
        dense: with room for all, no two frames are of the same ``1 / video_fps``
            seconds, and none of these that has a frame is left out
        bounded: there are never more than ``max_frames``
    """
    if clip.kind == "image":
        return (0,)
    wanted: Sequence[int] = range(clip.info.num_frames)
    if settings.video_fps:
        wanted = _first_of_each(clip.info, settings.video_fps)
    chosen = sample_frame_indices(len(wanted), settings.max_frames)
    return tuple(wanted[number] for number in chosen)


def _first_of_each(info: VideoInfo, rate: float) -> list[int]:
    """Give the first frame of every ``1 / rate`` seconds that have one."""
    even = np.arange(info.num_frames) / info.fps
    seconds = np.array(info.seconds) if info.seconds else even
    parts = np.floor(seconds * rate + 1e-6)
    return np.flatnonzero(np.diff(parts, prepend=-1)).tolist()


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
    frames, grid = clip_grid(num_frames, *size, geometry)
    stride = merged_stride(settings.patch_stride, merge_size=geometry.merge_size)
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


def tower_tokens(spans: Sequence[Span]) -> int:
    """Count the merged tokens that the tower gives for a sample, before any pooling."""
    clips = (span for span in spans if isinstance(span, VideoSpan))
    grids = (grid for c in clips for grid in encoded_grids(c.grid, c.schedule))
    return sum(map(prod, grids))


def time_instruction(clip: Clip, seconds: Sequence[float]) -> str:
    """Say in words how long a clip is, and when its frames were taken."""
    times = ", ".join(f"{each:.2f}" for each in seconds)
    return (
        f"The video is {clip.info.length:.2f} seconds long. You see "
        f"{len(seconds)} of its frames, taken at these seconds: {times}."
    )


def _turns(sample: Sample, said: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give a sample's turns, with what is said of each video on a line after it."""
    waiting = iter(said)

    def show(found: re.Match[str]) -> str:
        about = next(waiting, "")
        return f"<video>{about}" + ("\n" if about and found[1] else "")

    for turn in sample.turns:
        yield turn.role, re.sub(r"<video>(?=(\S?))", show, turn.text)
