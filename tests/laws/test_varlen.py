"""Laws of ``fastslow.varlen``."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastslow import (
    KeyIntervals,
    SliceRanges,
    VarlenPlan,
    dense_mask,
    frame_causal_mask,
    slice_ranges,
    varlen_plan,
    visible_intervals,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Row = fst.Row

PADDED = (torch.tensor([0, 0, 1, 1, 2, 0, 0]), torch.tensor([-1, 3, 3, 3, 3, -1, 5]))
ALL_PADDING = (torch.tensor([0, 0]), torch.tensor([-1, -1]))
ONE_FRAME = (torch.tensor([4, 4, 4]), torch.tensor([0, 0, 0]))
SINGLES = (torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
EMPTY = KeyIntervals(
    start=torch.zeros(0, dtype=torch.int32), stop=torch.zeros(0, dtype=torch.int32)
)


@st.composite
def windows(draw: st.DrawFn) -> KeyIntervals:
    """Draw the intervals of a row, padded or not, under a window or not."""
    ranks, segments, frames = draw(fst.framed_rows())
    window = draw(st.none() | st.integers(1, 4))
    return visible_intervals(ranks, segments, frame_ids=frames, window=window)


any_intervals = st.one_of(
    fst.key_intervals().filter(lambda intervals: intervals.kept is None), windows()
)


def intervals_of(start: list[int], stop: list[int]) -> KeyIntervals:
    return KeyIntervals(
        start=torch.tensor(start, dtype=torch.int32),
        stop=torch.tensor(stop, dtype=torch.int32),
    )


def pairs_of(intervals: KeyIntervals) -> list[list[int]]:
    """Count who reads whom by what the intervals state, key by key."""
    bounds = zip(intervals.start.tolist(), intervals.stop.tolist(), strict=True)
    keys = range(len(intervals.start))
    return [[int(start <= key < stop) for key in keys] for start, stop in bounds]


def calls_of(plan: VarlenPlan, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Count who reads whom in the causal call, and in the one ahead."""
    tokens = plan.tokens.tolist()
    causal = reference.varlen_reads(
        tokens, tokens, plan.cu_seqlens.tolist(), num_tokens, upper=False
    )
    ahead = reference.varlen_reads(
        plan.ahead_queries.tolist(),
        plan.ahead_keys.tolist(),
        plan.ahead_cu_seqlens.tolist(),
        num_tokens,
        upper=True,
    )
    return torch.tensor(causal), torch.tensor(ahead)


def slices_of(slices: SliceRanges) -> list[reference.Slice]:
    queries, keys = slices.queries.tolist(), slices.keys.tolist()
    return [
        ((q[0], q[1]), (k[0], k[1]), is_causal)
        for q, k, is_causal in zip(
            queries, keys, slices.is_causal.tolist(), strict=True
        )
    ]


@given(fst.ranked_rows())
@example(PADDED)
@example(ALL_PADDING)
@example(ONE_FRAME)
@example(SINGLES)
def test_varlen_plan__union(row: Row) -> None:
    ranks, segments = row
    causal, ahead = calls_of(varlen_plan(visible_intervals(*row)), len(ranks))
    pairs = reference.visible_pairs(ranks.tolist(), segments.tolist())
    assert torch.equal(causal + ahead, torch.tensor(pairs).long())


@given(fst.ranked_rows())
@example(PADDED)
def test_varlen_plan__disjoint_parts(row: Row) -> None:
    causal, ahead = calls_of(varlen_plan(visible_intervals(*row)), len(row[0]))
    assert torch.equal(causal, causal.tril())
    assert torch.equal(ahead, ahead.triu(1))


def assert_bounds(cu_seqlens: Tensor, max_seqlen: int, size: int) -> None:
    bounds = cu_seqlens.tolist()
    lengths = [end - first for first, end in pairwise(bounds)]
    assert cu_seqlens.dtype == torch.int32
    assert bounds[0] == 0 and bounds[-1] == size
    assert min(lengths, default=1) > 0
    assert max_seqlen == max(lengths, default=0)


@given(fst.ranked_rows())
@example(PADDED)
@example(ALL_PADDING)
def test_varlen_plan__bounds(row: Row) -> None:
    ranks, segments = row
    plan = varlen_plan(visible_intervals(*row))
    real = segments.tolist()
    runs = {(s, r) for s, r in zip(real, ranks.tolist(), strict=True) if s >= 0}
    frames = [sum((ranks == r) & (segments == s)) for s, r in runs]
    assert plan.tokens.tolist() == [i for i, s in enumerate(real) if s >= 0]
    assert_bounds(plan.cu_seqlens, plan.max_seqlen, len(plan.tokens))
    assert len(plan.cu_seqlens) == 1 + len(set(real) - {-1})
    ahead = len(plan.ahead_queries)
    assert_bounds(plan.ahead_cu_seqlens, plan.ahead_max_seqlen, ahead)
    assert len(plan.ahead_cu_seqlens) == 1 + sum(n > 1 for n in frames)


Part = tuple[Tensor, Tensor]


