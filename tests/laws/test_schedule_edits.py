"""Laws of ``fastslow.schedule_edits``."""

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from einops import reduce
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    FrameSchedule,
    Grid,
    PooledFrame,
    keep_tokens,
    merge_streams,
    plan_pooling,
    pool_tokens,
    repeat_strides,
    scale_fast_frames,
    schedule_from_grids,
    schedule_from_strides,
    select_frames,
    tokens_per_frame,
    video_positions,
)
from fastslow.testing import strategies as fst

Mask = list[bool] | None


@st.composite
def masked_schedules(
    draw: st.DrawFn,
) -> tuple[Grid, FrameSchedule, list[Mask]]:
    """Draw a grid, a schedule of it, and a mask for each of its frames."""
    grid = draw(fst.grids(max_side=4))
    schedule = draw(fst.grid_schedules(grid))
    whole = replace(
        schedule, frames=tuple(replace(frame, keep=None) for frame in schedule.frames)
    )
    masks = [
        draw(
            st.none()
            | st.lists(st.booleans(), min_size=count, max_size=count).filter(any)
        )
        for count in tokens_per_frame(grid, whole)
    ]
    return grid, schedule, masks


def streams_of_one_clip() -> st.SearchStrategy[list[FrameSchedule]]:
    """Draw schedules that may be merged, in order of time or not."""

    def stream(num_frames: int) -> st.SearchStrategy[FrameSchedule]:
        clip = repeat_strides(num_frames, (2, 4))
        runs = st.tuples(st.integers(0, num_frames - 1), st.integers(1, num_frames))
        frames = st.lists(
            runs.map(
                lambda run: PooledFrame(
                    start=min(run[0], run[1] - 1), stop=run[1], stride=(1, 1)
                )
            ),
            max_size=5,
        )
        places = st.lists(st.integers(0, num_frames - 1), max_size=5)
        return st.one_of(
            places.map(sorted).map(lambda chosen: select_frames(clip, chosen)),
            frames.map(
                lambda drawn: FrameSchedule(num_frames=num_frames, frames=tuple(drawn))
            ),
        )

    return st.integers(1, 6).flatmap(
        lambda num_frames: st.lists(stream(num_frames), min_size=1, max_size=3)
    )


def in_order(frames: Sequence[PooledFrame]) -> bool:
    return all(before.stop <= after.stop for before, after in pairwise(frames))


@given(fst.schedules(), st.data())
def test_select_frames__chosen(schedule: FrameSchedule, data: st.DataObject) -> None:
    places = st.integers(0, len(schedule.frames) - 1)
    chosen = data.draw(st.lists(places, max_size=8))
    selected = select_frames(schedule, chosen)
    assert list(selected.frames) == [schedule.frames[place] for place in chosen]
    assert selected.num_frames == schedule.num_frames
    assert selected.edge == schedule.edge


@given(fst.schedules())
def test_select_frames__identity(schedule: FrameSchedule) -> None:
    assert select_frames(schedule, range(len(schedule.frames))) == schedule


@given(masked_schedules())
def test_keep_tokens__counts(drawn: tuple[Grid, FrameSchedule, list[Mask]]) -> None:
    grid, schedule, masks = drawn
    whole = keep_tokens(schedule, [None] * len(masks))
    expected = [
        count if mask is None else sum(mask)
        for count, mask in zip(tokens_per_frame(grid, whole), masks, strict=True)
    ]
    kept = keep_tokens(schedule, masks)
    assert list(tokens_per_frame(grid, kept)) == expected
    assert [replace(frame, keep=None) for frame in kept.frames] == list(whole.frames)
    assert [frame.keep and list(frame.keep) for frame in kept.frames] == masks


