"""Laws of ``fastslow.losses``."""

import inspect
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastslow import (
    Ragged,
    change_weights,
    cu_seqlens_from_lengths,
    next_frame_loss,
    pack_ragged,
    unpack_ragged,
)
from fastslow.losses import Distance, Reduction
from fastslow.testing import reference
from fastslow.testing import strategies as fst

DISTANCES: tuple[Distance, ...] = ("cosine", "mse", "smooth_l1", "l1", "mse+cosine")
REDUCTIONS: tuple[Reduction, ...] = ("frame", "token", "video")

distances = st.sampled_from(DISTANCES)
reductions = st.sampled_from(REDUCTIONS)
frame_lengths = fst.lengths(min_size=1, max_size=4, min_value=1)
videos = st.lists(frame_lengths, min_size=1, max_size=3)
"""Tokens of each frame, video by video."""

dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])

shares = st.lists(st.floats(0, 4), min_size=1, max_size=5)
"""Weights, repeated to the length of a row."""


def flat(lengths: list[list[int]]) -> list[int]:
    return [length for frames in lengths for length in frames]


def cu_videos(lengths: list[list[int]]) -> Tensor:
    return cu_seqlens_from_lengths(torch.tensor([len(frames) for frames in lengths]))


def goals(lengths: list[int], seed: int, dtype: torch.dtype = torch.float64) -> Ragged:
    values = fst.random_values((sum(lengths), 3), seed=seed, dtype=dtype)
    return Ragged(
        values=values, cu_seqlens=cu_seqlens_from_lengths(torch.tensor(lengths))
    )


def guesses(goal: Ragged, seed: int) -> Tensor:
    values = goal.values
    return fst.random_values(values.shape, seed=seed + 1, dtype=values.dtype)


def repeat_to(numbers: list[float], tokens: int) -> Tensor:
    return torch.tensor((numbers * tokens)[:tokens], dtype=torch.float64)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@given(videos, fst.seeds(), distances, reductions)
def test_next_frame_loss__zero_at_target(
    lengths: list[list[int]], seed: int, distance: Distance, reduction: Reduction
) -> None:
    goal = goals(flat(lengths), seed)
    predictions = goal.values.clone().requires_grad_()
    total, count = next_frame_loss(
        predictions,
        goal,
        distance=distance,
        reduction=reduction,
        cu_videos=cu_videos(lengths),
    )
    assert_near(total, torch.zeros_like(total))
    assert count > 0
    (grad,) = torch.autograd.grad(total, predictions)
    if distance != "l1":  # whose slope jumps there
        assert_near(grad, torch.zeros_like(grad))


@given(videos, fst.seeds(), distances, reductions)
def test_next_frame_loss__target_detached(
    lengths: list[list[int]], seed: int, distance: Distance, reduction: Reduction
) -> None:
    goal = goals(flat(lengths), seed)
    features = goal.values.clone().requires_grad_()
    weights = torch.ones(len(features), dtype=torch.float64, requires_grad=True)
    predictions = guesses(goal, seed).requires_grad_()
    total, count = next_frame_loss(
        predictions,
        Ragged(values=2 * features, cu_seqlens=goal.cu_seqlens),
        distance=distance,
        reduction=reduction,
        weights=2 * weights,
        cu_videos=cu_videos(lengths),
    )
    (total / count).backward()
    assert features.grad is weights.grad is None
    assert predictions.grad is not None
    assert (predictions.grad != 0).any(1).all()


@given(st.lists(videos, min_size=1, max_size=3), fst.seeds(), distances, reductions)
def test_next_frame_loss__additive(
    rows: list[list[list[int]]], seed: int, distance: Distance, reduction: Reduction
) -> None:
    settings: dict[str, Any] = {"distance": distance, "reduction": reduction}
    parts = [goals(flat(lengths), seed + 2 * i) for i, lengths in enumerate(rows)]
    alone = [
        next_frame_loss(
            guesses(part, seed), part, cu_videos=cu_videos(lengths), **settings
        )
        for part, lengths in zip(parts, rows, strict=True)
    ]
    packed = pack_ragged([frame for part in parts for frame in unpack_ragged(part)])
    predictions = torch.cat([guesses(part, seed) for part in parts])
    everything = cu_videos([frames for lengths in rows for frames in lengths])
    for weights in (None, torch.full_like(predictions[:, 0], 0.5)):
        total, count = next_frame_loss(
            predictions, packed, cu_videos=everything, weights=weights, **settings
        )
        factor = 1 if weights is None else 0.5
        assert_near(total, factor * torch.stack([part for part, _ in alone]).sum())
        expected = factor * sum(part for _, part in alone)
        assert float(count) == pytest.approx(expected)