def attend(
    query: Tensor, key: Tensor, value: Tensor, bounds: list[int], upper: bool
) -> Part:
    """Do what a varlen kernel does: attend in each sequence, give outputs and LSEs."""
    outputs, sums = [query[:0]], [query[:0, 0]]
    for first, end in pairwise(bounds):
        sequence = slice(first, end)
        scores = query[sequence] @ key[sequence].T / math.sqrt(query.shape[1])
        every = torch.ones_like(scores, dtype=torch.bool)
        hidden = every.tril(-1) if upper else every.triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
        outputs.append(scores.softmax(1) @ value[sequence])
        sums.append(scores.logsumexp(1))
    return torch.cat(outputs), torch.cat(sums)


def merge(causal: Part, ahead: Part, rows: Tensor) -> Tensor:
    """Merge the outputs of two calls; the second one is of some rows alone."""
    output, total = causal
    own, own_ahead = total[rows], ahead[1]
    joint = torch.logaddexp(own, own_ahead)
    merged = (own - joint).exp()[:, None] * output[rows]
    merged = merged + (own_ahead - joint).exp()[:, None] * ahead[0]
    return output.index_copy(0, rows, merged)


@given(fst.ranked_rows(), fst.seeds())
@example(PADDED, 0)
@example(ALL_PADDING, 0)
@example(SINGLES, 0)
def test_varlen_plan__merges(row: Row, seed: int) -> None:
    ranks, segments = row
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(
        3, len(ranks), 4, generator=generator, dtype=torch.float64
    )
    plan = varlen_plan(visible_intervals(*row))
    q, k, v = query[plan.tokens], key[plan.tokens], value[plan.tokens]
    causal = attend(q, k, v, plan.cu_seqlens.tolist(), upper=False)
    q, k, v = query[plan.ahead_queries], key[plan.ahead_keys], value[plan.ahead_keys]
    ahead = attend(q, k, v, plan.ahead_cu_seqlens.tolist(), upper=True)
    place = torch.searchsorted(plan.tokens, plan.ahead_queries)
    found = merge(causal, ahead, place)

    mask = dense_mask(frame_causal_mask(ranks, segments), len(ranks))
    mask = mask[plan.tokens][:, plan.tokens]
    q, k, v = (x[plan.tokens][None] for x in (query, key, value))
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(any_intervals)
@example(EMPTY)
def test_a_varlen_plan_is_exact_or_refused(intervals: KeyIntervals) -> None:
    try:
        plan = varlen_plan(intervals)
    except ValueError:
        return
    size = len(intervals.start)
    causal, ahead = calls_of(plan, size)
    pairs = torch.tensor(pairs_of(intervals), dtype=torch.long)
    assert torch.equal(causal + ahead, pairs)


def test_a_varlen_plan_takes_no_window() -> None:
    frames = torch.tensor([0, 0, 1, 1, 2, 2])
    visible = visible_intervals(frames, frame_ids=frames, window=2)
    message = (
        "query 4 reads from key 2 on, unlike the one before it; a segment must not be "
        "cut by a window"
    )
    with pytest.raises(ValueError) as error:
        varlen_plan(visible)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("start", "stop", "query", "key"),
    [([0, 0], [2, 1], 0, 1), ([0, 0, 2], [3, 3, 3], 1, 2), ([0, 0], [1, 1], 1, 0)],
)
def test_frames_of_a_varlen_plan_end_with_themselves(
    start: list[int], stop: list[int], query: int, key: int
) -> None:
    message = (
        f"query {query} is the last to read up to key {key}; the queries of a frame "
        "must end with the last key that they read"
    )
    with pytest.raises(ValueError) as error:
        varlen_plan(intervals_of(start, stop))
    assert str(error.value) == message


@pytest.mark.parametrize("split", [varlen_plan, slice_ranges])
def test_nothing_may_be_kept(split: Callable[[KeyIntervals], object]) -> None:
    frames = torch.tensor([0, 1, 2])
    is_kept = torch.tensor([True, False, True])
    visible = visible_intervals(frames, frame_ids=frames, window=1, is_kept=is_kept)
    message = (
        "is_kept holds 2 keys; a query reads one interval of keys here, so nothing may "
        "be kept"
    )
    with pytest.raises(ValueError) as error:
        split(visible)
    assert str(error.value) == message


@given(any_intervals)
@example(visible_intervals(*PADDED))
@example(EMPTY)
def test_slice_ranges__union(intervals: KeyIntervals) -> None:
    found = slices_of(slice_ranges(intervals))
    reads = reference.slice_reads(found, len(intervals.start))
    assert reads == pairs_of(intervals)


@given(any_intervals)
@example(visible_intervals(*PADDED))
@example(visible_intervals(*ALL_PADDING))
@example(visible_intervals(*ONE_FRAME))
@example(visible_intervals(*SINGLES))
@example(EMPTY)
def test_slice_ranges__matches_reference(intervals: KeyIntervals) -> None:
    slices = slice_ranges(intervals)
    expected = reference.slices(intervals.start.tolist(), intervals.stop.tolist())
    assert slices_of(slices) == expected
    assert slices.queries.shape == slices.keys.shape == (len(expected), 2)


@given(any_intervals)
@example(visible_intervals(*PADDED))
def test_slice_ranges__each_query_once(intervals: KeyIntervals) -> None:
    queries = slice_ranges(intervals).queries.tolist()
    reading = [q for first, end in queries for q in range(first, end)]
    assert reading == (intervals.start < intervals.stop).nonzero()[:, 0].tolist()