@given(masked_schedules())
def test_keep_tokens__positions(drawn: tuple[Grid, FrameSchedule, list[Mask]]) -> None:
    grid, schedule, masks = drawn
    if not masks:
        return
    whole = keep_tokens(schedule, [None] * len(masks))
    counts = tokens_per_frame(grid, whole)
    kept = [
        flag
        for mask, count in zip(masks, counts, strict=True)
        for flag in (mask or [True] * count)
    ]
    everywhere = video_positions(grid, whole).T.tolist()
    left = [place for place, flag in zip(everywhere, kept, strict=True) if flag]
    masked = keep_tokens(schedule, masks)
    assert video_positions(grid, masked).T.tolist() == left


@given(streams_of_one_clip(), st.sampled_from(("stream", "time")))
def test_merge_streams__keeps_all(streams: list[FrameSchedule], order: str) -> None:
    merged = merge_streams(streams, order=order)
    every = [frame for stream in streams for frame in stream.frames]
    assert Counter(merged.frames) == Counter(every)
    assert merged.num_frames == streams[0].num_frames


@given(streams_of_one_clip())
def test_merge_streams__stream_order(streams: list[FrameSchedule]) -> None:
    merged = merge_streams(streams)
    place = 0
    for stream in streams:
        end = place + len(stream.frames)
        assert merged.frames[place:end] == stream.frames
        place = end
    assert place == len(merged.frames)