@given(frame_lengths, fst.seeds(), st.floats(0.01, 100), reductions)
def test_next_frame_loss__cosine_scale_free(
    lengths: list[int], seed: int, scale: float, reduction: Reduction
) -> None:
    goal = goals(lengths, seed)
    predictions = guesses(goal, seed)
    settings: dict[str, Any] = {
        "reduction": reduction,
        "cu_videos": cu_videos([lengths]),
    }
    total, _ = next_frame_loss(predictions, goal, **settings)
    scaled, _ = next_frame_loss(scale * predictions, goal, **settings)
    assert_near(scaled, total)


@given(frame_lengths, fst.seeds(), distances, st.floats(0.1, 9), st.floats(-9, 9))
def test_next_frame_loss__normalized(
    lengths: list[int], seed: int, distance: Distance, scale: float, offset: float
) -> None:
    drawn = goals(lengths, seed)
    goal = Ragged(values=1e4 * drawn.values, cu_seqlens=drawn.cu_seqlens)
    moved = Ragged(values=scale * goal.values + offset, cu_seqlens=goal.cu_seqlens)
    predictions = guesses(goal, seed)
    normal = Ragged(
        values=(goal.values - goal.values.mean(1, keepdim=True))
        / goal.values.std(1, correction=0, keepdim=True),
        cu_seqlens=goal.cu_seqlens,
    )
    expected, _ = next_frame_loss(predictions, normal, distance=distance)
    for target in (goal, moved):
        total, _ = next_frame_loss(
            predictions, target, distance=distance, normalize_targets=True
        )
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


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


@given(videos, fst.seeds(), reductions, st.floats(0.1, 10))
def test_next_frame_loss__constant_weights(
    lengths: list[list[int]], seed: int, reduction: Reduction, weight: float
) -> None:
    goal = goals(flat(lengths), seed)
    predictions = guesses(goal, seed)
    settings: dict[str, Any] = {
        "reduction": reduction,
        "cu_videos": cu_videos(lengths),
    }
    total, count = next_frame_loss(predictions, goal, **settings)
    weighted, weight_sum = next_frame_loss(
        predictions,
        goal,
        weights=torch.full_like(predictions[:, 0], weight),
        **settings,
    )
    assert isinstance(weight_sum, Tensor)
    assert_near(weighted / weight_sum, total / count)


@given(frame_lengths, fst.seeds(), shares, distances)
def test_next_frame_loss__weight_zero(
    lengths: list[int], seed: int, numbers: list[float], distance: Distance
) -> None:
    goal = goals(lengths, seed)
    predictions = guesses(goal, seed)
    weights = repeat_to([*numbers, 0.0], len(predictions))
    heavy = weights > 0
    total, count = next_frame_loss(
        predictions, goal, distance=distance, reduction="token", weights=weights
    )
    kept = pack_ragged([goal.values[heavy]])
    alone, alone_count = next_frame_loss(
        predictions[heavy],
        kept,
        distance=distance,
        reduction="token",
        weights=weights[heavy],
    )
    assert_near(total, alone)
    assert float(count) == pytest.approx(float(alone_count))


def normalized(target: list[float]) -> list[float]:
    """Bring a target to mean 0 and variance 1, or less where it hardly varies."""
    mean = sum(target) / len(target)
    variance = sum((x - mean) ** 2 for x in target) / len(target)
    return [(x - mean) / (variance + 1e-5) ** 0.5 for x in target]


@given(videos, fst.seeds(), distances, reductions, st.none() | shares, st.booleans())
@example([[2, 1]], 0, "mse", "frame", None, True)
def test_next_frame_loss__matches_reference(
    lengths: list[list[int]],
    seed: int,
    distance: Distance,
    reduction: Reduction,
    numbers: list[float] | None,
    normalize: bool,
) -> None:
    goal = goals(flat(lengths), seed)
    predictions = guesses(goal, seed)
    weights = None if numbers is None else repeat_to(numbers, len(predictions))
    total, count = next_frame_loss(
        predictions,
        goal,
        distance=distance,
        reduction=reduction,
        normalize_targets=normalize,
        weights=weights,
        cu_videos=cu_videos(lengths),
    )
    targets = goal.values
    if normalize:
        rows = [normalized(row) for row in targets.tolist()]
        targets = torch.tensor(rows, dtype=torch.float64)
    by_frame = [
        column.split(flat(lengths))
        for column in (
            predictions,
            targets,
            torch.ones(len(predictions)) if weights is None else weights,
        )
    ]
    expected, expected_count = reference.next_frame_loss(
        *([frame.tolist() for frame in frames] for frames in by_frame),
        [len(frames) for frames in lengths],
        distance,
        reduction,
    )
    assert_near(total, torch.tensor(expected, dtype=torch.float64))
    assert float(count) == pytest.approx(expected_count)
    assert isinstance(count, int if weights is None else Tensor)


