"""Laws of ``fastslow.budgets``."""

import re
from dataclasses import astuple
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    Grid,
    schedule_for_budget,
    slow_frames_for_budget,
    tokens_per_frame,
    two_level_schedule,
)
from fastslow.schedules import Strategy
from fastslow.testing import reference
from fastslow.testing import strategies as fst

frame_counts = st.integers(1, 9)
budgets = st.integers(-1, 200)
stride_sets = st.lists(fst.strides(), min_size=1, max_size=4)
stride_pairs = st.tuples(fst.strides(), fst.strides()).map(sorted)


def named_budget(error: pytest.ExceptionInfo[ValueError]) -> int:
    """Read the smallest budget from the sentence of a refusal."""
    (budget,) = re.findall(r"has at least (\d+)", str(error.value))
    return int(budget)


def count_tokens(num_frames: int, grid: Grid, slow_frames: int, pair: list[int]) -> int:
    schedule = two_level_schedule(
        [frame < slow_frames for frame in range(num_frames)],
        slow_stride=pair[0],
        fast_stride=pair[1],
    )
    return sum(reference.tokens_per_frame(grid, astuple(schedule)))


def least_tokens(num_frames: int, grid: Grid, strides: list[int]) -> int:
    frame = reference.plain_frame(0, max(strides))
    return num_frames * len(reference.window_cells(grid, frame))


@given(frame_counts, fst.grids(), budgets, stride_pairs)
@example(3, (2, 2), 6, [1, 2])
@example(3, (2, 2), 11, [1, 2])
@example(3, (2, 2), 3, [3, 4])
def test_slow_frames_for_budget__most(
    num_frames: int, grid: Grid, budget: int, pair: list[int]
) -> None:
    slow, fast = pair
    if count_tokens(num_frames, grid, 0, pair) > budget:
        return
    count = slow_frames_for_budget(
        num_frames, grid, budget, slow_stride=slow, fast_stride=fast
    )
    assert 0 <= count <= num_frames
    assert count_tokens(num_frames, grid, count, pair) <= budget
    if count < num_frames:
        assert count_tokens(num_frames, grid, count + 1, pair) > budget


@given(frame_counts, fst.grids(), stride_pairs)
def test_slow_frames_for_budget__smallest(
    num_frames: int, grid: Grid, pair: list[int]
) -> None:
    strides = {"slow_stride": pair[0], "fast_stride": pair[1]}
    with pytest.raises(ValueError) as error:
        slow_frames_for_budget(num_frames, grid, 0, **strides)
    budget = named_budget(error)
    assert count_tokens(num_frames, grid, 0, pair) == budget
    assert slow_frames_for_budget(num_frames, grid, budget, **strides) >= 0
    with pytest.raises(ValueError) as error:
        slow_frames_for_budget(num_frames, grid, budget - 1, **strides)
    assert named_budget(error) == budget


@given(frame_counts, fst.grids(), budgets, stride_sets, fst.frame_strategies())
def test_schedule_for_budget__within_budget(
    num_frames: int, grid: Grid, budget: int, strides: list[int], strategy: Strategy
) -> None:
    if least_tokens(num_frames, grid, strides) > budget:
        return
    schedule = schedule_for_budget(
        num_frames, grid, budget, strides=strides, strategy=strategy
    )
    assert schedule.num_frames == len(schedule.frames) == num_frames
    assert sum(reference.tokens_per_frame(grid, astuple(schedule))) <= budget


