"""The closed-form BlockMask against torch's own builder and attention."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    flex_attention,
)

from fastslow import (
    KeyIntervals,
    TokenLayout,
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
UNUSED = ("dq_write_order", "dq_write_order_full", "dq_kv_order", "dq_kv_order_spt")

block_sizes = st.sampled_from((1, 2, 3, 4, 5, 8, 16, 128))
eager_flex = pytest.mark.filterwarnings("ignore:flex_attention called without")


def row_of(*runs: tuple[int, int, int]) -> Row:
    """Write out runs of (segment, rank, tokens)."""
    tokens = [(rank, segment) for segment, rank, n in runs for _ in range(n)]
    ranks, segments = torch.tensor(tokens).T
    return ranks, segments


NAMED_ROWS = {
    "one frame, on the block size": row_of((0, 0, 256)),
    "one frame, off the block size": row_of((0, 0, 200)),
    "a frame per block": row_of((0, 0, 128), (0, 1, 128), (0, 2, 128)),
    "frames across blocks": row_of((0, 0, 100), (0, 1, 100), (0, 5, 100)),
    "samples on the block size": row_of((0, 0, 128), (1, 0, 128)),
    "samples off the block size": row_of((0, 0, 100), (1, 0, 90), (1, 1, 110)),
    "padding at the end": row_of((0, 0, 150), (0, 1, 20), (-1, 0, 86)),
    "padding in the middle": row_of((0, 0, 100), (-1, 0, 200), (1, 0, 84)),
    "padding in front": row_of((-1, 0, 130), (0, 0, 130)),
    "a block of padding": row_of((0, 0, 128), (-1, 0, 128), (1, 0, 128)),
    "padding alone": row_of((-1, 0, 300)),
    "one token": row_of((0, 0, 1)),
    "text": (torch.arange(300), torch.zeros(300).long()),
}


def built_by_torch(row: Row, block_size: int) -> BlockMask:
    ranks, segments = row
    return create_block_mask(
        frame_causal_mask(ranks, segments),
        None,
        None,
        len(ranks),
        len(ranks),
        device="cpu",
        BLOCK_SIZE=block_size,
    )


def assert_equal_in_every_field(row: Row, block_size: int) -> None:
    actual = frame_causal_block_mask(*row, block_size=block_size)
    expected = built_by_torch(row, block_size)
    for name in TABLES:
        table, wanted = getattr(actual, name), getattr(expected, name)
        assert table.dtype == wanted.dtype, name
        assert table.shape == wanted.shape, name
        assert torch.equal(table, wanted), name
    for name in (*UNUSED, "seq_lengths", "BLOCK_SIZE", "shape"):
        assert getattr(actual, name, None) == getattr(expected, name, None), name
    size = len(row[0])
    rule = frame_causal_mask(*row)
    assert torch.equal(dense_mask(actual.mask_mod, size), dense_mask(rule, size))
    assert torch.equal(actual.to_dense(), expected.to_dense())


@given(fst.ranked_rows(max_run=8), block_sizes)
def test_every_field_equals_that_of_create_block_mask(
    row: Row, block_size: int
) -> None:
    assert_equal_in_every_field(row, block_size)


@given(fst.layouts(max_padding=31), block_sizes)
def test_layouts_too(layout: TokenLayout, block_size: int) -> None:
    assert_equal_in_every_field((layout.causal_ranks, layout.segment_ids), block_size)


@pytest.mark.parametrize("block_size", [64, 100, 128])
@pytest.mark.parametrize("name", NAMED_ROWS)
def test_at_the_sizes_of_kernels(name: str, block_size: int) -> None:
    assert_equal_in_every_field(NAMED_ROWS[name], block_size)


def test_the_default_block_is_torchs() -> None:
    ranks, segments = NAMED_ROWS["frames across blocks"]
    rule = frame_causal_mask(ranks, segments)
    expected = create_block_mask(rule, None, None, 300, 300, device="cpu")
    blocks = frame_causal_block_mask(ranks, segments)
    assert blocks.BLOCK_SIZE == expected.BLOCK_SIZE
    assert torch.equal(blocks.kv_indices, expected.kv_indices)


@given(fst.ranked_rows(max_run=8), st.integers(1, 6))
def test_both_directions_of_the_tables_tell_the_mask(row: Row, block_size: int) -> None:
    ranks, segments = row
    mask = dense_mask(frame_causal_mask(ranks, segments), len(ranks))
    blocks = frame_causal_block_mask(ranks, segments, block_size=block_size)
    assert torch.equal(read_tables(blocks, "kv", len(ranks)), mask)
    assert torch.equal(read_tables(blocks, "q", len(ranks)).T, mask)


def read_tables(blocks: BlockMask, side: str, size: int) -> Tensor:
    """Read full blocks as they stand and partial ones through the rule, by loops."""
    block_size = blocks.BLOCK_SIZE[0]
    rule = dense_mask(blocks.mask_mod, size)
    rule = rule if side == "kv" else rule.T
    mask = torch.zeros(size, size, dtype=torch.bool)
    for kind in ("", "full_"):
        counts = getattr(blocks, f"{kind}{side}_num_blocks")[0, 0].tolist()
        columns = getattr(blocks, f"{kind}{side}_indices")[0, 0].tolist()
        for row, (count, listed) in enumerate(zip(counts, columns, strict=True)):
            for column in listed[:count]:
                down = slice(row * block_size, (row + 1) * block_size)
                across = slice(column * block_size, (column + 1) * block_size)
                mask[down, across] = True if kind else rule[down, across]
    return mask


@given(fst.ranked_rows(max_run=8))
def test_intervals_read_like_the_rule(row: Row) -> None:
    ranks, segments = row
    rule = interval_mask(visible_intervals(ranks, segments))
    expected = dense_mask(frame_causal_mask(ranks, segments), len(ranks))
    assert torch.equal(dense_mask(rule, len(ranks)), expected)


@eager_flex
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(row=fst.ranked_rows(), block_size=st.integers(1, 16), seed=fst.seeds())
def test_flex_attention_equals_sdpa(
    dtype: torch.dtype, row: Row, block_size: int, seed: int
) -> None:
    assert_attention_agrees(row, block_size, seed, dtype)


@eager_flex
@pytest.mark.parametrize("name", NAMED_ROWS)
def test_flex_attention_equals_sdpa_at_the_sizes_of_kernels(name: str) -> None:
    assert_attention_agrees(NAMED_ROWS[name], 128, 0, torch.float32)


def assert_attention_agrees(
    row: Row, block_size: int, seed: int, dtype: torch.dtype
) -> None:
    ranks, segments = row
    size = len(ranks)
    blocks = frame_causal_block_mask(ranks, segments, block_size=block_size)
    mask = dense_mask(frame_causal_mask(ranks, segments), size)
    query, key, value = fst.random_values((3, 1, 2, size, 8), seed=seed, dtype=dtype)
    with torch.no_grad():
        actual: Any = flex_attention(query, key, value, block_mask=blocks)
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    near = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(actual, expected, rtol=near, atol=near)
    assert (actual[:, :, segments < 0] == 0).all()


def assert_equal_tables(intervals: KeyIntervals, block_size: int) -> None:
    blocks = interval_block_mask(intervals, block_size=block_size)
    rule = interval_mask(intervals)
    size = len(intervals.start)
    expected = create_block_mask(
        rule, None, None, size, size, device="cpu", BLOCK_SIZE=block_size
    )
    for name in TABLES:
        assert torch.equal(getattr(blocks, name), getattr(expected, name)), name


@given(fst.ranked_rows(max_run=8), st.integers(1, 8), st.integers(0, 6))
def test_a_window_over_the_last_tokens_is_blocked_alike(
    row: Row, block_size: int, window: int
) -> None:
    visible = visible_intervals(*row)
    start, stop = visible.start, visible.stop
    index = torch.arange(len(start), dtype=torch.int32)
    late = torch.where(start < stop, torch.maximum(start, index - window), start)
    assert_equal_tables(KeyIntervals(start=late, stop=stop), block_size)


KEPT = {
    "nothing": lambda frames: frames > 10**6,
    "the text": lambda frames: frames < 0,
    "every fourth frame": lambda frames: frames % 4 == 0,
    "the text and every fourth frame": lambda frames: (frames < 0) | (frames % 4 == 0),
    "everything": lambda frames: frames > -2,
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("window", [1, 5])
def test_windows_with_kept_keys_at_the_sizes_of_kernels(kept: str, window: int) -> None:
    lengths = torch.tensor([70] + [144, 16, 16, 16] * 4)
    frames = torch.arange(-1, 16).repeat_interleave(lengths)
    ranks, tokens = frames.clone(), len(frames)
    ranks[:70] = torch.arange(-70, 0)
    padded = [torch.full((150,), -1), torch.full((40,), -1)]
    visible = visible_intervals(
        torch.cat([ranks, padded[0], ranks, padded[1]]),
        torch.cat([0 * ranks, padded[0], 0 * ranks + 1, padded[1]]),
        frame_ids=torch.cat([frames, padded[0], frames, padded[1]]),
        window=window,
        is_kept=torch.cat(
            [KEPT[kept](each) for each in (frames, padded[0], frames, padded[1])]
        ),
    )
    assert len(visible.start) == 2 * tokens + 190
    assert_equal_tables(visible, 128)


@eager_flex
def test_flex_attention_reads_kept_keys() -> None:
    frames = torch.arange(40).repeat_interleave(torch.arange(40) % 4 * 5 + 1)
    is_kept = frames % 8 == 3
    visible = visible_intervals(frames, frame_ids=frames, window=3, is_kept=is_kept)
    size = len(frames)
    mask = dense_mask(interval_mask(visible), size)
    states = fst.random_values((3, 1, 2, size, 8), seed=0, dtype=torch.float64)
    with torch.no_grad():
        blocks = interval_block_mask(visible, block_size=16)
        actual: Any = flex_attention(*states, block_mask=blocks)
        expected = F.scaled_dot_product_attention(*states, attn_mask=mask)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
