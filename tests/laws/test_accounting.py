"""Laws of ``fastslow.accounting``."""

from collections.abc import Callable, Sequence
from dataclasses import astuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from fastslow import (
    CostModel,
    KeptKeys,
    KeyIntervals,
    Span,
    TextSpan,
    attention_flops,
    build_layout,
    count_tokens,
    dense_mask,
    frame_causal_pairs,
    interval_mask,
    live_tiles,
    sample_cost,
    tile_efficiency,
    transformer_cost,
    visible_intervals,
    visible_pairs,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

block_sizes = st.integers(1, 9)
counts = st.integers(1, 9)
run_lists = st.lists(st.integers(0, 6), max_size=8)
cost_models = st.builds(CostModel, per_token=counts, per_pair=counts, per_patch=counts)


@st.composite
def windows(draw: st.DrawFn) -> KeyIntervals:
    """Draw the intervals of a row, padded or not, under a window or not."""
    ranks, segments, frames = draw(fst.framed_rows())
    size = len(ranks)
    window = draw(st.none() | st.integers(1, 4))
    kept = st.lists(st.booleans(), min_size=size, max_size=size).map(torch.tensor)
    return visible_intervals(
        ranks,
        segments,
        frame_ids=frames,
        window=window,
        is_kept=None if window is None else draw(st.none() | kept),
    )


any_intervals = st.one_of(fst.key_intervals(), windows())


def without_tokens(*, keeps: bool) -> KeyIntervals:
    none = torch.zeros(0, dtype=torch.int32)
    return KeyIntervals(
        start=none,
        stop=none,
        kept=KeptKeys(is_kept=none > 0, start=none) if keeps else None,
    )


def pairs_of(intervals: KeyIntervals) -> list[list[bool]]:
    """Tell who reads whom by what ``KeyIntervals`` states, key by key."""
    keys = range(len(intervals.start))
    start, stop = intervals.start.tolist(), intervals.stop.tolist()
    if intervals.kept is None:
        return [[start[q] <= k < stop[q] for k in keys] for q in keys]
    first, kept = intervals.kept.start.tolist(), intervals.kept.is_kept.tolist()
    return [
        [
            start[q] <= k < stop[q] or (kept[k] and first[q] <= k < start[q])
            for k in keys
        ]
        for q in keys
    ]


@given(any_intervals)
@example(without_tokens(keeps=False))
@example(without_tokens(keeps=True))
def test_visible_pairs__matches_reference(intervals: KeyIntervals) -> None:
    assert visible_pairs(intervals) == reference.count_pairs(pairs_of(intervals))


@given(st.lists(fst.ranked_rows(), min_size=1, max_size=3))
def test_visible_pairs__additive(rows: list[fst.Row]) -> None:
    ranks = torch.cat([ranks for ranks, _ in rows])
    segments = torch.cat(
        [
            torch.where(segments < 0, -1, segments + 10 * part)
            for part, (_, segments) in enumerate(rows)
        ]
    )
    alone = sum(visible_pairs(visible_intervals(*row)) for row in rows)
    assert visible_pairs(visible_intervals(ranks, segments)) == alone


def test_pairs_of_a_long_row_do_not_overflow() -> None:
    ranks = torch.zeros(70_000, dtype=torch.long)
    assert visible_pairs(visible_intervals(ranks)) == 70_000**2


@given(any_intervals, block_sizes)
def test_live_tiles__matches_create_block_mask(
    intervals: KeyIntervals, block_size: int
) -> None:
    size = len(intervals.start)
    blocks = create_block_mask(
        interval_mask(intervals),
        None,
        None,
        size,
        size,
        device="cpu",
        BLOCK_SIZE=block_size,
    )
    full = blocks.full_kv_num_blocks
    assert full is not None
    expected = int(blocks.kv_num_blocks.sum()) + int(full.sum())
    assert live_tiles(intervals, block_size=block_size) == expected


@given(any_intervals, block_sizes)
@example(without_tokens(keeps=False), 4)
@example(without_tokens(keeps=True), 4)
def test_live_tiles__matches_reference(
    intervals: KeyIntervals, block_size: int
) -> None:
    expected = reference.count_live_tiles(pairs_of(intervals), block_size)
    assert live_tiles(intervals, block_size=block_size) == expected


def test_blocks_hold_128_tokens() -> None:
    intervals = visible_intervals(torch.arange(129))
    assert live_tiles(intervals) == 3
    assert tile_efficiency(intervals) == 129 * 130 / 2 / (3 * 128 * 128)


@given(any_intervals, block_sizes)
@example(without_tokens(keeps=False), 4)
def test_tile_efficiency__ratio(intervals: KeyIntervals, block_size: int) -> None:
    pairs = pairs_of(intervals)
    found = reference.count_pairs(pairs)
    computed = reference.count_live_tiles(pairs, block_size) * block_size * block_size
    expected = found / computed if found else 1.0
    assert tile_efficiency(intervals, block_size=block_size) == expected


@given(any_intervals)
def test_tile_efficiency__single_tokens(intervals: KeyIntervals) -> None:
    assert tile_efficiency(intervals, block_size=1) == 1.0


@pytest.mark.parametrize("count", [live_tiles, tile_efficiency])
def test_blocks_hold_at_least_1_token(count: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match=r"^block_size is 0; it must be at least 1$"):
        count(visible_intervals(torch.arange(2)), block_size=0)


@given(counts, counts, counts, counts)
def test_attention_flops__matches_torch(
    queries: int, keys: int, num_heads: int, head_dim: int
) -> None:
    query = (1, num_heads, queries, head_dim)
    key = (1, num_heads, keys, head_dim)
    forward = sdpa_flop_count(query, key, key)
    backward = sdpa_backward_flop_count(query, query, key, key)
    settings = {"num_heads": num_heads, "head_dim": head_dim}
    pairs = queries * keys
    assert attention_flops(pairs, **settings) == forward
    assert attention_flops(pairs, **settings, backward=True) == forward + backward


@given(counts, counts, counts, counts, st.booleans())
def test_attention_flops__linear(
    pairs: int, num_heads: int, head_dim: int, num_layers: int, backward: bool
) -> None:
    one = attention_flops(1, num_heads=1, head_dim=head_dim, backward=backward)
    every = attention_flops(
        pairs,
        num_heads=num_heads,
        head_dim=head_dim,
        num_layers=num_layers,
        backward=backward,
    )
    assert every == pairs * num_heads * num_layers * one


def runs_of(sample: Sequence[Span]) -> list[int]:
    """Give the tokens of every run of a sample."""
    lengths = list[int]()
    for span in sample:
        if isinstance(span, TextSpan):
            lengths += [1] * len(span.token_ids)
        else:
            lengths += reference.tokens_per_frame(span.grid, astuple(span.schedule))
    return lengths


@given(fst.packed_samples(), st.integers(0, 15))
def test_frame_causal_pairs__matches_visible_pairs(
    samples: list[list[Span]], padding: int
) -> None:
    length = sum(map(count_tokens, samples)) + padding
    layout = build_layout(samples, video_token_id=fst.VIDEO_TOKEN_ID, length=length)
    intervals = visible_intervals(layout.causal_ranks, layout.segment_ids)
    pairs = [frame_causal_pairs(runs_of(sample)) for sample in samples]
    assert visible_pairs(intervals) == sum(pairs)


@given(run_lists)
@example([])
def test_frame_causal_pairs__matches_reference(runs: list[int]) -> None:
    assert frame_causal_pairs(runs) == reference.count_run_pairs(runs)


@given(st.integers(0, 50))
def test_frame_causal_pairs__ends(size: int) -> None:
    assert frame_causal_pairs([1] * size) == size * (size + 1) // 2
    assert frame_causal_pairs([size]) == size * size


@given(run_lists, st.data())
def test_frame_causal_pairs__order_free(runs: list[int], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(runs))
    assert frame_causal_pairs(shuffled) == frame_causal_pairs(runs)


def test_pairs_are_those_of_the_mask() -> None:
    intervals = visible_intervals(torch.tensor([0, 1, 1, 2, 2, 2]))
    assert visible_pairs(intervals) == frame_causal_pairs([1, 2, 3]) == 25
    assert int(dense_mask(interval_mask(intervals), 6).sum()) == 25


@given(cost_models)
def test_sample_cost__terms(model: CostModel) -> None:
    assert sample_cost(model, tokens=1, pairs=0, patches=0) == model.per_token
    assert sample_cost(model, tokens=0, pairs=1, patches=0) == model.per_pair
    assert sample_cost(model, tokens=0, pairs=0, patches=1) == model.per_patch


@given(cost_models, st.lists(st.tuples(counts, counts, counts), max_size=4))
def test_sample_cost__additive(
    model: CostModel, parts: list[tuple[int, int, int]]
) -> None:
    names = ("tokens", "pairs", "patches")
    costs = [sample_cost(model, **dict(zip(names, p, strict=True))) for p in parts]
    totals = {name: sum(part[i] for part in parts) for i, name in enumerate(names)}
    assert sample_cost(model, **totals) == sum(costs)


def flops_of_a_layer(inputs: int, outputs: int) -> int:
    """Let torch count a linear layer over 1 token."""
    with FlopCounterMode(display=False) as counter:
        torch.ones(1, inputs) @ torch.ones(inputs, outputs)
    return int(counter.get_total_flops())


@given(counts, counts, counts, counts)
def test_transformer_cost__matches_torch(
    inputs: int, outputs: int, patch_inputs: int, patch_outputs: int
) -> None:
    model = transformer_cost(
        language_parameters=inputs * outputs,
        hidden_size=1,
        num_layers=1,
        vision_parameters=patch_inputs * patch_outputs,
    )
    assert model.per_token == flops_of_a_layer(inputs, outputs)
    assert model.per_patch == flops_of_a_layer(patch_inputs, patch_outputs)


@given(counts, counts, counts)
def test_transformer_cost__matches_attention(
    num_heads: int, head_dim: int, num_layers: int
) -> None:
    model = transformer_cost(
        language_parameters=1,
        hidden_size=num_heads * head_dim,
        num_layers=num_layers,
        vision_parameters=1,
    )
    assert model.per_pair == attention_flops(
        1, num_heads=num_heads, head_dim=head_dim, num_layers=num_layers
    )


def test_cost_of_qwen2_vl_7b() -> None:
    assert transformer_cost(
        language_parameters=6_530_000_000,
        hidden_size=3584,
        num_layers=28,
        vision_parameters=675_000_000,
    ) == CostModel(per_token=13_060_000_000, per_pair=401_408, per_patch=1_350_000_000)
