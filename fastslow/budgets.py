"""Schedules that spend a budget of tokens: in closed form, without pixels."""

from collections.abc import Sequence
from fractions import Fraction
from math import prod

from fastslow._shapes import check_whole, whole_numbers
from fastslow._typing import Grid
from fastslow.frames import FrameSchedule, tokens_per_frame
from fastslow.grids import pooled_grid
from fastslow.schedules import Strategy, build_schedule, two_level_schedule


def slow_frames_for_budget(
    num_frames: int, grid: Grid, budget: int, *, slow_stride: int, fast_stride: int
) -> int:
    """Count the slow frames that fit a budget, all other frames being fast.

    With ``n_slow`` and ``n_fast`` tokens a frame, that is ``floor((budget - num_frames
    n_fast) / (n_slow - n_fast))``, and never more than there are frames.

    Args:
        num_frames: Frames of the clip, at least 1.
        grid: Height and width of every frame before pooling, in tokens.
        budget: Tokens that the clip may have.
        slow_stride: Stride of slow frames, in cells of the grid, at least 1.
        fast_stride: Stride of fast frames, in the same cells, at least slow_stride.

    Returns:
        The largest count of slow frames whose schedule fits.

    Raises:
        ValueError: If a number is out of its range, or the clip does not fit with all
            frames fast; the message names the smallest budget that holds it.

    Laws:
        most: that many slow frames fit, and one more does not or is not there:
            ``tokens(k) <= budget < tokens(k + 1)``
        smallest: the budget that a refusal names is met, and one less is refused

    Example:
        >>> slow_frames_for_budget(8, (16, 16), 400, slow_stride=2, fast_stride=4)
        5

    References:
        Shen et al., "LongVU" (arXiv:2410.17434), section 3: the number of frames that
        keep their resolution.
    """
    both = two_level_schedule(
        [True, False], slow_stride=slow_stride, fast_stride=fast_stride
    )
    slow, fast = tokens_per_frame(grid, both)
    _check_budget(num_frames, grid, budget, fast_stride, fast)
    return _most_slow(num_frames, budget, slow, fast)


def schedule_for_budget(
    num_frames: int,
    grid: Grid,
    budget: int,
    *,
    strides: Sequence[int] = (1, 2, 4, 8),
    strategy: Strategy = "interleave",
) -> FrameSchedule:
    """Plan the two-level schedule that uses most of a budget of tokens.

    The slow and the fast stride come from ``strides``, and any number of frames may be
    slow. Of schedules that use equally many tokens it is the one with the smallest
    fast stride, then the one with most slow frames, then the one with the smallest
    slow stride. The work grows with the pairs of strides, not with the frames.

    Args:
        num_frames: Frames of the clip, at least 1.
        grid: Height and width of every frame before pooling, in tokens.
        budget: Tokens that the clip may have.
        strides: Strides to choose from, in cells of the grid, each at least 1.
        strategy: Which frames are slow, as for ``build_schedule``.

    Returns:
        The schedule, with edges kept.

    Raises:
        ValueError: If an argument is out of its range, or the clip does not fit at the
            largest stride; the message names the smallest budget that holds it.

    Laws:
        within_budget: it has no more tokens than the budget:
            ``sum(tokens_per_frame(grid, s)) <= budget``
        matches_reference: no schedule of the family uses more tokens, and it is the
            first of its equals in the order above: ``schedule_for_budget(...) ==
            reference.schedule_for_budget(...)``
        monotone: a larger budget never uses fewer tokens: ``tokens(b) <= tokens(c) if b
            <= c``
        smallest: the budget that a refusal names is met exactly, and one less is
            refused: ``tokens(named) == named``

    Example:
        >>> from fastslow import describe_schedule
        >>> schedule = schedule_for_budget(8, (16, 16), 400)
        >>> print(describe_schedule((16, 16), schedule))
        SSS.SSS.  8 frames, 392 tokens
        >>> sorted(set(schedule.strides))
        [2, 8]
    """
    strides = whole_numbers("strides", strides)
    if not strides or min(strides) < 1:
        raise ValueError(
            f"strides is {strides}; it needs at least one, each at least 1"
        )
    tokens = {stride: prod(pooled_grid(grid, stride)) for stride in strides}
    _check_budget(num_frames, grid, budget, max(strides), tokens[max(strides)])
    plans = []
    for fast_stride, fast in tokens.items():
        if num_frames * fast > budget:
            continue
        for slow_stride, slow in tokens.items():
            if slow_stride <= fast_stride:
                count = _most_slow(num_frames, budget, slow, fast)
                total = num_frames * fast + count * (slow - fast)
                plans.append((-total, fast_stride, -count, slow_stride))
    _, fast_stride, minus_count, slow_stride = min(plans)
    return build_schedule(
        num_frames,
        strategy=strategy,
        slow_ratio=Fraction(-minus_count, num_frames),
        slow_stride=slow_stride,
        fast_stride=fast_stride,
    )


def _most_slow(num_frames: int, budget: int, slow: int, fast: int) -> int:
    """Count the frames of ``slow`` tokens that fit; ``fast`` ones do for all."""
    if slow == fast:
        return num_frames
    return min(num_frames, (budget - num_frames * fast) // (slow - fast))


def _check_budget(
    num_frames: int, grid: Grid, budget: int, stride: int, tokens: int
) -> None:
    """Raise unless there are frames, and all fit at their largest stride."""
    check_whole("num_frames", num_frames)
    check_whole("budget", budget)
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; a clip has at least 1 frame")
    if num_frames * tokens > budget:
        raise ValueError(
            f"budget is {budget} tokens but a clip of {num_frames} frames on a grid of "
            f"{grid} has at least {num_frames * tokens}, all at stride {stride}"
        )
