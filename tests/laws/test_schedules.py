"""Laws of ``fastslow.schedules``."""

import inspect
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fastslow import (
    FrameSchedule,
    Grid,
    build_schedule,
    kernel_schedule,
    repeat_strides,
    schedule_from_grids,
    schedule_from_strides,
    tokens_per_frame,
    two_level_schedule,
)
from fastslow._shapes import exact_ratio
from fastslow.grids import Edge
from fastslow.schedules import Strategy
from fastslow.testing import reference
from fastslow.testing import strategies as fst

frame_counts = st.integers(1, 40)
even_strategies = st.sampled_from(("interleave", "uniform"))


def slow_places(schedule: FrameSchedule) -> list[int]:
    return [frame for frame, slow in enumerate(schedule.is_slow) if slow]


def assert_one_frame_each(schedule: FrameSchedule, num_frames: int) -> None:
    assert schedule.num_frames == num_frames
    read = [(frame.start, frame.stop) for frame in schedule.frames]
    assert read == [(t, t + 1) for t in range(num_frames)]


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


@given(frame_counts, fst.frame_strategies(), st.data())
@example(1, "uniform", None)
def test_build_schedule__exact_count(
    num_frames: int, strategy: Strategy, data: st.DataObject | None
) -> None:
    count = data.draw(st.integers(0, num_frames)) if data else num_frames
    ratio = Fraction(count, num_frames)
    schedule = build_schedule(num_frames, strategy=strategy, slow_ratio=ratio)
    assert sum(schedule.is_slow) == count


@given(st.integers(1, 10**7), st.data())
@example(10**7, None)
def test_a_float_stands_for_the_fraction_of_any_number_of_frames(
    num_frames: int, data: st.DataObject | None
) -> None:
    count = data.draw(st.integers(0, num_frames)) if data else num_frames - 1
    ratio = Fraction(count, num_frames)
    assert exact_ratio("slow_ratio", count / num_frames) == ratio


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


@given(frame_counts, fst.slow_ratios())
def test_build_schedule__mirrored(num_frames: int, ratio: Fraction) -> None:
    first, last = (
        build_schedule(num_frames, strategy=strategy, slow_ratio=ratio)
        for strategy in ("first_slow", "last_slow")
    )
    assert last.is_slow == first.is_slow[::-1]
    assert last.strides == first.strides[::-1]


@given(frame_counts, fst.frame_strategies(), fst.slow_ratios())
@example(8, "uniform", Fraction(2, 5))
@example(5, "uniform", Fraction(1, 2))
@example(5, "uniform", Fraction(1, 5))
@example(5, "first_slow", Fraction(1, 2))
@example(5, "last_slow", Fraction(1, 2))
def test_build_schedule__matches_reference(
    num_frames: int, strategy: Strategy, ratio: Fraction
) -> None:
    expected = reference.slow_frames(num_frames, strategy, ratio)
    schedule = build_schedule(num_frames, strategy=strategy, slow_ratio=ratio)
    assert list(schedule.is_slow) == expected
    rounded = float(ratio)
    schedule = build_schedule(num_frames, strategy=strategy, slow_ratio=rounded)
    assert list(schedule.is_slow) == expected


@given(st.integers(2, 300), fst.slow_ratios(max_denominator=300))
def test_a_float_counts_as_the_fraction_that_it_rounds(
    num_frames: int, ratio: Fraction
) -> None:
    for strategy in ("interleave", "first_slow", "last_slow", "uniform"):
        exact = build_schedule(num_frames, strategy=strategy, slow_ratio=ratio)
        rounded = build_schedule(num_frames, strategy=strategy, slow_ratio=float(ratio))
        assert rounded == exact


def test_tiny_ratios_are_not_rounded_to_zero() -> None:
    for ratio in (1e-300, 5e-324, 2**-60):
        assert slow_places(build_schedule(9, slow_ratio=ratio)) == [0]
    assert ceil(9 * (1 - 2**-53)) == build_schedule(
        9, strategy="first_slow", slow_ratio=1 - 2**-53
    ).is_slow.count(True)


@given(st.lists(st.booleans(), min_size=1), fst.strides(), st.integers(0, 4))
def test_two_level_schedule__levels(
    is_slow: list[bool], slow_stride: int, more: int
) -> None:
    fast_stride = slow_stride + more
    schedule = two_level_schedule(
        is_slow, slow_stride=slow_stride, fast_stride=fast_stride
    )
    expected = [slow_stride if slow else fast_stride for slow in is_slow]
    assert list(schedule.strides) == expected
    assert list(schedule.is_slow) == is_slow
    assert_one_frame_each(schedule, len(is_slow))


@given(fst.stride_lists(), st.sampled_from(("ceil", "floor", "error")), st.data())
def test_schedule_from_strides__round_trip(
    strides: list[int], edge: Edge, data: st.DataObject
) -> None:
    schedule = schedule_from_strides(strides, edge=edge)
    assert list(schedule.strides) == strides
    assert schedule.edge == edge
    assert_one_frame_each(schedule, len(strides))
    assert slow_places(schedule) == [
        t for t, stride in enumerate(strides) if not any(s < stride for s in strides)
    ]
    flags = data.draw(
        st.lists(st.booleans(), min_size=len(strides), max_size=len(strides))
    )
    flagged = schedule_from_strides(strides, is_slow=flags)
    assert list(flagged.is_slow) == flags
    assert list(flagged.strides) == strides


patterns = fst.stride_lists().map(tuple)
phases = st.integers(-7, 7)


