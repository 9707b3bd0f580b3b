"""Weighted sums of bags of rows, as each device takes them best."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sum_bags(rows: Tensor, entries: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Add up bags of weighted rows; sums are at least float32 before they are rounded.

    Means go this way too: ``embedding_bag`` takes half as long again to divide sums by
    their sizes, and its sums leave the range of half precision.

    Args:
        rows: ``(rows, channels)``.
        entries: Rows of bag 0, then those of bag 1, and so on.
        starts: First entry of each bag; a bag may be empty.
        weights: Factor of each entry, in any precision.

    Returns:
        ``(bags, channels)`` in the dtype of ``rows``.
    """
    if not rows.shape[1]:
        return rows.new_empty(len(starts), 0)
    if rows.is_cuda:
        on_gpu: Tensor = _sum_on_gpu(rows, entries, starts, weights)
        return on_gpu
    if rows.is_cpu and rows.dtype.itemsize == 2:
        entries, starts, weights = _in_two_terms(entries, starts, weights, rows.dtype)
    return F.embedding_bag(
        entries, rows, starts, mode="sum", per_sample_weights=weights.to(rows.dtype)
    )


@torch.library.custom_op("fastslow::sum_bags", mutates_args=())
def _sum_on_gpu(
    rows: Tensor, entries: Tensor, starts: Tensor, weights: Tensor
) -> Tensor:
    """Add up by a kernel of ours; compilers leave it whole."""
    from fastslow._gpu_bags import sum_bags_on_gpu  # noqa: PLC0415

    return sum_bags_on_gpu(rows, entries, starts, weights)


@_sum_on_gpu.register_fake
def _(rows: Tensor, entries: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return rows.new_empty(len(starts), rows.shape[1])


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
