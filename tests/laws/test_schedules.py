"""Laws of ``fastslow.schedules``."""

import inspect
from fractions import Fraction
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fastslow import FrameSchedule, build_schedule
from fastslow.schedules import Strategy
from fastslow.testing import reference
from fastslow.testing import strategies as fst

frame_counts = st.integers(1, 40)
even_strategies = st.sampled_from(("interleave", "uniform"))


def slow_places(schedule: FrameSchedule) -> list[int]:
    return [frame for frame, slow in enumerate(schedule.is_slow) if slow]


@given(
    frame_counts, fst.frame_strategies(), fst.slow_ratios(), fst.strides(), st.data()
)
def test_build_schedule__length(
    num_frames: int,
    strategy: Strategy,
    ratio: Fraction,
    slow_stride: int,
    data: st.DataObject,
) -> None:
    fast_stride = data.draw(st.integers(slow_stride, slow_stride + 4))
    schedule = build_schedule(
        num_frames,
        strategy=strategy,
        slow_ratio=ratio,
        slow_stride=slow_stride,
        fast_stride=fast_stride,
    )
    assert len(schedule.strides) == len(schedule.is_slow) == num_frames
    for stride, slow in zip(schedule.strides, schedule.is_slow, strict=True):
        assert stride == (slow_stride if slow else fast_stride)


@given(frame_counts, fst.frame_strategies(), fst.slow_ratios())
@example(5, "uniform", Fraction(1, 2))
@example(3, "uniform", Fraction(1, 2))
def test_build_schedule__slow_count(
    num_frames: int, strategy: Strategy, ratio: Fraction
) -> None:
    schedule = build_schedule(num_frames, strategy=strategy, slow_ratio=ratio)
    count = sum(schedule.is_slow)
    if strategy == "uniform":
        gap = count - num_frames * ratio
        assert -Fraction(1, 2) < gap <= Fraction(1, 2)
    else:
        assert count - 1 < num_frames * ratio <= count


@given(frame_counts, fst.frame_strategies())
def test_build_schedule__extremes(num_frames: int, strategy: Strategy) -> None:
    for nothing in (Fraction(0), 0.0):
        schedule = build_schedule(num_frames, strategy=strategy, slow_ratio=nothing)
        assert schedule.is_slow == (False,) * num_frames
        assert schedule.strides == (8,) * num_frames
    for everything in (Fraction(1), 1.0):
        schedule = build_schedule(num_frames, strategy=strategy, slow_ratio=everything)
        assert schedule.is_slow == (True,) * num_frames
        assert schedule.strides == (4,) * num_frames


@given(frame_counts, st.integers(1, 12), st.booleans())
@example(99, 49, True)
def test_build_schedule__period(num_frames: int, period: int, as_float: bool) -> None:
    ratio = 1 / period if as_float else Fraction(1, period)
    schedule = build_schedule(num_frames, slow_ratio=ratio)
    assert slow_places(schedule) == list(range(0, num_frames, period))


@given(frame_counts, frame_counts, fst.slow_ratios())
def test_build_schedule__prefix(first: int, second: int, ratio: Fraction) -> None:
    short, long = sorted((first, second))
    whole = build_schedule(long, slow_ratio=ratio)
    part = build_schedule(short, slow_ratio=ratio)
    assert part.is_slow == whole.is_slow[:short]
    assert part.strides == whole.strides[:short]


@given(frame_counts, even_strategies, fst.slow_ratios())
def test_build_schedule__even_gaps(
    num_frames: int, strategy: Strategy, ratio: Fraction
) -> None:
    places = slow_places(
        build_schedule(num_frames, strategy=strategy, slow_ratio=ratio)
    )
    gaps = [after - before for before, after in pairwise(places)]
    assume(gaps)
    assert max(gaps) - min(gaps) <= 1


@given(frame_counts, fst.slow_ratios())
def test_build_schedule__uniform_ends(num_frames: int, ratio: Fraction) -> None:
    places = slow_places(
        build_schedule(num_frames, strategy="uniform", slow_ratio=ratio)
    )
    assume(len(places) >= 2)
    assert places[0] == 0
    assert places[-1] == num_frames - 1


