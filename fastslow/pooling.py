"""Variable-stride pooling of a clip's tokens into a ragged sequence."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from fastslow._plans import to_device
from fastslow._shapes import check_axes
from fastslow.grids import Edge
from fastslow.pool_plans import Mode, PoolPlan, plan_pooling
from fastslow.ragged import Ragged
from fastslow.schedules import schedule_from_strides


def pool_tokens(tokens: Float[Tensor, "cells dim"], plan: PoolPlan) -> Ragged:
    """Pool the cells of every window of a plan, in one kernel.

    ``pooled[w]`` is the weighted sum or the maximum of ``tokens[c]`` over the
    cells ``c`` of window ``w``. A maximum does not hide NaN, though an infinity that
    comes first in the window stands for it. The backward pass is a gather as well: each
    cell reads the windows that read it, of a maximum those that it has won. Nothing of
    the size of a whole clip is built per frame, and nothing is sorted or scattered. It
    may be differentiated twice, and by ``torch.func.grad``.

    Args:
        tokens: Cells of all frames in raster order, frame after frame.
        plan: A plan for that many cells, on the device of ``tokens``.

    Returns:
        The pooled tokens, ragged by frame, in the dtype of ``tokens``.

    Raises:
        ValueError: If ``tokens`` has other axes or the plan another number of cells.

    Laws:
        adjoint: the backward pass of a linear mode is the transpose of the forward
            pass: ``<P x, y> == <x, P' y>``
        routes: the gradient of a maximum goes to the cell that it came from, the first
            of equal ones; where windows overlap these add up, in at least float32
        matches_reference: equals the loop-written reference: ``pool_tokens(x, plan) ==
            reference.pool(x)``

    Example:
        >>> from fastslow import schedule_from_strides
        >>> clips = [((2, 2), schedule_from_strides([2])),
        ...          ((1, 3), schedule_from_strides([1]))]
        >>> pool_tokens(torch.arange(7.0)[:, None], plan_pooling(clips))
        Ragged(values=tensor([[1.5000],
                [4.0000],
                [5.0000],
                [6.0000]]), cu_seqlens=tensor([0, 1, 4], dtype=torch.int32))
    """
    check_axes("tokens", tokens, "cells", "dim")
    if len(tokens) != len(plan.cell_starts):
        raise ValueError(
            f"tokens has {len(tokens)} cells but the plan is for "
            f"{len(plan.cell_starts)}; both describe the same frames"
        )
    winners = _find_winners(tokens, plan) if plan.weights is None else None
    values: Tensor = _Pool.apply(  # type: ignore[no-untyped-call]
        tokens, winners, plan, False
    )
    return Ragged(values=values, cu_seqlens=plan.cu_seqlens)


def pool_frames(
    tokens: Float[Tensor, "frames height width dim"],
    strides: Sequence[int],
    *,
    mode: Mode = "average",
    edge: Edge = "ceil",
) -> Ragged:
    """Pool every frame of a clip with its own stride.

    Args:
        tokens: The clip before pooling.
        strides: Side of the square window of each frame, in tokens, at least 1.
        mode: ``average``, ``max``, ``area`` or ``bilinear``, see ``plan_pooling``.
        edge: What becomes of cells that fill no whole window: ``ceil`` keeps them in a
            smaller window, ``floor`` drops them, ``error`` refuses them.

    Returns:
        The pooled tokens in raster order, ragged by frame: by default frame ``t`` keeps
        ``ceil(height / strides[t]) * ceil(width / strides[t])``.

    Raises:
        ValueError: If ``tokens`` has other axes, there is not one stride per frame, one
            is below 1, or the edges or the mode do not allow it.

    Laws:
        identity: stride 1 changes nothing, in any mode: ``pool(x, 1) == x``
        constant: a constant clip stays constant, in any mode, but for rounding:
            ``pool(c * ones) == c * ones``
        linear: commutes with every linear map of the channels, but for ``max``:
            ``pool(x @ A) == pool(x) @ A``
        mean: the mean weighted by window size is that of the clip: ``sum(size[w] *
            pool(x)[w]) / sum(size) == x.mean()``
        composes: on grids that both strides divide, a then b is a * b: ``pool(pool(x,
            a), b) == pool(x, a * b)``
        frame_order: permuting frames permutes the blocks of the result: ``pool(x[p],
            s[p]) == blocks of pool(x, s) in order p``
        matches_torch: equals ``avg_pool2d``, ``max_pool2d`` or ``interpolate`` frame by
            frame: ``pool(x, s)[t] == avg_pool2d(x[t], s[t], ceil_mode=True,
            count_include_pad=False)``

    Example:
        >>> clip = torch.arange(8.0).reshape(2, 2, 2, 1)
        >>> pool_frames(clip, [1, 2]).values.flatten()
        tensor([0.0000, 1.0000, 2.0000, 3.0000, 5.5000])

    References:
        Zhang et al., "Video Instruction Tuning With Synthetic Data"
        (arXiv:2410.02713), section 4.
    """
    check_axes("tokens", tokens, "frames", "height", "width", "dim")
    frames, height, width, _ = tokens.shape
    if not hasattr(strides, "__len__"):
        raise ValueError(f"strides is {strides}; it must hold one stride per frame")
    if len(strides) != frames:
        raise ValueError(
            f"strides has {len(strides)} frames but tokens has {frames}; each frame "
            "needs one stride"
        )
    schedule = schedule_from_strides(strides, edge=edge)
    plan = plan_pooling([((height, width), schedule)], mode=mode)
    cells = rearrange(tokens, "t h w d -> (t h w) d")
    return pool_tokens(cells, to_device(plan, tokens.device))


class _Pool(torch.autograd.Function):
    """Weighted sum or winner of each window's cells, or the transpose of that.

    One is the gradient of the other, so it may be differentiated any number of times,
    by kernels that autograd does not know too.
    """

    @staticmethod
    def forward(
        rows: Tensor, winners: Tensor | None, plan: PoolPlan, is_transposed: bool
    ) -> Tensor:
        if winners is not None:
            if is_transposed:
                return _give_to_winners(rows, winners, plan)
            return rows.gather(0, winners.long())
        entries, starts, weights = plan.cells, plan.window_starts, plan.weights
        if is_transposed:
            entries, starts, weights = plan.windows, plan.cell_starts, plan.back_weights
        assert weights is not None
        return _sum_bags(rows, entries, starts, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, winners, ctx.plan, ctx.is_transposed = inputs
        ctx.save_for_backward(winners)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,), (winners,) = grads, ctx.saved_tensors
        back: Tensor = _Pool.apply(  # type: ignore[no-untyped-call]
            grad, winners, ctx.plan, not ctx.is_transposed
        )
        return back, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        rows: Tensor,
        winners: Tensor | None,
        plan: PoolPlan,
        is_transposed: bool,
    ) -> tuple[Tensor, int]:
        """Pool a batch as so many more channels."""
        rows = _beside(rows, in_dims[0], info.batch_size)
        if winners is not None:
            winners = _beside(winners, in_dims[1], info.batch_size).flatten(1)
        pooled = _Pool.apply(  # type: ignore[no-untyped-call]
            rows.flatten(1), winners, plan, is_transposed
        )
        return pooled.unflatten(1, rows.shape[1:]), 1


def _beside(rows: Tensor, dim: int | None, batch_size: int) -> Tensor:
    """Lay the rows of a batch beside each other, or as many copies of one tensor."""
    if dim is None:
        return rows.unsqueeze(1).expand(-1, batch_size, *rows.shape[1:])
    return rows.movedim(dim, 1)


def _sum_bags(rows: Tensor, entries: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Add up bags of weighted rows; sums are at least float32 before they are rounded.

    Means go this way too: ``embedding_bag`` takes half as long again to divide sums by
    their sizes, and its sums leave the range of half precision.
    """
    if rows.is_cuda:
        from fastslow._gpu_bags import sum_bags_on_gpu  # noqa: PLC0415

        return sum_bags_on_gpu(rows, entries, starts, weights)
    if rows.is_cpu and rows.dtype.itemsize == 2:
        entries, starts, weights = _in_two_terms(entries, starts, weights, rows.dtype)
    return F.embedding_bag(
        entries, rows, starts, mode="sum", per_sample_weights=weights.to(rows.dtype)
    )


