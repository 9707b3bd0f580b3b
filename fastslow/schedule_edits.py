"""Schedules made of schedules: frames chosen, tokens dropped, streams put together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from fastslow._shapes import check_word, entries, flags, positive, whole_number
from fastslow.frames import FrameSchedule

Order = Literal["stream", "time"]


def select_frames(schedule: FrameSchedule, frames: Sequence[int]) -> FrameSchedule:
    """Keep some of a schedule's pooled frames, in the order given.

    Args:
        schedule: The schedule.
        frames: Numbers of the pooled frames to keep; a number may stand here more than
            once.

    Returns:
        The schedule of those frames; the clip stays as long as it was.

    Raises:
        ValueError: If a frame does not exist, or is told by whether it is kept instead
            of by its number.

    Laws:
        chosen: its pooled frames are those numbered, in that order: ``select_frames(s,
            i).frames == [s.frames[j] for j in i]``
        identity: all numbers in order change nothing: ``select_frames(s, range(n)) ==
            s``

    Example:
        >>> from fastslow import repeat_strides
        >>> clip = repeat_strides(5, (2,))
        >>> halves = select_frames(clip, [i * 5 // 2 for i in range(2)])
        >>> [frame.start for frame in halves.frames]
        [0, 2]
    """
    numbers = [
        _frame_number(place, entries(frame))
        for place, frame in enumerate(entries(frames))
    ]
    if any(not 0 <= frame < len(schedule.frames) for frame in numbers):
        raise ValueError(
            f"frames lies between {min(numbers)} and {max(numbers)}; the schedule has "
            f"{len(schedule.frames)} frames, counted from 0"
        )
    return replace(schedule, frames=tuple(schedule.frames[frame] for frame in numbers))


def keep_tokens(
    schedule: FrameSchedule, keep: Sequence[Sequence[bool] | None]
) -> FrameSchedule:
    """Drop single tokens of pooled frames, as codecs and difference rules ask.

    Args:
        schedule: The schedule.
        keep: For each pooled frame, which of its tokens remain, in raster order of its
            windows on the clip's grid; at least one. None keeps all.

    Returns:
        The schedule with those masks in place of any it had.

    Raises:
        ValueError: If there is not one entry per frame, or a frame keeps nothing.

    Laws:
        counts: each frame keeps as many tokens as its mask marks:
            ``tokens_per_frame(grid, kept)[t] == mask[t].sum()``
        positions: a token that remains stays where it was: ``positions(kept) ==
            positions(s)[mask]``

    Example:
        >>> from fastslow import repeat_strides, tokens_per_frame
        >>> whole = repeat_strides(2, (1,))
        >>> clip = keep_tokens(whole, [None, [True, False, True, True]])
        >>> tokens_per_frame((2, 2), clip)
        (4, 3)

    References:
        Zhang et al., "VideoLLaMA 3" (arXiv:2501.13106), section 2: tokens that differ
        from the frame before.
    """
    masks, frames = list(entries(keep)), schedule.frames
    if len(masks) != len(frames):
        raise ValueError(
            f"keep has {len(masks)} frames but the schedule has {len(frames)}; each "
            "needs one entry"
        )
    kept = (
        None if mask is None else flags(f"keep[{number}]", mask)
        for number, mask in enumerate(masks)
    )
    return replace(
        schedule,
        frames=tuple(
            replace(frame, keep=mask) for frame, mask in zip(frames, kept, strict=True)
        ),
    )


def scale_fast_frames(schedule: FrameSchedule, scale: int) -> FrameSchedule:
    """Encode the frames that no slow frame reads on a coarser grid.

    The vision tower then spends ``scale ** 2`` times less on them. They keep as many
    tokens as before, since strides count cells of the clip's own grid.

    Args:
        schedule: The schedule.
        scale: How many times coarser along each side, at least 1; it has to divide
            both sides of the clip's grid, and best the strides of fast frames too.

    Returns:
        The schedule with those scales in place of any it had.

    Raises:
        ValueError: If ``scale`` is no whole number from 1 on.

    Laws:
        tokens: every pooled frame keeps as many tokens, at the same places:
            ``tokens_per_frame(grid, scaled) == tokens_per_frame(grid, s)``
        slow_untouched: a frame has scale 1 where a slow frame reads it, else ``scale``:
            ``scales[t] == (1 if a slow frame reads t else scale)``
        averages: where fast strides are multiples of ``scale``, averaging a clip whose
            fast frames are averaged already is averaging the clip: ``pool(pool(x,
            scale), stride / scale) == pool(x, stride)``

    Example:
        >>> from fastslow import build_schedule
        >>> scale_fast_frames(build_schedule(4), 2).scales
        (1, 2, 1, 2)
    """
    scale = positive("scale", scale)
    slow = {
        frame
        for pooled in schedule.frames
        if pooled.is_slow
        for frame in range(pooled.start, pooled.stop)
    }
    scales = (1 if t in slow else scale for t in range(schedule.num_frames))
    return replace(schedule, scales=tuple(scales))


def merge_streams(
    streams: Sequence[FrameSchedule], *, order: Order = "stream"
) -> FrameSchedule:
    """Read one clip through several schedules, which may overlap.

    Args:
        streams: Schedules of the same clip, at least one.
        order: ``stream`` puts one schedule after the other; ``time`` sorts their
            pooled frames by the last frame that each reads, earlier schedules first
            where these are equal.

    Returns:
        One schedule with all of their pooled frames, and the edge of those with a
        stride; a frame pooled to a grid has none.

    Raises:
        ValueError: If there is no stream, they differ in clip length, scales or the
            edge of their strides, or the order is unknown.

    Laws:
        keeps_all: no pooled frame is lost or added: ``Counter(merged.frames) ==
            Counter(a.frames + b.frames)``
        stream_order: ``stream`` is the streams end to end: ``merged.frames == a.frames
            + b.frames``
        time_order: under ``time`` no pooled frame reads beyond those after it, and each
            stream that was in order keeps its own

    Example:
        >>> from fastslow import repeat_strides, schedule_from_grids, select_frames
        >>> fast = schedule_from_grids([(4, 4)] * 6, is_slow=[False] * 6)
        >>> slow = select_frames(repeat_strides(6, (2,)), [0, 3])
        >>> print(merge_streams([slow, fast]))
        SS......  8 frames
        >>> print(merge_streams([slow, fast], order="time"))
        S...S...  8 frames

    References:
        Xu et al., "SlowFast-LLaVA" (arXiv:2407.15841), section 3: a slow stream of few
        frames before a fast stream of all.
    """
    check_word("order", order, Order)
    cut = [s for s in streams if any(frame.stride for frame in s.frames)]
    edges = {stream.edge for stream in cut or streams[:1]}
    clips = {(s.num_frames, s.scales or (1,) * s.num_frames) for s in streams}
    if len(clips) != 1 or len(edges) != 1:
        found = sorted(
            f"{kind.num_frames} frames with edge {kind.edge!r}"
            + (f" and scales {kind.scales}" if kind.scales else "")
            for kind in {replace(stream, frames=()) for stream in streams}
        )
        raise ValueError(
            f"streams describe {' and '.join(found) or 'nothing'}; all must describe "
            "the same clip"
        )
    frames = [frame for stream in streams for frame in stream.frames]
    if order == "time":
        frames.sort(key=lambda frame: frame.stop)
    return replace(streams[0], frames=tuple(frames), edge=edges.pop())


def _frame_number(place: int, frame: Any) -> int:
    """Give the number of a frame as an integer; raise where a flag stands for it."""
    if isinstance(frame, bool):
        raise ValueError(
            f"frames[{place}] is {frame}; it must be the number of a frame, as in "
            "[t for t, is_slow in enumerate(flags) if is_slow]"
        )
    return whole_number(f"frames[{place}]", frame)
