"""Laws of ``fastslow.frames``."""

from dataclasses import astuple, replace
from itertools import pairwise, product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    FrameSchedule,
    Grid,
    PooledFrame,
    build_schedule,
    describe_schedule,
    encoded_grids,
    frame_windows,
    keep_tokens,
    lengths_from_cu_seqlens,
    plan_pooling,
    repeat_strides,
    schedule_from_grids,
    schedule_from_strides,
    tokens_per_frame,
)
from fastslow.frames import frame_kinds
from fastslow.testing import reference
from fastslow.testing import strategies as fst

clips = fst.grids().flatmap(
    lambda grid: st.tuples(st.just(grid), fst.grid_schedules(grid))
)
any_schedule = st.one_of(fst.schedules(), clips.map(lambda clip: clip[1]))
dropped = PooledFrame(start=0, stop=2, stride=(2, 1), keep=(True, False, True))


@given(clips)
@example(((3, 2), repeat_strides(1, (2,))))
@example(((3, 2), schedule_from_grids([(2, 4)])))
def test_frame_windows__matches_reference(clip: tuple[Grid, FrameSchedule]) -> None:
    grid, schedule = clip
    for frame in schedule.frames:
        heights, widths = frame_windows(grid, frame, edge=schedule.edge)
        windows = [
            [(row, column) for row in range(*rows) for column in range(*columns)]
            for rows, columns in product(heights, widths)
        ]
        whole = replace(frame, keep=None)
        assert windows == reference.window_cells(grid, astuple(whole), schedule.edge)


@given(any_schedule)
def test_moved_to_its_time_its_kind_is_the_frame(schedule: FrameSchedule) -> None:
    kinds, kind_of = frame_kinds(schedule)
    moved = tuple(
        replace(
            kinds[kind],
            start=frame.start,
            stop=frame.start + kinds[kind].stop,
            is_slow=frame.is_slow,
        )
        for kind, frame in zip(kind_of, schedule.frames, strict=True)
    )
    assert moved == schedule.frames
    assert all(kind.start == 0 and not kind.is_slow for kind in kinds)


@given(any_schedule)
def test_no_two_kinds_are_equal(schedule: FrameSchedule) -> None:
    kinds, kind_of = frame_kinds(schedule)
    assert len(set(kinds)) == len(kinds)
    assert list(dict.fromkeys(kind_of)) == list(range(len(kinds)))


@given(fst.grids(max_side=40), st.integers(1, 50))
def test_tokens_per_frame__monotone(grid: Grid, stride: int) -> None:
    schedule = schedule_from_strides([stride, stride + 1])
    fine, coarse = tokens_per_frame(grid, schedule)
    assert fine >= coarse >= 1


@given(clips)
def test_tokens_per_frame__matches_pooling(clip: tuple[Grid, FrameSchedule]) -> None:
    plan = plan_pooling([clip])
    counts = lengths_from_cu_seqlens(plan.cu_seqlens).tolist()
    assert list(tokens_per_frame(*clip)) == counts


@given(clips)
@example(((2, 3), FrameSchedule(num_frames=2, frames=(dropped, dropped))))
def test_tokens_per_frame__matches_reference(clip: tuple[Grid, FrameSchedule]) -> None:
    grid, schedule = clip
    expected = reference.tokens_per_frame(grid, astuple(schedule))
    assert list(tokens_per_frame(grid, schedule)) == expected


@given(clips)
def test_describe_schedule__counts(clip: tuple[Grid, FrameSchedule]) -> None:
    grid, schedule = clip
    tokens = sum(reference.tokens_per_frame(grid, astuple(schedule)))
    assert describe_schedule(grid, schedule) == f"{schedule}, {tokens} tokens"


@given(
    fst.grids(max_side=6).flatmap(
        lambda g: st.tuples(st.just(g), fst.grid_schedules(g))
    )
)
def test_encoded_grids__covers(drawn: tuple[Grid, FrameSchedule]) -> None:
    grid, schedule = drawn
    scales = schedule.scales or (1,) * schedule.num_frames
    encoded = encoded_grids(grid, schedule)
    assert [
        (height * scale, width * scale)
        for (height, width), scale in zip(encoded, scales, strict=True)
    ] == [grid] * schedule.num_frames


@given(fst.grids(), fst.plain_schedules())
def test_encoded_grids__no_scales(grid: Grid, schedule: FrameSchedule) -> None:
    assert encoded_grids(grid, schedule) == (grid,) * schedule.num_frames


def test_wrong_scales_are_named() -> None:
    for scales, message in (
        ((1,), "scales has 1 entries but the clip has 2 frames; each frame needs one"),
        ((1, 0), "scales is (1, 0); each must be at least 1"),
    ):
        with pytest.raises(ValueError) as error:
            FrameSchedule(num_frames=2, frames=(), scales=scales)
        assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        encoded_grids((4, 6), FrameSchedule(num_frames=1, frames=(), scales=(4,)))
    assert str(error.value) == (
        "grid is (4, 6) and a frame is encoded 4 times coarser; both sides must be "
        "multiples of that"
    )


@given(any_schedule)
def test_str_draws_one_letter_a_frame(schedule: FrameSchedule) -> None:
    letters, count = str(schedule).split("  ")
    assert letters == "".join("S" if slow else "." for slow in schedule.is_slow)
    assert count == f"{len(letters)} frame" + ("" if len(letters) == 1 else "s")


