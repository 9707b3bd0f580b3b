"""Laws of ``fastslow.positions``."""

from dataclasses import astuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    FrameSchedule,
    Grid,
    TextSpan,
    VideoSpan,
    after_video,
    build_layout,
    kernel_schedule,
    repeat_strides,
    schedule_from_strides,
    tokens_per_frame,
    video_positions,
)
from fastslow.positions import AfterVideo
from fastslow.testing import reference
from fastslow.testing import strategies as fst

starts = st.integers(-4, 50)


@given(fst.grids(), st.integers(1, 6), starts)
def test_video_positions__stride_one(grid: Grid, num_frames: int, start: int) -> None:
    height, width = grid
    expected = [
        (start + time, start + row, start + column)
        for time in range(num_frames)
        for row in range(height)
        for column in range(width)
    ]
    positions = video_positions(grid, repeat_strides(num_frames, (1,)), start=start)
    assert list(map(tuple, positions.T.tolist())) == expected


def windows_of(clip: VideoSpan) -> list[tuple[range, list[Grid]]]:
    """List frames and cells of every token of a clip."""
    _, frames, edge, _ = astuple(clip.schedule)
    return [
        (range(*frame[:2]), cells)
        for frame in frames
        for cells in reference.window_cells(clip.grid, frame, edge)
    ]


@given(fst.video_spans(max_side=9, max_stride=8))
@example(VideoSpan(grid=(4, 4), schedule=repeat_strides(1, (4,))))
@example(VideoSpan(grid=(5, 5), schedule=repeat_strides(1, (3,))))
def test_video_positions__inside_window(clip: VideoSpan) -> None:
    positions = video_positions(clip.grid, clip.schedule).T.tolist()
    for (time, *cell), (times, cells) in zip(positions, windows_of(clip), strict=True):
        assert time in times
        assert tuple(cell) in cells


@given(fst.video_spans(max_side=9, max_stride=8, max_frames=6))
@example(VideoSpan(grid=(4, 4), schedule=kernel_schedule(4, (4, 4, 3))))
def test_video_positions__centred(clip: VideoSpan) -> None:
    positions = video_positions(clip.grid, clip.schedule).T.tolist()
    for position, (times, cells) in zip(positions, windows_of(clip), strict=True):
        for place, axis in zip(
            position, (times, *zip(*cells, strict=True)), strict=True
        ):
            before = sum(cell < place for cell in set(axis))
            after = sum(cell > place for cell in set(axis))
            assert after - before in {0, 1}


@given(fst.video_spans(), starts)
def test_video_positions__translation(clip: VideoSpan, start: int) -> None:
    moved = video_positions(clip.grid, clip.schedule, start=start)
    assert torch.equal(moved, video_positions(clip.grid, clip.schedule) + start)


@given(fst.video_spans(placed=True), starts)
def test_video_positions__times_looked_up(clip: VideoSpan, start: int) -> None:
    times = clip.times or tuple(range(clip.schedule.num_frames))
    frames = video_positions(clip.grid, clip.schedule)
    moved = video_positions(clip.grid, clip.schedule, start=start, times=times)
    assert moved[0].tolist() == [start + times[frame] for frame in frames[0]]
    assert torch.equal(moved[1:], frames[1:] + start)


def test_video_positions_counts_the_times() -> None:
    with pytest.raises(ValueError) as error:
        video_positions((2, 2), repeat_strides(3, (1,)), times=(0, 1))
    assert str(error.value) == "times has 2 entries but the clip has 3 frames"


@given(fst.grids(), fst.plain_schedules(max_stride=8))
def test_video_positions__lengths(grid: Grid, schedule: FrameSchedule) -> None:
    times = video_positions(grid, schedule)[0]
    counts = torch.bincount(times, minlength=schedule.num_frames).tolist()
    assert counts == list(tokens_per_frame(grid, schedule))
    assert times.tolist() == sorted(times.tolist())


@given(fst.grids(), fst.stride_lists(min_size=3, max_size=3), fst.after_video_rules())
def test_after_video__independent_of_strides(
    grid: Grid, strides: list[int], rule: AfterVideo
) -> None:
    text = TextSpan(token_ids=(5,))
    places = []
    for chosen in (tuple(strides), (1, 1, 1)):
        layout = build_layout(
            [
                [
                    text,
                    VideoSpan(grid=grid, schedule=schedule_from_strides(chosen)),
                    text,
                ]
            ],
            video_token_id=fst.VIDEO_TOKEN_ID,
            after_video_rule=rule,
        )
        places.append(layout.position_ids[1:, -1].tolist())
    assert places[0] == places[1] == [1 + after_video(grid, 3, rule=rule)] * 3


@given(fst.grids(), fst.stride_lists(max_size=9), starts)
@example((2, 3), [1] * 8, 0)
@example((2, 6), [1], 0)
@example((6, 2), [1], 0)
def test_after_video__clears_video(grid: Grid, strides: list[int], start: int) -> None:
    text = start + after_video(grid, len(strides))
    schedule = schedule_from_strides(strides)
    unpooled = video_positions(grid, repeat_strides(len(strides), (1,)), start=start)
    assert video_positions(grid, schedule, start=start).max() < text
    assert text == unpooled.max() + 1


@given(fst.grids(), st.integers(1, 9))
def test_the_spatial_rule_looks_at_height_and_width_alone(
    grid: Grid, num_frames: int
) -> None:
    unpooled = video_positions(grid, repeat_strides(num_frames, (1,)))[1:]
    assert after_video(grid, num_frames, rule="spatial_axes") == unpooled.max() + 1


def test_a_schedule_without_frames_has_no_place() -> None:
    with pytest.raises(ValueError) as error:
        video_positions((2, 2), FrameSchedule(num_frames=1, frames=()))
    assert str(error.value) == (
        "the schedule keeps no frame; a clip has at least 1 frame"
    )
