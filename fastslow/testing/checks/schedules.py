"""Laws of schedules, checked on clips of drawn lengths."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from hypothesis import strategies as st

from fastslow.frames import FrameSchedule
from fastslow.schedule_json import schedule_from_json, schedule_to_json
from fastslow.schedules import schedule_from_strides
from fastslow.testing.checks.search import check_laws, smallest

ScheduleLaw = Literal[
    "length", "positive", "deterministic", "round_trip", "covers", "prefix"
]
"""The laws of ``check_schedule``."""

BuildSchedule = Callable[[int], FrameSchedule | Sequence[int]]
"""From the number of frames to a schedule, or to one stride for each frame."""

REPEATS = 8
"""Times that a schedule is asked for again: two draws at random are often alike."""

_Built = FrameSchedule | Sequence[Any]
"""What a function of others gave: strides may be anything."""


def check_schedule(
    build: BuildSchedule,
    *,
    min_frames: int = 1,
    max_frames: int = 32,
    laws: Iterable[ScheduleLaw] = ("length", "positive", "deterministic", "round_trip"),
) -> None:
    """Hold a schedule of your own to the laws of those of the library.

    Numbers of frames are drawn, and the smallest one that breaks a law is shown. The
    laws:

    - ``length``: it is for as many frames as were asked for, and reads at least one;
      strides are as many as frames;
    - ``positive``: every stride is an integer of at least 1;
    - ``deterministic``: asked again, it is the same;
    - ``round_trip``: written as JSON and read again, it is the same;
    - ``covers``: every frame of the clip is read;
    - ``prefix``: what it reads of the first m frames is the schedule of m frames, so a
      stream can use it without knowing its length.

    The last two are checked if they are named; not every schedule has to obey them.

    Args:
        build: Takes the number of frames of a clip. Gives a ``FrameSchedule`` or one
            stride for each frame.
        min_frames: Fewest frames that it is for, at least 1.
        max_frames: Most frames that are drawn.
        laws: Names of the laws.

    Raises:
        AssertionError: If a law is broken; the message names the law and shows the
            schedule.
        ValueError: If a law is unknown.

    Example:
        >>> check_schedule(lambda num_frames: [4] + [8] * (num_frames - 1))
        >>> try:
        ...     check_schedule(lambda num_frames: [4, 8] * (num_frames // 2))
        ... except AssertionError as error:
        ...     print(error)
        the schedule breaks the law length: it has 0 strides where 1 are needed
        <BLANKLINE>
        The smallest number of frames that shows it is 1:
          strides []
    """
    laws = tuple(laws)
    check_laws(laws, _BREACHES)
    for law in laws:
        num_frames, words = _find_breach(law, build, min_frames, max_frames)
        if words:
            raise AssertionError(
                f"the schedule breaks the law {law}: {words}\n\n"
                f"The smallest number of frames that shows it is {num_frames}:\n"
                f"  {_drawn(build(num_frames))}"
            )


def _find_breach(
    law: ScheduleLaw, build: BuildSchedule, least: int, most: int
) -> tuple[int, str]:
    """Give the smallest number of frames that breaks a law, and how; else no words.

    What has once broken a law has broken it: what is drawn at random may break nothing
    when it is asked again.
    """
    said = dict[int, str]()

    def breach(num_frames: int) -> str:
        earlier = range(least, num_frames)
        words = said.get(num_frames) or _BREACHES[law](build, num_frames, earlier)
        return said.setdefault(num_frames, words) if words else ""

    found = smallest(st.integers(least, most), breach)
    return (least, "") if found is None else (found, said[found])


def _wrong_length(build: BuildSchedule, num_frames: int, earlier: range) -> str:
    built = build(num_frames)
    if not isinstance(built, FrameSchedule):
        if len(built) == num_frames:
            return ""
        return f"it has {len(built)} strides where {num_frames} are needed"
    if built.num_frames != num_frames:
        return f"it is for {built.num_frames} frames where {num_frames} were asked for"
    return "" if built.frames else f"it reads none of {num_frames} frames"


def _not_positive(build: BuildSchedule, num_frames: int, earlier: range) -> str:
    built = build(num_frames)
    if isinstance(built, FrameSchedule):  # which checks its own strides
        return ""
    for frame, stride in enumerate(built):
        if not isinstance(stride, int) or stride < 1:
            return f"frame {frame} has stride {stride!r}; it must be an integer >= 1"
    return ""


def _not_deterministic(build: BuildSchedule, num_frames: int, earlier: range) -> str:
    built = build(num_frames)
    first, drawn = _parts(built), _drawn(built)  # a list may be filled anew
    for _ in range(REPEATS):
        again = build(num_frames)
        if _parts(again) != first:
            return f"first it gives {drawn}, asked again {_drawn(again)}"
    return ""


def _not_written(build: BuildSchedule, num_frames: int, earlier: range) -> str:
    schedule = _as_schedule(build(num_frames))
    text = schedule_to_json(schedule)
    read = schedule_from_json(text)
    return "" if read == schedule else f"{text} is read as another schedule, {read}"


def _leaves_out(build: BuildSchedule, num_frames: int, earlier: range) -> str:
    frames = _as_schedule(build(num_frames)).frames
    read = {t for frame in frames for t in range(frame.start, frame.stop)}
    missing = next((t for t in range(num_frames) if t not in read), None)
    return "" if missing is None else f"nothing reads frame {missing}"


def _depends_on_length(build: BuildSchedule, num_frames: int, earlier: range) -> str:
    whole = build(num_frames)
    for length in earlier:
        part = build(length)
        if _parts(part) != _parts(whole, length):
            return (
                f"of {num_frames} frames it reads the first {length} otherwise than "
                f"where there are no more: {_drawn(part)}"
            )
    return ""


def _parts(built: _Built, length: int | None = None) -> Any:
    """Give what a schedule reads, of the first frames alone if a length is given."""
    if not isinstance(built, FrameSchedule):
        return list(built[:length])
    stop = built.num_frames if length is None else length
    scales = None if built.scales is None else built.scales[:stop]
    return [frame for frame in built.frames if frame.stop <= stop], built.edge, scales


def _as_schedule(built: _Built) -> FrameSchedule:
    """Give what was built as a schedule."""
    return built if isinstance(built, FrameSchedule) else schedule_from_strides(built)


def _drawn(built: _Built) -> str:
    """Show a schedule in one line."""
    if not isinstance(built, FrameSchedule):
        return f"strides {list(built)}"
    sizes = [frame.stride or frame.grid for frame in built.frames]
    return f"{built}, of windows or grids {sizes}"


_BREACHES: dict[ScheduleLaw, Callable[[BuildSchedule, int, range], str]] = {
    "length": _wrong_length,
    "positive": _not_positive,
    "deterministic": _not_deterministic,
    "round_trip": _not_written,
    "covers": _leaves_out,
    "prefix": _depends_on_length,
}
"""Each law, and what says in words how a schedule of a number of frames breaks it."""
