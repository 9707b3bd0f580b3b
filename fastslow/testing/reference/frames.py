"""Windows of pooled frames, cell by cell.

A pooled frame is the tuple ``(start, stop, stride, grid, is_slow, keep)``, a schedule
the tuple ``(num_frames, frames, edge, scales)``, as ``dataclasses.astuple`` gives them.
"""

from collections.abc import Iterable
from fractions import Fraction
from math import ceil, floor

Grid = tuple[int, int]
Frame = tuple[int, int, Grid | None, Grid | None, bool, tuple[bool, ...] | None]
Schedule = tuple[int, tuple[Frame, ...], str, tuple[int, ...] | None]


def plain_frame(time: int, stride: int) -> Frame:
    """Describe a frame that is pooled alone, with a square window."""
    return (time, time + 1, (stride, stride), None, False, None)


def side_windows(
    side: int, stride: int | None, count: int | None, edge: str
) -> list[list[int]]:
    """List the cells of every window of one side."""
    windows: list[list[int]] = []
    if stride is not None:
        for first in range(0, side, stride):
            cells = [c for c in range(first, first + stride) if c < side]
            if len(cells) == stride or edge == "ceil":
                windows.append(cells)
        return windows
    for number in range(count or 0):
        first = floor(Fraction(number * side, count or 1))
        end = ceil(Fraction((number + 1) * side, count or 1))
        windows.append(list(range(first, end)))
    return windows


def window_cells(grid: Grid, frame: Frame, edge: str = "ceil") -> list[list[Grid]]:
    """List the cells of every window that a pooled frame keeps.

    Args:
        grid: Height and width.
        frame: The pooled frame.
        edge: ``ceil`` or ``floor``.

    Returns:
        Windows in raster order, each with the (row, column) of the cells that it holds.
    """
    _, _, stride, target, _, keep = frame
    sides = [
        side_windows(
            grid[axis],
            stride[axis] if stride else None,
            target[axis] if target else None,
            edge,
        )
        for axis in (0, 1)
    ]
    windows = []
    for rows in sides[0]:
        for columns in sides[1]:
            windows.append([(r, c) for r in rows for c in columns])
    if keep is not None:
        windows = [w for w, kept in zip(windows, keep, strict=True) if kept]
    return windows


def window_centres(grid: Grid, frame: Frame, edge: str = "ceil") -> list[Grid]:
    """Give the middle of each window of a frame, halves rounded down."""
    centres = []
    for cells in window_cells(grid, frame, edge):
        (top, left), (bottom, right) = min(cells), max(cells)
        centres.append((floor((top + bottom) / 2), floor((left + right) / 2)))
    return centres


def tokens_per_frame(grid: Grid, schedule: Schedule) -> list[int]:
    """Count the windows of every pooled frame of a clip."""
    _, frames, edge, _ = schedule
    return [len(window_cells(grid, frame, edge)) for frame in frames]


def encoded_sizes(grid: Grid, schedule: Schedule) -> list[tuple[int, int, int]]:
    """Give scale, height and width of each frame as it is encoded."""
    num_frames, _, _, scales = schedule
    sizes = []
    for time in range(num_frames):
        scale = 1 if scales is None else scales[time]
        sizes.append((scale, grid[0] // scale, grid[1] // scale))
    return sizes


def encoded_cells(
    grid: Grid, schedule: Schedule, times: Iterable[int], window: list[Grid]
) -> list[int]:
    """Number the encoded cells of some frames that hold a cell of a window.

    Cells are numbered through all frames of the clip in raster order.
    """
    sizes = encoded_sizes(grid, schedule)
    cells: list[int] = []
    for time in times:
        first = sum(height * width for _, height, width in sizes[:time])
        scale, _, width = sizes[time]
        held = {(row // scale) * width + column // scale for row, column in window}
        cells.extend(first + cell for cell in sorted(held))
    return cells


def count_cells(grid: Grid, schedule: Schedule) -> int:
    """Count the cells of all frames of a clip as they are encoded."""
    return sum(height * width for _, height, width in encoded_sizes(grid, schedule))
