"""Laws of ``fastslow.grids``."""

import inspect

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    Grid,
    merged_grid,
    merged_stride,
    pooled_grid,
    temporal_patches,
    window_bounds,
)
from fastslow.grids import Edge
from fastslow.testing import reference
from fastslow.testing import strategies as fst

sides = st.integers(1, 40)
large_grids = fst.grids(max_side=40)
large_strides = fst.strides(max_stride=12)


def cells_of(bounds: tuple[tuple[int, int], ...]) -> list[list[int]]:
    return [list(range(first, end)) for first, end in bounds]


@given(st.integers(1, 100), st.integers(1, 8))
def test_temporal_patches__ceil(num_video_frames: int, patch: int) -> None:
    count = temporal_patches(num_video_frames, temporal_patch_size=patch)
    assert (count - 1) * patch < num_video_frames <= count * patch


@given(fst.grids(max_side=20), st.integers(1, 5))
def test_merged_grid__exact(grid: Grid, merge_size: int) -> None:
    height, width = grid
    patches = (height * merge_size, width * merge_size)
    assert merged_grid(patches, merge_size=merge_size) == grid


@given(large_strides, st.integers(1, 5))
def test_merged_stride__exact(stride: int, merge_size: int) -> None:
    assert merged_stride(stride * merge_size, merge_size=merge_size) == stride


@given(large_grids, large_strides)
@example((13, 23), 4)
def test_pooled_grid__covers(grid: Grid, stride: int) -> None:
    for side, pooled in zip(grid, pooled_grid(grid, stride), strict=True):
        assert (pooled - 1) * stride < side <= pooled * stride


@given(large_grids)
def test_pooled_grid__identity(grid: Grid) -> None:
    assert pooled_grid(grid, 1) == grid


@given(large_grids, large_strides, large_strides)
def test_pooled_grid__composes(grid: Grid, first: int, second: int) -> None:
    twice = pooled_grid(pooled_grid(grid, first), second)
    assert twice == pooled_grid(grid, first * second)


@given(large_grids, fst.grids(max_side=12), st.sampled_from(("ceil", "floor")))
def test_pooled_grid__counts_windows(
    grid: Grid, strides: tuple[int, int], edge: Edge
) -> None:
    counts = tuple(
        len(reference.side_windows(side, stride, None, edge))
        for side, stride in zip(grid, strides, strict=True)
    )
    if 0 in counts:
        with pytest.raises(ValueError):
            pooled_grid(grid, strides, edge=edge)
        return
    assert pooled_grid(grid, strides, edge=edge) == counts
    bounds = [
        window_bounds(side, stride=stride, edge=edge)
        for side, stride in zip(grid, strides, strict=True)
    ]
    assert tuple(map(len, bounds)) == counts


@given(sides, large_strides)
@example(13, 4)
@example(3, 4)
def test_window_bounds__covers(side: int, stride: int) -> None:
    windows = cells_of(window_bounds(side, stride=stride))
    cells = [cell for window in windows for cell in window]
    assert cells == list(range(side))
    assert [window[0] for window in windows] == list(range(0, side, stride))
    assert windows == reference.side_windows(side, stride, None, "ceil")


@given(sides, large_strides)
@example(12, 4)
@example(3, 4)
def test_window_bounds__edges_agree(side: int, stride: int) -> None:
    kept = window_bounds(side, stride=stride)
    whole = tuple(window for window in kept if window[1] - window[0] == stride)
    if whole:
        assert window_bounds(side, stride=stride, edge="floor") == whole
    else:
        with pytest.raises(ValueError):
            window_bounds(side, stride=stride, edge="floor")
    if whole == kept:
        assert window_bounds(side, stride=stride, edge="error") == kept
    else:
        with pytest.raises(ValueError):
            window_bounds(side, stride=stride, edge="error")


