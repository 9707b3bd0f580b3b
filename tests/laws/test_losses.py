"""Laws of ``fastslow.losses``."""

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import (
    Ragged,
    cu_seqlens_from_lengths,
    losses,
    next_frame_loss,
    pack_ragged,
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
