"""Laws of ``fastslow.masks``."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import and_masks, create_mask

from fastslow import (
    KeyIntervals,
    MaskMod,
    TokenLayout,
    dense_mask,
    frame_causal_mask,
    interval_mask,
    to_device,
    visible_intervals,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Row = fst.Row
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


def bounds_of(visible: KeyIntervals) -> list[Tensor]:
    kept = [] if visible.kept is None else [visible.kept.start]
    return [visible.start, visible.stop, *kept]


def read_by_hand(visible: KeyIntervals) -> list[list[bool]]:
    """Tell who reads whom by what ``KeyIntervals`` states, key by key."""
    keys = range(len(visible.start))
    start, stop = visible.start.tolist(), visible.stop.tolist()
    if visible.kept is None:
        return [[start[q] <= k < stop[q] for k in keys] for q in keys]
    first, kept = visible.kept.start.tolist(), visible.kept.is_kept.tolist()
    return [
        [
            start[q] <= k < stop[q] or (kept[k] and first[q] <= k < start[q])
            for k in keys
        ]
        for q in keys
    ]


Window = tuple[fst.FramedRow, int, Tensor | None]


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Draw a row with frames, a window over them, and kept keys or none."""
    row = draw(fst.framed_rows())
    size = len(row[0])
    kept = st.lists(st.booleans(), min_size=size, max_size=size).map(torch.tensor)
    return row, draw(st.integers(1, 5)), draw(st.none() | kept)


def within(case: Window, window: int | None = None) -> KeyIntervals:
    (ranks, segments, frames), own_window, is_kept = case
    return visible_intervals(
        ranks,
        segments,
        frame_ids=frames,
        window=own_window if window is None else window,
        is_kept=is_kept,
    )


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
    visible = visible_intervals(ranks, segments)
    assert visible.start.dtype == visible.stop.dtype == torch.int32
    assert visible.kept is None
    assert read_by_hand(visible) == visible_pairs(ranks, segments).tolist()


ONE_SAMPLE = (
    integers([0, 1, 2, 2, 3, 4, 4, 5, 6]),
    integers([0] * 9),
    integers([-1, -1, 0, 0, -1, 1, 1, 2, -1]),
)


@given(windows())
@example((ONE_SAMPLE, 1, None))
@example((ONE_SAMPLE, 2, torch.arange(9) < 2))
def test_visible_intervals__window_matches_reference(case: Window) -> None:
    (ranks, segments, frames), window, is_kept = case
    visible = within(case)
    assert all(bound.dtype == torch.int32 for bound in bounds_of(visible))
    assert read_by_hand(visible) == reference.window_pairs(
        ranks.tolist(),
        segments.tolist(),
        frames.tolist(),
        window,
        [False] * len(ranks) if is_kept is None else is_kept.tolist(),
    )


def test_what_a_window_of_two_frames_shows() -> None:
    pairs = read_by_hand(within((ONE_SAMPLE, 2, None)))
    seen = [[key for key, reads in enumerate(row) if reads] for row in pairs]
    text = [[0], [0, 1]]
    first = [[0, 1, 2, 3]] * 2 + [[0, 1, 2, 3, 4]]
    second, third = [[2, 3, 4, 5, 6]] * 2, [[5, 6, 7], [5, 6, 7, 8]]
    assert seen == text + first + second + third


@given(windows())
def test_visible_intervals__wide_window(case: Window) -> None:
    (ranks, segments, frames), *_ = case
    widest = int(frames.max()) + 2
    for window in (widest, 10**9):
        wide = within(case, window)
        everything = visible_intervals(ranks, segments)
        assert torch.equal(wide.start, everything.start)
        assert torch.equal(wide.stop, everything.stop)


@given(windows())
def test_visible_intervals__within_causal(case: Window) -> None:
    (ranks, segments, _), window, _ = case
    pairs, wider = (
        torch.tensor(read_by_hand(within(case, window + n))) for n in (0, 1)
    )
    assert (pairs <= wider).all()
    assert (wider <= visible_pairs(ranks, segments)).all()


@given(windows())
@example((ONE_SAMPLE, 1, torch.arange(9) % 3 == 0))
def test_visible_intervals__evictable(case: Window) -> None:
    (_, segments, _), _, is_kept = case
    pairs = read_by_hand(within(case))
    tokens = range(len(pairs))
    for key in tokens:
        later = [q for q in tokens if q > key and segments[q] == segments[key] >= 0]
        reads = [pairs[query][key] for query in later]
        assert reads == sorted(reads, reverse=True)
        assert all(reads) or is_kept is None or not is_kept[key]


@given(windows())
def test_visible_intervals__holds_diagonal(case: Window) -> None:
    (ranks, segments, _), *_ = case
    real = segments >= 0
    index = torch.arange(len(ranks))
    for visible in (visible_intervals(ranks, segments), within(case)):
        assert (visible.start <= index)[real].all()
        assert (index < visible.stop)[real].all()
        assert all((bound[~real] == 0).all() for bound in bounds_of(visible))


@given(windows())
def test_visible_intervals__monotone(case: Window) -> None:
    (ranks, segments, _), *_ = case
    for visible in (visible_intervals(ranks, segments), within(case)):
        for bound in bounds_of(visible):
            assert (bound[segments >= 0].diff() >= 0).all()


