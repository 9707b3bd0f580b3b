"""The vision tower's own plan: which patches it holds, and where they are.

transformers computes this from ``grid_thw`` on the device, which waits for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from einops import rearrange
from jaxtyping import Float32, Int, Int32
from torch import Tensor
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from fastslow._plans import integers
from fastslow._typing import Grid
from fastslow.ragged import cu_seqlens_from_lengths


@dataclass(frozen=True, kw_only=True)
class TowerPlan:
    """What the tower needs to know of the clips of a row.

    Fields are named as a tower of transformers names its arguments, so that
    ``tower(patches, grid_thw=grid_thw, **vars(plan))`` is the call.

    Attributes:
        position_ids: Row and column of each patch, in the order of ``patchify_clip``.
        cu_seqlens: Cumulative number of patches, frame by frame.
        max_seqlen: Patches of the largest frame, known on the host.
    """

    position_ids: Int[Tensor, "patches 2"]
    cu_seqlens: Int32[Tensor, " frame_bounds"]
    max_seqlen: int


@dataclass(frozen=True, kw_only=True)
class WindowedTowerPlan(TowerPlan):
    """What a tower needs to know that attends in square windows, as Qwen2.5-VL's does.

    Windows are smaller at the far edges of a frame. The tower takes its tokens window
    by window; windows and their tokens are in raster order.

    Attributes:
        window_index: Number in raster order, through all frames of all clips, of each
            merged token as the tower takes it.
        cu_window_seqlens: Cumulative number of patches, window by window.
        max_window_seqlen: Patches of the largest window, known on the host.
    """

    window_index: Int[Tensor, " merged"]
    cu_window_seqlens: Int32[Tensor, " window_bounds"]
    max_window_seqlen: int


@dataclass(frozen=True, kw_only=True)
class ResampledTowerPlan(TowerPlan):
    """What a tower needs to know that learnt its positions, as Qwen3-VL's did.

    They are a square table, which is resampled to the grid of each frame.

    Attributes:
        interp_indices: The four entries of the table around each patch.
        interp_weights: Share of each in the patch's position; the shares of a patch add
            up to 1.
    """

    interp_indices: Int[Tensor, "patches 4"]
    interp_weights: Float32[Tensor, "patches 4"]


def plan_tower(
    runs: Sequence[tuple[int, Grid]],
    *,
    merge_size: int = 2,
    window: int | None = None,
    table_side: int | None = None,
) -> TowerPlan:
    """Plan the tower's call for all clips of a row.

    Args:
        runs: Frames, and height and width in merged tokens, of each run of frames on
            one grid.
        merge_size: Patches along each side of a merged token.
        window: Side of the windows that the tower attends in, in merged tokens; None
            if it attends within whole frames.
        table_side: Side of the table of positions that the tower learnt; None if it
            has none. No tower has both.

    Returns:
        The plan, on the CPU; with windows, a ``WindowedTowerPlan``, with a table, a
        ``ResampledTowerPlan``.

    Laws:
        matches_transformers: positions, bounds and the largest frame, order, bounds
            and the largest window, entries and shares of a table are those that
            transformers computes

    Example:
        >>> plan_tower([(2, (1, 1))]).cu_seqlens
        tensor([0, 4, 8], dtype=torch.int32)
    """
    grids = [(t, (h * merge_size, w * merge_size)) for t, (h, w) in runs]
    every = {sides for _, sides in grids}
    planes = {sides: _frame_positions(sides, merge_size) for sides in every}
    positions = [torch.empty(0, 2, dtype=torch.long, device="cpu")]
    positions += [planes[sides].repeat(frames, 1) for frames, sides in grids]
    sizes = [prod(sides) for frames, sides in grids for _ in range(frames)]
    plan = TowerPlan(
        position_ids=torch.cat(positions),
        cu_seqlens=cu_seqlens_from_lengths(integers(sizes)),
        max_seqlen=max(sizes, default=0),
    )
    if window is not None:
        return _add_windows(plan, runs, merge_size, window)
    if table_side is not None:
        return _add_table(plan, grids, merge_size, table_side)
    return plan


def _frame_positions(sides: Grid, merge_size: int) -> Tensor:
    """Give row and column of one frame's patches, merged token by merged token."""
    rows_and_columns = [torch.arange(side, device="cpu") for side in sides]
    plane = torch.stack(torch.meshgrid(*rows_and_columns, indexing="ij"))
    return rearrange(plane, "c (h m) (w n) -> (h w m n) c", m=merge_size, n=merge_size)


def _add_windows(
    plan: TowerPlan, runs: Sequence[tuple[int, Grid]], merge_size: int, window: int
) -> WindowedTowerPlan:
    """Cut every frame into windows."""
    orders, sizes, first = [integers([])], [integers([])], 0
    known = {grid: _frame_windows(grid, window) for grid in {grid for _, grid in runs}}
    for frames, grid in runs:
        order, tokens = known[grid]
        starts = first + len(order) * torch.arange(frames, device="cpu")
        orders.append((starts[:, None] + order).flatten())
        sizes.append(tokens.repeat(frames))
        first += frames * len(order)
    patches = torch.cat(sizes) * merge_size**2
    return WindowedTowerPlan(
        **vars(plan),
        window_index=torch.cat(orders),
        cu_window_seqlens=cu_seqlens_from_lengths(patches),
        max_window_seqlen=max(patches.tolist(), default=0),
    )


def _frame_windows(grid: Grid, window: int) -> tuple[Tensor, Tensor]:
    """Give one frame's tokens window by window, and how many each window has."""
    height, width = grid
    row = torch.arange(height, device="cpu")[:, None]
    column = torch.arange(width, device="cpu")
    per_row = -(-width // window)
    numbers = (row // window * per_row + column // window).flatten()
    return numbers.argsort(stable=True), torch.bincount(numbers)


def _add_table(
    plan: TowerPlan,
    grids: Sequence[tuple[int, Grid]],
    merge_size: int,
    table_side: int,
) -> ResampledTowerPlan:
    """Resample the table to every frame, as transformers does it."""
    indices = [integers([]).reshape(0, 4)]
    weights = [torch.empty(0, 4, dtype=torch.float32, device="cpu")]
    known = {
        sides: get_vision_interpolation_indices_and_weights(
            torch.tensor([(1, *sides)], device="cpu"),
            table_side,
            align_corners=True,
            spatial_merge_size=merge_size,
        )
        for sides in {sides for _, sides in grids}
    }
    for frames, sides in grids:
        entries, shares = known[sides]
        indices.append(entries.repeat(frames, 1))
        weights.append(shares.repeat(frames, 1))
    return ResampledTowerPlan(
        **vars(plan),
        interp_indices=torch.cat(indices),
        interp_weights=torch.cat(weights),
    )
