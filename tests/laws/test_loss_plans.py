"""Laws of ``fastslow.loss_plans``."""

import inspect
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import (
    IGNORED_LABEL,
    FrameSchedule,
    Grid,
    PooledFrame,
    PoolPlan,
    Span,
    TextSpan,
    TokenLayout,
    VideoSpan,
    build_layout,
    count_tokens,
    dense_mask,
    encoded_grids,
    frame_causal_mask,
    keep_tokens,
    kernel_schedule,
    lengths_from_cu_seqlens,
    merge_streams,
    next_frame_loss,
    plan_labels,
    plan_next_frame,
    pool_tokens,
    repeat_strides,
    schedule_from_grids,
    schedule_from_strides,
    select_frames,
)
from fastslow.layouts import Attention
from fastslow.loss_plans import Pairing
from fastslow.testing import reference
from fastslow.testing import strategies as fst


def plain_clip(grid: Grid, *strides: int) -> VideoSpan:
    return VideoSpan(grid=grid, schedule=schedule_from_strides(strides))


def gridded_clip(width: int, *counts: int) -> VideoSpan:
    schedule = schedule_from_grids([(1, count) for count in counts])
    return VideoSpan(grid=(1, width), schedule=schedule)


STREAMS = [select_frames(repeat_strides(5, (1,)), [0, 2, 3]), repeat_strides(5, (2,))]
TWO_STREAMS, TWO_STREAMS_IN_TIME = (
    VideoSpan(grid=(2, 3), schedule=merge_streams(STREAMS, order=order))
    for order in ("stream", "time")
)
KERNELS = VideoSpan(grid=(2, 3), schedule=kernel_schedule(5, (2, 2, 1)))
ONE_FRAME_CUT = VideoSpan(
    grid=(1, 2),
    schedule=keep_tokens(repeat_strides(3, (1,)), [[True, False], None, None]),
)

pairings = st.sampled_from(("source_grid", "common_grid", "frame_mean"))
rows = fst.packed_samples(
    sample=fst.samples(videos=fst.video_spans(max_side=3, max_stride=3, placed=True))
)
plain_rows = fst.packed_samples(
    sample=fst.samples(videos=fst.video_spans(max_side=3, max_stride=3, plain=True))
)


def plain(samples: Sequence[Sequence[Span]]) -> list[list[reference.Span]]:
    return [[astuple(span) for span in sample] for sample in samples]


def lay(
    samples: Sequence[Sequence[Span]],
    padding: int = 0,
    attention: Attention = "frame_causal",
) -> TokenLayout:
    return build_layout(
        samples,
        video_token_id=fst.VIDEO_TOKEN_ID,
        length=sum(map(count_tokens, samples)) + padding,
        attention=attention,
    )


def windows(plan: PoolPlan) -> list[list[int]]:
    return [cells.tolist() for cells in plan.cells.split(plan.window_sizes.tolist())]


def tokens_of(samples: Sequence[Sequence[Span]]) -> list[tuple[int, range] | None]:
    """Give clip and frames of every token of the row, None for text."""
    tokens = list[tuple[int, range] | None]()
    clip = 0
    for span in (span for sample in samples for span in sample):
        if isinstance(span, TextSpan):
            tokens.extend([None] * len(span.token_ids))
            continue
        schedule = astuple(span.schedule)
        counts = reference.tokens_per_frame(span.grid, schedule)
        texts = ((), *span.between) if span.between else [()] * len(counts)
        for frame, text, count in zip(schedule[1], texts, counts, strict=True):
            tokens.extend([None] * len(text))
            tokens.extend([(clip, range(*frame[:2]))] * count)
        clip += 1
    return tokens


def times_of_cells(layout: TokenLayout) -> list[tuple[int, int]]:
    """Give clip and frame of every cell of the row's clips."""
    return [
        (number, time)
        for number, clip in enumerate(layout.clips)
        for time, grid in enumerate(encoded_grids(clip.grid, clip.schedule))
        for _ in range(grid[0] * grid[1])
    ]


