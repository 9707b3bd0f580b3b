"""Which frames are slow, chosen by a setting: a rule, or a constructor of the core.

A setting is one word, ``interleave``, or a call without the arguments that a run knows
itself, ``repeat_strides(pattern=(2, 4, 4))``.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

import fastslow
from fastslow import FrameSchedule, Grid
from fastslow.schedules import Strategy
from recipes.settings.values import convert, nearest

RULES = get_args(Strategy)
"""Rules of ``build_schedule``."""

CONSTRUCTORS: dict[str, Callable[..., FrameSchedule]] = {
    constructor.__name__: constructor
    for constructor in (
        fastslow.build_schedule,
        fastslow.kernel_schedule,
        fastslow.repeat_strides,
        fastslow.schedule_for_budget,
        fastslow.schedule_from_grids,
        fastslow.schedule_from_strides,
        fastslow.two_level_schedule,
    )
}
"""Public functions of the core that make a schedule from numbers."""

KNOWN = ("num_frames", "grid")
"""Arguments that belong to the clip and are never a setting."""

SETTINGS = {
    "slow_ratio": "slow_frame_ratio",
    "slow_stride": "mm_spatial_pool_stride",
    "fast_stride": "mm_spatial_pool_stride",
}
"""The setting of a run that each of its other arguments comes from."""


def schedule_frames(
    num_frames: int,
    *,
    grid: Grid,
    strategy: str,
    slow_ratio: float,
    slow_stride: int,
    fast_stride: int,
) -> FrameSchedule:
    """Plan a clip's frames by the strategy that a run is set to.

    A constructor gets what it has a name for: the clip's length and grid, the ratio and
    the two strides. Arguments of the setting go before those of the run.

    Args:
        num_frames: Frames of the clip, at least 1.
        grid: Height and width of a frame, in merged tokens.
        strategy: The setting, see ``parse_strategy``.
        slow_ratio: Share of slow frames.
        slow_stride: Stride of slow frames, in merged tokens.
        fast_stride: Stride of fast frames, in the same tokens.

    Returns:
        The schedule.

    Raises:
        ValueError: If the setting is no strategy, the constructor refuses, or it has
            one entry per frame and the clip another number of frames.

    Example:
        >>> settings = {"slow_ratio": 0.5, "slow_stride": 2, "fast_stride": 4}
        >>> print(schedule_frames(5, grid=(8, 8), strategy="first_slow", **settings))
        SSS..  5 frames
        >>> three = "repeat_strides(pattern=(2, 4, 4))"
        >>> print(schedule_frames(5, grid=(8, 8), strategy=three, **settings))
        S..S.  5 frames
    """
    name, arguments = _constructor(strategy)
    run = {
        "num_frames": num_frames,
        "grid": grid,
        "slow_ratio": slow_ratio,
        "slow_stride": slow_stride,
        "fast_stride": fast_stride,
    }
    given = {key: run[key] for key in _read_of_run(name, arguments)}
    schedule = CONSTRUCTORS[name](**given, **arguments)
    if schedule.num_frames != num_frames:
        raise ValueError(
            f"{name} describes {schedule.num_frames} frames but the clip has "
            f"{num_frames}; both must agree"
        )
    return schedule


def settings_read(strategy: str) -> set[str]:
    """Tell which settings a strategy reads, of those that ``SETTINGS`` has.

    Args:
        strategy: The setting, see ``parse_strategy``.

    Returns:
        Their names; any other may have any value.

    Raises:
        ValueError: If the setting is no strategy.

    Example:
        >>> sorted(settings_read("uniform"))
        ['mm_spatial_pool_stride', 'slow_frame_ratio']
        >>> settings_read("repeat_strides(pattern=(2, 4, 4))")
        set()
    """
    read = _read_of_run(*_constructor(strategy))
    return {SETTINGS[key] for key in read if key in SETTINGS}


def parse_strategy(text: str) -> tuple[str, dict[str, Any]]:
    """Read a strategy: a rule's name, or a constructor with its own arguments.

    Args:
        text: ``uniform``, or ``kernel_schedule(kernel=(2, 2, 2))``. Strides and grids
            are in merged tokens, as the core counts them.

    Returns:
        The name, and the arguments by name.

    Raises:
        ValueError: If the name or an argument is unknown, an argument is missing, or a
            value is of another type than the constructor takes.

    Example:
        >>> parse_strategy("repeat_strides(pattern=(1, 8))")
        ('repeat_strides', {'pattern': (1, 8)})
    """
    name, arguments = _parse(text)
    if name in RULES:
        if arguments:
            raise ValueError(
                f"frame_sampling_strategy is {text!r}; {name} takes no arguments"
            )
        return name, {}
    if name not in CONSTRUCTORS:
        close = nearest(name, (*RULES, *CONSTRUCTORS))
        raise ValueError(
            f"frame_sampling_strategy is {text!r}; the nearest known one is {close!r}"
        )
    return name, _checked(name, arguments)


def strategy_text(mapping: Mapping[str, Any]) -> str:
    """Write a strategy of a YAML file in the form that ``parse_strategy`` reads.

    Args:
        mapping: The ``name`` of a rule or of a constructor, and its arguments: numbers,
            words and lists of them; lists are written as tuples.

    Returns:
        The text; the bare name where there are no arguments.

    Raises:
        ValueError: If there is no name, or it is no text.

    Example:
        >>> strategy_text({"name": "repeat_strides", "pattern": [2, 4, 4]})
        'repeat_strides(pattern=(2, 4, 4))'
    """
    if "name" not in mapping:
        raise ValueError(
            f"frame_sampling_strategy is {dict(mapping)!r}; it must have a name"
        )
    name: str = convert("frame_sampling_strategy.name", mapping["name"], str)
    words = (f"{k}={_as_tuples(v)!r}" for k, v in mapping.items() if k != "name")
    given = ", ".join(words)
    return f"{name}({given})" if given else name


def _constructor(strategy: str) -> tuple[str, dict[str, Any]]:
    """Name the constructor of a strategy, and its own arguments."""
    name, arguments = parse_strategy(strategy)
    if name in RULES:
        return "build_schedule", {"strategy": name}
    return name, arguments


def _read_of_run(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """Name the arguments that a constructor takes from the run, not from its own."""
    wanted = inspect.signature(CONSTRUCTORS[name]).parameters
    of_run = (*KNOWN, *SETTINGS)
    return [key for key in wanted if key in of_run and key not in arguments]


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """Take a call apart; nothing is run."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            named = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
            if not node.args and None not in named:
                return node.func.id, {str(k): _as_tuples(v) for k, v in named.items()}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        pass
    raise ValueError(
        f"frame_sampling_strategy is {text!r}; it must be a name, or a call with named "
        "arguments such as repeat_strides(pattern=(2, 4, 4))"
    )


def _checked(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of a constructor by its signature."""
    known = inspect.signature(CONSTRUCTORS[name]).parameters
    hints = get_type_hints(inspect.unwrap(CONSTRUCTORS[name]))
    own = [key for key in known if key not in KNOWN]
    for key in arguments:
        if key not in own:
            raise ValueError(
                f"{name} has no argument {key!r} to set; the nearest one is "
                f"{nearest(key, own)!r}"
            )
        if key not in hints:
            raise ValueError(
                f"{name} has no annotation for {key!r}; a setting is read by its type"
            )
    for key, parameter in known.items():
        is_missing = parameter.default is parameter.empty and key not in arguments
        if is_missing and key not in (*KNOWN, *SETTINGS):
            raise ValueError(f"{name} needs the argument {key!r}, which is not given")
    return {
        key: convert(f"{name}.{key}", value, hints[key])
        for key, value in arguments.items()
    }


def _as_tuples(value: Any) -> Any:
    """Turn lists into tuples, inner ones too."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_tuples, value))
    return value
