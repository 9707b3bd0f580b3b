"""Laws of ``fastslow.schedule_json``."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    FrameSchedule,
    PooledFrame,
    build_schedule,
    schedule_from_json,
    schedule_to_json,
)
from fastslow.testing import strategies as fst

clips = fst.grids().flatmap(
    lambda grid: st.tuples(st.just(grid), fst.grid_schedules(grid))
)
any_schedule = st.one_of(fst.schedules(), clips.map(lambda clip: clip[1]))
dropped = PooledFrame(start=0, stop=2, stride=(2, 1), keep=(True, False, True))


@given(any_schedule)
@example(FrameSchedule(num_frames=2, frames=(dropped,), edge="floor"))
def test_schedule_to_json__round_trip(schedule: FrameSchedule) -> None:
    text = schedule_to_json(schedule)
    assert schedule_from_json(text) == schedule
    assert "\n" not in text


@given(any_schedule)
def test_schedule_from_json__round_trip(schedule: FrameSchedule) -> None:
    text = schedule_to_json(schedule)
    assert schedule_to_json(schedule_from_json(text)) == text


def test_json_holds_the_fields_and_leaves_defaults_out() -> None:
    schedule = FrameSchedule(num_frames=2, frames=(dropped,))
    assert json.loads(schedule_to_json(schedule)) == {
        "num_frames": 2,
        "edge": "ceil",
        "frames": [
            {"start": 0, "stop": 2, "stride": [2, 1], "keep": [True, False, True]}
        ],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S..", "Expecting value: line 1 column 1 (char 0)"),
        (
            "[1]",
            "it is a list; it must be an object with the fields of a schedule",
        ),
        ('{"frames": [3]}', "frames[0] is an int; it must be an object"),
        ('{"num_frames": 1}', "'frames' is missing"),
        (
            '{"num_frames": 1, "frames": [{"start": 1, "stop": 1, "stride": [2, 2]}]}',
            (
                "a pooled frame reads frames 1 to 1, half open; it must read at least "
                "one"
            ),
        ),
    ],
)
def test_json_that_is_no_schedule_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        schedule_from_json(text)
    assert str(error.value) == f"the JSON is no schedule: {message}"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(tempo=3),
        lambda content: content.pop("num_frames"),
        lambda content: content.update(num_frames="8"),
        lambda content: content["frames"][0].update(speed=2),
        lambda content: content["frames"][0].pop("start"),
        lambda content: content.update(frames=None),
        lambda content: content.update(frames=[3]),
    ],
)
def test_json_with_wrong_fields_is_refused(change: Callable[[Any], object]) -> None:
    content = json.loads(schedule_to_json(build_schedule(8)))
    change(content)
    with pytest.raises(ValueError, match="the JSON is no schedule: "):
        schedule_from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": True}, "num_frames is true; it must be an integer"),
        ({"num_frames": [8]}, "num_frames is [8]; it must be an integer"),
        ({"edge": 1}, "edge is 1; it must be a string"),
        ({"scales": 2}, "scales is 2; it must be a list, each entry an integer"),
        ({"start": False}, "start is false; it must be an integer"),
        ({"stop": "1"}, 'stop is "1"; it must be an integer'),
        ({"is_slow": "no"}, 'is_slow is "no"; it must be true or false'),
        ({"is_slow": 1}, "is_slow is 1; it must be true or false"),
        ({"is_slow": [False]}, "is_slow is [false]; it must be true or false"),
        (
            {"stride": [True, 4]},
            "stride is [true, 4]; it must be a list, each entry an integer",
        ),
        ({"grid": 4}, "grid is 4; it must be a list, each entry an integer"),
        (
            {"keep": [1, 0]},
            "keep is [1, 0]; it must be a list, each entry true or false",
        ),
    ],
)
def test_a_field_of_another_type_is_named(
    fields: dict[str, object], message: str
) -> None:
    content = json.loads(schedule_to_json(build_schedule(1)))
    of_clip = {"num_frames", "edge", "scales"}
    (content if fields.keys() <= of_clip else content["frames"][0]).update(fields)
    with pytest.raises(ValueError) as error:
        schedule_from_json(json.dumps(content))
    assert str(error.value) == f"the JSON is no schedule: {message}"


@pytest.mark.parametrize("holder", [lambda c: c, lambda c: c["frames"][0]])
def test_a_field_that_no_schedule_has_is_named(holder: Callable[[Any], Any]) -> None:
    content = json.loads(schedule_to_json(build_schedule(1)))
    holder(content)["tempo"] = 3
    with pytest.raises(ValueError, match=r"the JSON is no schedule: .*'tempo'"):
        schedule_from_json(json.dumps(content))


@pytest.mark.parametrize("number", ["1.5", "2.0", "NaN"])
def test_a_number_that_is_no_integer_is_named(number: str) -> None:
    text = schedule_to_json(build_schedule(1)).replace("[4, 4]", f"[{number}, 4]")
    with pytest.raises(ValueError) as error:
        schedule_from_json(text)
    assert str(error.value) == f"the JSON is no schedule: {number} is no integer"


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "null",
        '{"num_frames": 1, "frames": ""}',
        '{"num_frames": 1, "frames": {}}',
        "[" * 100_000,
    ],
)
def test_json_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the JSON is no schedule: "):
        schedule_from_json(text)
