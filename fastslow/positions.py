"""M-RoPE positions of text and of pooled video tokens.

Qwen2-VL gives every token three coordinates: time, height and width. Text moves along
all three at once; a video token stands where its frame and window are.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from fastslow._plans import booleans, integers
from fastslow._shapes import check_word, whole_grid, whole_number, whole_numbers
from fastslow._typing import Grid
from fastslow.frames import FrameSchedule, PooledFrame, frame_kinds, frame_windows
from fastslow.grids import Edge
from fastslow.ragged import lengths_from_cu_seqlens, pack_ragged, select_ragged

AfterVideo = Literal["all_axes", "spatial_axes"]


def video_positions(
    grid: Grid,
    schedule: FrameSchedule,
    *,
    start: int = 0,
    times: Sequence[int] | None = None,
) -> Int[Tensor, "3 tokens"]:
    """Place the pooled tokens of a clip on its unpooled grid.

    A token takes the coordinates of the centre of its window, rounded down, so slow
    and fast frames agree about where things are. Time counts frames unless ``times``
    says otherwise; a window of several frames stands at the middle one, rounded down
    too.

    Args:
        grid: Height and width of a frame before pooling, in merged tokens.
        schedule: The clip's schedule, in the same tokens.
        start: Position at which the clip begins, on all three axes.
        times: Position in time of each frame, counted from there.

    Returns:
        Rows time, height and width; pooled frames in order, each in raster order.

    Raises:
        ValueError: As ``frame_windows`` does, if the schedule keeps no frame, or
            ``times`` has not one whole number per frame, from 0 on, or ``start`` is no
            whole number.

    Laws:
        stride_one: stride 1 gives Qwen2-VL's own positions
        inside_window: every coordinate lies inside the window that it stands for:
            ``window.start <= p < window.stop``
        centred: at most half a cell lies between it and the middle, towards the origin:
            ``0 <= middle - p <= 1/2``
        translation: ``start`` is added to every coordinate: ``positions(start=a) ==
            positions(start=0) + a``
        lengths: as many tokens per frame as ``tokens_per_frame`` counts: ``#{p of frame
            t} == tokens_per_frame(grid, s)[t]``
        times_looked_up: with ``times``, time is looked up there and nothing else moves:
            ``p[0] == start + times[frame]``

    Example:
        >>> from fastslow import schedule_from_strides
        >>> video_positions((4, 4), schedule_from_strides([2, 4]))
        tensor([[0, 0, 0, 0, 1],
                [0, 0, 2, 2, 1],
                [0, 2, 0, 2, 1]])

    References:
        Wang et al., "Qwen2-VL" (arXiv:2409.12191), section 2.1: multimodal rotary
        position embedding.
    """
    if not schedule.frames:
        raise ValueError("the schedule keeps no frame; a clip has at least 1 frame")
    if times is None:
        times = range(schedule.num_frames)
    if len(times) != schedule.num_frames:
        raise ValueError(
            f"times has {len(times)} entries but the clip has {schedule.num_frames} "
            "frames"
        )
    times = whole_numbers("times", times)
    kinds, kind_of = frame_kinds(schedule)
    planes = pack_ragged([_frame_plane(grid, kind, schedule.edge) for kind in kinds])
    plane = select_ragged(planes, integers(kind_of))
    middles = integers(
        [times[_middle(frame.start, frame.stop)] for frame in schedule.frames]
    )
    time = torch.repeat_interleave(middles, lengths_from_cu_seqlens(plane.cu_seqlens))
    return torch.cat([time[None], plane.values.T]) + whole_number("start", start)


def after_video(grid: Grid, num_frames: int, *, rule: AfterVideo = "all_axes") -> int:
    """Tell how far a clip moves the position of the text that follows it.

    Args:
        grid: Height and width of a frame before pooling, in merged tokens.
        num_frames: Frames of the clip, or positions in time that it takes up.
        rule: ``all_axes``: past the largest coordinate of any axis, as the published
            weights were trained. ``spatial_axes``: past the largest of height and
            width, as transformers 5 does; later frames then overlap the text in time.

    Returns:
        Positions to add to the start of the clip.

    Raises:
        ValueError: If ``rule`` is unknown, or a number is not whole.

    Laws:
        independent_of_strides: pooling never moves the text: ``after(s) == after(stride
            1)``
        clears_video: under ``all_axes`` no video coordinate reaches the text:
            ``max(positions) < after_video(grid, T)``

    Example:
        >>> after_video((4, 6), 8), after_video((4, 6), 8, rule="spatial_axes")
        (8, 6)
    """
    check_word("rule", rule, AfterVideo)
    grid, num_frames = whole_grid(grid), whole_number("num_frames", num_frames)
    return max(*grid, num_frames) if rule == "all_axes" else max(grid)


def _frame_plane(grid: Grid, frame: PooledFrame, edge: Edge) -> Tensor:
    """Give height and width of the centre of every window that a frame keeps."""
    sides = frame_windows(grid, frame, edge=edge)
    plane = torch.cartesian_prod(
        *(integers([_middle(*window) for window in side]) for side in sides)
    )
    return plane if frame.keep is None else plane[booleans(frame.keep)]


def _middle(first: int, end: int) -> int:
    """Give the middle of a half-open run, rounded down."""
    return (first + end - 1) // 2
