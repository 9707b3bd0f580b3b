"""Laws of ``fastslow.masks``."""

import inspect
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import (
    BlockMask,
    and_masks,
    create_block_mask,
    create_mask,
)

from fastslow import (
    MaskMod,
    TokenLayout,
    dense_mask,
    frame_causal_block_mask,
    frame_causal_mask,
    interval_block_mask,
    interval_mask,
    visible_intervals,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Row = fst.Row
TABLES = (
    "kv_num_blocks",
    "kv_indices",
    "full_kv_num_blocks",
    "full_kv_indices",
    "q_num_blocks",
    "q_indices",
    "full_q_num_blocks",
    "full_q_indices",
)

block_sizes = st.integers(1, 9)
rows_of_any_kind = st.one_of(fst.unordered_rows(), fst.ranked_rows())
small_layouts = fst.layouts(
    rows=fst.packed_samples(
        max_samples=2,
        sample=fst.samples(
            max_spans=2, videos=fst.video_spans(max_side=2, max_frames=3)
        ),
    )
).filter(lambda layout: len(layout.input_ids) <= 40)


def integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


plain_rows = fst.packed_samples(sample=fst.samples(videos=fst.video_spans(plain=True)))


def dense(ranks: Tensor, segments: Tensor | None = None) -> Tensor:
    return dense_mask(frame_causal_mask(ranks, segments), len(ranks))


def visible_pairs(ranks: Tensor, segments: Tensor) -> Tensor:
    return torch.tensor(reference.visible_pairs(ranks.tolist(), segments.tolist()))


def assert_same_blocks(actual: BlockMask, expected: BlockMask) -> None:
    for name in TABLES:
        table, wanted = getattr(actual, name), getattr(expected, name)
        assert table.dtype == wanted.dtype, name
        assert torch.equal(table, wanted), name
    assert actual.seq_lengths == expected.seq_lengths
    assert actual.BLOCK_SIZE == expected.BLOCK_SIZE


def clamped(extents: list[tuple[int, int] | None]) -> tuple[Tensor, Tensor]:
    """Let each query read so many keys before and after itself; None reads nothing."""
    last = len(extents)
    bounds = [
        (q % 3, q % 3) if e is None else (max(q - e[0], 0), min(q + 1 + e[1], last))
        for q, e in enumerate(extents)
    ]
    start, stop = torch.tensor(bounds, dtype=torch.int32).T
    return start.clone(), stop.clone()


intervals = st.lists(
    st.none() | st.tuples(st.integers(0, 12), st.integers(0, 12)),
    min_size=1,
    max_size=30,
).map(clamped)
"""Any intervals that hold their own query, and empty ones."""


@given(rows_of_any_kind)
@example((integers([0, 1, 0]), integers([0, 0, 0])))
def test_frame_causal_mask__preorder(row: Row) -> None:
    ranks, segments = row
    mask = dense(ranks, segments)
    assert torch.equal(mask.diagonal(), segments >= 0)
    two_steps = mask.double() @ mask.double() > 0
    assert torch.equal(two_steps, mask)


@given(rows_of_any_kind)
def test_frame_causal_mask__no_cross_segment(row: Row) -> None:
    ranks, segments = row
    mask = dense(ranks, segments)
    assert not mask[segments[:, None] != segments].any()
    assert not mask[segments == -1].any()
    assert not mask[:, segments == -1].any()


@given(st.integers(1, 20))
def test_frame_causal_mask__reduces_to_causal(num_tokens: int) -> None:
    every = torch.ones(num_tokens, num_tokens, dtype=torch.bool)
    assert torch.equal(dense(torch.arange(num_tokens)), every.tril())
    one_frame = torch.full((num_tokens,), 3)
    assert torch.equal(dense(one_frame), every)


@given(rows_of_any_kind)
def test_frame_causal_mask__rank_order_only(row: Row) -> None:
    ranks, segments = row
    mask = dense(ranks, segments)
    assert torch.equal(dense(3 * ranks - 70, segments), mask)
    assert torch.equal(dense(ranks**3, segments), mask)
    assert torch.equal(dense(ranks.unique(return_inverse=True)[1], segments), mask)


@given(st.lists(fst.unordered_rows(max_tokens=6), min_size=1, max_size=3))
def test_frame_causal_mask__packs_block_diagonally(rows: list[Row]) -> None:
    ranks = torch.cat([ranks for ranks, _ in rows])
    segments = torch.cat(
        [
            torch.where(segments < 0, -1, segments + 3 * part)
            for part, (_, segments) in enumerate(rows)
        ]
    )
    alone = torch.block_diag(*[dense(*row).int() for row in rows])
    assert torch.equal(dense(ranks, segments), alone.bool())


@given(rows_of_any_kind)
def test_frame_causal_mask__matches_reference(row: Row) -> None:
    ranks, segments = row
    mask = dense(ranks, segments)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, visible_pairs(ranks, segments))
    alone = visible_pairs(ranks, torch.zeros_like(ranks))
    assert torch.equal(dense(ranks), alone)


