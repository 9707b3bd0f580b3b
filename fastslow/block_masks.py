"""FlexAttention's BlockMask of visible intervals, in closed form.

The queries that read a key are one run: they begin with its frame and end where it
expires. So are the blocks of queries that read a block of keys, and those that read
all of it. These two runs for each block of keys say everything that the tables hold.
Seen from the queries, kept keys lie scattered before a window: there a row is a few
runs in lists of the blocks that hold some.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from fastslow._block_runs import (
    Runs,
    by_block,
    count_blocks,
    keys_of_queries,
    readers_of_keys,
)
from fastslow.masks import KeptKeys, KeyIntervals, interval_mask, visible_intervals

_Tables = tuple[Tensor, Tensor, Tensor, Tensor]
"""Count and list of the partial blocks of each block, then of the full ones."""

_PAIRS_AT_ONCE = 2**18
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
        ValueError: If ``block_size`` is below 1, or there is no token: torch can
            neither print nor use the BlockMask of an empty row.

    Laws:
        matches_create_block_mask: every field equals that of ``create_block_mask``:
            ``block_mask(v) == create_block_mask(interval_mask(v))``

    Example:
        >>> frames = torch.arange(6).repeat_interleave(2)
        >>> recent = visible_intervals(frames, frame_ids=frames, window=2)
        >>> blocks = interval_block_mask(recent, block_size=4)
        >>> blocks.kv_num_blocks + blocks.full_kv_num_blocks
        tensor([[[1, 2, 2]]], dtype=torch.int32)
    """
    tokens = len(intervals.start)
    if not tokens:
        raise ValueError("intervals has 0 tokens; a BlockMask needs at least 1")
    keys, queries = _tables(intervals, block_size)
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

    Their order is checked, which reads the tensors on the host: plan on the CPU, or
    give a device intervals of its own and call ``interval_block_mask`` there.

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
        matches_create_block_mask: every field equals that of ``create_block_mask``:
            ``block_mask(r, s) == create_block_mask(frame_causal_mask(r, s))``

    Example:
        >>> ranks = torch.arange(4).repeat_interleave(64)
        >>> frame_causal_block_mask(ranks).kv_num_blocks
        tensor([[[1, 1]]], dtype=torch.int32)
    """
    intervals = visible_intervals(causal_ranks, segment_ids)
    return interval_block_mask(intervals, block_size=block_size)


def _tables(intervals: KeyIntervals, block_size: int) -> list[_Tables]:
    """List the blocks that each block of queries reads, and those that read it."""
    if intervals.kept is not None:
        keys = _key_tables(intervals, intervals.kept, block_size)
        return [keys, *_tables_of_runs(readers_of_keys(intervals, block_size))]
    if _is_for_kernel(intervals.start, block_size):
        from fastslow._gpu_block_masks import tables_on_gpu  # noqa: PLC0415

        blocks = count_blocks(len(intervals.start), block_size)
        counts, lists = tables_on_gpu(
            intervals.start, intervals.stop, block_size, blocks
        )
        return [
            _with_axes(counts[partial], lists[partial], counts[full], lists[full])
            for partial, full in ((0, 1), (2, 3))
        ]
    return _tables_of_runs(
        keys_of_queries(intervals, block_size), readers_of_keys(intervals, block_size)
    )


def _is_for_kernel(bounds: Tensor, block_size: int) -> bool:
    """Tell whether one launch writes the tables: compilers see the closed form."""
    is_large = block_size > 4096  # a program holds all tokens of a block
    return bounds.is_cuda and not is_large and not torch.compiler.is_compiling()


def _tables_of_runs(*directions: Runs) -> list[_Tables]:
    """List the partial blocks of each run, and the full ones, in each direction."""
    first, full_first, full_end, end = (
        torch.stack(bounds) for bounds in zip(*directions, strict=True)
    )
    a, b = torch.stack([first, full_first], 1), torch.stack([full_first, full_end], 1)
    c, d = torch.stack([full_end, full_end], 1), torch.stack([end, full_end], 1)
    zero, blocks = torch.zeros_like(a), a.shape[-1]
    columns, jumps = _jumps(
        torch.stack([a, c, zero, b, d], -1),
        torch.stack([b, d, a, c, zero + blocks], -1),
        blocks,
    )
    counts = b - a + d - c

    def table(way: int, kind: int) -> Tensor:
        return _count_up(columns[way, kind], jumps[way, kind], blocks)

    return [
        _with_axes(counts[way, 0], table(way, 0), counts[way, 1], table(way, 1))
        for way in range(len(directions))
    ]


def _jumps(begin: Tensor, end: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Find the columns where the runs of each row begin, and the jumps to get there.

    A run of [begin, end) counts up by one; those of a row fill ``size`` columns.
    """
    column = F.pad((end - begin).cumsum(-1, dtype=torch.int32), (1, -1))
    jump = (begin - F.pad(end, (1, -1), value=1)).masked_fill(column == size, 0)
    return column.clamp(max=size - 1), jump


