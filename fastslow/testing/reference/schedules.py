"""Which frames are slow, frame by frame, and the schedule that fills a budget."""

from collections.abc import Sequence
from fractions import Fraction
from math import floor, isnan

from fastslow.testing.reference.frames import Grid, plain_frame, window_cells


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


def slow_by_similarity(
    similarity: Sequence[Sequence[float]], threshold: float
) -> list[bool]:
    """Tell which frames differ from the last slow frame."""
    slow: list[bool] = []
    for frame in range(len(similarity)):
        before = [earlier for earlier in range(frame) if slow[earlier]]
        if not before:
            slow.append(True)
            continue
        value = similarity[frame][before[-1]]
        slow.append(value < threshold or isnan(value))
    return slow


def slow_by_score(scores: Sequence[float], threshold: float) -> list[bool]:
    """Tell which frames reach a score."""
    return [score >= threshold or isnan(score) for score in scores]


def slow_by_top_k(scores: Sequence[float], k: int) -> list[bool]:
    """Tell which frames have the highest scores, picking one after the other."""
    slow = [False] * len(scores)
    for _ in range(min(k, len(scores))):
        best = None
        for frame, score in enumerate(scores):
            if slow[frame]:
                continue
            if best is None or _is_higher(score, scores[best]):
                best = frame
        slow[best or 0] = True
    return slow


def keep_by_score(
    scores: Sequence[Sequence[float]], threshold: float
) -> list[list[bool]]:
    """Tell which tokens of each frame are above a threshold, at least one."""
    output = []
    for frame, row in enumerate(scores):
        kept = [frame == 0 or score > threshold or isnan(score) for score in row]
        if not any(kept):
            best = 0
            for token, score in enumerate(row):
                if _is_higher(score, row[best]):
                    best = token
            kept[best] = True
        output.append(kept)
    return output


def schedule_for_budget(
    num_frames: int, grid: Grid, budget: int, strides: Sequence[int]
) -> tuple[int, int, int, int] | None:
    """Find the two-level schedule that uses most of a budget, by trying all.

    Returns:
        Tokens, fast stride, number of slow frames and slow stride of the best: most
        tokens, then the smallest fast stride, most slow frames, the smallest slow
        stride. None where no schedule fits.
    """
    found = []
    for fast_stride in strides:
        for slow_stride in strides:
            if slow_stride > fast_stride:
                continue
            slow, fast = (
                len(window_cells(grid, plain_frame(0, stride)))
                for stride in (slow_stride, fast_stride)
            )
            for count in range(num_frames + 1):
                tokens = count * slow + (num_frames - count) * fast
                if tokens <= budget:
                    found.append((tokens, -fast_stride, count, -slow_stride))
    if not found:
        return None
    tokens, minus_fast, count, minus_slow = max(found)
    return tokens, -minus_fast, count, -minus_slow


def _is_higher(score: float, other: float) -> bool:
    """Tell whether a score comes before another; what is no number comes first."""
    return score > other or (isnan(score) and not isnan(other))
