"""Windows, their cells and their means, window by window."""

from collections.abc import Sequence
from math import floor

from torch import Tensor

from fastslow.testing.reference.ragged import bounds

Grid = tuple[int, int]


def window_cells(grid: Grid, stride: int) -> list[list[Grid]]:
    """List the cells of every window of one frame.

    Args:
        grid: Height and width.
        stride: Side of a window.

    Returns:
        Windows in raster order, each with the (row, column) of the cells that it holds.
    """
    height, width = grid
    windows = []
    for top in range(0, height, stride):
        for left in range(0, width, stride):
            cells = []
            for row in range(top, top + stride):
                for column in range(left, left + stride):
                    if row < height and column < width:
                        cells.append((row, column))
            windows.append(cells)
    return windows


def window_centres(grid: Grid, stride: int) -> list[Grid]:
    """Give the middle of each window of a frame, halves rounded down."""
    centres = []
    for cells in window_cells(grid, stride):
        (top, left), (bottom, right) = min(cells), max(cells)
        centres.append((floor((top + bottom) / 2), floor((left + right) / 2)))
    return centres


def tokens_per_frame(grid: Grid, strides: Sequence[int]) -> list[int]:
    """Count the windows of every frame of a clip."""
    return [len(window_cells(grid, stride)) for stride in strides]


def pooling_windows(
    grids: Sequence[Grid], strides: Sequence[int], frames: Sequence[int]
) -> list[list[list[int]]]:
    """List the cells of every window of every output frame.

    Args:
        grids: Height and width of every input frame.
        strides: Window side of every output frame.
        frames: Input frame of every output frame.

    Returns:
        Cells by output frame and window.
    """
    output = []
    for frame, stride in zip(frames, strides, strict=True):
        first = sum(height * width for height, width in grids[:frame])
        windows = []
        for cells in window_cells(grids[frame], stride):
            windows.append([first + r * grids[frame][1] + c for r, c in cells])
        output.append(windows)
    return output


def pool_plan(
    grids: Sequence[Grid], strides: Sequence[int], frames: Sequence[int]
) -> dict[str, list[int]]:
    """Give every field of a pooling plan, by name; arguments as ``pooling_windows``."""
    by_frame = pooling_windows(grids, strides, frames)
    windows = [window for frame in by_frame for window in frame]
    num_cells = sum(height * width for height, width in grids)
    readers: list[list[int]] = [[] for _ in range(num_cells)]
    for number, window in enumerate(windows):
        for cell in window:
            readers[cell].append(number)
    return {
        "cells": [cell for window in windows for cell in window],
        "window_starts": bounds(map(len, windows))[:-1],
        "window_sizes": [len(window) for window in windows],
        "windows": [number for numbers in readers for number in numbers],
        "cell_starts": bounds(map(len, readers))[:-1],
        "cu_seqlens": bounds(map(len, by_frame)),
    }


def pool(tokens: Tensor, windows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Average the rows of ``tokens`` that each window lists."""
    pooled = []
    for window in windows:
        total = tokens[window[0]].clone()
        for cell in window[1:]:
            total += tokens[cell]
        pooled.append(total / len(window))
    return pooled