@given(fst.seeds(), st.integers(1, 200), st.floats(0.1, 10), dtypes)
def test_change_weights__still(
    seed: int, channels: int, scale: float, dtype: torch.dtype
) -> None:
    features = fst.random_values((9, channels), seed=seed, dtype=dtype)
    features[0] = 0
    assert not change_weights(features, features).any()
    infinite = torch.full_like(features, torch.inf)
    assert change_weights(infinite, infinite).isnan().all()
    wide = features.to(torch.promote_types(dtype, torch.float32))
    assert not change_weights(wide, scale * wide)[1:].any()


@given(fst.seeds())
def test_change_weights__symmetric(seed: int) -> None:
    before, after = (
        fst.random_values((4, 3), seed=seed + i, dtype=torch.float64) for i in (0, 1)
    )
    assert_near(change_weights(before, after), change_weights(after, before))


@given(fst.seeds())
def test_change_weights__bounds(seed: int) -> None:
    before, after = (
        fst.random_values((4, 3), seed=seed + i, dtype=torch.bfloat16) for i in (0, 1)
    )
    weights = change_weights(before, after.requires_grad_())
    assert ((weights >= 0) & (weights <= 2)).all()
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    assert not change_weights(after, before).requires_grad
    cosines = F.cosine_similarity(before.double(), after.detach().double())
    torch.testing.assert_close(weights.double(), 1 - cosines, rtol=1e-5, atol=1e-5)
    rounded = fst.random_values((200, 2), seed=seed)
    assert (change_weights(rounded, rounded) >= 0).all()
    assert (change_weights(rounded, -rounded) <= 2).all()
    opposite = change_weights(before, -before)
    torch.testing.assert_close(opposite, torch.full_like(opposite, 2))


def test_defaults_are_the_cosine_and_the_mean_of_each_frame() -> None:
    goal = goals([3, 1], 0)
    predictions = guesses(goal, 0)
    expected = next_frame_loss(predictions, goal, distance="cosine", reduction="frame")
    assert next_frame_loss(predictions, goal) == expected


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradcheck(distance: Distance, reduction: Reduction) -> None:
    lengths = [[2, 1], [3]]
    goal = goals(flat(lengths), 0)
    predictions = guesses(goal, 0).requires_grad_()
    for normalize in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, normalize=normalize: next_frame_loss(
                x,
                goal,
                distance=distance,
                reduction=reduction,
                normalize_targets=normalize,
                cu_videos=cu_videos(lengths),
            )[0],
            predictions,
        )


