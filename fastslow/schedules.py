"""Which stride each frame gets."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Literal, get_args

Strategy = Literal["interleave", "first_slow", "uniform"]


@dataclass(frozen=True, kw_only=True)
class FrameSchedule:
    """One pooling stride per frame, and which frames count as slow.

    A *slow* frame has the small stride and keeps many tokens; a *fast* frame has
    the large stride and keeps few. Strides are spatial, in cells of the grid that is
    pooled, never time. ``str()`` draws the schedule, one letter a frame.

    Attributes:
        strides: Pooling stride of each frame, in cells, at least 1.
        is_slow: Whether each frame is slow.
    """

    strides: tuple[int, ...]
    is_slow: tuple[bool, ...]

    def __post_init__(self) -> None:
        """Check that both tuples describe the same frames."""
        if len(self.strides) != len(self.is_slow):
            raise ValueError(
                f"strides has {len(self.strides)} frames but is_slow has "
                f"{len(self.is_slow)}; both describe the same clip"
            )
        if any(stride < 1 for stride in self.strides):
            raise ValueError(f"strides has {min(self.strides)}; a stride is at least 1")

    def __str__(self) -> str:
        """Draw slow frames as ``S`` and fast frames as ``.``."""
        return "".join("S" if slow else "." for slow in self.is_slow)


def build_schedule(
    num_frames: int,
    *,
    strategy: Strategy = "interleave",
    slow_ratio: float | Fraction = 0.5,
    slow_stride: int = 4,
    fast_stride: int = 8,
) -> FrameSchedule:
    """Choose the slow frames of a clip and give every frame its stride.

    With ``r`` the ratio and ``T`` the number of frames, frame ``t`` is slow when

    - ``interleave``: ``ceil((t + 1) r) > ceil(t r)``, which is every s-th frame,
      beginning with the first, when ``r = 1/s``;
    - ``first_slow``: ``t < ceil(T r)``;
    - ``uniform``: ``t`` is one of ``round(T r)`` frames (halves up) that spread over
      the whole clip, first and last frame included when there are two or more; a
      single one is the first.

    All arithmetic is exact. A float stands for a fraction with a small denominator
    that rounds to it, so ``0.3`` is 3/10 and ``1 / 11`` is one eleventh.

    Args:
        num_frames: Frames of the clip, at least 1. Qwen2-VL merges two raw frames
            into one, so 16 raw frames are 8 here.
        strategy: ``interleave``, ``first_slow`` or ``uniform``.
        slow_ratio: Share of slow frames, 0 to 1, both included.
        slow_stride: Stride of slow frames, in cells of the pooled grid, at least 1.
        fast_stride: Stride of fast frames, in the same cells, at least slow_stride.

    Returns:
        The schedule of the clip.

    Raises:
        ValueError: If an argument is out of its range.

    Laws:
        length: one stride per frame, each one of the two given
        slow_count: ceil(T r) slow frames; round(T r), halves up, for ``uniform``
        extremes: ratio 0 gives no slow frame, ratio 1 no fast one
        period: ``interleave`` with ratio 1/s is slow exactly at multiples of s
        prefix: m frames of an ``interleave`` schedule are the schedule of m frames
        even_gaps: gaps between slow frames of ``interleave`` and ``uniform`` differ
            by at most one
        uniform_ends: ``uniform`` with two slow frames or more begins and ends slow
        matches_reference: equals the loop-written reference

    Example:
        >>> print(build_schedule(8))
        S.S.S.S.
        >>> print(build_schedule(8, strategy="uniform", slow_ratio=0.4))
        S...S..S
        >>> build_schedule(3, strategy="first_slow", slow_ratio=0.3).strides
        (4, 8, 8)

    References:
        Zhang et al., "Video Instruction Tuning With Synthetic Data"
        (arXiv:2410.02713), section 4: slow and fast frames of LLaVA-Video.
    """
    ratio = _exact_ratio(slow_ratio)
    _check_schedule(num_frames, strategy, ratio, slow_stride, fast_stride)
    if strategy == "interleave":
        is_slow = tuple(
            ceil((t + 1) * ratio) > ceil(t * ratio) for t in range(num_frames)
        )
    elif strategy == "first_slow":
        is_slow = tuple(t < ceil(num_frames * ratio) for t in range(num_frames))
    else:
        chosen = _spread(int(num_frames * ratio + Fraction(1, 2)), num_frames)
        is_slow = tuple(t in chosen for t in range(num_frames))
    strides = tuple(slow_stride if slow else fast_stride for slow in is_slow)
    return FrameSchedule(strides=strides, is_slow=is_slow)


def _spread(count: int, num_frames: int) -> frozenset[int]:
    """Give ``count`` frames from first to last, as evenly as integers allow."""
    if count < 2:
        return frozenset(range(count))
    gaps, last = count - 1, num_frames - 1
    return frozenset((2 * i * last + gaps) // (2 * gaps) for i in range(count))


def _exact_ratio(ratio: float | Fraction) -> Fraction:
    """Read a float as a fraction with a small denominator that rounds to it."""
    if not isinstance(ratio, float):
        return Fraction(ratio)
    if not 0 <= ratio <= 1:
        raise ValueError(f"slow_ratio is {ratio}; it must lie between 0 and 1")
    candidates = (Fraction(ratio).limit_denominator(10**k) for k in range(1, 18))
    return next((c for c in candidates if float(c) == ratio), Fraction(ratio))


def _check_schedule(
    num_frames: int, strategy: str, ratio: Fraction, slow_stride: int, fast_stride: int
) -> None:
    """Raise a ValueError for the first argument outside its range."""
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; a clip has at least 1 frame")
    if strategy not in get_args(Strategy):
        known = ", ".join(get_args(Strategy))
        raise ValueError(f"strategy is {strategy!r}; it must be one of {known}")
    if not 0 <= ratio <= 1:
        raise ValueError(f"slow_ratio is {ratio}; it must lie between 0 and 1")
    if slow_stride < 1:
        raise ValueError(f"slow_stride is {slow_stride}; a stride is at least 1")
    if fast_stride < slow_stride:
        raise ValueError(
            f"fast_stride {fast_stride} is smaller than slow_stride {slow_stride}; "
            "a fast frame keeps no more tokens than a slow one"
        )