def _in_two_terms(
    entries: Tensor, starts: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Write weights that half precision does not hold as sums of two that it does.

    ``embedding_bag`` takes weights in the dtype of its rows. Both terms have one sign,
    so an infinity that they meet stays what it is.
    """
    first = weights.to(dtype)
    is_beyond = first.abs() > weights.abs()
    first = (first.view(torch.int16) - is_beyond.short()).view(dtype)  # towards 0
    second = (weights - first).to(dtype)
    terms = torch.stack([first, second], 1)
    is_needed = torch.stack([torch.ones_like(is_beyond), second != 0], 1)
    counts = is_needed.sum(1)
    bounds = F.pad(counts.cumsum(0), (1, 0))
    entries = entries.repeat_interleave(counts)
    return entries, bounds[starts], terms.masked_select(is_needed)


@torch.no_grad()
def _find_winners(tokens: Tensor, plan: PoolPlan) -> Tensor:
    """Find the first cell of each window that has its maximum, channel by channel."""
    # embedding_bag passes over NaN, unless it comes first; over no infinity.
    largest = tokens.masked_fill(tokens.isnan(), torch.inf)
    *_, winners = torch.embedding_bag(
        largest, plan.cells.int(), plan.window_starts.int(), mode=2
    )
    return winners


def _give_to_winners(rows: Tensor, winners: Tensor, plan: PoolPlan) -> Tensor:
    """Add up what each cell is given by the windows that it has won."""
    entries = torch.arange(len(plan.windows), device=rows.device)
    readers = torch.searchsorted(plan.cell_starts, entries, right=True, out_int32=True)
    has_won = winners[plan.windows] == readers[:, None] - 1
    given = torch.where(has_won, rows[plan.windows], 0)
    ones = torch.ones_like(entries, dtype=torch.float64)
    return _sum_bags(given, entries, plan.cell_starts, ones)