@given(plain_rows, st.integers(0, 7), st.sampled_from(("source_grid", "frame_mean")))
def test_plan_next_frame__rows_are_sources(
    samples: list[list[Span]], padding: int, pairing: Pairing
) -> None:
    layout = lay(samples, padding)
    sources = [
        row
        for row, place in enumerate(tokens_of(samples))
        if place is not None
        and place[1].stop < layout.clips[place[0]].schedule.num_frames
    ]
    plan = plan_next_frame(layout, pairing=pairing)
    assert plan.rows.tolist() == sources
    pairs = [clip.schedule.num_frames - 1 for clip in layout.clips]
    assert plan.cu_videos.tolist() == reference.bounds(filter(None, pairs))


@given(rows, st.sampled_from(("source_grid", "frame_mean")))
def test_plan_next_frame__same_shape(
    samples: list[list[Span]], pairing: Pairing
) -> None:
    layout = lay(samples)
    plan = plan_next_frame(layout, pairing=pairing)
    assert torch.equal(plan.targets.cu_seqlens, plan.copies.cu_seqlens)
    assert torch.equal(plan.targets.cu_seqlens, plan.predictions.cu_seqlens)
    assert len(plan.predictions.cell_starts) == len(plan.rows)
    assert plan.cu_videos[-1] == plan.num_frames == len(plan.targets.cu_seqlens) - 1
    assert len(plan.targets.cell_starts) == len(times_of_cells(layout))
    if pairing == "frame_mean":
        assert (lengths_from_cu_seqlens(plan.targets.cu_seqlens) == 1).all()
    else:
        assert plan.targets.cu_seqlens[-1] == len(plan.rows)


@given(rows, pairings, st.sampled_from(("frame_causal", "causal")))
def test_plan_next_frame__unseen(
    samples: list[list[Span]], pairing: Pairing, attention: Attention
) -> None:
    layout = lay(samples, attention=attention)
    try:
        plan = plan_next_frame(layout, pairing=pairing)
    except ValueError:
        assert pairing == "common_grid"
        return
    rule = frame_causal_mask(layout.causal_ranks, layout.segment_ids)
    mask = dense_mask(rule, len(layout.input_ids))
    of_row, of_cell = tokens_of(samples), times_of_cells(layout)
    readers, cells = windows(plan.predictions), windows(plan.targets)
    for reading, target in zip(readers, cells, strict=True):
        answers = {of_cell[cell] for cell in target}
        for row in plan.rows[reading].tolist():
            seen = [of_row[key] for key in mask[row].nonzero()[:, 0].tolist()]
            frames = {(p[0], time) for p in seen if p is not None for time in p[1]}
            place = of_row[row]
            assert place is not None
            assert (place[0], place[1].stop) in answers
            assert not answers & frames


@given(fst.grids(max_side=5), fst.strides(max_stride=3), st.integers(1, 3))
def test_plan_next_frame__pairings_agree(grid: Grid, stride: int, frames: int) -> None:
    clip = VideoSpan(grid=grid, schedule=repeat_strides(frames, (stride,)))
    own, common = (
        plan_next_frame(lay([[clip]]), pairing=pairing)
        for pairing in ("source_grid", "common_grid")
    )
    assert windows(own.targets) == windows(common.targets)
    assert windows(own.copies) == windows(common.copies)
    assert windows(own.predictions) == windows(common.predictions)


@given(rows, st.integers(0, 7))
@example(
    [[plain_clip((2, 3), 1, 2), TextSpan(token_ids=(7,)), plain_clip((3, 1), 2, 1)]], 4
)
@example([[TWO_STREAMS, TextSpan(token_ids=(7,))], [TWO_STREAMS_IN_TIME]], 1)
@example([[KERNELS]], 1)
@example([[ONE_FRAME_CUT]], 1)
def test_plan_next_frame__matches_reference(
    samples: list[list[Span]], padding: int
) -> None:
    layout = lay(samples, padding)
    plan = plan_next_frame(layout)
    pairs = reference.next_frame_pairs(plain(samples))
    assert plan.rows.tolist() == [row for _, rows, *_ in pairs for row in rows]
    assert windows(plan.targets) == [cells for *_, later, _ in pairs for cells in later]
    assert windows(plan.copies) == [cells for *_, own in pairs for cells in own]
    assert windows(plan.predictions) == [[row] for row in range(len(plan.rows))]
    lengths = lengths_from_cu_seqlens(plan.targets.cu_seqlens).tolist()
    assert lengths == [len(rows) for _, rows, *_ in pairs]
    counts = [0] * len(layout.clips)
    for clip, *_ in pairs:
        counts[clip] += 1
    assert plan.cu_videos.tolist() == reference.bounds(filter(None, counts))


