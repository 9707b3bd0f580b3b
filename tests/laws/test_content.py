"""Laws of ``fastslow.content``."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    keep_by_score,
    slow_by_score,
    slow_by_similarity,
    slow_by_top_k,
)
from fastslow.testing import reference

SCORES = (-1.0, 0.0, 0.25, 0.5, 1.0, math.inf, -math.inf, math.nan)
numbers = st.sampled_from(SCORES)
thresholds = st.sampled_from([score for score in SCORES if not math.isnan(score)])
score_lists = st.lists(numbers, max_size=8)
counts = st.integers(0, 9)


def tables(*, square: bool = False) -> st.SearchStrategy[list[list[float]]]:
    """Draw rows of equal length, at least one and never empty."""
    sides = st.tuples(st.integers(1, 6), st.integers(1, 5))
    return sides.flatmap(
        lambda side: st.lists(
            st.lists(
                numbers,
                min_size=side[0] if square else side[1],
                max_size=side[0] if square else side[1],
            ),
            min_size=side[0],
            max_size=side[0],
        )
    )


def as_scores(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(tables(square=True), thresholds)
def test_slow_by_similarity__first(table: list[list[float]], threshold: float) -> None:
    assert slow_by_similarity(torch.tensor(table), threshold)[0]


@given(tables(square=True), thresholds, st.data())
def test_slow_by_similarity__prefix(
    table: list[list[float]], threshold: float, data: st.DataObject
) -> None:
    similarity = torch.tensor(table)
    frames = data.draw(st.integers(0, len(table)))
    whole = slow_by_similarity(similarity, threshold)
    part = slow_by_similarity(similarity[:frames, :frames], threshold)
    assert part == whole[:frames]


@given(tables(square=True), thresholds)
@example([[1.0, 0.0, 0.5], [0.5, 1.0, 0.0], [0.0, 0.5, 1.0]], 0.5)
@example([[math.nan] * 3] * 3, 0.0)
def test_slow_by_similarity__matches_reference(
    table: list[list[float]], threshold: float
) -> None:
    expected = reference.slow_by_similarity(table, threshold)
    assert list(slow_by_similarity(torch.tensor(table), threshold)) == expected


def test_a_threshold_has_the_precision_of_the_scores() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        scores = torch.full((2, 2), 0.9, dtype=dtype)
        assert slow_by_similarity(scores, 0.9) == (True, False)
        assert slow_by_score(scores[0], 0.9) == (True, True)
        assert keep_by_score(scores, 0.9) == ((True, True), (True, False))


@given(score_lists, thresholds)
def test_slow_by_score__matches_reference(
    scores: list[float], threshold: float
) -> None:
    expected = reference.slow_by_score(scores, threshold)
    assert list(slow_by_score(as_scores(scores), threshold)) == expected


@given(score_lists, thresholds, thresholds)
def test_slow_by_score__monotone(
    scores: list[float], first: float, second: float
) -> None:
    low, high = sorted((first, second))
    many = slow_by_score(as_scores(scores), low)
    few = slow_by_score(as_scores(scores), high)
    assert all(slow for slow, still in zip(many, few, strict=True) if still)


@given(score_lists, counts)
def test_slow_by_top_k__count(scores: list[float], k: int) -> None:
    assert sum(slow_by_top_k(as_scores(scores), k)) == min(k, len(scores))


@given(score_lists, counts)
@example([0.5, 1.0, 0.5, 1.0, math.nan], 2)
@example([0.0] * 40, 3)
def test_slow_by_top_k__matches_reference(scores: list[float], k: int) -> None:
    expected = reference.slow_by_top_k(scores, k)
    assert list(slow_by_top_k(as_scores(scores), k)) == expected


@given(score_lists, counts)
def test_slow_by_top_k__nested(scores: list[float], k: int) -> None:
    few = slow_by_top_k(as_scores(scores), k)
    many = slow_by_top_k(as_scores(scores), k + 1)
    assert all(slow for slow, still in zip(many, few, strict=True) if still)


@given(tables(), thresholds)
@example([[0.0, 0.0], [0.25, 0.25], [-1.0, 0.0]], 0.25)
@example([[0.0, 0.0], [0.25, math.nan]], 0.25)
def test_keep_by_score__matches_reference(
    table: list[list[float]], threshold: float
) -> None:
    expected = reference.keep_by_score(table, threshold)
    assert list(map(list, keep_by_score(torch.tensor(table), threshold))) == expected


@given(tables(), thresholds)
def test_keep_by_score__one_per_frame(
    table: list[list[float]], threshold: float
) -> None:
    first, *others = keep_by_score(torch.tensor(table), threshold)
    assert all(first)
    assert all(any(frame) for frame in others)


@given(tables(), thresholds, thresholds)
def test_keep_by_score__monotone(
    table: list[list[float]], first: float, second: float
) -> None:
    low, high = sorted((first, second))
    many = sum(keep_by_score(torch.tensor(table), low), ())
    few = sum(keep_by_score(torch.tensor(table), high), ())
    assert all(kept for kept, still in zip(many, few, strict=True) if still)


def test_a_clip_without_frames_has_no_slow_ones() -> None:
    assert slow_by_similarity(torch.zeros(0, 0), 0.5) == ()
    assert slow_by_score(torch.zeros(0), 0.5) == ()
    assert slow_by_top_k(torch.zeros(0), 2) == ()
    assert keep_by_score(torch.zeros(0, 3), 0.5) == ()


def test_scores_are_left_alone() -> None:
    scores = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    before = scores.clone()
    slow_by_similarity(scores, 0.7)
    slow_by_score(scores[0], 0.7)
    slow_by_top_k(scores[0], 1)
    keep_by_score(scores, 0.7)
    assert torch.equal(scores, before)


def test_what_is_out_of_range_is_named() -> None:
    with pytest.raises(ValueError) as error:
        slow_by_top_k(torch.zeros(3), -1)
    assert str(error.value) == "k is -1; it must be at least 0"
    with pytest.raises(ValueError) as error:
        keep_by_score(torch.zeros(3, 0), 0.5)
    assert str(error.value) == (
        "scores has 3 frames of 0 tokens; a frame has at least 1"
    )
