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
    if torch.is_grad_enabled() and tokens.requires_grad:
        maxima: Tensor
        maxima, _ = _Maxima.apply(tokens, plan)  # type: ignore[no-untyped-call]
        return maxima
    windows = _windows(plan)
    found = tokens.new_empty(len(windows.order), tokens.shape[1])
    for size, here, entries in _runs(windows, tokens):
        found[here] = _cells(tokens, windows.cells[entries], size).amax(1)
    return found.index_select(0, windows.places)


class _Maxima(torch.autograd.Function):
    """Maxima and winners."""

    @staticmethod
    def forward(tokens: Tensor, plan: PoolPlan) -> tuple[Tensor, Tensor]:
        windows = _windows(plan)
        found = tokens.new_empty(len(windows.order), tokens.shape[1])
        largest = max((size for size, _ in windows.sizes), default=1)
        narrow = torch.int8 if largest < 128 else torch.int32
        winners = torch.empty_like(found, dtype=narrow)
        for size, here, entries in _runs(windows, tokens):
            rows = _cells(tokens, windows.cells[entries], size)
            best = torch.amax(rows, 1, out=found[here])
            is_best = (rows < best[:, None]).logical_not_()  # as a NaN is
            torch.amax(is_best * _countdown(size, winners), 1, out=winners[here])
        return found.index_select(0, windows.places), winners

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
        back: Tensor = _Routes.apply(  # type: ignore[no-untyped-call]
            grad, winners, ctx.plan, True
        )
        return back, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, tokens: Tensor, plan: PoolPlan
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """Take a batch as so many more channels."""
        rows = tokens.movedim(in_dims[0], 1)
        both = _Maxima.apply(rows.flatten(1), plan)  # type: ignore[no-untyped-call]
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
        found = rows.new_empty(winners.shape)
        for size, here, entries in _runs(windows, rows):
            cells = windows.cells[entries].unflatten(0, (-1, size))
            found[here] = rows.gather(0, cells.gather(1, size - winners[here].long()))
        return found.index_select(0, windows.places)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, winners, ctx.plan, ctx.is_transposed = inputs
        ctx.save_for_backward(winners)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (winners,), (grad,) = ctx.saved_tensors, grads
        back: Tensor = _Routes.apply(  # type: ignore[no-untyped-call]
            grad, winners, ctx.plan, not ctx.is_transposed
        )
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
        found = _Routes.apply(  # type: ignore[no-untyped-call]
            rows.flatten(1), winners.flatten(1), plan, is_transposed
        )
        return found.unflatten(1, rows.shape[1:]), 1


def _give(rows: Tensor, winners: Tensor, plan: PoolPlan) -> Tensor:
    """Add up what each cell is given by the windows that it has won."""
    windows = _windows(plan)
    rows = rows.index_select(0, windows.order)
    given = rows.new_empty(len(windows.cells), rows.shape[1])
    nothing = rows.new_zeros(())
    for size, here, entries in _runs(windows, rows):
        has_won = winners[here, None] == _countdown(size, winners)
        part = given[entries].unflatten(0, (-1, size))
        torch.where(has_won, rows[here, None], nothing, out=part)
    ones = torch.ones_like(windows.entries, dtype=torch.float64)
    return sum_bags(given, windows.entries, plan.cell_starts, ones)


def _windows(plan: PoolPlan) -> WindowsBySize:
    """Give the windows of a plan of maxima."""
    assert plan.by_size is not None
    return plan.by_size


def _runs(windows: WindowsBySize, rows: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Cut windows into runs of one size, on a CPU of what its cache holds.

    Yields:
        Cells of each window, the windows, and their entries in ``windows.cells``.
    """
    first = entry = 0
    for size, count in windows.sizes:
        room = PIECE_BYTES // max(size * rows.shape[1] * rows.itemsize, 1)
        most = max(room, 1) if rows.is_cpu else count
        for start in range(0, count, most):
            taken = min(most, count - start)
            yield (
                size,
                slice(first, first + taken),
                slice(entry, entry + taken * size),
            )
            first, entry = first + taken, entry + taken * size


def _cells(tokens: Tensor, cells: Tensor, size: int) -> Tensor:
    """Read the cells of windows: ``(windows, size, channels)``."""
    rows: Tensor = tokens.index_select(0, cells).unflatten(0, (-1, size))
    return rows


def _countdown(size: int, like: Tensor) -> Tensor:
    """Count the cells of a window down: ``(size, 1)``."""
    return torch.arange(size, 0, -1, dtype=like.dtype, device=like.device)[:, None]
