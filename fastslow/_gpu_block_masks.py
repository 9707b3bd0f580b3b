"""Tables of a BlockMask on a GPU, in one launch.

Step by step the closed form is some ninety operations, whose launches take longer than
what they do. Each program here finds the runs of one block, in both directions, and
writes its rows of the tables. Triton comes with torch on GPUs, and FlexAttention needs
it as well.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslow._typing import no_type_check

COLUMNS = 256
"""Columns of a table that are written at a time."""


def tables_on_gpu(
    start: Tensor, stop: Tensor, block_size: int, blocks: int
) -> tuple[Tensor, Tensor]:
    """List the partial and the full blocks of each block, in both directions.

    Args:
        start: First key of each query, as ``KeyIntervals`` states it, on a GPU.
        stop: One past its last key.
        block_size: Queries, and keys, in one block.
        blocks: Blocks of the row.

    Returns:
        ``(4, blocks)`` counts and ``(4, blocks, blocks)`` lists: of the partial blocks
        of keys, of the full ones, of the partial blocks of queries, of the full ones.
    """
    counts = start.new_empty(4, blocks, dtype=torch.int32)
    lists = start.new_empty(4, blocks, blocks, dtype=torch.int32)
    with torch.cuda.device_of(start):  # a kernel is launched on the current device
        _write_tables[(blocks,)](
            start.contiguous(),
            stop.contiguous(),
            counts,
            lists,
            len(start),
            block_size,
            lanes=triton.next_power_of_2(block_size),
            columns=COLUMNS,
        )
    return counts, lists


@triton.jit(do_not_specialize=["tokens"])  # rows of any length share one kernel
@no_type_check
def _write_tables(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    start,
    stop,
    counts,
    lists,
    tokens,
    block_size,
    lanes: tl.constexpr,
    columns: tl.constexpr,
):
    """Write the rows of one block; ``fastslow._block_runs`` says why they are so."""
    lane = tl.minimum(tl.arange(0, lanes), block_size - 1)  # more of the last one
    token = tl.program_id(0) * block_size + lane
    exists = token < tokens
    low = tl.load(start + token, mask=exists, other=0)
    high = tl.load(stop + token, mask=exists, other=0)
    reads = low < high
    low = tl.where(reads, low, tokens)  # the bounds of others are 0
    _write_rows(
        counts,
        lists,
        0,
        tl.min(low, 0),
        tl.max(low, 0),
        tl.min(high, 0),
        tl.max(high, 0),
        block_size,
        columns,
    )
    first_key = tl.min(tl.where(reads, token, tokens), 0)
    last_key = tl.max(tl.where(reads, token, -1), 0)
    all_read = tl.min(reads.to(tl.int32), 0)
    _write_rows(
        counts,
        lists,
        2,
        _count_up_to(first_key, stop, start, stop, tokens),
        _count_up_to(last_key, stop, start, stop, tokens),
        _count_up_to(first_key, start, start, stop, tokens) * all_read,
        _count_up_to(last_key, start, start, stop, tokens),
        block_size,
        columns,
    )


@triton.jit
@no_type_check
def _count_up_to(key, bound, start, stop, tokens):  # type: ignore[no-untyped-def]
    """Count the queries whose bound is at most a key; padding stands at its place."""
    low, high = 0, tokens
    while low < high:
        middle = (low + high) // 2
        reads = tl.load(start + middle) < tl.load(stop + middle)
        if tl.where(reads, tl.load(bound + middle), middle) <= key:
            low = middle + 1
        else:
            high = middle
    return low


@triton.jit
@no_type_check
def _write_rows(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    counts,
    lists,
    table: tl.constexpr,
    first,
    full_first,
    full_end,
    end,
    block_size,
    columns: tl.constexpr,
):
    """Round bounds in tokens to blocks, and write two rows: partial, full."""
    end = tl.cdiv(end, block_size)
    full_first, full_end = tl.cdiv(full_first, block_size), full_end // block_size
    is_none = full_first >= full_end
    full_first = tl.where(is_none, end, full_first)
    full_end = tl.where(is_none, end, full_end)
    first = tl.minimum(first // block_size, end)
    _write_row(counts, lists, table, first, full_first, full_end, end, columns)
    _write_row(
        counts, lists, table + 1, full_first, full_end, full_end, full_end, columns
    )


@triton.jit
@no_type_check
def _write_row(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    counts,
    lists,
    table: tl.constexpr,
    first,
    gap,
    after_gap,
    end,
    columns: tl.constexpr,
):
    """List the blocks of [first, gap) and [after_gap, end), then all others."""
    blocks = tl.num_programs(0)
    row = tl.program_id(0).to(tl.int64) + table * blocks
    before, count = gap - first, gap - first + end - after_gap
    tl.store(counts + row, count)
    for begin in range(0, blocks, columns):
        column = begin + tl.arange(0, columns)
        listed = tl.where(
            column < before,
            first + column,
            tl.where(
                column < count,
                after_gap + column - before,
                tl.where(
                    column < count + first,
                    column - count,
                    tl.where(column < end, gap + column - count - first, column),
                ),
            ),
        )
        tl.store(lists + row * blocks + column, listed, mask=column < blocks)
