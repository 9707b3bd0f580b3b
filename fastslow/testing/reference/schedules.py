"""Which frames are slow, frame by frame."""

from fractions import Fraction
from math import floor


def slow_frames(num_frames: int, strategy: str, ratio: Fraction) -> list[bool]:
    """Tell which frames of a clip are slow.

    Args:
        num_frames: Frames of the clip.
        strategy: ``interleave``, ``first_slow``, ``last_slow`` or ``uniform``.
        ratio: Exact share of slow frames.

    Returns:
        One flag per frame.
    """
    slow = [False] * num_frames
    if strategy == "uniform":
        count = floor(num_frames * ratio + Fraction(1, 2))
        for i in range(count):
            place = Fraction(i * (num_frames - 1), max(count - 1, 1))
            nearest = min(range(num_frames), key=lambda t: (abs(t - place), -t))
            slow[nearest] = True
        return slow
    if strategy == "last_slow":
        return slow_frames(num_frames, "first_slow", ratio)[::-1]
    for frame in range(num_frames):
        owed = (frame + 1 if strategy == "interleave" else num_frames) * ratio
        slow[frame] = sum(slow) < owed
    return slow