def test_a_stream_of_slow_frames_first_leaves_little_to_predict() -> None:
    first, timely = (
        plan_next_frame(lay([[clip]])).cu_videos[-1].item()
        for clip in (TWO_STREAMS, TWO_STREAMS_IN_TIME)
    )
    assert (first, timely) == (4, 7)


def test_the_mean_of_a_frame_is_the_mean_of_its_cells() -> None:
    layout = lay([[plain_clip((3, 2), 2, 1)]])
    plan = plan_next_frame(layout, pairing="frame_mean")
    features = fst.random_values((12, 4), seed=0, dtype=torch.float64)
    goal = pool_tokens(features, plan.targets).values
    torch.testing.assert_close(goal, features[6:].mean(0, keepdim=True))
    predicted = fst.random_values((2, 4), seed=1, dtype=torch.float64)
    mean = pool_tokens(predicted, plan.predictions).values
    expected = (4 * predicted[0] + 2 * predicted[1]) / 6
    torch.testing.assert_close(mean, expected[None])


def test_a_common_grid_is_the_coarser_one_of_each_side() -> None:
    fine = PooledFrame(start=0, stop=1, stride=(1, 2))
    coarse = PooledFrame(start=1, stop=2, stride=(2, 1))
    schedule = FrameSchedule(num_frames=3, frames=(fine, coarse))
    clip = VideoSpan(grid=(3, 2), schedule=schedule)
    plan = plan_next_frame(lay([[clip]]), pairing="common_grid")
    assert windows(plan.targets)[:2] == [[6, 7, 8, 9], [10, 11]]
    assert windows(plan.copies)[:2] == [[0, 1, 2, 3], [4, 5]]
    assert windows(plan.predictions)[:2] == [[0, 1], [2]]
    assert plan.targets.cu_seqlens.tolist() == [0, 2, 6]


def test_a_common_grid_is_found_frame_by_frame() -> None:
    layout = lay([[plain_clip((2, 2), 1, 1, 2)]])
    plan = plan_next_frame(layout, pairing="common_grid")
    assert windows(plan.predictions) == [[0], [1], [2], [3], [4, 5, 6, 7]]
    assert windows(plan.copies) == [[0], [1], [2], [3], [4, 5, 6, 7]]
    assert windows(plan.targets) == [[4], [5], [6], [7], [8, 9, 10, 11]]


def test_predictions_on_a_common_grid_weigh_as_many_cells_as_they_hold() -> None:
    fine = PooledFrame(start=0, stop=1, stride=(2, 1))
    coarse = PooledFrame(start=1, stop=2, stride=(3, 1))
    clip = VideoSpan(
        grid=(3, 2), schedule=FrameSchedule(num_frames=2, frames=(fine, coarse))
    )
    plan = plan_next_frame(lay([[clip]]), pairing="common_grid")
    predicted = torch.tensor([[3.0], [6.0], [9.0], [0.0]])
    assert windows(plan.predictions) == [[0, 2], [1, 3]]
    torch.testing.assert_close(
        pool_tokens(predicted, plan.predictions).values, torch.tensor([[5.0], [4.0]])
    )


