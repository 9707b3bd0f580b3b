"""Which cells make which pooled token: integers that follow from shapes alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from reprlib import repr as brief

import torch
from jaxtyping import Float64, Int, Int32
from torch import Tensor

from fastslow._plans import integers
from fastslow._shapes import check_word, whole_grid
from fastslow._taps import Taps, frame_taps
from fastslow._typing import Grid
from fastslow.frames import FrameSchedule, PooledFrame, encoded_grids, frame_kinds
from fastslow.grids import Edge, Mode
from fastslow.ragged import (
    Ragged,
    cu_seqlens_from_lengths,
    lengths_from_cu_seqlens,
    pack_ragged,
    select_ragged,
)


@dataclass(frozen=True, kw_only=True)
class WindowsBySize:
    """The windows of a plan, those of the fewest cells first.

    Windows of one size are rows of one tensor, whose maximum is taken at once.

    Attributes:
        sizes: Cells of a window, and how many windows have as many.
        order: Windows in that order.
        places: Place of each window in it.
        cells: Cells of the windows in that order.
        entries: Where ``cells`` names cell 0, then where it names cell 1, and so on.
    """

    sizes: tuple[tuple[int, int], ...]
    order: Int[Tensor, " windows"]
    places: Int[Tensor, " windows"]
    cells: Int[Tensor, " entries"]
    entries: Int[Tensor, " entries"]


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """Which cells each pooled token reads, and the way back.

    A *cell* is a token before pooling, a *window* the cells that become one token.
    Both directions are stored as bags end to end, so that forward and backward are
    gathers, whatever mixture of strides and grids the plan holds.

    Attributes:
        cells: Cells of window 0, then those of window 1, and so on.
        window_starts: First entry of each window in ``cells``.
        window_sizes: Cells of each window, at least 1.
        windows: Windows that read cell 0, then those that read cell 1, and so on.
        cell_starts: First entry of each cell in ``windows``; a cell that no window
            reads has an empty bag.
        cu_seqlens: Cumulative number of windows, frame by frame.
        weights: Share of each entry of ``cells`` in its window; None where a window
            takes the maximum of its cells.
        back_weights: The same shares in the order of ``windows``.
        by_size: The windows sorted by size, where they take maxima; else None.
    """

    cells: Int[Tensor, " entries"]
    window_starts: Int[Tensor, " windows"]
    window_sizes: Int[Tensor, " windows"]
    windows: Int[Tensor, " entries"]
    cell_starts: Int[Tensor, " cells"]
    cu_seqlens: Int32[Tensor, " bounds"]
    weights: Float64[Tensor, " entries"] | None
    back_weights: Float64[Tensor, " entries"] | None
    by_size: WindowsBySize | None


def plan_pooling(
    clips: Sequence[tuple[Grid, FrameSchedule]], *, mode: Mode = "average"
) -> PoolPlan:
    """Plan the pooling of clips that each have their own grid and schedule.

    Cells are numbered through all frames of all clips in raster order, each frame on
    the grid that it is encoded on. A window reads the cells that reach into it, those
    of a smaller grid whole.
    Computed on the host from shapes alone. A pooled token is, by mode:

    - ``average``: the mean of its window's cells, those that an edge window holds; a
      window of several frames takes the mean of their means;
    - ``max``: their maximum, channel by channel;
    - ``area``: the mean of the window that adaptive pooling gives a token of the same
      pooled grid; windows then have nearly equal size and may share cells;
    - ``bilinear``: the interpolated value at its centre, of 2 x 2 cells whatever the
      stride, without antialiasing.

    Args:
        clips: Grid of a frame, in tokens, and schedule of each clip.
        mode: ``average``, ``max``, ``area`` or ``bilinear``.

    Returns:
        The plan, on the CPU.

    Raises:
        ValueError: If the mode is unknown, a clip is no such pair, or as
            ``frame_windows`` and ``encoded_grids`` do.

    Laws:
        partition: where every frame is pooled once, ``average`` and ``max`` read every
            cell exactly once: ``sorted(cells) == list(range(H * W * T))``
        transpose: both directions hold the same (window, cell) pairs
        weights: the shares of a window add up to 1: ``sum(weights of a window) == 1``
        matches_reference: equals the loop-written reference: ``plan ==
            reference.pool_plan(...)``

    Example:
        >>> from fastslow import schedule_from_strides
        >>> plan = plan_pooling([((3, 2), schedule_from_strides([2]))])
        >>> plan.cells.tolist(), plan.window_sizes.tolist()
        ([0, 1, 2, 3, 4, 5], [4, 2])

    References:
        Zhang et al., "LLaVA-NeXT-Video" and its code: ``bilinear`` with ``ceil`` edges,
        ``average`` and ``max`` with ``floor`` edges.
    """
    check_word("mode", mode, Mode)
    placed = []
    for number, clip in enumerate(clips):
        is_pair = isinstance(clip, Sequence) and len(clip) == 2
        if not (is_pair and isinstance(clip[1], FrameSchedule)):
            raise ValueError(
                f"clips[{number}] is {brief(clip)}; it must be a pair of a grid and "
                "its FrameSchedule"
            )
        grid, schedule = clip
        placed.append(place_frames(grid, schedule, range(len(schedule.frames))))
    return plan_placed_frames(placed, mode)


@dataclass(frozen=True, kw_only=True)
class PlacedFrames:
    """Pooled frames of a clip, told by what they do and where they begin.

    Attributes:
        grid: Grid of the clip, in tokens.
        schedule: The clip's schedule.
        kinds: Frames that begin at 0, see ``frame_kinds``.
        kind_of: Number of each pooled frame's kind.
        starts: First frame of the clip that each reads. What of its span lies past the
            clip's end is left out.
    """

    grid: Grid
    schedule: FrameSchedule
    kinds: Sequence[PooledFrame]
    kind_of: Sequence[int]
    starts: Sequence[int]


def place_frames(
    grid: Grid, schedule: FrameSchedule, numbers: Sequence[int]
) -> PlacedFrames:
    """Give the pooled frames of a clip that are numbered, each where it is."""
    kinds, kind_of = frame_kinds(schedule)
    return PlacedFrames(
        grid=grid,
        schedule=schedule,
        kinds=kinds,
        kind_of=[kind_of[number] for number in numbers],
        starts=[schedule.frames[number].start for number in numbers],
    )


def plan_placed_frames(clips: Sequence[PlacedFrames], mode: Mode) -> PoolPlan:
    """Plan the pooling of some frames of each clip, see ``plan_pooling``."""
    numbers = dict[tuple[Grid, tuple[Grid, ...], Edge, PooledFrame], int]()
    kind_of_frame: list[int] = []
    first_cells: list[int] = []
    num_cells = 0
    for clip in clips:
        grid = whole_grid(clip.grid)
        grids = encoded_grids(grid, clip.schedule)
        begins = list(accumulate(map(prod, grids), initial=num_cells))
        for number, start in zip(clip.kind_of, clip.starts, strict=True):
            kind = clip.kinds[number]
            key = (grid, grids[start : start + kind.stop], clip.schedule.edge, kind)
            kind_of_frame.append(numbers.setdefault(key, len(numbers)))
            first_cells.append(begins[start])
        num_cells = begins[-1]
    taps = [frame_taps(*key, mode) for key in numbers]
    none = integers([])
    taps.append(Taps(cells=none, sizes=none, shares=none.double()))
    frames = integers(kind_of_frame)
    cells, sizes, shares = (
        select_ragged(pack_ragged(parts), frames)
        for parts in (
            [tap.cells for tap in taps],
            [tap.sizes for tap in taps],
            [tap.shares for tap in taps],
        )
    )
    first_cell = torch.repeat_interleave(
        integers(first_cells), lengths_from_cu_seqlens(cells.cu_seqlens)
    )
    return plan_bags(
        cells.values + first_cell,
        sizes.values,
        sizes.cu_seqlens,
        None if mode == "max" else shares.values,
        num_cells=num_cells,
    )


def plan_bags(
    cells: Int[Tensor, " entries"],
    window_sizes: Int[Tensor, " windows"],
    cu_seqlens: Int32[Tensor, " bounds"],
    weights: Float64[Tensor, " entries"] | None,
    *,
    num_cells: int,
) -> PoolPlan:
    """Plan a pooling whose windows are any sets of cells.

    Args:
        cells: Cells of window 0, then those of window 1, and so on.
        window_sizes: Cells of each window, at least 1.
        cu_seqlens: Cumulative number of windows, frame by frame.
        weights: Share of each entry of ``cells`` in its window; None takes the
            maximum of a window's cells.
        num_cells: Cells in all; they are numbered from 0.

    Returns:
        The plan, on the CPU.

    Raises:
        ValueError: If a window is empty, sizes do not add up to the entries, a cell
            does not exist, there is not one weight for each entry, or ``cu_seqlens``
            does not end with the number of windows.

    Laws:
        transpose: both directions hold the same (window, cell) pairs, with their
            weights

    Example:
        >>> cells, sizes = torch.tensor([0, 2, 2]), torch.tensor([2, 1])
        >>> bounds = torch.tensor([0, 2]).int()
        >>> plan_bags(cells, sizes, bounds, None, num_cells=3).windows
        tensor([0, 0, 1])
    """
    if (window_sizes < 1).any() or window_sizes.sum() != len(cells):
        raise ValueError(
            f"window_sizes adds up to {window_sizes.sum()} for {len(cells)} cells, the "
            f"least is {min(window_sizes.tolist(), default=1)}; each window holds at "
            "least 1, together all"
        )
    if ((cells < 0) | (cells >= num_cells)).any():
        raise ValueError(
            f"cells lies between {cells.min()} and {cells.max()}; there are "
            f"{num_cells}, counted from 0"
        )
    if weights is not None and len(weights) != len(cells):
        raise ValueError(
            f"weights has {len(weights)} entries but cells has {len(cells)}; each has "
            "its share"
        )
    ends = (*cu_seqlens[:1].tolist(), *cu_seqlens[-1:].tolist())
    if ends != (0, len(window_sizes)):
        raise ValueError(
            f"cu_seqlens has the ends {ends} but there are {len(window_sizes)} "
            "windows; it must start at 0 and end at their number"
        )
    back = cells.int().argsort(stable=True)
    reads = torch.bincount(cells, minlength=num_cells)
    return PoolPlan(
        cells=cells,
        window_starts=window_sizes.cumsum(0) - window_sizes,
        window_sizes=window_sizes,
        windows=torch.repeat_interleave(window_sizes)[back],
        cell_starts=reads.cumsum(0) - reads,
        cu_seqlens=cu_seqlens,
        weights=weights,
        back_weights=None if weights is None else weights[back],
        by_size=_sort_windows(cells, window_sizes, back) if weights is None else None,
    )


def _sort_windows(cells: Tensor, window_sizes: Tensor, back: Tensor) -> WindowsBySize:
    """Sort windows by size.

    Args:
        cells: Cells of window 0, then those of window 1, and so on.
        window_sizes: Cells of each window.
        back: Entries of ``cells`` that are cell 0, then those that are cell 1, ...
    """
    order = window_sizes.argsort(stable=True)
    sizes, counts = window_sizes[order].unique_consecutive(return_counts=True)
    entries = torch.arange(len(cells), device="cpu")
    bags = Ragged(values=entries, cu_seqlens=cu_seqlens_from_lengths(window_sizes))
    moved = select_ragged(bags, order).values
    return WindowsBySize(
        sizes=tuple(zip(sizes.tolist(), counts.tolist(), strict=True)),
        order=order,
        places=_inverse(order),
        cells=cells[moved],
        entries=_inverse(moved)[back],
    )


def _inverse(order: Tensor) -> Tensor:
    """Give the place of each item in an order of all."""
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device="cpu")
    return places
