"""Which frames of a clip are slow, and which stride each gets: rules without pixels."""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import Literal

from fastslow._shapes import (
    check_word,
    exact_ratio,
    flags,
    whole_grid,
    whole_number,
    whole_numbers,
)
from fastslow._typing import Grid
from fastslow.frames import FrameSchedule, PooledFrame
from fastslow.grids import Edge, window_bounds

Strategy = Literal["interleave", "first_slow", "last_slow", "uniform"]


def build_schedule(
    num_frames: int,
    *,
    strategy: Strategy = "interleave",
    slow_ratio: float | Fraction = 0.5,
    slow_stride: int = 4,
    fast_stride: int = 8,
) -> FrameSchedule:
    """Choose the slow frames of a clip by a ratio, and give every frame its stride.

    With ``r`` the ratio and ``T`` the number of frames, frame ``t`` is slow when

    - ``interleave``: ``ceil((t + 1) r) > ceil(t r)``, which is every s-th frame,
      beginning with the first, when ``r = 1/s``;
    - ``first_slow``: ``t < ceil(T r)``;
    - ``last_slow``: ``t >= T - ceil(T r)``;
    - ``uniform``: ``t`` is one of ``round(T r)`` frames (halves up) that spread over
      the whole clip, first and last frame included when there are two or more; a
      single one is the first.

    All arithmetic is exact. A float stands for a fraction with a small denominator
    that rounds to it, so ``0.3`` is 3/10 and ``1 / 11`` is one eleventh.

    Args:
        num_frames: Frames of the clip, at least 1. Qwen2-VL merges two raw frames
            into one, so 16 raw frames are 8 here.
        strategy: ``interleave``, ``first_slow``, ``last_slow`` or ``uniform``.
        slow_ratio: Share of slow frames, 0 to 1, both included.
        slow_stride: Stride of slow frames, in cells of the pooled grid, at least 1.
        fast_stride: Stride of fast frames, in the same cells, at least slow_stride.

    Returns:
        The schedule of the clip, with edges kept.

    Raises:
        ValueError: If an argument is out of its range.

    Laws:
        length: one stride per frame, each one of the two given: ``len(strides) == T,
            set(strides) <= {slow, fast}``
        slow_count: of T frames ceil(T r) are slow; under ``uniform`` round(T r), halves
            up: ``sum(is_slow) == ceil(T * r)``
        exact_count: ratio k / T gives k slow frames under every strategy:
            ``sum(is_slow) == k if r == k / T``
        extremes: ratio 0 gives no slow frame, ratio 1 no fast one: ``not any(is_slow)
            if r == 0, all(is_slow) if r == 1``
        period: ``interleave`` with ratio 1/s is slow exactly at multiples of s:
            ``is_slow[t] == (t % s == 0)``
        prefix: m frames of an ``interleave`` schedule are the schedule of m frames:
            ``build_schedule(T).strides[:m] == build_schedule(m).strides``
        even_gaps: gaps between slow frames of ``interleave`` and ``uniform`` differ by
            at most one: ``max(gaps) - min(gaps) <= 1``
        uniform_ends: ``uniform`` with two slow frames or more begins and ends slow:
            ``is_slow[0] and is_slow[-1]``
        mirrored: ``last_slow`` is ``first_slow`` backwards: ``last_slow.strides ==
            first_slow.strides[::-1]``
        matches_reference: equals the loop-written reference: ``is_slow ==
            reference.slow_frames(...)``

    Example:
        >>> print(build_schedule(8))
        S.S.S.S.  8 frames
        >>> print(build_schedule(8, strategy="uniform", slow_ratio=0.4))
        S...S..S  8 frames
        >>> build_schedule(3, strategy="first_slow", slow_ratio=0.3).strides
        (4, 8, 8)

    References:
        Zhang et al., "Video Instruction Tuning With Synthetic Data"
        (arXiv:2410.02713), section 4: slow and fast frames of LLaVA-Video.
        Gu et al., "Long-Context Autoregressive Video Modeling with Next-Frame
        Prediction" (arXiv:2503.19325): a fine recent context after a coarse one,
        which is ``last_slow``.
    """
    num_frames = whole_number("num_frames", num_frames)
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; a clip has at least 1 frame")
    ratio = exact_ratio("slow_ratio", slow_ratio)
    check_word("strategy", strategy, Strategy)
    count = ceil(num_frames * ratio)
    if strategy == "interleave":
        owed = [
            -(-t * ratio.numerator // ratio.denominator) for t in range(num_frames + 1)
        ]
        chosen = {t for t in range(num_frames) if owed[t + 1] > owed[t]}
    elif strategy == "first_slow":
        chosen = set(range(count))
    elif strategy == "last_slow":
        chosen = set(range(num_frames - count, num_frames))
    else:
        chosen = _spread(int(num_frames * ratio + Fraction(1, 2)), num_frames)
    is_slow = [t in chosen for t in range(num_frames)]
    return two_level_schedule(is_slow, slow_stride=slow_stride, fast_stride=fast_stride)


def two_level_schedule(
    is_slow: Sequence[bool], *, slow_stride: int = 4, fast_stride: int = 8
) -> FrameSchedule:
    """Give slow frames one stride and fast frames another.

    Args:
        is_slow: Whether each frame of the clip is slow; at least one frame.
        slow_stride: Stride of slow frames, in cells of the pooled grid, at least 1.
        fast_stride: Stride of fast frames, in the same cells, at least slow_stride.

    Returns:
        The schedule, with edges kept.

    Raises:
        ValueError: If there is no frame or a stride is out of its range.

    Laws:
        levels: frames that are slow have the slow stride, all others the fast one:
            ``strides[t] == (slow_stride if is_slow[t] else fast_stride)``

    Example:
        >>> two_level_schedule([True, False, False]).strides
        (4, 8, 8)
    """
    if slow_stride < 1:
        raise ValueError(f"slow_stride is {slow_stride}; a stride is at least 1")
    if fast_stride < slow_stride:
        raise ValueError(
            f"fast_stride {fast_stride} is smaller than slow_stride {slow_stride}; "
            "a fast frame keeps no more tokens than a slow one"
        )
    strides = [slow_stride if slow else fast_stride for slow in is_slow]
    return schedule_from_strides(strides, is_slow=is_slow)


def schedule_from_strides(
    strides: Sequence[int],
    *,
    is_slow: Sequence[bool] | None = None,
    edge: Edge = "ceil",
) -> FrameSchedule:
    """Pool every frame with the stride given for it.

    Args:
        strides: Side of the square window of each frame, in cells of the pooled grid,
            at least 1; at least one frame.
        is_slow: Whether each frame counts as slow; by default those of the smallest
            stride do.
        edge: What becomes of cells that fill no whole window, see ``window_bounds``.

    Returns:
        The schedule.

    Raises:
        ValueError: If there is no frame, a stride is below 1, or the lengths differ.

    Laws:
        round_trip: the schedule's strides are those given:
            ``schedule_from_strides(s).strides == s``

    Example:
        >>> print(schedule_from_strides([1, 4, 2, 4]))
        S...  4 frames
    """
    strides = whole_numbers("strides", strides)
    if is_slow is None:
        least = min(strides, default=1)
        is_slow = [stride == least for stride in strides]
    _check_flags("strides", strides, is_slow)
    frames = tuple(
        PooledFrame(start=t, stop=t + 1, stride=(stride, stride), is_slow=slow)
        for t, (stride, slow) in enumerate(zip(strides, is_slow, strict=True))
    )
    return FrameSchedule(num_frames=len(frames), frames=frames, edge=edge)


def repeat_strides(
    num_frames: int, pattern: Sequence[int], *, phase: int = 0
) -> FrameSchedule:
    """Repeat a pattern of strides: constant, periodic, or of more than two levels.

    Frame ``t`` has stride ``pattern[(t - phase) mod len(pattern)]``. One stride is a
    constant schedule, and ``(2, 4, 4)`` makes every third frame slow.

    Args:
        num_frames: Frames of the clip, at least 1.
        pattern: Strides of one period, in cells of the pooled grid, each at least 1.
            Those of its smallest stride are slow.
        phase: Frame at which a period begins; any integer.

    Returns:
        The schedule, with edges kept.

    Raises:
        ValueError: If there is no frame or no pattern, or a stride is below 1.

    Laws:
        period: frames one period apart have the same stride: ``strides[t] == strides[t
            + len(pattern)]``
        prefix: m frames of it are the schedule of m frames, so a stream needs no
            length: ``repeat_strides(T).strides[:m] == repeat_strides(m).strides``
        phase: the frame at ``phase`` has the first stride of the pattern:
            ``strides[phase] == pattern[0]``

    Example:
        >>> print(repeat_strides(7, (2, 4, 4)))
        S..S..S  7 frames
        >>> repeat_strides(5, (1, 8, 2, 8)).strides
        (1, 8, 2, 8, 1)

    References:
        Zhang et al., "Video Instruction Tuning With Synthetic Data"
        (arXiv:2410.02713), section 4: one slow frame in every s.
    """
    least = min(pattern, default=0)  # of strides that a short clip does not meet, too
    if num_frames < 1 or least < 1:
        raise ValueError(
            f"num_frames is {num_frames} and pattern is {tuple(pattern)}; there must "
            "be a frame, and strides of at least 1"
        )
    strides = [pattern[(t - phase) % len(pattern)] for t in range(num_frames)]
    return schedule_from_strides(strides, is_slow=[each == least for each in strides])


def schedule_from_grids(
    grids: Sequence[Grid], *, is_slow: Sequence[bool] | None = None
) -> FrameSchedule:
    """Pool every frame to the grid given for it.

    Args:
        grids: Height and width that remain of each frame, each at least 1; at least
            one frame. ``(1, 1)`` keeps a single token.
        is_slow: Whether each frame counts as slow; by default those that keep the most
            tokens do.

    Returns:
        The schedule.

    Raises:
        ValueError: If there is no frame, a side is below 1, or the lengths differ.

    Laws:
        counts: on any grid, each frame keeps as many tokens as its own grid has:
            ``tokens_per_frame(any, schedule_from_grids(g)) == [h * w for h, w in g]``

    Example:
        >>> print(schedule_from_grids([(12, 12), (1, 1), (1, 1)]))
        S..  3 frames
    """
    grids = [whole_grid(sides, f"grids[{t}]") for t, sides in enumerate(grids)]
    if is_slow is None:
        most = max((height * width for height, width in grids), default=0)
        is_slow = [height * width == most for height, width in grids]
    _check_flags("grids", grids, is_slow)
    frames = tuple(
        PooledFrame(start=t, stop=t + 1, grid=sides, is_slow=slow)
        for t, (sides, slow) in enumerate(zip(grids, is_slow, strict=True))
    )
    return FrameSchedule(num_frames=len(frames), frames=frames)


def kernel_schedule(
    num_frames: int,
    kernel: tuple[int, int, int],
    *,
    is_slow: bool = False,
    edge: Edge = "ceil",
) -> FrameSchedule:
    """Pool in time and space: ``kernel`` frames and cells become one token.

    Args:
        num_frames: Frames of the clip, at least 1.
        kernel: Frames, rows and columns of a window, each at least 1.
        is_slow: Whether the frames count as slow.
        edge: What becomes of frames and of cells that fill no whole window, see
            ``window_bounds``.

    Returns:
        The schedule.

    Raises:
        ValueError: If a number is below 1, no frame is left under ``floor``, or frames
            remain under ``error``.

    Laws:
        chunks: its frames read one run of ``kernel[0]`` frames after the other:
            ``frames[i].start == i * kernel[0]``

    Example:
        >>> schedule = kernel_schedule(10, (4, 2, 2))
        >>> [(frame.start, frame.stop) for frame in schedule.frames]
        [(0, 4), (4, 8), (8, 10)]

    References:
        Liu et al., "NVILA" (arXiv:2412.04468): temporal pooling of token grids.
    """
    num_frames = whole_number("num_frames", num_frames)
    span, height, width = whole_numbers("kernel", kernel, 3)
    if min(num_frames, span, height, width) < 1:
        raise ValueError(
            f"num_frames is {num_frames} and kernel is {kernel}; all must be at least 1"
        )
    frames = tuple(
        PooledFrame(start=start, stop=stop, stride=(height, width), is_slow=is_slow)
        for start, stop in window_bounds(num_frames, stride=span, edge=edge)
    )
    return FrameSchedule(num_frames=num_frames, frames=frames, edge=edge)


def _check_flags(name: str, values: Sequence[object], is_slow: Sequence[bool]) -> None:
    """Raise unless there are frames and one flag for each, true or false."""
    if not len(values):
        raise ValueError(f"{name} is empty; a clip has at least 1 frame")
    if len(values) != len(is_slow):
        raise ValueError(
            f"{name} has {len(values)} frames but is_slow has {len(is_slow)}; both "
            "describe the same clip"
        )
    flags("is_slow", is_slow)


def _spread(count: int, num_frames: int) -> set[int]:
    """Give ``count`` frames from first to last, as evenly as integers allow."""
    if count < 2:
        return set(range(count))
    gaps, last = count - 1, num_frames - 1
    return {(2 * i * last + gaps) // (2 * gaps) for i in range(count)}