@given(fst.ranked_rows(padding=False, max_segments=1))
def test_no_segments_mean_one_sample(row: Row) -> None:
    ranks, _ = row
    alone, given_zeros = (
        visible_intervals(ranks),
        visible_intervals(ranks, torch.zeros_like(ranks)),
    )
    for bound, expected in zip(bounds_of(alone), bounds_of(given_zeros), strict=True):
        assert torch.equal(bound, expected)


def test_a_row_without_tokens_has_no_intervals() -> None:
    none = integers([])
    visible = visible_intervals(none, none, frame_ids=none, window=1, is_kept=none > 0)
    assert [len(bound) for bound in bounds_of(visible)] == [0, 0, 0]


@given(windows())
def test_intervals_move_to_a_device_with_what_is_kept(case: Window) -> None:
    moved = to_device(within(case), "meta")
    assert moved.start.is_meta
    assert (moved.kept is None) == (case[2] is None)
    assert moved.kept is None or moved.kept.is_kept.is_meta
    assert all(bound.is_meta for bound in bounds_of(moved))


@given(fst.ranked_rows())
def test_interval_mask__matches_rule(row: Row) -> None:
    ranks, segments = row
    rule = interval_mask(visible_intervals(ranks, segments))
    assert torch.equal(dense_mask(rule, len(ranks)), visible_pairs(ranks, segments))


@given(st.one_of(fst.key_intervals(), windows().map(within)))
def test_interval_mask__matches_intervals(visible: KeyIntervals) -> None:
    mask = dense_mask(interval_mask(visible), len(visible.start))
    assert mask.tolist() == read_by_hand(visible)


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
    frames, is_kept = integers([-1, 0, 0, -1]), torch.arange(4) < 1
    visible_intervals(ranks, segments, frame_ids=frames, window=1, is_kept=is_kept)
    dense(ranks, segments).clone().fill_(True)
    assert ranks.tolist() == [0, 1, 1, 0]
    assert segments.tolist() == [0, 0, 0, -1]
    assert frames.tolist() == [-1, 0, 0, -1]
    assert is_kept.tolist() == [True, False, False, False]


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


@pytest.mark.parametrize(
    ("ranks", "segments", "message"),
    [
        ([0, 1, 0], [0, 0, 0], "falls from 1 to 0 at token 2"),
        ([5, 5, -1, 0, 7, 6], [0, 0, 1, 1, 2, 2], "falls from 7 to 6 at token 5"),
        ([3, 2, 1, 0], [-1, 0, 0, 0], "falls from 2 to 1 at token 2"),
    ],
)
def test_ranks_are_sorted(ranks: list[int], segments: list[int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        visible_intervals(integers(ranks), integers(segments))
    assert str(error.value) == (
        f"causal_ranks {message}; ranks must be sorted within a segment"
    )


def test_ranks_may_fall_in_padding_and_between_segments() -> None:
    ranks, segments = (
        integers([4, 3, 9, 9, 0, 2, 1]),
        integers([-1, -1, 4, 4, 2, -1, -1]),
    )
    visible = visible_intervals(ranks, segments)
    assert visible.start.tolist() == [0, 0, 2, 2, 4, 0, 0]
    assert visible.stop.tolist() == [0, 0, 4, 4, 5, 0, 0]


@pytest.mark.parametrize(
    ("frames", "segments", "message"),
    [
        ([0, 1, 0], [0, 0, 0], "falls from 1 to 0 at token 2"),
        ([4, -1, 3, 3], [2, 2, 2, 2], "falls from 4 to 3 at token 2"),
        ([5, 0, 9, 7], [0, -1, 3, 3], "falls from 9 to 7 at token 3"),
    ],
)
def test_frames_are_sorted(
    frames: list[int], segments: list[int], message: str
) -> None:
    ranks = torch.arange(len(frames))
    with pytest.raises(ValueError) as error:
        visible_intervals(
            ranks, integers(segments), frame_ids=integers(frames), window=3
        )
    assert str(error.value) == (
        f"frame_ids {message}; frames must be sorted within a segment"
    )


def test_frames_may_fall_in_padding_and_between_segments() -> None:
    frames, segments = (
        integers([7, 6, 9, 9, 0, 2, 1]),
        integers([-1, -1, 4, 4, 2, -1, -1]),
    )
    visible = visible_intervals(torch.arange(7), segments, frame_ids=frames, window=1)
    assert visible.start.tolist() == [0, 0, 2, 2, 4, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 3}, "window is 3 but frame_ids is None; it counts frames"),
        (
            {"window": 0, "frame_ids": integers([0, 0])},
            "window is 0; it must be at least 1",
        ),
        (
            {"window": 1, "frame_ids": integers([0, -2])},
            "frame_ids[1] is -2; it must be a frame, or -1 for text",
        ),
        (
            {"is_kept": torch.ones(2).bool()},
            "is_kept needs a window; without one no key expires",
        ),
        (
            {"window": 1, "frame_ids": integers([0])},
            "frame_ids has 1 tokens but causal_ranks has 2; both describe the same row",
        ),
        (
            {
                "window": 1,
                "frame_ids": integers([0, 0]),
                "is_kept": torch.ones(3).bool(),
            },
            "is_kept has 3 tokens but causal_ranks has 2; both describe the same row",
        ),
    ],
)
def test_a_window_needs_what_it_counts(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        inspect.unwrap(visible_intervals)(integers([0, 1]), **settings)
    assert str(error.value) == message
