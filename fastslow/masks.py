"""Frame-causal masks: visible intervals, and three ways to read them.

A mask is an order: query ``q`` may read key ``k`` when both lie in one segment and
``rank[k] <= rank[q]``. The relation is reflexive and transitive, so no depth of layers
can carry anything back from the future. Where ranks are sorted inside contiguous
segments the keys that ``q`` may read are one interval ``[start[q], stop[q])``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from fastslow._typing import MaskMod, no_type_check


@dataclass(frozen=True, kw_only=True)
class KeyIntervals:
    """The keys that each query may read: the one source of every form of a mask.

    Query ``q`` reads key ``k`` when ``start[q] <= k < stop[q]``, and, where some keys
    are kept beyond a window, also when ``is_kept[k]`` and
    ``kept_start[q] <= k < start[q]``. Padding reads nothing: its bounds are 0.

    Attributes:
        start: First key of the interval of each query.
        stop: One past its last key.
        kept_start: First key of each query's segment; None where nothing is kept.
        is_kept: Keys that stay visible after their window has passed; None where
            nothing is kept.
    """

    start: Int32[Tensor, " tokens"]
    stop: Int32[Tensor, " tokens"]
    kept_start: Int32[Tensor, " tokens"] | None = None
    is_kept: Bool[Tensor, " tokens"] | None = None


def frame_causal_mask(
    causal_ranks: Int[Tensor, " tokens"],
    segment_ids: Int[Tensor, " tokens"] | None = None,
) -> MaskMod:
    """Attend within a frame both ways, across frames only to the past.

    Query ``q`` may read key ``k`` when both lie in one segment and
    ``causal_ranks[k] <= causal_ranks[q]``. The tokens of one frame share a rank;
    every text token has its own, so plain text is ordinary causal attention. Ranks
    and segments may stand in any order.

    Args:
        causal_ranks: Order of each token in its segment.
        segment_ids: Packed sample of each token; -1 marks padding, which reads
            nothing and is read by nothing. None means one sample.

    Returns:
        A ``mask_mod`` for ``create_block_mask``; it closes over both tensors.

    Raises:
        ValueError: If the lengths differ.

    Laws:
        preorder: reflexive on real tokens, and m @ m reaches nothing that m does not
        no_cross_segment: no token reads another segment, padding reads nothing
        reduces_to_causal: one token per frame is causal attention, one frame is full
        rank_order_only: a strictly increasing map of the ranks changes nothing
        packs_block_diagonally: the mask of a pack is the block diagonal of its parts
        matches_reference: equals the loop-written reference

    Example:
        >>> ranks = torch.tensor([0, 1, 1, 2])
        >>> dense_mask(frame_causal_mask(ranks), 4).int()
        tensor([[1, 0, 0, 0],
                [1, 1, 1, 0],
                [1, 1, 1, 0],
                [1, 1, 1, 1]], dtype=torch.int32)
    """
    segment_ids = _segments_or_zeros(causal_ranks, segment_ids)

    @no_type_check
    def frame_causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        query_segment = segment_ids[q_idx]
        return (
            (query_segment == segment_ids[kv_idx])
            & (query_segment >= 0)
            & (causal_ranks[kv_idx] <= causal_ranks[q_idx])
        )

    return frame_causal


def visible_intervals(
    causal_ranks: Int[Tensor, " tokens"],
    segment_ids: Int[Tensor, " tokens"] | None = None,
) -> tuple[Int32[Tensor, " tokens"], Int32[Tensor, " tokens"]]:
    """Give the interval of keys that each query may read.

    ``start`` is the first token of the query's segment, ``stop`` the end of the last
    token that shares its rank. Linear time and memory. The order is checked, which
    reads the tensors on the host: plan on the CPU.

    Args:
        causal_ranks: Order of each token, non-decreasing within its segment.
        segment_ids: Packed sample of each token, contiguous; -1 marks padding. None
            means one sample.

    Returns:
        ``start`` and ``stop``, half open; padding has the empty interval [0, 0).

    Raises:
        ValueError: If the lengths differ, ranks fall within a segment, or a segment is
            not contiguous.

    Laws:
        matches_rule: the same pairs as ``frame_causal_mask``
        holds_diagonal: start <= q < stop on real tokens
        monotone: neither bound falls from one real token to the next

    Example:
        >>> start, stop = visible_intervals(torch.tensor([0, 1, 1, 2]))
        >>> start.tolist(), stop.tolist()
        ([0, 0, 0, 0], [1, 3, 3, 4])
    """
    segment_ids = _segments_or_zeros(causal_ranks, segment_ids)
    _check_sorted(causal_ranks, segment_ids)
    tokens = len(causal_ranks)
    index = torch.arange(tokens, dtype=torch.int32, device=causal_ranks.device)
    new_segment = _differs_from_previous(segment_ids)
    new_run = new_segment | _differs_from_previous(causal_ranks)
    start = torch.where(new_segment, index, 0).cummax(0).values
    run_ends = torch.where(new_run.roll(-1), index + 1, tokens)
    stop = run_ends.flip(0).cummin(0).values.flip(0)
    padding = segment_ids < 0
    return start.masked_fill(padding, 0), stop.masked_fill(padding, 0)


def interval_mask(
    start: Int[Tensor, " tokens"], stop: Int[Tensor, " tokens"]
) -> MaskMod:
    """Read intervals as a FlexAttention rule.

    The rule gathers by query only, which FlexAttention's kernels do once per row;
    a gather by key is their slow case.

    Args:
        start: First key that each query may read.
        stop: One past the last key that each query may read.

    Returns:
        A ``mask_mod``; it closes over both tensors.

    Laws:
        matches_rule: on visible intervals, the same pairs as ``frame_causal_mask``

    Example:
        >>> rule = interval_mask(torch.tensor([0, 0]), torch.tensor([1, 2]))
        >>> dense_mask(rule, 2)
        tensor([[ True, False],
                [ True,  True]])
    """

    @no_type_check
    def interval(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (start[q_idx] <= kv_idx) & (kv_idx < stop[q_idx])

    return interval


def dense_mask(
    mask_mod: MaskMod, num_tokens: int, *, device: torch.device | str | None = None
) -> Bool[Tensor, "queries keys"]:
    """Read any rule as a matrix: the oracle for small rows.

    Args:
        mask_mod: The rule; it has to broadcast, as all rules of this library do.
        num_tokens: Length of the row. Time and memory grow with its square.
        device: Where the tensors of the rule lie; the CPU by default.

    Returns:
        True where the query (row) may read the key (column).

    Laws:
        matches_create_mask: equals torch's ``create_mask`` of the same rule
    """
    index = torch.arange(num_tokens, device=device)
    zero = torch.zeros((), dtype=torch.long, device=device)
    mask = mask_mod(zero, zero, index[:, None], index[None, :])
    return mask.expand(num_tokens, num_tokens)


def interval_block_mask(
    start: Int[Tensor, " tokens"],
    stop: Int[Tensor, " tokens"],
    *,
    block_size: int = 128,
) -> BlockMask:
    """Read intervals as a FlexAttention BlockMask, in closed form.

    The keys that a block of queries reads are one run of key blocks, from the least
    ``start`` to the greatest ``stop``; those that all of its queries read run from the
    greatest ``start`` to the least ``stop``. Nothing of size tokens x tokens is built,
    nothing is sorted and no device is waited for.

    Args:
        start: First key that each query may read.
        stop: One past the last key that each query may read; each query reads itself
            or, as padding, nothing.
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
    tokens = len(start)
    blocks = -(-tokens // block_size)
    pad = blocks * block_size - tokens
    reads = start < stop
    least = _block_rows(start.masked_fill(~reads, tokens), pad, tokens, blocks)
    greatest = _block_rows(stop.masked_fill(~reads, 0), pad, 0, blocks)
    key_block = torch.arange(blocks, device=start.device)
    first_live = least.amin(1, keepdim=True) // block_size
    end_live = -(-greatest.amax(1, keepdim=True) // block_size)
    first_full = -(-least.amax(1, keepdim=True) // block_size)
    end_full = greatest.amin(1, keepdim=True) // block_size
    live = (first_live <= key_block) & (key_block < end_live)
    full = (first_full <= key_block) & (key_block < end_full)
    partial = live & ~full
    return BlockMask(
        (tokens, tokens),
        *_block_table(partial),
        *_block_table(full),
        *_block_table(partial.T),
        *_block_table(full.T),
        BLOCK_SIZE=(block_size, block_size),
        mask_mod=interval_mask(start, stop),
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
    start, stop = visible_intervals(causal_ranks, segment_ids)
    return interval_block_mask(start, stop, block_size=block_size)


def _segments_or_zeros(causal_ranks: Tensor, segment_ids: Tensor | None) -> Tensor:
    """Check the segments, or put every token into one."""
    if segment_ids is None:
        return torch.zeros_like(causal_ranks)
    if len(segment_ids) != len(causal_ranks):
        raise ValueError(
            f"segment_ids has {len(segment_ids)} tokens but causal_ranks has "
            f"{len(causal_ranks)}; both describe the same row"
        )
    return segment_ids


def _check_sorted(causal_ranks: Tensor, segment_ids: Tensor) -> None:
    """Raise unless segments are contiguous and ranks sorted inside them."""
    new_segment = _differs_from_previous(segment_ids)
    first_ids = segment_ids[new_segment & (segment_ids >= 0)]
    values, counts = first_ids.unique(return_counts=True)
    if (counts > 1).any():
        first = int((counts > 1).nonzero()[0])
        raise ValueError(
            f"segment {int(values[first])} has tokens in {int(counts[first])} separate "
            "runs; the tokens of a segment must be contiguous"
        )
    falls = ~new_segment & (causal_ranks < causal_ranks.roll(1)) & (segment_ids >= 0)
    if falls.any():
        token = int(falls.nonzero()[0])
        raise ValueError(
            f"causal_ranks falls from {int(causal_ranks[token - 1])} to "
            f"{int(causal_ranks[token])} at token {token}; ranks must be sorted within "
            "a segment"
        )


def _differs_from_previous(values: Tensor) -> Tensor:
    """Mark the first token of every run of equal values."""
    return torch.cat([values.new_ones(1) > 0, values[1:] != values[:-1]])[: len(values)]


def _block_rows(bounds: Tensor, pad: int, fill: int, blocks: int) -> Tensor:
    """Cut bounds into one row per query block, the last row filled up."""
    return torch.nn.functional.pad(bounds, (0, pad), value=fill).view(blocks, -1)


def _block_table(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """List the marked columns of each row first, then the others, both in order."""
    marked = blocks.cumsum(1)
    count = marked[:, -1:]
    column = torch.arange(blocks.shape[1], device=blocks.device)
    slot = torch.where(blocks, marked - 1, count + column - marked)
    table = torch.zeros_like(slot).scatter_(1, slot, column.expand_as(slot))
    return (
        count.to(torch.int32).view(1, 1, -1),
        table.to(torch.int32)[None, None],
    )
