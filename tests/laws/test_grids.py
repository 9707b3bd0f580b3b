"""Laws of ``fastslow.grids``."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    Grid,
    lengths_from_cu_seqlens,
    merged_grid,
    merged_stride,
    pool_frames,
    pooled_grid,
    temporal_patches,
    tokens_per_frame,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

large_grids = fst.grids(max_side=40)
large_strides = fst.strides(max_stride=12)


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


@given(fst.grids(), fst.stride_lists(max_stride=8))
def test_tokens_per_frame__matches_pooling(grid: Grid, strides: list[int]) -> None:
    clip = torch.zeros(len(strides), *grid, 1)
    lengths = lengths_from_cu_seqlens(pool_frames(clip, strides).cu_seqlens)
    assert list(tokens_per_frame(grid, strides)) == lengths.tolist()


@given(large_grids, st.integers(1, 50))
def test_tokens_per_frame__monotone(grid: Grid, stride: int) -> None:
    fine, coarse = tokens_per_frame(grid, [stride, stride + 1])
    assert fine >= coarse >= 1


@given(fst.grids(max_side=9), fst.stride_lists(min_size=0, max_stride=8))
def test_tokens_per_frame_counts_the_windows(grid: Grid, strides: list[int]) -> None:
    expected = reference.tokens_per_frame(grid, strides)
    assert list(tokens_per_frame(grid, strides)) == expected


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
    ("grid", "stride"), [((0, 4), 1), ((4, 0), 1), ((4, 4), 0), ((-1, 2), 3)]
)
def test_pooled_grid_names_what_is_too_small(grid: Grid, stride: int) -> None:
    message = f"grid is {grid} and stride is {stride}; all must be at least 1"
    with pytest.raises(ValueError) as error:
        pooled_grid(grid, stride)
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        tokens_per_frame(grid, [stride])
    assert str(error.value) == message
