"""What ``fastslow.spans`` refuses."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from fastslow import TextSpan, VideoSpan, build_layout, repeat_strides
from fastslow.testing import strategies as fst

THREE_FRAMES: dict[str, Any] = {"grid": (2, 2), "schedule": repeat_strides(3, (1,))}


@given(fst.video_spans(placed=True))
def test_a_clip_lasts_until_its_last_frame_has_begun(clip: VideoSpan) -> None:
    counted = [0] if clip.between else range(clip.schedule.num_frames)
    assert clip.time_extent == max(clip.times or counted) + 1


def test_a_frame_that_text_sets_apart_begins_where_the_text_ends() -> None:
    clip = VideoSpan(**THREE_FRAMES, between=((5,), (6, 7)))
    _, time, height, _ = build_layout([[clip]], video_token_id=9).position_ids.tolist()
    assert time == [0, 0, 0, 0, 2, 3, 3, 3, 3, 5, 6, 7, 7, 7, 7]
    assert height == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 7, 7, 8, 8]


@pytest.mark.parametrize("times", [(0, 1), (0, 1, 2, 3), (0, 2, 1)])
def test_times_that_do_not_fit_are_refused(times: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        VideoSpan(**THREE_FRAMES, times=times)
    assert str(error.value) == (
        f"times is {times}; it must hold one position for each of 3 frames, never "
        "falling"
    )


@pytest.mark.parametrize("count", [1, 3])
def test_text_that_does_not_stand_between_frames_is_refused(count: int) -> None:
    with pytest.raises(ValueError) as error:
        VideoSpan(**THREE_FRAMES, between=((5,),) * count)
    assert str(error.value) == (
        f"between holds {count} texts but the schedule keeps 3 frames; one text stands "
        "between any two"
    )


def test_a_clip_may_be_given_another_schedule() -> None:
    clip = VideoSpan(**THREE_FRAMES, between=((5,), (6,)))
    other = replace(clip, schedule=repeat_strides(2, (1,)), between=((5,),))
    assert other.frame_positions == (0, 0)
    assert replace(clip, between=()).frame_positions == (0, 1, 2)


def test_an_id_that_no_tensor_holds_is_refused() -> None:
    assert TextSpan(token_ids=(2**63 - 1,)).token_ids == (2**63 - 1,)
    with pytest.raises(ValueError) as error:
        TextSpan(token_ids=(1, 2**63))
    assert str(error.value) == f"token_ids holds {2**63}; ids must be less than 2**63"