@given(sides, sides)
@example(27, 14)
@example(2, 5)
def test_window_bounds__counted(side: int, count: int) -> None:
    windows = cells_of(window_bounds(side, count=count))
    assert len(windows) == count
    assert {cell for window in windows for cell in window} == set(range(side))
    sizes = [len(window) for window in windows]
    assert min(sizes) >= 1
    assert (max(sizes) - 2) * count < side
    assert windows == reference.side_windows(side, None, count, "ceil")


@given(large_strides, st.integers(1, 9))
def test_window_bounds__divides(stride: int, count: int) -> None:
    by_stride = window_bounds(stride * count, stride=stride)
    assert window_bounds(stride * count, count=count) == by_stride


@pytest.mark.parametrize(("frames", "patch"), [(0, 2), (4, 0), (-1, -1)])
def test_temporal_patches_names_what_is_too_small(frames: int, patch: int) -> None:
    with pytest.raises(ValueError) as error:
        temporal_patches(frames, temporal_patch_size=patch)
    assert str(error.value) == (
        f"num_video_frames is {frames} and temporal_patch_size is {patch}; both must "
        "be at least 1"
    )


@pytest.mark.parametrize(
    ("grid", "merge_size"),
    [((3, 4), 2), ((4, 3), 2), ((0, 4), 2), ((4, -2), 2), ((4, 4), 0), ((4, 4), -2)],
)
def test_merged_grid_names_what_does_not_divide(grid: Grid, merge_size: int) -> None:
    with pytest.raises(ValueError) as error:
        merged_grid(grid, merge_size=merge_size)
    assert str(error.value) == (
        f"patch_grid is {grid}; both sides must be positive multiples of merge_size "
        f"{merge_size}"
    )


@pytest.mark.parametrize(("stride", "merge_size"), [(3, 2), (0, 2), (-2, 2), (2, 0)])
def test_merged_stride_names_what_does_not_divide(stride: int, merge_size: int) -> None:
    with pytest.raises(ValueError) as error:
        merged_stride(stride, merge_size=merge_size)
    assert str(error.value) == (
        f"patch_stride is {stride}; it must be a positive multiple of merge_size "
        f"{merge_size}"
    )


@pytest.mark.parametrize(
    ("grid", "stride"),
    [((0, 4), 1), ((4, 0), 1), ((4, 4), 0), ((-1, 2), 3), ((4, 4), (2, 0))],
)
def test_pooled_grid_names_what_is_too_small(
    grid: Grid, stride: int | tuple[int, int]
) -> None:
    with pytest.raises(ValueError) as error:
        pooled_grid(grid, stride)
    assert str(error.value) == (
        f"grid is {grid} and stride is {stride}; all must be at least 1"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "stride is None and count is None; exactly one of them is given",
        ),
        (
            {"stride": 2, "count": 3},
            "stride is 2 and count is 3; exactly one of them is given",
        ),
        ({"stride": 0}, "side is 5 and stride is 0; both must be at least 1"),
        ({"count": -1}, "side is 5 and count is -1; both must be at least 1"),
        (
            {"stride": 6, "edge": "floor"},
            (
                "a side of 5 tokens holds no whole window of stride 6; edge 'ceil' "
                "keeps it"
            ),
        ),
        (
            {"stride": 2, "edge": "error"},
            (
                "a side of 5 tokens is no multiple of stride 2; edge 'ceil' keeps what "
                "remains and 'floor' drops it"
            ),
        ),
        (
            {"stride": 2, "edge": "wrap"},
            "edge is 'wrap'; it must be one of ceil, floor, error",
        ),
    ],
)
def test_window_bounds_names_what_is_out_of_range(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        inspect.unwrap(window_bounds)(5, **settings)
    assert str(error.value) == message


@pytest.mark.parametrize("size", [{"stride": 2}, {"count": 2}])
def test_window_bounds_names_a_side_that_is_too_small(size: dict[str, int]) -> None:
    with pytest.raises(ValueError) as error:
        window_bounds(0, **size)
    (name,) = size
    assert str(error.value) == f"side is 0 and {name} is 2; both must be at least 1"
