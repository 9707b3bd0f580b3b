"""Grids, strides and schedules of clips."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from fastslow._typing import Grid
from fastslow.frames import FrameSchedule, PooledFrame, frame_windows
from fastslow.grids import Edge
from fastslow.schedules import (
    Strategy,
    build_schedule,
    kernel_schedule,
    schedule_from_grids,
    schedule_from_strides,
)


def grids(*, min_side: int = 1, max_side: int = 6) -> st.SearchStrategy[Grid]:
    """Draw the height and width of a frame, in tokens."""
    sides = st.integers(min_side, max_side)
    return st.tuples(sides, sides)


def strides(*, max_stride: int = 5) -> st.SearchStrategy[int]:
    """Draw a pooling stride, in tokens; it may be larger than the grid."""
    return st.integers(1, max_stride)


def stride_lists(
    *, min_size: int = 1, max_size: int = 5, max_stride: int = 5
) -> st.SearchStrategy[list[int]]:
    """Draw one stride for each frame of a clip."""
    return st.lists(
        strides(max_stride=max_stride), min_size=min_size, max_size=max_size
    )


def slow_ratios(*, max_denominator: int = 12) -> st.SearchStrategy[Fraction]:
    """Draw an exact share of slow frames, 0 and 1 included."""
    return st.fractions(0, 1, max_denominator=max_denominator)


def frame_strategies() -> st.SearchStrategy[Strategy]:
    """Draw the name of a way to choose slow frames."""
    return st.sampled_from(("interleave", "first_slow", "last_slow", "uniform"))


def ratio_schedules(
    *, max_frames: int = 12, max_stride: int = 5
) -> st.SearchStrategy[FrameSchedule]:
    """Draw a schedule that ``build_schedule`` makes."""
    stride_pairs = st.tuples(
        strides(max_stride=max_stride), strides(max_stride=max_stride)
    )
    return st.builds(
        lambda num_frames, strategy, ratio, pair: build_schedule(
            num_frames,
            strategy=strategy,
            slow_ratio=ratio,
            slow_stride=min(pair),
            fast_stride=max(pair),
        ),
        st.integers(1, max_frames),
        frame_strategies(),
        slow_ratios(),
        stride_pairs,
    )


def kernel_schedules(
    *, max_frames: int = 8, max_stride: int = 4
) -> st.SearchStrategy[FrameSchedule]:
    """Draw a schedule of one kernel of frames, rows and columns, edges kept."""
    kernels = st.tuples(*[st.integers(1, max_stride)] * 3)
    return st.builds(
        kernel_schedule, st.integers(1, max_frames), kernels, is_slow=st.booleans()
    )


def schedules(
    *, max_frames: int = 6, max_stride: int = 5
) -> st.SearchStrategy[FrameSchedule]:
    """Draw any schedule that suits every grid, see ``grid_schedules`` for one grid.

    Ratios, strides, target grids and kernels, and pooled frames that overlap, repeat
    and stand in any order; edges are kept, and so are all tokens.
    """
    sizes = {"max_frames": max_frames, "max_stride": max_stride}
    targets = st.lists(grids(max_side=max_stride), min_size=1, max_size=max_frames)
    return st.one_of(
        ratio_schedules(**sizes),
        plain_schedules(**sizes),
        kernel_schedules(**sizes),
        targets.map(schedule_from_grids),
        st.integers(1, max_frames).flatmap(
            lambda num_frames: st.builds(
                FrameSchedule,
                num_frames=st.just(num_frames),
                frames=st.lists(
                    _pooled_frames(num_frames, max_stride), min_size=1, max_size=4
                ).map(tuple),
            )
        ),
    )


def plain_schedules(
    *, max_frames: int = 5, max_stride: int = 5
) -> st.SearchStrategy[FrameSchedule]:
    """Draw one stride for each frame, edges kept."""
    return stride_lists(max_size=max_frames, max_stride=max_stride).map(
        schedule_from_strides
    )


@st.composite
def grid_schedules(
    draw: Callable[..., Any], grid: Grid, *, max_frames: int = 4, max_stride: int = 5
) -> FrameSchedule:
    """Draw any schedule of clips of one grid, the empty one included.

    Its pooled frames may overlap, repeat, stand in any order and read several frames;
    windows are given by stride or by count, edges are kept, dropped or not there, and
    some tokens may be dropped. Frames may be encoded on coarser grids.
    """
    num_frames = draw(st.integers(1, max_frames))
    divisors = [s for s in range(1, min(grid) + 1) if not grid[0] % s + grid[1] % s]
    scales = st.tuples(*[st.sampled_from(divisors)] * num_frames)
    edge: Edge = draw(st.sampled_from(("ceil", "floor", "error")))
    fits: Callable[[int, int], bool] = {
        "ceil": lambda side, stride: True,
        "floor": lambda side, stride: stride <= side,
        "error": lambda side, stride: side % stride == 0,
    }[edge]
    heights, widths = (
        st.sampled_from([s for s in range(1, max_stride + 1) if fits(side, s)])
        for side in grid
    )
    pooled = _pooled_frames(num_frames, max_stride, st.tuples(heights, widths))
    drawn = draw(st.lists(pooled, max_size=4))
    frames = tuple(_drop_some(draw, grid, frame, edge) for frame in drawn)
    return FrameSchedule(
        num_frames=num_frames,
        frames=frames,
        edge=edge,
        scales=draw(st.none() | scales),
    )


def scheduled_clips(
    *, max_clips: int = 3, max_side: int = 4, max_frames: int = 3
) -> st.SearchStrategy[list[tuple[Grid, FrameSchedule]]]:
    """Draw clips, each a grid and any schedule of it."""
    clips = grids(max_side=max_side).flatmap(
        lambda grid: st.tuples(
            st.just(grid), grid_schedules(grid, max_frames=max_frames)
        )
    )
    return st.lists(clips, max_size=max_clips)


def plain_clips(
    *, max_clips: int = 3, max_side: int = 5
) -> st.SearchStrategy[list[tuple[Grid, FrameSchedule]]]:
    """Draw clips whose frames are pooled once each, edges kept; at least one clip."""
    clip = st.tuples(grids(max_side=max_side), plain_schedules())
    return st.lists(clip, min_size=1, max_size=max_clips)


def _pooled_frames(
    num_frames: int,
    max_side: int,
    stride_pairs: st.SearchStrategy[tuple[int, int]] | None = None,
) -> st.SearchStrategy[PooledFrame]:
    """Draw a pooled frame of a clip, with windows by stride or by count."""
    pairs = grids(max_side=max_side) if stride_pairs is None else stride_pairs
    by_stride = st.tuples(pairs, st.none())
    by_count = st.tuples(st.none(), grids(max_side=max_side))
    return st.builds(
        lambda first, last, sizes, slow: PooledFrame(
            start=min(first, last),
            stop=max(first, last) + 1,
            stride=sizes[0],
            grid=sizes[1],
            is_slow=slow,
        ),
        st.integers(0, num_frames - 1),
        st.integers(0, num_frames - 1),
        st.one_of(by_stride, by_count),
        st.booleans(),
    )


def _drop_some(
    draw: Callable[..., Any], grid: Grid, frame: PooledFrame, edge: Edge
) -> PooledFrame:
    """Give the frame with a drawn mask of its tokens, or with all of them."""
    height, width = frame_windows(grid, frame, edge=edge)
    windows = len(height) * len(width)
    masks = st.lists(st.booleans(), min_size=windows, max_size=windows)
    return replace(frame, keep=draw(st.none() | masks.filter(any).map(tuple)))