@given(streams_of_one_clip())
@example(
    [
        schedule_from_grids([(2, 2)] * 3, is_slow=[True] * 3),
        schedule_from_grids([(1, 1)] * 3, is_slow=[False] * 3),
    ]
)
def test_merge_streams__time_order(streams: list[FrameSchedule]) -> None:
    merged = merge_streams(streams, order="time")
    assert in_order(merged.frames)
    for time in {frame.stop for frame in merged.frames}:
        found = [frame for frame in merged.frames if frame.stop == time]
        expected = [
            frame for stream in streams for frame in stream.frames if frame.stop == time
        ]
        assert found == expected


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            [0, 5],
            "frames lies between 0 and 5; the schedule has 5 frames, counted from 0",
        ),
        (
            [3, -1, 2],
            "frames lies between -1 and 3; the schedule has 5 frames, counted from 0",
        ),
    ],
)
def test_a_frame_that_does_not_exist_is_named(chosen: list[int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        select_frames(repeat_strides(5, (2,)), chosen)
    assert str(error.value) == message


def test_a_mask_is_needed_for_each_frame() -> None:
    schedule = repeat_strides(2, (2,))
    for frames in (1, 3):
        with pytest.raises(ValueError) as error:
            keep_tokens(schedule, [None] * frames)
        assert str(error.value) == (
            f"keep has {frames} frames but the schedule has 2; each needs one entry"
        )
    with pytest.raises(ValueError) as error:
        keep_tokens(schedule, [None, [False, False]])
    assert str(error.value) == "keep drops every token; a frame keeps at least one"


@st.composite
def scalable(draw: st.DrawFn) -> tuple[Grid, FrameSchedule, int]:
    """Draw a grid, a schedule of it, and a scale that divides both sides."""
    scale = draw(st.integers(1, 3))
    height, width = draw(fst.grids(max_side=2))
    grid = (height * scale, width * scale)
    return grid, draw(fst.grid_schedules(grid)), scale


@given(scalable())
def test_scale_fast_frames__tokens(drawn: tuple[Grid, FrameSchedule, int]) -> None:
    grid, schedule, scale = drawn
    scaled = scale_fast_frames(schedule, scale)
    assert tokens_per_frame(grid, scaled) == tokens_per_frame(grid, schedule)
    if schedule.frames:
        places = video_positions(grid, schedule)
        assert torch.equal(video_positions(grid, scaled), places)


@given(scalable())
def test_scale_fast_frames__slow_untouched(
    drawn: tuple[Grid, FrameSchedule, int],
) -> None:
    _, schedule, scale = drawn
    scaled = scale_fast_frames(schedule, scale)
    assert scaled.scales is not None
    for frame, found in enumerate(scaled.scales):
        slow = any(
            pooled.is_slow and pooled.start <= frame < pooled.stop
            for pooled in schedule.frames
        )
        assert found == (1 if slow else scale)


@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.lists(st.booleans(), min_size=1, max_size=4),
    fst.grids(max_side=2),
    fst.seeds(),
)
def test_scale_fast_frames__averages(
    scale: int, factor: int, is_slow: list[bool], sides: Grid, seed: int
) -> None:
    stride = scale * factor
    height, width = sides[0] * stride, sides[1] * stride
    schedule = schedule_from_strides(
        [1 if slow else stride for slow in is_slow], is_slow=is_slow
    )
    shape = (len(is_slow), height, width, 2)
    clip = fst.random_values(shape, seed=seed, dtype=torch.float64)
    encoded = [
        frame
        if slow
        else reduce(frame, "(h s) (w r) d -> h w d", "mean", s=scale, r=scale)
        for frame, slow in zip(clip, is_slow, strict=True)
    ]
    plans = [
        plan_pooling([((height, width), made)])
        for made in (schedule, scale_fast_frames(schedule, scale))
    ]
    whole = pool_tokens(clip.flatten(0, 2), plans[0])
    scaled = pool_tokens(
        torch.cat([frame.flatten(0, 1) for frame in encoded]), plans[1]
    )
    torch.testing.assert_close(scaled.values, whole.values, rtol=1e-12, atol=1e-12)
    assert torch.equal(scaled.cu_seqlens, whole.cu_seqlens)


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ([], "streams describe nothing; all must describe the same clip"),
        (
            [repeat_strides(2, (2,)), repeat_strides(3, (2,))],
            (
                "streams describe 2 frames with edge 'ceil' and 3 frames with edge "
                "'ceil'; all must describe the same clip"
            ),
        ),
        (
            [
                repeat_strides(2, (2,)),
                replace(repeat_strides(2, (2,)), edge="floor"),
            ],
            (
                "streams describe 2 frames with edge 'ceil' and 2 frames with edge "
                "'floor'; all must describe the same clip"
            ),
        ),
        (
            [
                repeat_strides(2, (2,)),
                scale_fast_frames(repeat_strides(2, (1, 2)), 2),
            ],
            (
                "streams describe 2 frames with edge 'ceil' and 2 frames with edge "
                "'ceil' and scales (1, 2); all must describe the same clip"
            ),
        ),
    ],
)
def test_streams_of_different_clips_are_named(
    streams: list[FrameSchedule], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        merge_streams(streams)
    assert str(error.value) == message


def test_an_unknown_order_is_named() -> None:
    with pytest.raises(ValueError) as error:
        inspect.unwrap(merge_streams)([repeat_strides(2, (2,))], order="size")
    assert str(error.value) == "order is 'size'; it must be one of stream, time"


def test_streams_of_grids_take_the_edge_of_those_with_strides() -> None:
    floor = schedule_from_strides([2, 2], edge="floor")
    grids = schedule_from_grids([(1, 1)] * 2)
    for streams in ([floor, grids], [grids, floor]):
        merged = merge_streams(streams)
        assert merged.edge == "floor"
        counts = [n for s in streams for n in tokens_per_frame((5, 5), s)]
        assert list(tokens_per_frame((5, 5), merged)) == counts
    with pytest.raises(ValueError):
        merge_streams([floor, grids, repeat_strides(2, (2,))])


def test_a_scale_below_one_is_named_where_no_frame_is_fast_too() -> None:
    with pytest.raises(ValueError) as error:
        scale_fast_frames(repeat_strides(2, (2,)), 0)
    assert str(error.value) == "scale is 0; it must be at least 1"


def test_streams_that_say_the_same_in_other_words_are_merged() -> None:
    slow = repeat_strides(2, (2,))
    same = replace(slow, scales=(1, 1))
    assert len(merge_streams([same, slow]).frames) == 4
    grids = schedule_from_grids([(1, 1), (1, 1)])
    merged = merge_streams([grids, replace(grids, edge="floor")])
    assert len(merged.frames) == 4