@given(fst.seeds(), distances, st.integers(60, 300))
@example(0, "cosine", 64)
@example(0, "cosine", 65)
def test_many_rows_are_taken_some_at_a_time(
    seed: int, distance: Distance, tokens: int
) -> None:
    goal = goals([tokens // 2, tokens - tokens // 2], seed)
    predictions = guesses(goal, seed).requires_grad_()
    total, _ = next_frame_loss(predictions, goal, distance=distance)
    (grad,) = torch.autograd.grad(total, predictions)
    for row in (0, tokens // 2 - 1, tokens // 2, tokens - 1):
        alone = slice(row, row + 1)
        one, _ = next_frame_loss(
            predictions[alone], pack_ragged([goal.values[alone]]), distance=distance
        )
        frame = tokens // 2 if row < tokens // 2 else tokens - tokens // 2
        (expected,) = torch.autograd.grad(one / frame, predictions)
        assert_near(grad[row], expected[row])
    rows, _ = next_frame_loss(predictions, goal, distance=distance, reduction="token")
    parts = zip(predictions.split(20), goal.values.split(20), strict=True)
    few = [
        next_frame_loss(
            part, pack_ragged([its_goal]), distance=distance, reduction="token"
        )[0]
        for part, its_goal in parts
    ]
    assert_near(rows, torch.stack(few).sum())


def test_little_is_held_beside_the_gradient() -> None:
    predictions = torch.randn(2304, 512).bfloat16().requires_grad_()
    values = torch.randn(2304, 512).bfloat16()
    goal = Ragged(
        values=values, cu_seqlens=cu_seqlens_from_lengths(torch.tensor([2304]))
    )

    def measure() -> None:
        weights = change_weights(predictions, values)
        total, _ = next_frame_loss(
            predictions, goal, distance="mse+cosine", weights=weights
        )
        total.backward()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        measure()
    sizes = [
        event.nbytes()
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    assert predictions.nbytes <= max(accumulate(sizes)) <= 1.5 * predictions.nbytes


def test_backward_may_run_twice() -> None:
    goal = goals([2, 1], 0)
    predictions = guesses(goal, 0).requires_grad_()
    total, _ = next_frame_loss(predictions, goal)
    once, again = (
        torch.autograd.grad(total, predictions, retain_graph=True)[0] for _ in (0, 1)
    )
    assert torch.equal(once, again)


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


@pytest.mark.parametrize("distance", DISTANCES)
def test_autocast_narrows_nothing(distance: Distance) -> None:
    goal = goals([40, 60], 0, torch.float32)
    predictions = guesses(goal, 0).requires_grad_()
    expected, _ = next_frame_loss(predictions, goal, distance=distance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = next_frame_loss(predictions, goal, distance=distance)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    for grad, wanted in zip(
        torch.autograd.grad(total, predictions),
        torch.autograd.grad(expected, predictions),
        strict=True,
    ):
        torch.testing.assert_close(grad, wanted)


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


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_nothing_to_predict_costs_nothing(
    distance: Distance, reduction: Reduction
) -> None:
    predictions = torch.zeros(0, 3, requires_grad=True)
    empty = Ragged(values=torch.zeros(0, 3), cu_seqlens=torch.zeros(1).int())
    total, count = next_frame_loss(
        predictions,
        empty,
        distance=distance,
        reduction=reduction,
        cu_videos=torch.zeros(1).int(),
    )
    total.backward()
    assert (total.item(), count) == (0.0, 0)
    assert predictions.grad is not None


@pytest.mark.parametrize("distance", DISTANCES)
def test_what_is_compiled_is_the_same_and_reaches_no_target(
    distance: Distance, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal, weights = goals([2, 1], 0), torch.ones(3, dtype=torch.float64)
    predictions = guesses(goal, 0).requires_grad_()
    for constant in (goal.values, weights):
        constant.requires_grad_()
    expected, _ = next_frame_loss(predictions, goal, distance=distance, weights=weights)
    (wanted,) = torch.autograd.grad(expected, predictions)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    total, _ = next_frame_loss(predictions, goal, distance=distance, weights=weights)
    total.backward()
    assert_near(total, expected)
    assert predictions.grad is not None
    assert_near(predictions.grad, wanted)
    assert goal.values.grad is weights.grad is None


def test_losses_leave_their_arguments_alone() -> None:
    goal = goals([2, 1], 0)
    values, bounds, predictions = (
        goal.values.clone(),
        goal.cu_seqlens.clone(),
        guesses(goal, 0),
    )
    for distance in DISTANCES:
        next_frame_loss(predictions, goal, distance=distance, normalize_targets=True)
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


@pytest.mark.parametrize("shape", [(3, 1), (1,), (2,)])
def test_each_token_has_one_weight(shape: tuple[int, ...]) -> None:
    goal = goals([2, 1], 0)
    with pytest.raises(ValueError) as error:
        inspect.unwrap(next_frame_loss)(goal.values, goal, weights=torch.ones(shape))
    assert str(error.value) == (
        f"weights has shape {shape} but there are 3 tokens; each token has one weight"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"reduction": "clip"},
            "reduction is 'clip'; it must be one of frame, token, video",
        ),
        (
            {"distance": "l2"},
            (
                "distance is 'l2'; it must be one of cosine, mse, smooth_l1, l1, "
                "mse+cosine"
            ),
        ),
        (
            {"reduction": "video"},
            "reduction 'video' needs cu_videos, the frames per video",
        ),
    ],
)
def test_settings_that_are_wrong_are_named(
    settings: dict[str, Any], message: str
) -> None:
    goal = goals([2, 1], 0)
    with pytest.raises(ValueError) as error:
        inspect.unwrap(next_frame_loss)(goal.values, goal, **settings)
    assert str(error.value) == message