def test_a_common_grid_is_that_of_the_first_frame_that_begins_next() -> None:
    frames = [
        PooledFrame(start=start, stop=start + 1, stride=(stride, stride))
        for start, stride in ((0, 1), (1, 2), (1, 1))
    ]
    schedule = FrameSchedule(num_frames=2, frames=tuple(frames))
    layout = lay([[VideoSpan(grid=(2, 2), schedule=schedule)]])
    plan = plan_next_frame(layout, pairing="common_grid")
    assert windows(plan.predictions) == [[0, 1, 2, 3]]
    assert windows(plan.targets) == [[4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("clip", "own", "after"),
    [
        (plain_clip((5, 5), 2, 3), "((0, 2), (2, 4), (4, 5))", "((0, 3), (3, 5))"),
        # The second window lies in both of the others.
        (gridded_clip(3, 3, 2), "((0, 1), (1, 2), (2, 3))", "((0, 2), (1, 3))"),
        (gridded_clip(3, 2, 3), "((0, 2), (1, 3))", "((0, 1), (1, 2), (2, 3))"),
    ],
)
def test_windows_of_a_common_grid_must_nest(
    clip: VideoSpan, own: str, after: str
) -> None:
    with pytest.raises(ValueError) as error:
        plan_next_frame(lay([[clip]]), pairing="common_grid")
    assert str(error.value) == (
        f"windows {own} and {after} do not nest; pairing 'source_grid' and "
        "'frame_mean' take any"
    )


def test_windows_that_hold_others_are_a_common_grid_with_themselves() -> None:
    layout = lay([[gridded_clip(2, 3, 3)]])  # windows (0, 1), (0, 2), (1, 2)
    plan = plan_next_frame(layout, pairing="common_grid")
    assert windows(plan.predictions) == [[0], [1], [2]]
    assert windows(plan.targets) == [[2], [2, 3], [3]]


def test_an_unknown_pairing_is_named() -> None:
    plan: Any = inspect.unwrap(plan_next_frame)
    with pytest.raises(ValueError) as error:
        plan(lay([[KERNELS]]), pairing="nearest")
    assert str(error.value) == (
        "pairing is 'nearest'; it must be one of source_grid, common_grid, frame_mean"
    )


@given(rows, st.integers(0, 7))
def test_plan_labels__next_token(samples: list[list[Span]], padding: int) -> None:
    layout = lay(samples, padding)
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


@given(rows, st.integers(0, 7))
@example([[TextSpan(token_ids=(5,), trained=True)]] * 2, 4)
def test_plan_labels__matches_reference(
    samples: list[list[Span]], padding: int
) -> None:
    plan = plan_labels(lay(samples, padding))
    pairs = zip(plan.rows.tolist(), plan.targets.tolist(), strict=True)
    assert list(pairs) == reference.labelled_rows(plain(samples))


def test_a_clip_of_one_frame_costs_nothing() -> None:
    layout = lay([[plain_clip((2, 3), 2), TextSpan(token_ids=(5,))]])
    plan = plan_next_frame(layout)
    assert len(plan.rows) == 0
    hidden = torch.ones(len(layout.input_ids), 4, requires_grad=True)
    predicted = pool_tokens(hidden[plan.rows], plan.predictions).values
    features = torch.ones(6, 4, requires_grad=True)
    for pool in (plan.targets, plan.copies):
        total, count = next_frame_loss(predicted, pool_tokens(features, pool))
        assert (total.item(), count) == (0.0, 0)
        total.backward(retain_graph=True)
    assert hidden.grad is not None
    assert (hidden.grad == 0).all()


def test_a_row_of_text_has_no_pair() -> None:
    plan = plan_next_frame(lay([[TextSpan(token_ids=(5, 6))]]))
    assert len(plan.rows) == 0
    goal = pool_tokens(torch.zeros(0, 4), plan.targets)
    assert goal.values.shape == (0, 4)
    assert next_frame_loss(torch.zeros(0, 4), goal)[1] == 0


def test_plans_leave_the_layout_alone() -> None:
    layout = lay(
        [
            [
                plain_clip((2, 2), 1, 2),
                TextSpan(token_ids=(5,)),
            ]
        ]
    )
    before = {
        name: value.clone()
        for name, value in vars(layout).items()
        if isinstance(value, Tensor)
    }
    plan_labels(layout)
    plan_next_frame(layout)
    assert all(torch.equal(getattr(layout, name), before[name]) for name in before)
