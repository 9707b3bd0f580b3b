"""Laws of ``fastslow.loss_plans``."""

from collections.abc import Sequence
from dataclasses import astuple
from itertools import accumulate

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import (
    IGNORED_LABEL,
    PoolPlan,
    Span,
    TextSpan,
    TokenLayout,
    VideoSpan,
    build_layout,
    dense_mask,
    frame_causal_mask,
    lengths_from_cu_seqlens,
    next_frame_loss,
    plan_labels,
    plan_next_frame,
    pool_tokens,
)
from fastslow.losses import Distance, Reduction
from fastslow.testing import reference
from fastslow.testing import strategies as fst

DISTANCES: tuple[Distance, ...] = ("cosine", "mse", "smooth_l1")
REDUCTIONS: tuple[Reduction, ...] = ("frame", "token")

distances = st.sampled_from(DISTANCES)
reductions = st.sampled_from(REDUCTIONS)
frame_lengths = fst.lengths(min_size=1, max_size=4, min_value=1)
rows = fst.packed_samples(
    sample=fst.samples(videos=fst.video_spans(max_side=3, max_stride=3))
)


def plain(samples: Sequence[Sequence[Span]]) -> list[list[reference.Span]]:
    return [[astuple(span) for span in sample] for sample in samples]


def lay(samples: Sequence[Sequence[Span]], multiple_of: int = 1) -> TokenLayout:
    return build_layout(
        samples, video_token_id=fst.VIDEO_TOKEN_ID, multiple_of=multiple_of
    )


def windows(plan: PoolPlan) -> list[list[int]]:
    return [cells.tolist() for cells in plan.cells.split(plan.window_sizes.tolist())]


def frames_of_cells(layout: TokenLayout) -> list[tuple[int, int]]:
    """Give clip and frame of every cell of the row's clips."""
    return [
        (number, time)
        for number, clip in enumerate(layout.clips)
        for time in range(len(clip.strides))
        for _ in range(clip.grid[0] * clip.grid[1])
    ]


def frames_of_rows(samples: Sequence[Sequence[Span]]) -> list[tuple[int, int] | None]:
    """Give clip and frame of every token of the row, None for text."""
    tokens: list[tuple[int, int] | None] = []
    clip = 0
    for span in (span for sample in samples for span in sample):
        if isinstance(span, TextSpan):
            tokens.extend([None] * len(span.token_ids))
            continue
        counts = reference.tokens_per_frame(span.grid, span.strides)
        for time, count in enumerate(counts):
            tokens.extend([(clip, time)] * count)
        clip += 1
    return tokens


@given(rows, st.integers(1, 8))
def test_plan_next_frame__rows_are_sources(
    samples: list[list[Span]], multiple_of: int
) -> None:
    layout = lay(samples, multiple_of)
    last = [len(clip.strides) - 1 for clip in layout.clips]
    sources = [
        row
        for row, place in enumerate(frames_of_rows(samples))
        if place is not None and place[1] < last[place[0]]
    ]
    assert plan_next_frame(layout).rows.tolist() == sources


@given(rows)
def test_plan_next_frame__same_shape(samples: list[list[Span]]) -> None:
    layout = lay(samples)
    plan = plan_next_frame(layout)
    assert torch.equal(plan.targets.cu_seqlens, plan.copies.cu_seqlens)
    assert torch.equal(plan.targets.window_sizes, plan.copies.window_sizes)
    assert len(plan.rows) == plan.targets.cu_seqlens[-1]
    places = frames_of_rows(samples)
    frames = [place for row in plan.rows.tolist() if (place := places[row]) is not None]
    bounds = [0, *accumulate(frames.count(place) for place in dict.fromkeys(frames))]
    assert plan.targets.cu_seqlens.tolist() == bounds
    assert len(plan.targets.cell_starts) == len(frames_of_cells(layout))


@given(rows)
def test_plan_next_frame__never_own_frame(samples: list[list[Span]]) -> None:
    layout = lay(samples)
    plan = plan_next_frame(layout)
    of_row, of_cell = frames_of_rows(samples), frames_of_cells(layout)
    entries = zip(
        plan.rows.tolist(), windows(plan.targets), windows(plan.copies), strict=True
    )
    for row, target, copy in entries:
        place = of_row[row]
        assert place is not None
        clip, time = place
        assert {of_cell[cell] for cell in target} == {(clip, time + 1)}
        assert {of_cell[cell] for cell in copy} == {(clip, time)}