@given(any_schedule)
def test_slow_flags_are_those_of_the_frames(schedule: FrameSchedule) -> None:
    assert schedule.is_slow == tuple(frame.is_slow for frame in schedule.frames)


@given(any_schedule)
def test_strides_are_there_where_all_windows_are_square(
    schedule: FrameSchedule,
) -> None:
    found = [frame.stride for frame in schedule.frames]
    if all(stride and stride[0] == stride[1] for stride in found):
        assert schedule.strides == tuple(stride[1] for stride in found if stride)
        return
    with pytest.raises(ValueError) as error:
        _ = schedule.strides
    what = (
        "frames with a grid instead of a stride"
        if None in found
        else "windows that are not square"
    )
    assert str(error.value) == (
        f"the schedule {schedule} has {what}; strides has one number per frame"
    )


def test_target_grids_are_said_to_have_no_stride() -> None:
    with pytest.raises(ValueError) as error:
        _ = schedule_from_grids([(2, 2), (1, 1)]).strides
    assert str(error.value) == (
        "the schedule S.  2 frames has frames with a grid instead of a stride; strides "
        "has one number per frame"
    )


@given(st.lists(st.integers(1, 60), min_size=2, max_size=5, unique=True))
def test_a_larger_grid_of_windows_has_more_tokens(sides: list[int]) -> None:
    schedule = schedule_from_grids([(side, 3) for side in sorted(sides)])
    counts = tokens_per_frame((13, 23), schedule)
    assert all(few < many for few, many in pairwise(counts))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"start": 2, "stop": 2},
            "a pooled frame reads frames 2 to 2, half open; it must read at least one",
        ),
        (
            {"start": -1, "stop": 1},
            "start is -1; it must be a whole number, from 0 on",
        ),
        (
            {"stride": None},
            "stride is None and grid is None; exactly one of them is given",
        ),
        (
            {"grid": (1, 1)},
            "stride is (2, 2) and grid is (1, 1); exactly one of them is given",
        ),
        ({"stride": (2, 0)}, "stride is (2, 0); both sides must be at least 1"),
        (
            {"stride": None, "grid": (0, 3)},
            "grid is (0, 3); both sides must be at least 1",
        ),
        (
            {"keep": (False, False)},
            "keep drops every token; a frame keeps at least one",
        ),
        ({"keep": ()}, "keep drops every token; a frame keeps at least one"),
    ],
)
def test_a_pooled_frame_checks_its_fields(
    fields: dict[str, object], message: str
) -> None:
    good: dict[str, object] = {"start": 0, "stop": 1, "stride": (2, 2)}
    with pytest.raises(ValueError) as error:
        PooledFrame(**(good | fields))
    assert str(error.value) == message


def test_a_schedule_reads_frames_that_exist() -> None:
    frame = PooledFrame(start=1, stop=3, stride=(1, 1))
    assert FrameSchedule(num_frames=3, frames=(frame,)).is_slow == (False,)
    with pytest.raises(ValueError) as error:
        FrameSchedule(num_frames=2, frames=(frame,))
    assert str(error.value) == ("a pooled frame reads up to frame 3 but the clip has 2")


def test_a_schedule_knows_its_edge() -> None:
    schedule = build_schedule(2)
    object.__setattr__(schedule, "edge", "wrap")
    with pytest.raises(ValueError) as error:
        schedule.__post_init__()
    assert str(error.value) == "edge is 'wrap'; it must be one of ceil, floor, error"


def test_a_mask_has_one_entry_per_window() -> None:
    schedule = keep_tokens(repeat_strides(1, (2,)), [[True, False]])
    for grid, windows in (((4, 4), 4), ((2, 2), 1)):
        for call in (
            lambda grid: frame_windows(grid, schedule.frames[0]),
            lambda grid: tokens_per_frame(grid, schedule),
            lambda grid: describe_schedule(grid, schedule),
        ):
            with pytest.raises(ValueError) as error:
                call(grid)
            assert str(error.value) == (
                f"keep has 2 entries but the frame has {windows} windows on a grid of "
                f"{grid}"
            )
    assert tokens_per_frame((4, 2), schedule) == (1,)


@pytest.mark.parametrize(
    ("frames", "drawn"), [(0, "  0 frames"), (1, ".  1 frame"), (2, "..  2 frames")]
)
def test_a_schedule_counts_its_frames(frames: int, drawn: str) -> None:
    frame = PooledFrame(start=0, stop=1, stride=(1, 1))
    assert str(FrameSchedule(num_frames=1, frames=(frame,) * frames)) == drawn


@pytest.mark.parametrize("sides", [(), (2,), (2, 2, 2)])
@pytest.mark.parametrize("name", ["stride", "grid"])
def test_a_window_has_a_height_and_a_width(name: str, sides: tuple[int, ...]) -> None:
    frame = object.__new__(PooledFrame)
    for field, value in (("start", 0), ("stop", 1), (name, sides)):
        object.__setattr__(frame, field, value)
    with pytest.raises(ValueError) as error:
        frame.__post_init__()
    assert str(error.value) == f"{name} is {sides}; it holds a height and a width"