@given(rows_of_any_kind, st.data())
def test_the_order_of_tokens_does_not_matter(row: Row, data: st.DataObject) -> None:
    ranks, segments = row
    order = data.draw(st.permutations(range(len(ranks))))
    permuted = dense(ranks[order], segments[order])
    assert torch.equal(permuted, dense(ranks, segments)[order][:, order])


@given(rows_of_any_kind)
def test_merging_neighbouring_frames_only_adds_pairs(row: Row) -> None:
    ranks, segments = row
    mask = dense(ranks, segments)
    merged = dense(ranks.div(2, rounding_mode="floor"), segments)
    assert (merged >= mask).all()


@given(fst.layouts(rows=plain_rows))
def test_a_frame_reads_itself_and_the_past_of_its_sample(layout: TokenLayout) -> None:
    mask = dense(layout.causal_ranks, layout.segment_ids)
    frame, segment = layout.frame_ids, layout.segment_ids
    index = torch.arange(len(frame))
    same_sample = (segment[:, None] == segment) & (segment >= 0)
    same_frame = (frame[:, None] == frame) & (frame >= 0)
    expected = same_sample & ((index[:, None] >= index) | same_frame)
    assert torch.equal(mask, expected)


@given(fst.ranked_rows())
def test_visible_intervals__matches_rule(row: Row) -> None:
    ranks, segments = row
    start, stop = visible_intervals(ranks, segments)
    assert start.dtype == stop.dtype == torch.int32
    read = [
        [first <= key < end for key in range(len(ranks))]
        for first, end in zip(start.tolist(), stop.tolist(), strict=True)
    ]
    assert read == visible_pairs(ranks, segments).tolist()
    assert (start[segments < 0] == 0).all()
    assert (stop[segments < 0] == 0).all()


@given(fst.ranked_rows())
def test_visible_intervals__holds_diagonal(row: Row) -> None:
    ranks, segments = row
    start, stop = visible_intervals(ranks, segments)
    index = torch.arange(len(ranks))
    real = segments >= 0
    assert (start <= index)[real].all()
    assert (index < stop)[real].all()


@given(fst.ranked_rows())
def test_visible_intervals__monotone(row: Row) -> None:
    ranks, segments = row
    for bound in visible_intervals(ranks, segments):
        assert (bound[segments >= 0].diff() >= 0).all()


@given(fst.ranked_rows(padding=False, max_segments=1))
def test_no_segments_mean_one_sample(row: Row) -> None:
    ranks, _ = row
    segments = torch.zeros_like(ranks)
    for bound, expected in zip(
        visible_intervals(ranks), visible_intervals(ranks, segments), strict=True
    ):
        assert torch.equal(bound, expected)
    blocks = frame_causal_block_mask(ranks, block_size=3)
    expected_blocks = frame_causal_block_mask(ranks, segments, block_size=3)
    assert_same_blocks(blocks, expected_blocks)


@given(fst.ranked_rows())
def test_interval_mask__matches_rule(row: Row) -> None:
    ranks, segments = row
    rule = interval_mask(*visible_intervals(ranks, segments))
    assert torch.equal(dense_mask(rule, len(ranks)), visible_pairs(ranks, segments))


