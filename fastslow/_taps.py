"""Which cells the windows of one frame read, and what share each cell has."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fastslow._plans import booleans, integers
from fastslow._typing import Grid
from fastslow.frames import Bounds, PooledFrame, frame_windows
from fastslow.grids import Edge, Mode, window_bounds


@dataclass(frozen=True, kw_only=True)
class Taps:
    """Cells, window sizes and shares of one kind of frame, counted from its start."""

    cells: Tensor
    sizes: Tensor
    shares: Tensor


def frame_taps(
    grid: Grid, grids: Sequence[Grid], edge: Edge, frame: PooledFrame, mode: Mode
) -> Taps:
    """Write out the windows of a frame that begins at cell 0."""
    sides = frame_windows(grid, frame, edge=edge)
    windows, cells, shares = [], [], []
    first = 0
    for encoded in grids:
        (row_window, row, row_share), (column_window, column, column_share) = (
            _side_taps(side, _on_coarser(bounds, whole // side), mode)
            for side, whole, bounds in zip(encoded, grid, sides, strict=True)
        )
        windows.append(row_window[:, None] * len(sides[1]) + column_window)
        cells.append(first + row[:, None] * encoded[1] + column)
        shares.append(row_share[:, None] * column_share / len(grids))
        first += prod(encoded)
    window, cell, share = (
        torch.cat([part.flatten() for part in parts])
        for parts in (windows, cells, shares)
    )
    entries = window.argsort(stable=True)
    if frame.keep is not None:
        entries = entries[booleans(frame.keep)[window[entries]]]
    return Taps(
        cells=cell[entries],
        sizes=torch.unique_consecutive(window[entries], return_counts=True)[1],
        shares=share[entries],
    )


def _on_coarser(bounds: Bounds, scale: int) -> Bounds:
    """Give the cells of a coarser side that reach into each window."""
    return tuple((start // scale, -(-stop // scale)) for start, stop in bounds)


def _side_taps(
    side: int, bounds: Sequence[tuple[int, int]], mode: Mode
) -> tuple[Tensor, Tensor, Tensor]:
    """Give window, cell and share of every cell that a window of one side reads."""
    if mode == "bilinear":
        taps = [_linear_taps(i, len(bounds), side) for i in range(len(bounds))]
    else:
        if mode == "area":
            bounds = window_bounds(side, count=len(bounds))
        taps = [
            [(cell, 1 / (stop - start)) for cell in range(start, stop)]
            for start, stop in bounds
        ]
    window, cell, share = zip(
        *((i, *tap) for i, window in enumerate(taps) for tap in window), strict=True
    )
    return integers(window), integers(cell), _shares(share)


def _linear_taps(window: int, windows: int, side: int) -> list[tuple[int, float]]:
    """Interpolate at the centre of a window, on cells that are 1 apart."""
    twice = max((2 * window + 1) * side - windows, 0)
    first, rest = divmod(twice, 2 * windows)
    if not rest or first + 1 == side:
        return [(first, 1.0)]
    share = rest / (2 * windows)
    return [(first, 1 - share), (first + 1, share)]


def _shares(values: Sequence[float]) -> Tensor:
    """Make a tensor of shares, of an empty sequence too."""
    return torch.tensor(values, dtype=torch.float64, device="cpu")
