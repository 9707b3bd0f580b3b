"""Laws of ``fastslow.losses``."""

import inspect
from collections.abc import Sequence
from dataclasses import astuple
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import (
    IGNORED_LABEL,
    PoolPlan,
    Ragged,
    Span,
    TextSpan,
    TokenLayout,
    VideoSpan,
    build_layout,
    cu_seqlens_from_lengths,
    dense_mask,
    frame_causal_mask,
    lengths_from_cu_seqlens,
    losses,
    next_frame_loss,
    pack_ragged,
    plan_labels,
    plan_next_frame,
    pool_tokens,
    unpack_ragged,
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


def goals(lengths: list[int], seed: int, dtype: torch.dtype = torch.float64) -> Ragged:
    values = fst.random_values((sum(lengths), 3), seed=seed, dtype=dtype)
    return Ragged(
        values=values, cu_seqlens=cu_seqlens_from_lengths(torch.tensor(lengths))
    )


def guesses(goal: Ragged, seed: int) -> Tensor:
    values = goal.values
    return fst.random_values(values.shape, seed=seed + 1, dtype=values.dtype)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


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


@given(frame_lengths, fst.seeds(), distances, reductions)
def test_next_frame_loss__zero_at_target(
    lengths: list[int], seed: int, distance: Distance, reduction: Reduction
) -> None:
    goal = goals(lengths, seed)
    predictions = goal.values.clone().requires_grad_()
    total, count = next_frame_loss(
        predictions, goal, distance=distance, reduction=reduction
    )
    assert_near(total, torch.zeros_like(total))
    assert count > 0
    (grad,) = torch.autograd.grad(total, predictions)
    assert_near(grad, torch.zeros_like(grad))


@given(frame_lengths, fst.seeds(), distances, reductions)
def test_next_frame_loss__target_detached(
    lengths: list[int], seed: int, distance: Distance, reduction: Reduction
) -> None:
    goal = goals(lengths, seed)
    features = goal.values.clone().requires_grad_()
    predictions = guesses(goal, seed).requires_grad_()
    total, _ = next_frame_loss(
        predictions,
        Ragged(values=2 * features, cu_seqlens=goal.cu_seqlens),
        distance=distance,
        reduction=reduction,
    )
    total.backward()
    assert features.grad is None
    assert predictions.grad is not None
    assert (predictions.grad != 0).any(1).all()


@given(
    st.lists(frame_lengths, min_size=1, max_size=3), fst.seeds(), distances, reductions
)
def test_next_frame_loss__additive(
    clips: list[list[int]], seed: int, distance: Distance, reduction: Reduction
) -> None:
    settings: dict[str, Any] = {"distance": distance, "reduction": reduction}
    parts = [goals(lengths, seed + 2 * i) for i, lengths in enumerate(clips)]
    alone = [next_frame_loss(guesses(part, seed), part, **settings) for part in parts]
    packed = pack_ragged([frame for part in parts for frame in unpack_ragged(part)])
    predictions = torch.cat([guesses(part, seed) for part in parts])
    total, count = next_frame_loss(predictions, packed, **settings)
    assert_near(total, torch.stack([part for part, _ in alone]).sum())
    assert count == sum(part for _, part in alone)


@given(frame_lengths, fst.seeds(), st.floats(0.01, 100), reductions)
def test_next_frame_loss__cosine_scale_free(
    lengths: list[int], seed: int, scale: float, reduction: Reduction
) -> None:
    goal = goals(lengths, seed)
    predictions = guesses(goal, seed)
    total, _ = next_frame_loss(predictions, goal, reduction=reduction)
    scaled, _ = next_frame_loss(scale * predictions, goal, reduction=reduction)
    assert_near(scaled, total)


@given(frame_lengths, fst.seeds(), st.integers(2, 4), distances)
def test_next_frame_loss__frame_weight(
    lengths: list[int], seed: int, times: int, distance: Distance
) -> None:
    goal = goals(lengths, seed)
    predictions = guesses(goal, seed)
    split = predictions.split(lengths)
    frames = unpack_ragged(goal)
    total, count = next_frame_loss(predictions, goal, distance=distance)
    for chosen in range(len(lengths)):
        repeats = [times if frame == chosen else 1 for frame in range(len(lengths))]
        repeated_goal = pack_ragged(
            [frame.repeat(n, 1) for frame, n in zip(frames, repeats, strict=True)]
        )
        repeated = torch.cat(
            [frame.repeat(n, 1) for frame, n in zip(split, repeats, strict=True)]
        )
        again, frames_again = next_frame_loss(
            repeated, repeated_goal, distance=distance
        )
        assert_near(again, total)
        assert frames_again == count == len(lengths)


@given(frame_lengths, fst.seeds(), distances, reductions)
def test_next_frame_loss__matches_reference(
    lengths: list[int], seed: int, distance: Distance, reduction: Reduction
) -> None:
    goal = goals(lengths, seed)
    predictions = guesses(goal, seed)
    total, count = next_frame_loss(
        predictions, goal, distance=distance, reduction=reduction
    )
    expected, expected_count = reference.next_frame_loss(
        [frame.tolist() for frame in predictions.split(lengths)],
        [frame.tolist() for frame in unpack_ragged(goal)],
        distance,
        reduction,
    )
    assert_near(total, torch.tensor(expected, dtype=torch.float64))
    assert count == expected_count
    assert type(count) is int


def test_defaults_are_the_cosine_and_the_mean_of_each_frame() -> None:
    goal = goals([3, 1], 0)
    predictions = guesses(goal, 0)
    expected = next_frame_loss(predictions, goal, distance="cosine", reduction="frame")
    assert next_frame_loss(predictions, goal) == expected


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradcheck(distance: Distance, reduction: Reduction) -> None:
    goal = goals([2, 1, 3], 0)
    predictions = guesses(goal, 0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: next_frame_loss(x, goal, distance=distance, reduction=reduction)[0],
        predictions,
    )


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


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(
    dtype: torch.dtype, distance: Distance
) -> None:
    goal = goals([3, 1], 0, dtype)
    predictions = guesses(goal, 0).requires_grad_()
    wide = Ragged(values=goal.values.float(), cu_seqlens=goal.cu_seqlens)
    total, _ = next_frame_loss(predictions, goal, distance=distance)
    expected, _ = next_frame_loss(predictions.float(), wide, distance=distance)
    assert total.dtype == torch.float32
    assert total == expected
    (grad,) = torch.autograd.grad(total, predictions)
    assert grad.dtype == dtype


def test_float64_stays_float64() -> None:
    goal = goals([2], 0)
    assert next_frame_loss(guesses(goal, 0), goal)[0].dtype == torch.float64


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_prediction_of_zero_has_a_finite_gradient(distance: Distance) -> None:
    goal = goals([2, 1], 0)
    predictions = torch.zeros_like(goal.values).requires_grad_()
    total, _ = next_frame_loss(predictions, goal, distance=distance)
    (grad,) = torch.autograd.grad(total, predictions)
    assert total.isfinite()
    assert grad.isfinite().all()


def test_losses_leave_their_arguments_alone() -> None:
    layout = lay([[VideoSpan(grid=(2, 2), strides=(1, 2)), TextSpan(token_ids=(5,))]])
    before = {
        name: value.clone()
        for name, value in vars(layout).items()
        if isinstance(value, Tensor)
    }
    plan_labels(layout)
    plan_next_frame(layout)
    assert all(torch.equal(getattr(layout, name), before[name]) for name in before)
    goal = goals([2, 1], 0)
    values, bounds, predictions = (
        goal.values.clone(),
        goal.cu_seqlens.clone(),
        guesses(goal, 0),
    )
    for distance in DISTANCES:
        next_frame_loss(predictions, goal, distance=distance)
    assert torch.equal(goal.values, values)
    assert torch.equal(goal.cu_seqlens, bounds)
    assert torch.equal(predictions, guesses(goal, 0))


def test_predictions_and_targets_have_one_shape() -> None:
    goal = goals([2, 1], 0)
    for shape in [(2, 3), (4, 3), (3, 2)]:
        with pytest.raises(ValueError) as error:
            next_frame_loss(torch.zeros(shape), goal)
        assert str(error.value) == (
            f"predictions has shape {shape} but targets has (3, 3); each predicted "
            "token needs its target"
        )


def test_unknown_settings_are_named() -> None:
    goal = goals([2, 1], 0)
    with pytest.raises(ValueError) as error:
        inspect.unwrap(next_frame_loss)(goal.values, goal, reduction="clip")
    assert str(error.value) == "reduction is 'clip'; it must be 'frame' or 'token'"
    with pytest.raises(ValueError) as error:
        inspect.unwrap(losses._token_distances)(goal.values, goal.values, "l1")
    assert str(error.value) == (
        "distance is 'l1'; it must be 'cosine', 'mse' or 'smooth_l1'"
    )
