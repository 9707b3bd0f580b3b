"""Schedules written as JSON, and read again."""

import json
from dataclasses import asdict
from typing import Any

from fastslow._shapes import check_type
from fastslow.frames import FrameSchedule, PooledFrame

_SINGLE = {"num_frames": int, "start": int, "stop": int, "is_slow": bool, "edge": str}
_LISTS = {"scales": int, "stride": int, "grid": int, "keep": bool}
_WORDS = {int: "an integer", bool: "true or false", str: "a string"}


def schedule_to_json(schedule: FrameSchedule) -> str:
    """Write a schedule as one line of JSON.

    Args:
        schedule: The schedule.

    Returns:
        An object with the fields of ``FrameSchedule``; what a frame leaves at its
        default is left out.

    Laws:
        round_trip: ``schedule_from_json`` gives the schedule back:
            ``schedule_from_json(schedule_to_json(s)) == s``

    Example:
        >>> from fastslow import build_schedule
        >>> schedule_to_json(build_schedule(1))  # doctest: +NORMALIZE_WHITESPACE
        '{"num_frames": 1, "edge": "ceil", "frames":
        [{"start": 0, "stop": 1, "stride": [4, 4], "is_slow": true}]}'
    """
    frames = [
        {
            name: value
            for name, value in asdict(frame).items()
            if value is not None and value is not False
        }
        for frame in schedule.frames
    ]
    content = {"num_frames": schedule.num_frames, "edge": schedule.edge}
    scales = {} if schedule.scales is None else {"scales": schedule.scales}
    return json.dumps(content | scales | {"frames": frames})


def schedule_from_json(text: str) -> FrameSchedule:
    """Read a schedule that ``schedule_to_json`` wrote.

    Args:
        text: The JSON.

    Returns:
        The schedule.

    Raises:
        ValueError: If the text is no JSON, a field is unknown, missing or of another
            type, or the schedule breaks a rule.

    Laws:
        round_trip: ``schedule_to_json`` gives the text back:
            ``schedule_to_json(schedule_from_json(text)) == text``

    Example:
        >>> from fastslow import build_schedule
        >>> schedule = build_schedule(8)
        >>> schedule_from_json(schedule_to_json(schedule)) == schedule
        True
    """
    try:
        content = json.loads(text, parse_float=_refuse, parse_constant=_refuse)
        check_type("it", content, dict, "an object with the fields of a schedule")
        frames = content.pop("frames")
        check_type("frames", frames, list, "a list")
        for number, frame in enumerate(frames):
            check_type(f"frames[{number}]", frame, dict, "an object")
        pooled = tuple(PooledFrame(**_read(frame)) for frame in frames)
        return FrameSchedule(frames=pooled, **_read(content))
    except KeyError as error:
        raise ValueError(f"the JSON is no schedule: {error} is missing") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the JSON is no schedule: {error}") from error


def _refuse(number: str) -> None:
    """Raise, since all numbers of a schedule are integers."""
    raise ValueError(f"{number} is no integer")


def _read(fields: dict[str, Any]) -> dict[str, Any]:
    """Check the types of known fields, and turn JSON's lists into tuples."""
    for name, value in fields.items():
        is_list, kind = name in _LISTS, (_SINGLE | _LISTS).get(name)
        entries = value if isinstance(value, list) else [value]
        is_right = isinstance(value, list) == is_list
        if kind and not (is_right and all(type(entry) is kind for entry in entries)):
            raise ValueError(
                f"{name} is {json.dumps(value)}; it must be "
                f"{'a list, each entry ' * is_list}{_WORDS[kind]}"
            )
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }
