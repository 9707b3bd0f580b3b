"""Pooled tokens, window by window."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastslow.testing.reference.frames import Grid, Schedule, window_cells
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
    for (height, width), (num_frames, frames, edge) in clips:
        for frame in frames:
            windows = []
            for cells in window_cells((height, width), frame, edge):
                window: list[int] = []
                for time in range(frame[0], frame[1]):
                    corner = first_cell + time * height * width
                    window.extend(corner + r * width + c for r, c in cells)
                windows.append(window)
            output.append(windows)
        first_cell += num_frames * height * width
    return output


def pool_plan(clips: Sequence[tuple[Grid, Schedule]]) -> dict[str, list[int]]:
    """Give every field of an average pooling plan, by name."""
    by_frame = pooling_windows(clips)
    windows = [window for frame in by_frame for window in frame]
    num_cells = sum(
        num_frames * height * width for (height, width), (num_frames, _, _) in clips
    )
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
    tokens: Tensor, windows: Sequence[Sequence[int]], takes_max: bool = False
) -> list[Tensor]:
    """Average the rows of ``tokens`` that each window lists, or take their maximum."""
    pooled = []
    for window in windows:
        result = tokens[window[0]].clone()
        for cell in window[1:]:
            other = tokens[cell]
            result = torch.maximum(result, other) if takes_max else result + other
        pooled.append(result if takes_max else result / len(window))
    return pooled
