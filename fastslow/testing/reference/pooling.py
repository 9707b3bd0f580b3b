"""Pooled tokens, window by window."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastslow.testing.reference.frames import (
    Grid,
    Schedule,
    count_cells,
    encoded_cells,
    window_cells,
)
from fastslow.testing.reference.ragged import bounds


def pooling_windows(clips: Sequence[tuple[Grid, Schedule]]) -> list[list[list[int]]]:
    """List the cells of every window of every pooled frame.

    Args:
        clips: Grid and schedule of each clip.

    Returns:
        Cells by pooled frame and window, numbered through all frames of all clips.
    """
    output = []
    first_cell = 0
    for grid, schedule in clips:
        _, frames, edge, _ = schedule
        for frame in frames:
            windows = []
            for cells in window_cells(grid, frame, edge):
                times = range(frame[0], frame[1])
                held = encoded_cells(grid, schedule, times, cells)
                windows.append([first_cell + cell for cell in held])
            output.append(windows)
        first_cell += count_cells(grid, schedule)
    return output


def pooling_shares(clips: Sequence[tuple[Grid, Schedule]]) -> list[list[float]]:
    """Give the share of every cell of every window in its mean.

    Args:
        clips: Grid and schedule of each clip.

    Returns:
        Shares by window and cell, in the order of ``pooling_windows``: frames count
        equally in a window, and cells in a frame.
    """
    shares = []
    for grid, schedule in clips:
        _, frames, edge, _ = schedule
        for frame in frames:
            times = range(frame[0], frame[1])
            for cells in window_cells(grid, frame, edge):
                window: list[float] = []
                for time in times:
                    held = len(encoded_cells(grid, schedule, [time], cells))
                    window.extend([1 / held / len(times)] * held)
                shares.append(window)
    return shares


def pool_plan(clips: Sequence[tuple[Grid, Schedule]]) -> dict[str, list[int]]:
    """Give every field of an average pooling plan, by name."""
    by_frame = pooling_windows(clips)
    windows = [window for frame in by_frame for window in frame]
    num_cells = sum(count_cells(grid, schedule) for grid, schedule in clips)
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


def pool(
    tokens: Tensor,
    windows: Sequence[Sequence[int]],
    shares: Sequence[Sequence[float]] | None = None,
) -> list[Tensor]:
    """Add up the shares of the rows of ``tokens`` that each window lists.

    Without shares, take the maximum of the rows.
    """
    pooled = []
    for number, window in enumerate(windows):
        if shares is None:
            result = tokens[window[0]].clone()
            for cell in window[1:]:
                result = torch.maximum(result, tokens[cell])
        else:
            result = torch.zeros_like(tokens[0])
            for cell, share in zip(window, shares[number], strict=True):
                result = result + tokens[cell] * share
        pooled.append(result)
    return pooled