@given(intervals)
def test_interval_mask_reads_any_intervals(bounds: tuple[Tensor, Tensor]) -> None:
    start, stop = bounds
    expected = torch.zeros(len(start), len(start), dtype=torch.bool)
    for query, (first, end) in enumerate(zip(start, stop, strict=True)):
        expected[query, int(first) : int(end)] = True
    assert torch.equal(dense_mask(interval_mask(start, stop), len(start)), expected)


@given(rows_of_any_kind, st.sampled_from(("own", "queries", "keys", "both")))
def test_dense_mask__matches_create_mask(row: Row, kind: str) -> None:
    ranks, segments = row

    def first_half(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx < len(ranks) // 2

    def even_rank(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return ranks[kv_idx] % 2 == 0

    frame_causal = frame_causal_mask(ranks, segments)
    rules: dict[str, MaskMod] = {
        "own": frame_causal,
        "queries": first_half,
        "keys": even_rank,
        "both": and_masks(frame_causal, even_rank),
    }
    size = len(ranks)
    expected = create_mask(rules[kind], None, None, size, size, device="cpu")[0, 0]
    mask = dense_mask(rules[kind], size)
    assert mask.shape == (size, size)
    assert torch.equal(mask, expected)


@given(intervals, block_sizes)
def test_interval_block_mask__matches_create_block_mask(
    bounds: tuple[Tensor, Tensor], block_size: int
) -> None:
    start, stop = bounds
    blocks = interval_block_mask(start, stop, block_size=block_size)
    rule = interval_mask(start, stop)
    size = len(start)
    expected = create_block_mask(
        rule, None, None, size, size, device="cpu", BLOCK_SIZE=block_size
    )
    assert_same_blocks(blocks, expected)
    assert torch.equal(dense_mask(blocks.mask_mod, size), dense_mask(rule, size))


@given(fst.ranked_rows(), block_sizes)
def test_frame_causal_block_mask__matches_create_block_mask(
    row: Row, block_size: int
) -> None:
    ranks, segments = row
    blocks = frame_causal_block_mask(ranks, segments, block_size=block_size)
    rule = frame_causal_mask(ranks, segments)
    size = len(ranks)
    expected = create_block_mask(
        rule, None, None, size, size, device="cpu", BLOCK_SIZE=block_size
    )
    assert_same_blocks(blocks, expected)
    assert torch.equal(dense_mask(blocks.mask_mod, size), dense_mask(rule, size))


def layers(depth: int, seed: int) -> Tensor:
    """Give the query, key and value maps of a network of width 2."""
    return fst.random_values((depth, 3, 2, 2), seed=seed, dtype=torch.float64)


def attend(tokens: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Run one attention layer after the other; a query without keys gives zeros."""
    for query, key, value in weights:
        scores = ((tokens @ query) @ (tokens @ key).T).exp() * mask
        shares = scores / scores.sum(1, keepdim=True).clamp(min=1e-300)
        tokens = (shares @ tokens @ value).tanh()
    return tokens


def jacobian_support(mask: Tensor, depth: int, seed: int) -> Tensor:
    """Tell which outputs (rows) depend on which inputs (columns)."""
    shape = (len(mask), 2)
    tokens = fst.random_values(shape, seed=seed, dtype=torch.float64)
    weights = layers(depth, seed + 1)
    jacobian = torch.func.jacrev(lambda x: attend(x, mask, weights))(tokens)
    support: Tensor = (jacobian != 0).any(3).any(1)
    return support


@pytest.mark.parametrize("depth", [1, 2, 3])
@given(layout=small_layouts, seed=fst.seeds())
def test_no_depth_carries_anything_past_the_mask(
    depth: int, layout: TokenLayout, seed: int
) -> None:
    mask = dense(layout.causal_ranks, layout.segment_ids)
    assert torch.equal(jacobian_support(mask, depth, seed), mask)


@pytest.mark.parametrize("depth", [1, 2, 3])
@given(row=fst.unordered_rows(max_tokens=8), seed=fst.seeds())
def test_no_depth_carries_anything_past_the_mask_in_any_order(
    depth: int, row: Row, seed: int
) -> None:
    mask = dense(*row)
    assert torch.equal(jacobian_support(mask, depth, seed), mask)


def test_causal_or_same_frame_leaks_at_depth_2() -> None:
    frame_ids = integers([0, 1, 0])
    index = torch.arange(3)
    published = (index[:, None] >= index) | (frame_ids[:, None] == frame_ids)
    assert not published[0, 1]
    assert torch.equal(jacobian_support(published, 1, 0), published)
    assert jacobian_support(published, 2, 0)[0, 1]

    ranked = dense(frame_ids)
    assert not ranked[0, 1]
    assert torch.equal(jacobian_support(ranked, 2, 0), ranked)


def test_masks_leave_their_arguments_alone() -> None:
    ranks, segments = integers([0, 1, 1, 0]), integers([0, 0, 0, -1])
    start, stop = visible_intervals(ranks, segments)
    interval_block_mask(start, stop, block_size=3)
    dense(ranks, segments).clone().fill_(True)
    frame_causal_block_mask(ranks, segments)
    assert ranks.tolist() == [0, 1, 1, 0]
    assert segments.tolist() == [0, 0, 0, -1]
    assert start.tolist() == [0, 0, 0, 0]
    assert stop.tolist() == [1, 3, 3, 0]


def test_blocks_are_built_where_the_intervals_lie() -> None:
    start = torch.zeros(5, dtype=torch.int32, device="meta")
    blocks = interval_block_mask(start, start, block_size=2)
    assert all(getattr(blocks, name).device.type == "meta" for name in TABLES)


@pytest.mark.parametrize("function", [frame_causal_mask, visible_intervals])
def test_ranks_and_segments_describe_the_same_row(
    function: Callable[[Tensor, Tensor], object],
) -> None:
    with pytest.raises(ValueError) as error:
        inspect.unwrap(function)(integers([0] * 4), integers([0] * 5))
    assert str(error.value) == (
        "segment_ids has 5 tokens but causal_ranks has 4; both describe the same row"
    )


@pytest.mark.parametrize(
    ("segments", "segment", "runs"),
    [
        ([0, 1, 0], 0, 2),
        ([2, -1, 2, -1, 2], 2, 3),
        ([0, 1, 0, 1, 2, 1], 0, 2),
        ([5, 5, 3, 3, 5, 5], 5, 2),
    ],
)
def test_segments_are_contiguous(segments: list[int], segment: int, runs: int) -> None:
    ranks = torch.zeros(len(segments), dtype=torch.long)
    with pytest.raises(ValueError) as error:
        visible_intervals(ranks, integers(segments))
    assert str(error.value) == (
        f"segment {segment} has tokens in {runs} separate runs; the tokens of a "
        "segment must be contiguous"
    )
    with pytest.raises(ValueError):
        frame_causal_block_mask(ranks, integers(segments))


@pytest.mark.parametrize(
    ("ranks", "segments", "message"),
    [
        ([0, 1, 0], [0, 0, 0], "falls from 1 to 0 at token 2"),
        ([5, 5, -1, 0, 7, 6], [0, 0, 1, 1, 2, 2], "falls from 7 to 6 at token 5"),
        ([3, 2, 1, 0], [-1, 0, 0, 0], "falls from 2 to 1 at token 2"),
    ],
)
def test_ranks_are_sorted(ranks: list[int], segments: list[int], message: str) -> None:
    for function in (visible_intervals, frame_causal_block_mask):
        with pytest.raises(ValueError) as error:
            function(integers(ranks), integers(segments))
        assert str(error.value) == (
            f"causal_ranks {message}; ranks must be sorted within a segment"
        )


def test_ranks_may_fall_in_padding_and_between_segments() -> None:
    ranks, segments = (
        integers([4, 3, 9, 9, 0, 2, 1]),
        integers([-1, -1, 4, 4, 2, -1, -1]),
    )
    start, stop = visible_intervals(ranks, segments)
    assert start.tolist() == [0, 0, 2, 2, 4, 0, 0]
    assert stop.tolist() == [0, 0, 4, 4, 5, 0, 0]


@pytest.mark.parametrize("block_size", [0, -128])
def test_blocks_hold_at_least_1_token(block_size: int) -> None:
    start, stop = integers([0]), integers([1])
    for build in (interval_block_mask, frame_causal_block_mask):
        with pytest.raises(ValueError) as error:
            build(start, stop - 1, block_size=block_size)
        assert str(error.value) == f"block_size is {block_size}; it must be at least 1"