def _count_up(column: Tensor, jump: Tensor, size: int) -> Tensor:
    """Write out rows of runs: the running sum of steps by 1 and of jumps."""
    steps = jump.new_ones(len(jump), size)
    return steps.scatter_add_(1, column, jump).cumsum_(1)


def _key_tables(intervals: KeyIntervals, kept: KeptKeys, block_size: int) -> _Tables:
    """List the key blocks that each block of queries reads where some keys are kept.

    Along a row of the mask lie regions. In each, the blocks of one set are partial:
    those that hold kept keys before the window, all of them at its edges. So are the
    full ones: before the window, blocks of kept keys alone.
    """
    is_kept = by_block(kept.is_kept, False, block_size)
    held, whole = is_kept.any(1), is_kept.all(1)
    every, none = torch.ones_like(held), torch.zeros_like(held)
    first, whole_first, window, full_first, full_end, end = _cuts(
        intervals, kept, block_size
    )
    before = torch.minimum(window, full_first)
    begin, over = torch.zeros_like(first), torch.full_like(first, len(first))
    count, partial = _table_of_sets(
        [none, held, held & ~whole, every, ~whole, none, every, none],
        [
            begin,
            first,
            torch.minimum(window, whole_first),
            before,
            torch.maximum(before, whole_first),
            full_first,
            full_end,
            end,
            over,
        ],
    )
    full_count, full = _table_of_sets(
        [none, whole, every, none], [begin, whole_first, full_first, full_end, over]
    )
    return _with_axes(count, partial, full_count, full)


def _cuts(
    intervals: KeyIntervals, kept: KeptKeys, block_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cut the key blocks of each block of queries where what it reads changes.

    Returns:
        The first block that is read, for its kept keys; the first that is full if it is
        kept as a whole; the first of the window; the first that is full anyway; the
        end of the full ones; the end of the window. The bounds of the full ones are
        the last of these where none is full.
    """
    tokens = len(intervals.start)
    real = intervals.start < intervals.stop
    index = torch.arange(tokens, dtype=torch.int32, device=real.device)
    later = torch.where(kept.is_kept, index, tokens).flip(0)
    next_kept = F.pad(later.cummin(0).values.flip(0), (0, 1), value=tokens)
    others = torch.where(kept.is_kept, 0, index + 1)
    after_other = F.pad(others.cummax(0).values, (1, 0))

    def outermost(bound: Tensor, fill: int) -> tuple[Tensor, Tensor]:
        bound = by_block(bound.masked_fill(~real, fill), fill, block_size)
        return bound.amin(1), bound.amax(1)

    low, high = outermost(kept.start, tokens)
    window, inner = outermost(intervals.start, tokens)
    full_end, end = outermost(intervals.stop, 0)
    end = -(-end // block_size)
    window = torch.minimum(window // block_size, end)
    first = torch.minimum(next_kept[low] // block_size, window)
    whole_first = torch.maximum(-(-high // block_size), first)
    full_end = full_end // block_size
    full_first = -(-torch.maximum(after_other[inner], high) // block_size)
    full_first = torch.minimum(full_first, full_end)
    is_none = whole_first >= full_end
    whole_first, full_first, full_end = (
        torch.where(is_none, end, cut) for cut in (whole_first, full_first, full_end)
    )
    return first, whole_first, window, full_first, full_end, end


def _table_of_sets(sets: list[Tensor], cuts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """List the marked blocks of each row, then the others, both in order.

    From cut to cut the marked blocks of a row are those of a set. So a row is a few
    runs: of the members of each set in turn, then of those that are none.
    """
    is_member, cut = torch.stack(sets), torch.stack(cuts)
    number, blocks = is_member.shape
    index = torch.arange(blocks + 1, dtype=torch.int32, device=cut.device)
    rank = F.pad(is_member.cumsum(1, dtype=torch.int32), (1, 0))
    other = rank[:, -1:] + index - rank
    place = torch.where(is_member, rank[:, :-1], other[:, :-1])
    members_first = torch.empty_like(place).scatter_(
        1, place, index[:-1].expand_as(place)
    )
    offset = blocks * torch.arange(number, dtype=torch.int32, device=cut.device)
    places = torch.cat([rank, other]) + offset.repeat(2)[:, None]
    begin = places.gather(1, cut[:-1].repeat(2, 1)).T
    end = places.gather(1, cut[1:].repeat(2, 1)).T
    count = (end - begin)[:, :number].sum(1, dtype=torch.int32)
    columns, jumps = _jumps(begin, end, blocks)
    members_first, table = members_first.flatten(), begin.new_empty(blocks, blocks)
    rows = max(_PAIRS_AT_ONCE // blocks, 1)
    for part, column, jump in zip(
        table.split(rows), columns.split(rows), jumps.split(rows), strict=True
    ):
        listed = _count_up(column, jump, blocks).flatten()
        torch.index_select(members_first, 0, listed, out=part.view(-1))
    return count, table


def _with_axes(
    count: Tensor, partial: Tensor, full_count: Tensor, full: Tensor
) -> _Tables:
    """Put the axes of batch and head before every table."""
    count, partial, full_count, full = (
        table[None, None] for table in (count, partial, full_count, full)
    )
    return count, partial, full_count, full
