"""Which frames are slow, and which tokens remain, by scores that come from elsewhere.

The rules read the scores on the host, so they wait for a GPU. They compare in the
scores' own precision: a threshold of 0.9 is the float32 next to it where the scores are
float32. A score that is not a number speaks for dropping nothing: it counts as
dissimilar, and as the highest.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fastslow._shapes import check_axes


def slow_by_similarity(
    similarity: Float[Tensor, "frames frames"], threshold: float
) -> tuple[bool, ...]:
    """Make a frame slow when it differs from the last slow frame.

    Frame 0 is slow. Frame ``t`` is slow when ``similarity[t, s] < threshold``, with
    ``s`` the last slow frame before it: slow changes add up until they are seen. NaN
    counts as dissimilar.

    Args:
        similarity: How alike two frames are; only entries below the diagonal are read.
        threshold: Frames that are less alike than this differ.

    Returns:
        Whether each frame is slow, for ``two_level_schedule``.

    Raises:
        ValueError: If ``similarity`` is not square.

    Laws:
        first: frame 0 is slow: ``slow[0]``
        prefix: the first m frames are chosen as in the clip of m frames:
            ``slow_by_similarity(x[:m, :m]) == slow_by_similarity(x)[:m]``
        matches_reference: equals the loop-written reference

    Example:
        >>> places = torch.tensor([0.0, 0.3, 0.6, 0.9, 1.2])
        >>> slow_by_similarity(1 - (places[:, None] - places).abs(), 0.5)
        (True, False, True, False, True)

    References:
        Kwai Keye Team, "Kwai Keye-VL 1.5" (arXiv:2509.01563), section 2: slow and fast
        frames. Its own code takes NaN, the similarity of two black frames, as alike.
    """
    check_axes("similarity", similarity, "frames", "frames")
    differs = (~(similarity >= threshold)).tolist()
    is_slow: list[bool] = []
    last_slow = 0
    for frame, row in enumerate(differs):
        is_slow.append(frame == 0 or row[last_slow])
        if is_slow[-1]:
            last_slow = frame
    return tuple(is_slow)


def slow_by_score(
    scores: Float[Tensor, " frames"], threshold: float
) -> tuple[bool, ...]:
    """Make the frames slow whose score reaches a threshold.

    NaN reaches every threshold, so it suits frame 0 where nothing predicts that.

    Args:
        scores: One per frame, such as the surprise of a next-frame prediction.
        threshold: The lowest score of a slow frame.

    Returns:
        Whether each frame is slow, for ``two_level_schedule``.

    Raises:
        ValueError: If ``scores`` has another axis than frames.

    Laws:
        matches_reference: equals the loop-written reference: ``slow[t] == (not
            scores[t] < threshold)``
        monotone: a higher threshold makes no further frame slow: ``slow(b) <= slow(a)
            if a <= b``

    Example:
        >>> slow_by_score(torch.tensor([torch.nan, 0.1, 0.5, 0.3]), 0.3)
        (True, False, True, True)

    References:
        Yang et al., "Cambrian-S" (arXiv:2511.04670), section 4: frames that surprise
        less than a threshold are compressed. Its own code gives frame 0 the score 1.
    """
    check_axes("scores", scores, "frames")
    return tuple((~(scores < threshold)).tolist())


def slow_by_top_k(scores: Float[Tensor, " frames"], k: int) -> tuple[bool, ...]:
    """Make the frames of the highest scores slow.

    Of equal scores, the earlier frame comes first. NaN is the highest score.

    Args:
        scores: One per frame, such as the similarity to a question.
        k: Slow frames, at least 0; all frames where there are no more than that.

    Returns:
        Whether each frame is slow, for ``two_level_schedule``; exactly
        ``min(k, frames)`` are.

    Raises:
        ValueError: If ``scores`` has another axis than frames, or ``k`` is negative.

    Laws:
        count: min(k, frames) frames are slow: ``sum(slow) == min(k, T)``
        matches_reference: equals the loop-written reference
        nested: the slow frames of k are slow for k + 1: ``slow(k) <= slow(k + 1)``

    Example:
        >>> slow_by_top_k(torch.tensor([0.2, 0.7, 0.2, 0.1]), 2)
        (True, True, False, False)

    References:
        Shen et al., "LongVU" (arXiv:2410.17434), section 3: frames that match the
        question keep their resolution, as many as ``slow_frames_for_budget`` allows.
    """
    check_axes("scores", scores, "frames")
    if k < 0:
        raise ValueError(f"k is {k}; it must be at least 0")
    best = scores.argsort(descending=True, stable=True)[:k]
    is_slow = torch.zeros_like(scores, dtype=torch.bool)
    is_slow[best] = True
    return tuple(is_slow.tolist())


def keep_by_score(
    scores: Float[Tensor, "frames tokens"], threshold: float
) -> tuple[tuple[bool, ...], ...]:
    """Keep the tokens whose score is above a threshold, and at least one per frame.

    Frame 0 is kept whole. A frame with no token above the threshold keeps its highest,
    the first of equals. NaN is above every threshold.

    Args:
        scores: One per token of each frame, in raster order, such as the difference to
            the same patch of the frame before; at least one token.
        threshold: The highest score that is dropped.

    Returns:
        For each frame, which of its tokens remain, for ``keep_tokens``.

    Raises:
        ValueError: If ``scores`` has other axes, or frames have no tokens.

    Laws:
        matches_reference: equals the loop-written reference
        one_per_frame: frame 0 keeps all tokens, every other frame at least one:
            ``keep[0].all(), keep[t].any()``
        monotone: a higher threshold keeps no further token: ``keep(b) <= keep(a) if a
            <= b``

    Example:
        >>> keep_by_score(torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.0, 0.1]]), 0.1)
        ((True, True), (True, False), (False, True))

    References:
        Zhang et al., "VideoLLaMA 3" (arXiv:2501.13106), section 2: tokens that differ
        from the frame before. Its own code keeps the first token of a frame in which
        none does.
    """
    check_axes("scores", scores, "frames", "tokens")
    frames, tokens = scores.shape
    if not tokens:
        raise ValueError(
            f"scores has {frames} frames of 0 tokens; a frame has at least 1"
        )
    keep = ~(scores <= threshold)
    keep.scatter_(1, scores.argmax(dim=1, keepdim=True), True)
    keep[:1] = True
    return tuple(map(tuple, keep.tolist()))