@given(frame_counts, fst.grids(), budgets, stride_sets, fst.frame_strategies())
@example(4, (4, 4), 64, [1, 2, 4, 8], "interleave")
@example(4, (4, 4), 16, [1, 2, 4, 8], "interleave")
@example(4, (4, 4), 40, [1, 2, 4, 8], "uniform")
@example(5, (2, 2), 5, [3, 2, 5], "last_slow")
@example(6, (4, 4), 27, [2, 1, 4], "first_slow")
@example(2, (4, 4), 5, [3, 2, 4], "interleave")
def test_schedule_for_budget__matches_reference(
    num_frames: int, grid: Grid, budget: int, strides: list[int], strategy: Strategy
) -> None:
    best = reference.schedule_for_budget(num_frames, grid, budget, strides)
    if best is None:
        with pytest.raises(ValueError):
            schedule_for_budget(num_frames, grid, budget, strides=strides)
        return
    tokens, fast_stride, count, slow_stride = best
    schedule = schedule_for_budget(
        num_frames, grid, budget, strides=strides, strategy=strategy
    )
    assert sum(tokens_per_frame(grid, schedule)) == tokens
    assert sum(schedule.is_slow) == count
    for stride, slow in zip(schedule.strides, schedule.is_slow, strict=True):
        assert stride == (slow_stride if slow else fast_stride)
    whole = reference.slow_frames(num_frames, strategy, Fraction(count, num_frames))
    assert list(schedule.is_slow) == whole


@given(frame_counts, fst.grids(), stride_sets, st.integers(0, 60), st.integers(0, 60))
def test_schedule_for_budget__monotone(
    num_frames: int, grid: Grid, strides: list[int], first: int, second: int
) -> None:
    least = least_tokens(num_frames, grid, strides)
    small, large = sorted((first, second))
    few, many = (
        schedule_for_budget(num_frames, grid, least + more, strides=strides)
        for more in (small, large)
    )
    assert sum(tokens_per_frame(grid, few)) <= sum(tokens_per_frame(grid, many))


@given(frame_counts, fst.grids(), stride_sets)
def test_schedule_for_budget__smallest(
    num_frames: int, grid: Grid, strides: list[int]
) -> None:
    with pytest.raises(ValueError) as error:
        schedule_for_budget(num_frames, grid, 0, strides=strides)
    budget = named_budget(error)
    schedule = schedule_for_budget(num_frames, grid, budget, strides=strides)
    assert sum(tokens_per_frame(grid, schedule)) == budget
    with pytest.raises(ValueError) as error:
        schedule_for_budget(num_frames, grid, budget - 1, strides=strides)
    assert named_budget(error) == budget


def test_a_budget_for_all_frames_takes_the_smallest_stride() -> None:
    schedule = schedule_for_budget(3, (4, 4), 10**9, strides=(4, 2))
    assert schedule == two_level_schedule([True] * 3, slow_stride=2, fast_stride=2)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_strides_are_the_powers_of_two_up_to_8_by_default(stride: int) -> None:
    schedule = schedule_for_budget(1, (8, 8), (8 // stride) ** 2)
    assert schedule.strides == (stride,)


def test_what_cannot_be_met_is_named() -> None:
    for call in (
        lambda: schedule_for_budget(8, (16, 16), 31),
        lambda: slow_frames_for_budget(8, (16, 16), 31, slow_stride=2, fast_stride=8),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == (
            "budget is 31 tokens but a clip of 8 frames on a grid of (16, 16) has at "
            "least 32, all at stride 8"
        )


@pytest.mark.parametrize(
    ("num_frames", "strides", "message"),
    [
        (0, (2, 4), "num_frames is 0; a clip has at least 1 frame"),
        (3, (), "strides is (); it needs at least one, each at least 1"),
        (3, (2, 0), "strides is (2, 0); it needs at least one, each at least 1"),
    ],
)
def test_what_is_out_of_range_is_named(
    num_frames: int, strides: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        schedule_for_budget(num_frames, (4, 4), 100, strides=strides)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("slow_stride", "fast_stride", "message"),
    [
        (0, 4, "slow_stride is 0; a stride is at least 1"),
        (
            4,
            2,
            (
                "fast_stride 2 is smaller than slow_stride 4; a fast frame keeps no "
                "more tokens than a slow one"
            ),
        ),
    ],
)
def test_strides_in_the_wrong_order_are_named(
    slow_stride: int, fast_stride: int, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        slow_frames_for_budget(
            3, (4, 4), 100, slow_stride=slow_stride, fast_stride=fast_stride
        )
    assert str(error.value) == message
