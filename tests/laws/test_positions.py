"""Laws of ``fastslow.positions``."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    Grid,
    TextSpan,
    VideoSpan,
    after_video,
    build_layout,
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
    positions = video_positions(grid, [1] * num_frames, start=start)
    assert list(map(tuple, positions.T.tolist())) == expected


@given(fst.grids(max_side=12), fst.stride_lists(max_stride=8))
@example((4, 4), [4])
@example((5, 5), [3])
def test_video_positions__inside_window(grid: Grid, strides: list[int]) -> None:
    positions = iter(video_positions(grid, strides).T.tolist())
    for time, stride in enumerate(strides):
        for cells in reference.window_cells(grid, stride):
            at, row, column = next(positions)
            assert at == time
            assert (row, column) in cells


@given(fst.grids(), fst.stride_lists(), starts)
def test_video_positions__translation(
    grid: Grid, strides: list[int], start: int
) -> None:
    moved = video_positions(grid, strides, start=start)
    assert torch.equal(moved, video_positions(grid, strides) + start)


@given(fst.grids(), fst.stride_lists(max_stride=8))
def test_video_positions__lengths(grid: Grid, strides: list[int]) -> None:
    times = video_positions(grid, strides)[0]
    counts = torch.bincount(times, minlength=len(strides)).tolist()
    assert counts == list(tokens_per_frame(grid, strides))
    assert times.tolist() == sorted(times.tolist())


@given(fst.grids(), fst.stride_lists(min_size=3, max_size=3), fst.after_video_rules())
def test_after_video__independent_of_strides(
    grid: Grid, strides: list[int], rule: AfterVideo
) -> None:
    text = TextSpan(token_ids=(5,))
    places = []
    for chosen in (tuple(strides), (1, 1, 1)):
        layout = build_layout(
            [[text, VideoSpan(grid=grid, strides=chosen), text]],
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
    unpooled = video_positions(grid, [1] * len(strides), start=start)
    assert video_positions(grid, strides, start=start).max() < text
    assert text == unpooled.max() + 1


@given(fst.grids(), st.integers(1, 9))
def test_the_spatial_rule_looks_at_height_and_width_alone(
    grid: Grid, num_frames: int
) -> None:
    unpooled = video_positions(grid, [1] * num_frames)[1:]
    assert after_video(grid, num_frames, rule="spatial_axes") == unpooled.max() + 1


@given(fst.grids(max_side=12), fst.stride_lists(max_stride=8))
def test_every_window_is_placed_at_its_middle(grid: Grid, strides: list[int]) -> None:
    expected = [
        [time, row, column]
        for time, stride in enumerate(strides)
        for row, column in reference.window_centres(grid, stride)
    ]
    positions = video_positions(grid, strides)
    assert positions.dtype == torch.int64
    assert positions.T.tolist() == expected


@pytest.mark.parametrize(("grid", "stride"), [((0, 2), 1), ((2, 0), 1), ((2, 2), 0)])
def test_sides_and_strides_are_at_least_1(grid: Grid, stride: int) -> None:
    with pytest.raises(ValueError) as error:
        video_positions(grid, [stride])
    assert str(error.value) == (
        f"grid is {grid} and stride is {stride}; all must be at least 1"
    )