@given(frame_counts, fst.frame_strategies(), fst.slow_ratios())
@example(8, "uniform", Fraction(2, 5))
@example(5, "uniform", Fraction(1, 2))
@example(5, "uniform", Fraction(1, 5))
@example(5, "first_slow", Fraction(1, 2))
def test_build_schedule__matches_reference(
    num_frames: int, strategy: Strategy, ratio: Fraction
) -> None:
    expected = reference.slow_frames(num_frames, strategy, ratio)
    schedule = build_schedule(num_frames, strategy=strategy, slow_ratio=ratio)
    assert list(schedule.is_slow) == expected
    rounded = float(ratio)
    schedule = build_schedule(num_frames, strategy=strategy, slow_ratio=rounded)
    assert list(schedule.is_slow) == expected


@given(st.integers(2, 1000), fst.slow_ratios(max_denominator=1000))
def test_a_float_counts_as_the_fraction_that_it_rounds(
    num_frames: int, ratio: Fraction
) -> None:
    for strategy in ("interleave", "first_slow", "uniform"):
        exact = build_schedule(num_frames, strategy=strategy, slow_ratio=ratio)
        rounded = build_schedule(num_frames, strategy=strategy, slow_ratio=float(ratio))
        assert rounded == exact


def test_tiny_ratios_are_not_rounded_to_zero() -> None:
    for ratio in (1e-300, 5e-324, 2**-60):
        assert slow_places(build_schedule(9, slow_ratio=ratio)) == [0]
    assert ceil(9 * (1 - 2**-53)) == build_schedule(
        9, strategy="first_slow", slow_ratio=1 - 2**-53
    ).is_slow.count(True)


@given(fst.schedules())
def test_str_draws_one_letter_a_frame(schedule: FrameSchedule) -> None:
    letters = ["S" if slow else "." for slow in schedule.is_slow]
    assert str(schedule) == "".join(letters)


def test_defaults_are_every_second_frame_at_strides_4_and_8() -> None:
    schedule = build_schedule(5)
    assert schedule.strides == (4, 8, 4, 8, 4)
    assert schedule.is_slow == (True, False, True, False, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0; a clip has at least 1 frame"),
        ({"num_frames": -2}, "num_frames is -2; a clip has at least 1 frame"),
        (
            {"strategy": "middle"},
            "strategy is 'middle'; it must be one of interleave, first_slow, uniform",
        ),
        ({"slow_ratio": -0.1}, "slow_ratio is -0.1; it must lie between 0 and 1"),
        ({"slow_ratio": 1.5}, "slow_ratio is 1.5; it must lie between 0 and 1"),
        (
            {"slow_ratio": float("nan")},
            "slow_ratio is nan; it must lie between 0 and 1",
        ),
        (
            {"slow_ratio": float("inf")},
            "slow_ratio is inf; it must lie between 0 and 1",
        ),
        (
            {"slow_ratio": Fraction(4, 3)},
            "slow_ratio is 4/3; it must lie between 0 and 1",
        ),
        ({"slow_stride": 0}, "slow_stride is 0; a stride is at least 1"),
        (
            {"slow_stride": 4, "fast_stride": 3},
            (
                "fast_stride 3 is smaller than slow_stride 4; a fast frame keeps no "
                "more tokens than a slow one"
            ),
        ),
    ],
)
def test_build_schedule_names_what_is_out_of_range(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        inspect.unwrap(build_schedule)(**({"num_frames": 4} | settings))
    assert str(error.value) == message


def test_a_schedule_checks_its_fields() -> None:
    with pytest.raises(ValueError) as error:
        FrameSchedule(strides=(1, 2), is_slow=(True,))
    assert str(error.value) == (
        "strides has 2 frames but is_slow has 1; both describe the same clip"
    )
    with pytest.raises(ValueError) as error:
        FrameSchedule(strides=(1, 0), is_slow=(True, False))
    assert str(error.value) == "strides has 0; a stride is at least 1"
