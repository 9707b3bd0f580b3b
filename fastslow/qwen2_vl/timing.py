"""When each frame was taken, said in the way that a family understands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite
from typing import Any

import torch

from fastslow._typing import Grid
from fastslow.frames import FrameSchedule
from fastslow.grids import temporal_patches
from fastslow.qwen2_vl.families import Family
from fastslow.schedules import repeat_strides
from fastslow.spans import VideoSpan

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
"""What stands around a clip, or around each frame of a clip that tells its times."""

VIDEO_TOKEN = "<|video_pad|>"
"""What stands for a video token; its id is ``video_token_id``."""


@dataclass(frozen=True, kw_only=True)
class PlacedClip:
    """A clip that knows its times.

    Attributes:
        span: The clip.
        opening: Text right before it, for ``encode_conversation``.
    """

    span: VideoSpan
    opening: str


def place_clip(
    grid: Grid,
    schedule: FrameSchedule,
    seconds: Sequence[float],
    *,
    family: Family,
    encode: Callable[[str], Sequence[int]],
    sampled_fps: float | None = None,
) -> PlacedClip:
    """Lay out a clip as the backbone's family tells the time.

    Qwen2-VL counts frames. Qwen2.5-VL moves positions on by the seconds between frames,
    all alike. Qwen3-VL reads the time as text before each frame, and each frame is
    placed anew.

    Args:
        grid: Height and width of every frame before pooling, in merged tokens.
        schedule: How its frames are pooled, in the same tokens.
        seconds: When each raw frame that was sampled was taken, in order.
        family: The backbone's family.
        encode: Gives a text's token ids, special tokens recognised, none added.
        sampled_fps: Raw frames that were sampled for each second of the whole video, as
            transformers' ``VideoMetadata`` counts them; by default as many as
            ``seconds`` are apart. Qwen2.5-VL was trained on the former: frames from the
            first to the last are further apart than the video's share of them is long.

    Returns:
        The clip, and the text that opens it.

    Raises:
        ValueError: If there are not as many raw frames as the schedule's frames hold,
            ``seconds`` fall or are not finite, ``sampled_fps`` is not finite and above
            0, or as ``temporal_patches`` and ``frame_times`` do.

    Laws:
        same_frames: grid and schedule stay what they are: ``(span.grid, span.schedule)
            == (grid, schedule)``
        matches_transformers: positions and ids are those of transformers' own processor
            and model, given its ``sampled_fps``

    Example:
        >>> from fastslow import repeat_strides
        >>> told = Family(tells_time=True)
        >>> schedule, seconds = repeat_strides(2, (1,)), [0.0, 0.5, 1.0, 1.5]
        >>> clip = place_clip((2, 2), schedule, seconds, family=told, encode=str.encode)
        >>> clip.opening
        '<0.2 seconds><|vision_start|>'
        >>> bytes(clip.span.between[0])
        b'<|vision_end|><1.2 seconds><|vision_start|>'
    """
    raw_frames = family.geometry.temporal_patch_size
    frames = temporal_patches(len(seconds), temporal_patch_size=raw_frames)
    if frames != schedule.num_frames:
        raise ValueError(
            f"seconds holds {len(seconds)} raw frames, which make {frames} frames, but "
            f"the schedule is for {schedule.num_frames}"
        )
    _check_seconds(seconds, sampled_fps)
    if family.tells_time:
        opening, *between = timestamp_texts(
            schedule, seconds, temporal_patch_size=raw_frames
        )
        span = VideoSpan(
            grid=grid,
            schedule=schedule,
            times=(0,) * frames,
            between=tuple(tuple(encode(text)) for text in between),
        )
        return PlacedClip(span=span, opening=opening)
    times: tuple[int, ...] = ()
    if family.tokens_per_second is not None:
        gap = (seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1)
        seconds_per_frame = gap * raw_frames
        if sampled_fps is not None:
            seconds_per_frame = raw_frames / sampled_fps
        times = frame_times(
            frames,
            seconds_per_frame=seconds_per_frame,
            tokens_per_second=family.tokens_per_second,
        )
    span = VideoSpan(grid=grid, schedule=schedule, times=times)
    return PlacedClip(span=span, opening=VISION_START)


def _check_seconds(seconds: Sequence[float], sampled_fps: float | None) -> None:
    """Raise unless times are finite and in order, and a rate is above 0."""
    falls = any(after < before for before, after in pairwise(seconds))
    if falls or not all(map(isfinite, seconds)):
        raise ValueError(
            f"seconds is {list(seconds)}; they must be finite and never fall"
        )
    if sampled_fps is not None and not 0 < sampled_fps < inf:
        raise ValueError(f"sampled_fps is {sampled_fps}; it must be finite, above 0")


def place_image(grid: Grid) -> PlacedClip:
    """Lay out a picture: one frame that is not pooled.

    Args:
        grid: Its height and width in merged tokens.

    Returns:
        The picture as a clip, and the text that opens it, which tells no time.

    Laws:
        whole: every merged token is kept: ``tokens_per_frame(span.grid, span.schedule)
            == (height * width,)``

    Example:
        >>> place_image((4, 6)).span.schedule.strides
        (1,)
    """
    span = VideoSpan(grid=grid, schedule=repeat_strides(1, (1,)))
    return PlacedClip(span=span, opening=VISION_START)


def timestamp_texts(
    schedule: FrameSchedule, seconds: Sequence[float], *, temporal_patch_size: int = 2
) -> tuple[str, ...]:
    """Write the text that Qwen3-VL reads before each frame.

    A pooled frame was taken in the middle between the first and the last raw frame
    that it reads; the last raw frame is repeated where they do not divide evenly.

    Args:
        schedule: The clip's schedule.
        seconds: When each raw frame that was sampled was taken, in order.
        temporal_patch_size: Raw frames merged into one.

    Returns:
        One text per pooled frame; all but the first begin with the end of the frame
        before.

    Laws:
        matches_transformers: equals the text of transformers' own processor

    Example:
        >>> from fastslow import repeat_strides
        >>> timestamp_texts(repeat_strides(1, (1,)), [2.0, 2.5])
        ('<2.2 seconds><|vision_start|>',)
    """
    last = len(seconds) - 1
    middles = [
        (
            seconds[frame.start * temporal_patch_size]
            + seconds[min(frame.stop * temporal_patch_size - 1, last)]
        )
        / 2
        for frame in schedule.frames
    ]
    texts = [f"<{middle:.1f} seconds>{VISION_START}" for middle in middles]
    return (*texts[:1], *(VISION_END + text for text in texts[1:]))


def frame_times(
    num_frames: int, *, seconds_per_frame: float, tokens_per_second: int
) -> tuple[int, ...]:
    """Place frames in time by the seconds between them, as Qwen2.5-VL does.

    Frame ``t`` stands at ``t * seconds_per_frame * tokens_per_second``, rounded down.
    The product is taken in single precision, because the published positions are.

    Args:
        num_frames: Frames of the clip, at least 1.
        seconds_per_frame: Seconds from one frame to the next; of raw frames, as many
            as a temporal patch holds.
        tokens_per_second: Positions in time of one second.

    Returns:
        ``times`` of a ``VideoSpan``.

    Raises:
        ValueError: If a frame would stand too far on for single precision.

    Laws:
        matches_transformers: equals the positions that transformers computes:
            ``times[t] == floor(t * seconds_per_frame * tokens_per_second)``

    Example:
        >>> frame_times(4, seconds_per_frame=2 / 3, tokens_per_second=2)
        (0, 1, 2, 4)
    """
    single: Any = {"dtype": torch.float32, "device": "cpu"}
    step = torch.tensor(seconds_per_frame, **single) * tokens_per_second
    times = torch.arange(num_frames, **single) * step
    if not times.isfinite().all():
        raise ValueError(
            f"seconds_per_frame is {seconds_per_frame}; {num_frames} frames must have "
            "finite positions"
        )
    return tuple(times.long().tolist())
