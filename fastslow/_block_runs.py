"""Runs of blocks that read each other: what tables and counts are made from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.masks import KeyIntervals

Runs = tuple[Tensor, Tensor, Tensor, Tensor]
"""One run of blocks for each block, [first, end), and the full ones among them.

In order: first, first full, end of the full, end. Where none is full, both bounds of
the full ones are the end.
"""


def keys_of_queries(intervals: KeyIntervals, block_size: int) -> Runs:
    """Give the key blocks that each block of queries reads; nothing may be kept."""
    start, stop = intervals.start, intervals.stop
    tokens, reads = len(start), start < stop
    start = by_block(start.masked_fill(~reads, tokens), tokens, block_size)
    stop = by_block(stop, 0, block_size)
    return _round(start.amin(1), start.amax(1), stop.amin(1), stop.amax(1), block_size)


def readers_of_keys(intervals: KeyIntervals, block_size: int) -> Runs:
    """Give the query blocks that read each block of keys.

    No bound falls from one real token to the next; padding gets its own place, which
    lies between theirs. So the queries whose bound is at most ``key`` are counted by a
    search, and only the outermost keys of a block have to be looked for.
    """
    real = intervals.start < intervals.stop
    tokens = len(real)
    index = torch.arange(tokens, dtype=torch.int32, device=real.device)

    def outermost(keys: Tensor) -> tuple[Tensor, Tensor]:
        least = by_block(torch.where(keys, index, tokens), tokens, block_size)
        greatest = by_block(torch.where(keys, index, -1), -1, block_size)
        return least.amin(1), greatest.amax(1)

    def count_up_to(key: Tensor, bound: Tensor) -> Tensor:
        ascending = torch.where(real, bound, index)
        return torch.searchsorted(ascending, key, right=True, out_int32=True)

    first_key, last_key = outermost(real)
    first = count_up_to(first_key, intervals.stop)
    full_first = count_up_to(last_key, intervals.stop)
    kept = intervals.kept
    if kept is None:
        full_end = count_up_to(first_key, intervals.start)
        end = count_up_to(last_key, intervals.start)
    else:
        first_kept, last_kept = outermost(real & kept.is_kept)
        first_other, last_other = outermost(real & ~kept.is_kept)
        full_end = torch.minimum(
            count_up_to(first_kept, kept.start),
            count_up_to(first_other, intervals.start),
        )
        end = torch.maximum(
            count_up_to(last_kept, kept.start),
            count_up_to(last_other, intervals.start),
        )
    holds_padding = ~by_block(real, False, block_size).all(1)
    full_end = full_end.masked_fill(holds_padding, 0)
    return _round(first, full_first, full_end, end, block_size)


def count_blocks(tokens: int, block_size: int) -> int:
    """Count the blocks of a row.

    Raises:
        ValueError: If ``block_size`` is below 1.
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    return -(-tokens // block_size)


def by_block(values: Tensor, fill: int, block_size: int) -> Tensor:
    """Cut a row's values into blocks, the last one filled up."""
    blocks = count_blocks(len(values), block_size)
    pad = blocks * block_size - len(values)
    return F.pad(values, (0, pad), value=fill).view(blocks, block_size)


def _round(
    first: Tensor, full_first: Tensor, full_end: Tensor, end: Tensor, block_size: int
) -> Runs:
    """Round bounds in tokens to blocks: outwards, and inwards for the full ones."""
    end = -(-end // block_size)
    full_first, full_end = -(-full_first // block_size), full_end // block_size
    is_none = full_first >= full_end
    full_first = torch.where(is_none, end, full_first)
    full_end = torch.where(is_none, end, full_end)
    return torch.minimum(first // block_size, end), full_first, full_end, end
