"""Maxima over windows of few sizes, and where they came from.

Everything here goes through the windows of a plan by size, see ``WindowsBySize``: those
of one size are rows of one tensor. The *winners* of a window count, channel by channel,
how many of its cells are left from the one that has its maximum on.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastslow._bags import sum_bags
from fastslow.pool_plans import PoolPlan, WindowsBySize

PIECE_BYTES = 2**20
"""What is read of the cells at a time on a CPU, whose cache holds about as much."""


def window_maxima(tokens: Tensor, plan: PoolPlan) -> Tensor:
    """Give the maximum of each window's cells, NaN where one of them is.

    Args:
        tokens: ``(cells, channels)``.
        plan: A plan of maxima, on their device.

    Returns:
        ``(windows, channels)``.
    """
    # What torch.func differentiates may say that it needs no gradient.
    transforms = torch._C._are_functorch_transforms_active
    if torch.is_grad_enabled() and (tokens.requires_grad or transforms()):
        maxima: Tensor
        maxima, _ = _Maxima.apply(tokens, plan)
        return maxima
    windows = _windows(plan)
    found = [_best(rows) for rows in _pieces(tokens, windows)]
    return torch.cat([tokens[:0], *found]).index_select(0, windows.places)


class _Maxima(torch.autograd.Function):
    """Maxima and winners."""

    @staticmethod
    def forward(tokens: Tensor, plan: PoolPlan) -> tuple[Tensor, Tensor]:
        windows = _windows(plan)
        found = [tokens[:0]]
        winners = [tokens[:0].to(_narrow(windows))]
        for rows in _pieces(tokens, windows):
            best = _best(rows)
            # Beside a NaN all that is finite counts as below; a NaN never does.
            least = best.masked_fill(best.isnan(), torch.inf)
            is_best = (rows < least[:, None]).logical_not_()
            # Of a countdown, the first best cell has the most.
            left = is_best * _countdown(rows.shape[1], winners[0])
            found.append(best)
            winners.append(left.amax(1))
        return torch.cat(found).index_select(0, windows.places), torch.cat(winners)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.plan = inputs
        _, winners = output
        ctx.mark_non_differentiable(winners)
        ctx.set_materialize_grads(False)  # zeros for the winners
        ctx.save_for_backward(winners)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None]:
        (winners,) = ctx.saved_tensors
        grad, _ = grads
        if grad is None:
            return None, None
        back: Tensor = _Routes.apply(grad, winners, ctx.plan, True)
        return back, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, tokens: Tensor, plan: PoolPlan
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """Take a batch as so many more channels."""
        rows = tokens.movedim(in_dims[0], 1)
        both = _Maxima.apply(rows.flatten(1), plan)
        maxima, winners = (each.unflatten(1, rows.shape[1:]) for each in both)
        return (maxima, winners), (1, 1)


class _Routes(torch.autograd.Function):
    """What the winners of each window have, or the transpose: what they are given."""

    @staticmethod
    def forward(
        rows: Tensor, winners: Tensor, plan: PoolPlan, is_transposed: bool
    ) -> Tensor:
        if is_transposed:
            return _give(rows, winners, plan)
        windows = _windows(plan)
        found = [rows[:0]]
        for size, here, entries in _runs(windows, rows):
            cells = windows.cells[entries].view(-1, size)
            found.append(rows.gather(0, cells.gather(1, size - winners[here].long())))
        return torch.cat(found).index_select(0, windows.places)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, winners, ctx.plan, ctx.is_transposed = inputs
        ctx.save_for_backward(winners)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (winners,), (grad,) = ctx.saved_tensors, grads
        back: Tensor = _Routes.apply(grad, winners, ctx.plan, not ctx.is_transposed)
        return back, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        rows: Tensor,
        winners: Tensor,
        plan: PoolPlan,
        is_transposed: bool,
    ) -> tuple[Tensor, int]:
        """Take a batch as so many more channels."""
        rows, winners = (
            each[:, None].expand(-1, info.batch_size, *each.shape[1:])
            if dim is None
            else each.movedim(dim, 1)
            for each, dim in zip((rows, winners), in_dims[:2], strict=True)
        )
        found = _Routes.apply(rows.flatten(1), winners.flatten(1), plan, is_transposed)
        return found.unflatten(1, rows.shape[1:]), 1


def _give(rows: Tensor, winners: Tensor, plan: PoolPlan) -> Tensor:
    """Add up what each cell is given by the windows that it has won."""
    windows = _windows(plan)
    rows = rows.index_select(0, windows.order)
    nothing, given = rows.new_zeros(()), [rows[:0]]
    for size, here, entries in _runs(windows, rows):
        has_won = winners[here, None] == _countdown(size, winners)
        part = torch.where(has_won, rows[here, None], nothing)
        given.append(part.reshape(entries.stop - entries.start, rows.shape[1]))
    ones = torch.ones_like(windows.entries, dtype=torch.float64)
    return sum_bags(torch.cat(given), windows.entries, plan.cell_starts, ones)


def _best(rows: Tensor) -> Tensor:
    """Take the maximum of each window: ``(windows, channels)``. One cell is its own."""
    return rows[:, 0] if rows.shape[1] == 1 else rows.amax(1)


def _windows(plan: PoolPlan) -> WindowsBySize:
    """Give the windows of a plan of maxima."""
    assert plan.by_size is not None
    return plan.by_size


def _narrow(windows: WindowsBySize) -> torch.dtype:
    """Choose the type that holds as many as the largest window has cells."""
    largest = windows.sizes[-1][0] if windows.sizes else 0
    return torch.int8 if largest < 128 else torch.int32


def _pieces(tokens: Tensor, windows: WindowsBySize) -> Iterator[Tensor]:
    """Read the cells of windows of one size: ``(windows, size, channels)`` a piece."""
    for size, here, entries in _runs(windows, tokens):
        cells = tokens.index_select(0, windows.cells[entries])
        yield cells.view(here.stop - here.start, size, tokens.shape[1])


def _runs(windows: WindowsBySize, rows: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Cut windows into runs of one size, on a CPU of what its cache holds.

    Yields:
        Cells of each window, the windows, and their entries in ``windows.cells``.
    """
    in_pieces = rows.is_cpu and not torch.compiler.is_compiling()
    first = entry = 0
    for size, count in windows.sizes:
        room = PIECE_BYTES // max(size * rows.shape[1] * rows.itemsize, 1)
        most = max(room, 1) if in_pieces else count
        for start in range(0, count, most):
            taken = min(most, count - start)
            yield (
                size,
                slice(first, first + taken),
                slice(entry, entry + taken * size),
            )
            first, entry = first + taken, entry + taken * size


def _countdown(size: int, like: Tensor) -> Tensor:
    """Count the cells of a window down: ``(size, 1)``."""
    return torch.arange(size, 0, -1, dtype=like.dtype, device=like.device)[:, None]
