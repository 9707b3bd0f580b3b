"""Laws of ``fastslow.block_masks``."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from fastslow import (
    KeptKeys,
    KeyIntervals,
    MaskMod,
    block_masks,
    dense_mask,
    frame_causal_block_mask,
    frame_causal_mask,
    interval_block_mask,
    interval_mask,
    visible_intervals,
)
from fastslow.testing import strategies as fst
from tests.block_tables import TABLES

Row = fst.Row

block_sizes = st.integers(1, 9)


def integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


@st.composite
def windows(draw: st.DrawFn) -> KeyIntervals:
    """Draw the intervals of a row, padded or not, under a window.

    Kept keys come in runs, so that some blocks hold nothing else.
    """
    rows = fst.ranked_rows(max_run=8)
    ranks, segments, frames = draw(fst.framed_rows(rows=rows))
    size = len(ranks)
    flags = st.lists(st.booleans(), min_size=size, max_size=size).map(torch.tensor)
    run = draw(st.integers(1, 12))
    kept = flags.map(lambda flag: flag.repeat_interleave(run)[:size])
    window = draw(st.integers(1, 4))
    return visible_intervals(
        ranks,
        segments,
        frame_ids=frames,
        window=window,
        is_kept=draw(st.none() | kept),
    )


def built_by_torch(rule: MaskMod, size: int, block_size: int) -> BlockMask:
    return create_block_mask(
        rule, None, None, size, size, device="cpu", BLOCK_SIZE=block_size
    )


def assert_same_blocks(actual: BlockMask, expected: BlockMask) -> None:
    for name in TABLES:
        table, wanted = getattr(actual, name), getattr(expected, name)
        assert table.dtype == wanted.dtype, name
        assert table.is_contiguous(), name
        assert torch.equal(table, wanted), name
    assert actual.seq_lengths == expected.seq_lengths
    assert actual.BLOCK_SIZE == expected.BLOCK_SIZE


def last_frame_and(
    kept: list[bool], frames: list[int], segments: list[int]
) -> KeyIntervals:
    row = integers(frames)
    return visible_intervals(
        row, integers(segments), frame_ids=row, window=1, is_kept=torch.tensor(kept)
    )


TWO_SAMPLES = last_frame_and([True] * 9, [0, 1, 2, *range(6)], [0] * 3 + [1] * 6)
"""A block holds kept keys alone, some of them of another sample."""

TWO_FRAMES = last_frame_and([True] * 2 + [False] * 8, [0] * 5 + [1] * 5, [0] * 10)
"""A block of kept keys is older than the window of some queries of a block."""


@given(st.one_of(fst.key_intervals(), windows()), block_sizes)
@example(TWO_SAMPLES, 2)
@example(TWO_FRAMES, 2)
def test_interval_block_mask__matches_create_block_mask(
    intervals: KeyIntervals, block_size: int
) -> None:
    blocks = interval_block_mask(intervals, block_size=block_size)
    rule = interval_mask(intervals)
    size = len(intervals.start)
    assert_same_blocks(blocks, built_by_torch(rule, size, block_size))
    assert torch.equal(dense_mask(blocks.mask_mod, size), dense_mask(rule, size))


@given(fst.ranked_rows(), block_sizes)
def test_frame_causal_block_mask__matches_create_block_mask(
    row: Row, block_size: int
) -> None:
    ranks, segments = row
    blocks = frame_causal_block_mask(ranks, segments, block_size=block_size)
    rule = frame_causal_mask(ranks, segments)
    size = len(ranks)
    assert_same_blocks(blocks, built_by_torch(rule, size, block_size))
    assert torch.equal(dense_mask(blocks.mask_mod, size), dense_mask(rule, size))


@given(fst.ranked_rows(padding=False, max_segments=1))
def test_no_segments_mean_one_sample(row: Row) -> None:
    ranks, _ = row
    blocks = frame_causal_block_mask(ranks, block_size=3)
    expected = frame_causal_block_mask(ranks, torch.zeros_like(ranks), block_size=3)
    assert_same_blocks(blocks, expected)


def test_kept_keys_are_listed_a_part_at_a_time() -> None:
    frames = torch.arange(240).repeat_interleave(torch.arange(240) % 4 + 1)
    visible = visible_intervals(
        frames, frame_ids=frames, window=3, is_kept=frames % 4 == 3
    )
    blocks = interval_block_mask(visible, block_size=1)
    assert blocks.kv_indices.numel() > block_masks._PAIRS_AT_ONCE
    assert_same_blocks(blocks, built_by_torch(interval_mask(visible), len(frames), 1))


def test_blocks_leave_their_arguments_alone() -> None:
    start, stop = integers([0, 0, 0, 0]).int(), integers([1, 3, 3, 0]).int()
    is_kept = start > 0
    kept = KeptKeys(is_kept=is_kept, start=start)
    intervals = KeyIntervals(start=start, stop=stop, kept=kept)
    interval_block_mask(intervals, block_size=3)
    assert start.tolist() == [0, 0, 0, 0]
    assert stop.tolist() == [1, 3, 3, 0]
    assert is_kept.tolist() == [False] * 4


@pytest.mark.parametrize("keeps", [False, True])
def test_blocks_are_built_where_the_intervals_lie(keeps: bool) -> None:
    start = torch.zeros(5, dtype=torch.int32, device="meta")
    intervals = KeyIntervals(
        start=start,
        stop=start,
        kept=KeptKeys(is_kept=start > 0, start=start) if keeps else None,
    )
    blocks = interval_block_mask(intervals, block_size=2)
    assert all(getattr(blocks, name).device.type == "meta" for name in TABLES)


def test_ranks_are_checked() -> None:
    with pytest.raises(ValueError, match="causal_ranks falls from 1 to 0 at token 1"):
        frame_causal_block_mask(integers([1, 0]))
    with pytest.raises(ValueError, match="segment 0 has tokens in 2 separate runs"):
        frame_causal_block_mask(integers([0, 0, 0]), integers([0, 1, 0]))


@pytest.mark.parametrize("keeps", [False, True])
def test_a_row_without_tokens_has_no_blocks(keeps: bool) -> None:
    none = torch.zeros(0, dtype=torch.int32)
    intervals = KeyIntervals(
        start=none,
        stop=none,
        kept=KeptKeys(is_kept=none > 0, start=none) if keeps else None,
    )
    with pytest.raises(ValueError) as error:
        interval_block_mask(intervals)
    assert str(error.value) == "intervals has 0 tokens; a BlockMask needs at least 1"


@given(windows(), block_sizes)
def test_blocks_can_be_printed(intervals: KeyIntervals, block_size: int) -> None:
    blocks = interval_block_mask(intervals, block_size=block_size)
    assert repr(blocks).startswith("BlockMask(")


def test_blocks_hold_128_tokens_by_default() -> None:
    ranks = torch.arange(129)
    for blocks in (
        interval_block_mask(visible_intervals(ranks)),
        frame_causal_block_mask(ranks),
    ):
        assert blocks.BLOCK_SIZE == (128, 128)
        assert blocks.kv_indices.shape[-1] == 2


@pytest.mark.parametrize("block_size", [0, -128])
def test_blocks_hold_at_least_1_token(block_size: int) -> None:
    message = f"^block_size is {block_size}; it must be at least 1$"
    with pytest.raises(ValueError, match=message):
        interval_block_mask(visible_intervals(integers([0])), block_size=block_size)
    with pytest.raises(ValueError, match=message):
        frame_causal_block_mask(integers([0]), block_size=block_size)
