"""FlexAttention's BlockMask of visible intervals, in closed form.

The queries that read a key are one run: they begin with its frame and end where it
expires. So are the blocks of queries that read a block of keys, and those that read
all of it. These two runs for each block of keys say everything that the tables hold.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from fastslow.masks import KeyIntervals, interval_mask, visible_intervals

_Runs = tuple[Tensor, Tensor, Tensor, Tensor]
"""One run of blocks for each block, [first, end), and the full ones among them.

In order: first, first full, end of the full, end. Where none is full, both bounds of
the full ones are the end.
"""

_Tables = tuple[Tensor, Tensor, Tensor, Tensor]
"""Count and list of the partial blocks of each block, then of the full ones."""

_PAIRS_AT_ONCE = 2**17
"""Pairs of blocks that are listed together: what a processor's cache holds."""


def interval_block_mask(intervals: KeyIntervals, *, block_size: int = 128) -> BlockMask:
    """Read intervals as a FlexAttention BlockMask, in closed form.

    Nothing of size tokens x tokens is built, nothing is sorted and no device is waited
    for; beyond the tables themselves, memory is a few vectors of the row's length and
    one table at a time.

    Args:
        intervals: The keys that each query may read, in the order that
            ``KeyIntervals`` states; it is not checked.
        block_size: Queries, and keys, in one block.

    Returns:
        The BlockMask, with both directions filled in.

    Raises:
        ValueError: If ``block_size`` is below 1.

    Laws:
        matches_create_block_mask: every field equals that of ``create_block_mask``
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    tokens = len(intervals.start)
    readers = _readers(intervals, block_size)
    if intervals.is_kept is None:
        keys, queries = _tables_of_runs(_keys(intervals, block_size), readers)
    else:
        keys, (queries,) = _tables_across_runs(readers), _tables_of_runs(readers)
    return BlockMask(
        (tokens, tokens),
        *keys,
        *queries,
        BLOCK_SIZE=(block_size, block_size),
        mask_mod=interval_mask(intervals),
    )


def frame_causal_block_mask(
    causal_ranks: Int[Tensor, " tokens"],
    segment_ids: Int[Tensor, " tokens"] | None = None,
    *,
    block_size: int = 128,
) -> BlockMask:
    """Build the BlockMask of the frame-causal rule from its visible intervals.

    Args:
        causal_ranks: Order of each token, non-decreasing within its segment.
        segment_ids: Packed sample of each token, contiguous; -1 marks padding. None
            means one sample.
        block_size: Queries, and keys, in one block.

    Returns:
        The BlockMask that ``create_block_mask`` builds from ``frame_causal_mask``.

    Raises:
        ValueError: As ``visible_intervals`` and ``interval_block_mask`` do.

    Laws:
        matches_create_block_mask: every field equals that of ``create_block_mask``

    Example:
        >>> ranks = torch.arange(4).repeat_interleave(64)
        >>> frame_causal_block_mask(ranks).kv_num_blocks
        tensor([[[1, 1]]], dtype=torch.int32)
    """
    intervals = visible_intervals(causal_ranks, segment_ids)
    return interval_block_mask(intervals, block_size=block_size)


def _keys(intervals: KeyIntervals, block_size: int) -> _Runs:
    """Give the key blocks that each block of queries reads; nothing may be kept."""
    start, stop = intervals.start, intervals.stop
    tokens, reads = len(start), start < stop
    start = _by_block(start.masked_fill(~reads, tokens), tokens, block_size)
    stop = _by_block(stop.masked_fill(~reads, 0), 0, block_size)
    return _runs(start.amin(1), start.amax(1), stop.amin(1), stop.amax(1), block_size)


def _readers(intervals: KeyIntervals, block_size: int) -> _Runs:
    """Give the query blocks that read each block of keys.

    No bound falls from one real token to the next; padding gets its own place, which
    lies between theirs. So the queries whose bound is at most ``key`` are counted by a
    search, and only the outermost keys of a block have to be looked for.
    """
    real = intervals.start < intervals.stop
    tokens = len(real)
    index = torch.arange(tokens, dtype=torch.int32, device=real.device)

    def outermost(keys: Tensor) -> tuple[Tensor, Tensor]:
        least = _by_block(torch.where(keys, index, tokens), tokens, block_size)
        greatest = _by_block(torch.where(keys, index, -1), -1, block_size)
        return least.amin(1), greatest.amax(1)

    def count_up_to(key: Tensor, bound: Tensor) -> Tensor:
        ascending = torch.where(real, bound, index)
        return torch.searchsorted(ascending, key, right=True, out_int32=True)

    first_key, last_key = outermost(real)
    first = count_up_to(first_key, intervals.stop)
    full_first = count_up_to(last_key, intervals.stop)
    if intervals.is_kept is None or intervals.kept_start is None:
        full_end = count_up_to(first_key, intervals.start)
        end = count_up_to(last_key, intervals.start)
    else:
        first_kept, last_kept = outermost(real & intervals.is_kept)
        first_other, last_other = outermost(real & ~intervals.is_kept)
        full_end = torch.minimum(
            count_up_to(first_kept, intervals.kept_start),
            count_up_to(first_other, intervals.start),
        )
        end = torch.maximum(
            count_up_to(last_kept, intervals.kept_start),
            count_up_to(last_other, intervals.start),
        )
    holds_padding = ~_by_block(real, False, block_size).all(1)
    full_end = full_end.masked_fill(holds_padding, 0)
    return _runs(first, full_first, full_end, end, block_size)


def _by_block(values: Tensor, fill: int, block_size: int) -> Tensor:
    """Cut a row's values into blocks, the last one filled up."""
    blocks = -(-len(values) // block_size)
    pad = blocks * block_size - len(values)
    return F.pad(values, (0, pad), value=fill).view(blocks, block_size)


def _runs(
    first: Tensor, full_first: Tensor, full_end: Tensor, end: Tensor, block_size: int
) -> _Runs:
    """Round bounds in tokens to blocks: outwards, and inwards for the full ones."""
    end = -(-end // block_size)
    full_first, full_end = -(-full_first // block_size), full_end // block_size
    is_none = full_first >= full_end
    full_first = torch.where(is_none, end, full_first)
    full_end = torch.where(is_none, end, full_end)
    return torch.minimum(first // block_size, end), full_first, full_end, end


def _tables_of_runs(*directions: _Runs) -> list[_Tables]:
    """List the partial blocks of each run, and the full ones, in each direction.

    A table has the marked columns of each row first, then the others, both in order.
    So a row is five runs that count up by one, and the running sum of its steps: 1 from
    slot to slot, and a jump where a run begins.
    """
    first, full_first, full_end, end = (
        torch.stack(bounds) for bounds in zip(*directions, strict=True)
    )
    a, b = torch.stack([first, full_first], 1), torch.stack([full_first, full_end], 1)
    c, d = torch.stack([full_end, full_end], 1), torch.stack([end, full_end], 1)
    blocks, zero = a.shape[-1], torch.zeros_like(a)
    begin = torch.stack([a, c, zero, b, d], -1)
    previous_end = torch.stack([zero, b, d, a, c], -1)
    length = previous_end[..., 1:] - begin[..., :-1]
    slot = F.pad(length.cumsum(-1, dtype=torch.int32), (1, 0))
    jump = (begin - previous_end).masked_fill(slot == blocks, 0)
    jump[..., 0] -= 1
    count, slot = slot[..., 2].contiguous(), slot.clamp(max=blocks - 1).long()

    def table(slot: Tensor, jump: Tensor) -> Tensor:
        return zero.new_ones(blocks, blocks).scatter_add_(1, slot, jump).cumsum_(1)

    return [
        _with_axes(
            count[n], table(slot[n, 0], jump[n, 0]), table(slot[n, 1], jump[n, 1])
        )
        for n in range(len(directions))
    ]


def _tables_across_runs(runs: _Runs) -> _Tables:
    """List, for each block, the blocks whose run holds it: partial, and full.

    Kept keys lie anywhere, so here every pair of blocks is looked at.
    """
    first, full_first, full_end, end = runs
    blocks = len(end)
    column = torch.arange(blocks, dtype=torch.int32, device=end.device)
    tables, counts = end.new_empty(2, blocks, blocks), end.new_empty(2, blocks)
    rows = max(_PAIRS_AT_ONCE // max(blocks, 1), 1)
    for row, table, count in zip(
        column[:, None].split(rows),
        tables.split(rows, 1),
        counts.split(rows, 1),
        strict=True,
    ):
        live = (first <= row) & (row < end)
        full = (full_first <= row) & (row < full_end)
        marks = torch.stack([live ^ full, full])
        marked = marks.cumsum(2, dtype=torch.int32)
        torch.sum(marks, 2, dtype=torch.int32, out=count)
        unmarked = (count[..., None] + column) - marked
        slot = torch.where(marks, marked - 1, unmarked).long()
        table.scatter_(2, slot, column.expand_as(slot))
    return _with_axes(counts, *tables)


def _with_axes(counts: Tensor, partial: Tensor, full: Tensor) -> _Tables:
    """Put each count beside its table, and the axes of batch and head before both."""
    count, full_count = counts[:, None, None]
    return count, partial[None, None], full_count, full[None, None]