@given(frame_counts, patterns, phases)
def test_repeat_strides__period(
    num_frames: int, pattern: tuple[int, ...], phase: int
) -> None:
    strides = repeat_strides(num_frames, pattern, phase=phase).strides
    assert len(strides) == num_frames
    assert strides[len(pattern) :] == strides[: -len(pattern)]
    turned = repeat_strides(len(pattern), pattern, phase=phase).strides
    assert sorted(turned) == sorted(pattern)


@given(frame_counts, frame_counts, patterns, phases)
@example(1, 4, (4, 2), 0)
def test_repeat_strides__prefix(
    first: int, second: int, pattern: tuple[int, ...], phase: int
) -> None:
    short, long = sorted((first, second))
    whole = repeat_strides(long, pattern, phase=phase)
    part = repeat_strides(short, pattern, phase=phase)
    assert part.frames == whole.frames[:short]
    assert part.num_frames == short


@given(frame_counts, patterns, st.data())
def test_repeat_strides__phase(
    num_frames: int, pattern: tuple[int, ...], data: st.DataObject
) -> None:
    phase = data.draw(st.integers(0, num_frames - 1))
    strides = repeat_strides(num_frames, pattern, phase=phase).strides
    assert strides[phase : phase + len(pattern)] == pattern[: num_frames - phase]
    assert (
        strides[:phase]
        == repeat_strides(num_frames, pattern, phase=phase - len(pattern)).strides[
            :phase
        ]
    )


@given(st.lists(fst.grids(max_side=8), min_size=1, max_size=6), fst.grids(max_side=30))
def test_schedule_from_grids__counts(targets: list[Grid], grid: Grid) -> None:
    schedule = schedule_from_grids(targets)
    counts = [height * width for height, width in targets]
    assert list(tokens_per_frame(grid, schedule)) == counts
    assert slow_places(schedule) == [
        t for t, count in enumerate(counts) if count == max(counts)
    ]
    assert_one_frame_each(schedule, len(targets))
    flags = [t % 2 == 0 for t in range(len(targets))]
    assert list(schedule_from_grids(targets, is_slow=flags).is_slow) == flags


@given(frame_counts, st.tuples(st.integers(1, 9), fst.strides(), fst.strides()))
@example(10, (4, 2, 1))
@example(3, (4, 1, 2))
def test_kernel_schedule__chunks(num_frames: int, kernel: tuple[int, int, int]) -> None:
    schedule = kernel_schedule(num_frames, kernel)
    read = [list(range(frame.start, frame.stop)) for frame in schedule.frames]
    assert read == reference.side_windows(num_frames, kernel[0], None, "ceil")
    assert all(frame.stride == kernel[1:] for frame in schedule.frames)
    assert not any(schedule.is_slow)
    whole = [frames for frames in read if len(frames) == kernel[0]]
    if whole:
        floored = kernel_schedule(num_frames, kernel, is_slow=True, edge="floor")
        assert floored.num_frames == num_frames
        assert floored.edge == "floor"
        assert floored.is_slow == (True,) * len(whole)
        assert [frame.start for frame in floored.frames] == [run[0] for run in whole]


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
            (
                "strategy is 'middle'; it must be one of interleave, first_slow, "
                "last_slow, uniform"
            ),
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: two_level_schedule([]),
            "strides is empty; a clip has at least 1 frame",
        ),
        (
            lambda: schedule_from_strides([]),
            "strides is empty; a clip has at least 1 frame",
        ),
        (
            lambda: schedule_from_grids([]),
            "grids is empty; a clip has at least 1 frame",
        ),
        (
            lambda: schedule_from_strides([1, 2], is_slow=[True]),
            "strides has 2 frames but is_slow has 1; both describe the same clip",
        ),
        (
            lambda: schedule_from_grids([(1, 2)], is_slow=[True, False]),
            "grids has 1 frames but is_slow has 2; both describe the same clip",
        ),
        (
            lambda: schedule_from_strides([1, 0]),
            "stride is (0, 0); both sides must be at least 1",
        ),
        (
            lambda: schedule_from_grids([(1, 0)]),
            "grid is (1, 0); both sides must be at least 1",
        ),
        (
            lambda: repeat_strides(0, (2,)),
            (
                "num_frames is 0 and pattern is (2,); there must be a frame, and "
                "strides of at least 1"
            ),
        ),
        (
            lambda: repeat_strides(3, ()),
            (
                "num_frames is 3 and pattern is (); there must be a frame, and strides "
                "of at least 1"
            ),
        ),
        (
            lambda: repeat_strides(1, (1, 0)),
            (
                "num_frames is 1 and pattern is (1, 0); there must be a frame, and "
                "strides of at least 1"
            ),
        ),
        (
            lambda: kernel_schedule(0, (1, 1, 1)),
            "num_frames is 0 and kernel is (1, 1, 1); all must be at least 1",
        ),
        (
            lambda: kernel_schedule(4, (0, 1, 1)),
            "num_frames is 4 and kernel is (0, 1, 1); all must be at least 1",
        ),
        (
            lambda: kernel_schedule(4, (1, 0, 1)),
            "num_frames is 4 and kernel is (1, 0, 1); all must be at least 1",
        ),
        (
            lambda: kernel_schedule(3, (4, 1, 1), edge="floor"),
            (
                "a side of 3 tokens holds no whole window of stride 4; edge 'ceil' "
                "keeps it"
            ),
        ),
    ],
)
def test_what_makes_no_schedule_is_named(
    call: Callable[[], FrameSchedule], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message