@given(rows, st.integers(1, 8))
@example(
    [
        [
            VideoSpan(grid=(2, 3), strides=(1, 2)),
            TextSpan(token_ids=(7,)),
            VideoSpan(grid=(3, 1), strides=(2, 1)),
        ]
    ],
    4,
)
def test_plan_next_frame__matches_reference(
    samples: list[list[Span]], multiple_of: int
) -> None:
    plan = plan_next_frame(lay(samples, multiple_of))
    pairs = reference.next_frame_pairs(plain(samples))
    assert plan.rows.tolist() == [row for rows, _, _ in pairs for row in rows]
    assert windows(plan.targets) == [cells for _, later, _ in pairs for cells in later]
    assert windows(plan.copies) == [cells for _, _, own in pairs for cells in own]
    lengths = lengths_from_cu_seqlens(plan.targets.cu_seqlens).tolist()
    assert lengths == [len(rows) for rows, _, _ in pairs]


@given(rows)
def test_no_prediction_is_read_where_its_target_is_seen(
    samples: list[list[Span]],
) -> None:
    layout = lay(samples)
    plan = plan_next_frame(layout)
    rule = frame_causal_mask(layout.causal_ranks, layout.segment_ids)
    mask = dense_mask(rule, len(layout.input_ids))
    places = frames_of_rows(samples)
    for row in plan.rows.tolist():
        seen = [places[key] for key in mask[row].nonzero()[:, 0].tolist()]
        place = places[row]
        assert place is not None
        assert place in seen
        assert (place[0], place[1] + 1) not in seen


@given(rows, st.integers(1, 8))
def test_plan_labels__next_token(samples: list[list[Span]], multiple_of: int) -> None:
    layout = lay(samples, multiple_of)
    plan = plan_labels(layout)
    assert torch.equal(plan.targets, layout.labels[plan.rows + 1])
    assert torch.equal(plan.targets, layout.input_ids[plan.rows + 1])
    assert (plan.targets != IGNORED_LABEL).all()
    assert plan.rows.tolist() == sorted(set(plan.rows.tolist()))


@given(rows)
def test_plan_labels__within_segment(samples: list[list[Span]]) -> None:
    layout = lay(samples)
    plan = plan_labels(layout)
    segments = layout.segment_ids
    assert torch.equal(segments[plan.rows], segments[plan.rows + 1])
    begins = [segments.tolist().index(segment) for segment in set(segments.tolist())]
    left_out = sum(layout.labels[begin] != IGNORED_LABEL for begin in begins)
    assert len(plan.rows) + left_out == (layout.labels != IGNORED_LABEL).sum()


@given(rows, st.integers(1, 8))
@example([[TextSpan(token_ids=(5,), trained=True)]] * 2, 4)
def test_plan_labels__matches_reference(
    samples: list[list[Span]], multiple_of: int
) -> None:
    plan = plan_labels(lay(samples, multiple_of))
    pairs = zip(plan.rows.tolist(), plan.targets.tolist(), strict=True)
    assert list(pairs) == reference.labelled_rows(plain(samples))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_clip_of_one_frame_costs_nothing(
    distance: Distance, reduction: Reduction
) -> None:
    layout = lay([[VideoSpan(grid=(2, 3), strides=(2,)), TextSpan(token_ids=(5,))]])
    plan = plan_next_frame(layout)
    assert len(plan.rows) == 0
    hidden = torch.ones(len(layout.input_ids), 4, requires_grad=True)
    features = torch.ones(6, 4, requires_grad=True)
    for pool in (plan.targets, plan.copies):
        pooled = pool_tokens(features, pool)
        total, count = next_frame_loss(
            hidden[plan.rows], pooled, distance=distance, reduction=reduction
        )
        assert (total.item(), count) == (0.0, 0)
        total.backward()
    assert hidden.grad is not None
    assert (hidden.grad == 0).all()


def test_a_row_of_text_has_no_pair() -> None:
    plan = plan_next_frame(lay([[TextSpan(token_ids=(5, 6))]]))
    assert len(plan.rows) == 0
    goal = pool_tokens(torch.zeros(0, 4), plan.targets)
    assert goal.values.shape == (0, 4)
    assert next_frame_loss(torch.zeros(0, 4), goal)[1] == 0


def test_plans_leave_the_layout_alone() -> None:
    layout = lay([[VideoSpan(grid=(2, 2), strides=(1, 2)), TextSpan(token_ids=(5,))]])
    before = {
        name: value.clone()
        for name, value in vars(layout).items()
        if isinstance(value, Tensor)
    }
    plan_labels(layout)
    plan_next_frame(layout)
    assert all(torch.equal(getattr(layout, name), before[name]) for name in before)
