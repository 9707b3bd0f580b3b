"""Variable-stride pooling of a clip's tokens into a ragged sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Int32
from torch import Tensor

from fastslow._plans import to_device
from fastslow._typing import Grid
from fastslow.grids import pooled_grid
from fastslow.ragged import (
    Ragged,
    cu_seqlens_from_lengths,
    position_ids_from_cu_seqlens,
    segment_ids_from_cu_seqlens,
)


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """Which cells each pooled token averages, and the way back.

    A *cell* is a token before pooling, a *window* the cells that become one token.
    Both directions are stored as bags end to end, so that forward and backward are
    one gather each, whatever mixture of strides and grids the plan holds.

    Attributes:
        cells: Cells of window 0, then those of window 1, and so on.
        window_starts: First entry of each window in ``cells``.
        window_sizes: Cells of each window, at least 1.
        windows: Windows that read cell 0, then those that read cell 1, and so on.
        cell_starts: First entry of each cell in ``windows``; a cell that no window
            reads has an empty bag.
        cu_seqlens: Cumulative number of windows, frame by frame.
    """

    cells: Int[Tensor, " entries"]
    window_starts: Int[Tensor, " windows"]
    window_sizes: Int[Tensor, " windows"]
    windows: Int[Tensor, " entries"]
    cell_starts: Int[Tensor, " cells"]
    cu_seqlens: Int32[Tensor, " bounds"]


def plan_pooling(
    grids: Sequence[Grid],
    strides: Sequence[int],
    *,
    frames: Sequence[int] | None = None,
) -> PoolPlan:
    """Plan the average pooling of frames that each have their own grid and stride.

    Cells are numbered frame after frame in raster order. Edge windows are kept and
    average the cells that they hold. Computed on the host from shapes alone.

    Args:
        grids: Height and width of every frame, in tokens.
        strides: Side of the square window of each output frame, in tokens.
        frames: Which frame each output frame pools; all of them in order by default.
            A frame may stand here more than once, or not at all.

    Returns:
        The plan, on the CPU.

    Raises:
        ValueError: If the lengths differ, a frame does not exist, or a side or a stride
            is below 1.

    Laws:
        partition: without ``frames`` every cell lies in exactly one window
        transpose: both directions hold the same (window, cell) pairs
        matches_reference: equals the loop-written reference

    Example:
        >>> plan = plan_pooling([(2, 2), (1, 3)], [2, 2])
        >>> plan.cells.tolist(), plan.window_sizes.tolist()
        ([0, 1, 2, 3, 4, 5, 6], [4, 2, 1])
    """
    frames = range(len(grids)) if frames is None else frames
    _check_frames(frames, len(grids), len(strides))
    chosen = [grids[frame] for frame in frames]
    pooled = [
        pooled_grid(grid, stride) for grid, stride in zip(chosen, strides, strict=True)
    ]
    height, width = _integers(chosen).reshape(-1, 2).T
    pooled_height, pooled_width = _integers(pooled).reshape(-1, 2).T
    areas = _integers(grids).reshape(-1, 2).prod(1)
    first_cell = (areas.cumsum(0) - areas)[_integers(frames)]
    stride = _integers(strides)
    cu_seqlens = cu_seqlens_from_lengths(pooled_height * pooled_width)

    cu_entries = cu_seqlens_from_lengths(height * width)
    entries = int(cu_entries[-1])
    frame = segment_ids_from_cu_seqlens(cu_entries, entries)
    local = position_ids_from_cu_seqlens(cu_entries, entries)
    row, column = local // width[frame], local % width[frame]
    cell = first_cell[frame] + local
    window = (
        cu_seqlens[frame]
        + row // stride[frame] * pooled_width[frame]
        + column // stride[frame]
    )
    window_sizes = torch.bincount(window, minlength=int(cu_seqlens[-1]))
    reads = torch.bincount(cell, minlength=int(areas.sum()))
    return PoolPlan(
        cells=cell[window.argsort(stable=True)],
        window_starts=window_sizes.cumsum(0) - window_sizes,
        window_sizes=window_sizes,
        windows=window[cell.argsort(stable=True)],
        cell_starts=reads.cumsum(0) - reads,
        cu_seqlens=cu_seqlens,
    )


def pool_tokens(tokens: Float[Tensor, "cells dim"], plan: PoolPlan) -> Ragged:
    """Average the cells of every window of a plan, in one kernel.

    ``pooled[w] = mean(tokens[c] for c in window w)``; the backward pass is one
    gather of the same kind, so no gradient of a whole clip is built per frame.

    Args:
        tokens: Cells of all frames in raster order, frame after frame.
        plan: A plan for that many cells, on the device of ``tokens``.

    Returns:
        The pooled tokens, ragged by frame, in the dtype of ``tokens``.

    Raises:
        ValueError: If the plan is for another number of cells.

    Laws:
        adjoint: the backward pass is the transpose of the forward pass
        matches_reference: equals the loop-written reference
    """
    if len(tokens) != len(plan.cell_starts):
        raise ValueError(
            f"tokens has {len(tokens)} cells but the plan is for "
            f"{len(plan.cell_starts)}; both describe the same frames"
        )
    values: Tensor = _WindowMean.apply(tokens, plan)  # type: ignore[no-untyped-call]
    return Ragged(values=values, cu_seqlens=plan.cu_seqlens)


def pool_frames(
    tokens: Float[Tensor, "frames height width dim"], strides: Sequence[int]
) -> Ragged:
    """Pool every frame of a clip with its own stride.

    Args:
        tokens: The clip before pooling.
        strides: Side of the square window of each frame, in tokens, at least 1.
            Windows at the lower and right edge average the tokens that they hold.

    Returns:
        The pooled tokens in raster order, ragged by frame: frame ``t`` keeps
        ``ceil(height / strides[t]) * ceil(width / strides[t])``.

    Raises:
        ValueError: If there is not one stride per frame, or one is below 1.

    Laws:
        identity: stride 1 changes nothing
        constant: a constant clip stays constant
        linear: commutes with every linear map of the channels
        mean: the mean weighted by window size is that of the clip
        composes: on grids that both strides divide, a then b is a * b
        frame_order: permuting frames permutes the blocks of the result
        matches_avg_pool2d: equals ``avg_pool2d`` with ceil edges, frame by frame

    Example:
        >>> clip = torch.arange(8.0).reshape(2, 2, 2, 1)
        >>> pool_frames(clip, [1, 2]).values.flatten()
        tensor([0.0000, 1.0000, 2.0000, 3.0000, 5.5000])

    References:
        Zhang et al., "Video Instruction Tuning With Synthetic Data"
        (arXiv:2410.02713), section 4.
    """
    frames, height, width, _ = tokens.shape
    plan = to_device(plan_pooling([(height, width)] * frames, strides), tokens.device)
    return pool_tokens(rearrange(tokens, "t h w d -> (t h w) d"), plan)


def _check_frames(frames: Sequence[int], num_frames: int, num_strides: int) -> None:
    """Raise unless every output frame has a stride and a frame to pool."""
    if len(frames) != num_strides:
        raise ValueError(
            f"strides has {num_strides} frames but {len(frames)} are pooled; "
            "each needs one stride"
        )
    if any(not 0 <= frame < num_frames for frame in frames):
        raise ValueError(
            f"frames lies between {min(frames)} and {max(frames)}; there are "
            f"{num_frames} frames, counted from 0"
        )


def _integers(values: Sequence[int] | Sequence[Grid]) -> Tensor:
    """Make an integer tensor, of an empty sequence too."""
    return torch.tensor(values, dtype=torch.long)


class _WindowMean(torch.autograd.Function):
    """Mean over the cells of each window; both passes are bags of rows."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, plan: PoolPlan) -> Tensor:
        ctx.plan = plan
        return F.embedding_bag(plan.cells, tokens, plan.window_starts, mode="mean")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        plan: PoolPlan = ctx.plan
        shares = grads[0] / plan.window_sizes[:, None]
        return F.embedding_bag(plan.windows, shares, plan.cell_starts, mode="sum"), None
