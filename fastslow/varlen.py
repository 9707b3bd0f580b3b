"""Frame-causal masks for kernels that take no arbitrary mask.

Kernels for packed rows know two masks: everything, and a diagonal. A frame-causal mask
splits into parts of these kinds without remainder and without overlap. Plans are made
on the host, once for a row; they read values, so they wait for a device.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

from fastslow._runs import starts_run
from fastslow.masks import KeyIntervals
from fastslow.ragged import cu_seqlens_from_lengths


@dataclass(frozen=True, kw_only=True)
class VarlenPlan:
    """Two calls of a varlen kernel that make up a frame-causal mask.

    The causal call takes the rows ``tokens`` of query, key and value, and is causal
    token by token within each segment. The ahead call takes ``ahead_queries`` of the
    query and ``ahead_keys`` of key and value; within each frame, query ``i`` of the
    call reads its keys ``j >= i``, which FlashAttention calls the window ``(0, -1)``.
    Where a query is in both, the outputs are merged by their log-sum-exps.

    Attributes:
        tokens: Row numbers of all tokens but padding.
        cu_seqlens: Bounds of the segments among ``tokens``.
        max_seqlen: Tokens of the longest segment; 0 if there is none.
        ahead_queries: Row numbers of all tokens of a frame but its last, frame after
            frame; frames of 1 token have none.
        ahead_keys: Row numbers of all tokens of the same frames but the first.
        ahead_cu_seqlens: Bounds of the frames among both, a frame of n has n - 1.
        ahead_max_seqlen: Tokens of the longest of them; 0 if there is none.
    """

    tokens: Int[Tensor, " tokens"]
    cu_seqlens: Int32[Tensor, " segment_bounds"]
    max_seqlen: int
    ahead_queries: Int[Tensor, " ahead"]
    ahead_keys: Int[Tensor, " ahead"]
    ahead_cu_seqlens: Int32[Tensor, " frame_bounds"]
    ahead_max_seqlen: int


@dataclass(frozen=True, kw_only=True)
class SliceRanges:
    """Rectangles and staircases of queries and keys that make up a mask.

    Attributes:
        queries: First query of each slice, and one past its last.
        keys: First key of each slice, and one past its last.
        is_causal: Whether a slice is a staircase that ends in its lower right corner:
            its last query reads all of its keys, each one before reads one key less.
            Else every query reads every key.
    """

    queries: Int32[Tensor, "slices 2"]
    keys: Int32[Tensor, "slices 2"]
    is_causal: Bool[Tensor, " slices"]


def varlen_plan(intervals: KeyIntervals) -> VarlenPlan:
    """Split a frame-causal mask into two calls of a varlen kernel.

    A query reads what lies before it in its segment, itself included, and what lies
    ahead of it in its own frame. The first is token-causal attention over segments.
    The second is a triangle in each frame: without the last query and the first key,
    its diagonal is visible, and kernels know that as a window. Exact for any frames;
    the second call is small as long as frames are not.

    Args:
        intervals: Those of ``visible_intervals``, without a window.

    Returns:
        The row numbers and bounds of both calls.

    Raises:
        ValueError: If keys are kept, a window leaves something that two calls cannot
            say, or queries that read up to one key do not end with it, as those of a
            frame do.

    Laws:
        union: both calls together read every visible pair once, and no other: ``causal
            part + rest == dense mask, entry by entry``
        disjoint_parts: the first call reads nothing ahead of a query, the second
            nothing else: ``k <= q in the first, k > q in the second``
        bounds: calls begin and end with their bounds, and no sequence is empty: ``cu[0]
            == 0, cu[i] < cu[i + 1]``
        merges: outputs merged by log-sum-exp equal attention under the dense mask:
            ``sum(exp(lse_i - lse) * out_i) == attention(q, k, v, mask)``

    Example:
        >>> from fastslow import visible_intervals
        >>> plan = varlen_plan(visible_intervals(torch.tensor([0, 1, 1, 1, 2])))
        >>> plan.cu_seqlens.tolist(), plan.max_seqlen
        ([0, 5], 5)
        >>> plan.ahead_queries.tolist(), plan.ahead_keys.tolist()
        ([1, 2], [2, 3])
        >>> plan.ahead_cu_seqlens.tolist(), plan.ahead_max_seqlen
        ([0, 2], 2)

    References:
        Dao et al., "FlashAttention" (arXiv:2205.14135), section 3.1, for the merge.
    """
    _check_nothing_is_kept(intervals)
    _check_plain(intervals)
    start, stop = intervals.start, intervals.stop
    tokens = (start < stop).nonzero()[:, 0]
    ahead = tokens[stop[tokens] > tokens + 1]
    cu_seqlens, max_seqlen = _runs_of(start[tokens])
    ahead_cu_seqlens, ahead_max_seqlen = _runs_of(stop[ahead])
    return VarlenPlan(
        tokens=tokens,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        ahead_queries=ahead,
        ahead_keys=ahead + 1,
        ahead_cu_seqlens=ahead_cu_seqlens,
        ahead_max_seqlen=ahead_max_seqlen,
    )


def slice_ranges(intervals: KeyIntervals) -> SliceRanges:
    """Split a mask into slices for a kernel that attends ranges to ranges.

    Neighbouring queries that read the same keys, as those of a frame do, are one full
    slice. Single queries in a row that read from one key up to themselves, as those of
    text do, are one causal slice. Windows are no obstacle; what is kept is.

    Args:
        intervals: The keys that each query may read, as ``KeyIntervals`` states.

    Returns:
        The slices, by query; padding is in none.

    Raises:
        ValueError: If keys are kept.

    Laws:
        union: the slices together read every visible pair once, and no other: ``sum of
            slices == dense mask, entry by entry``
        matches_reference: equals the loop-written reference: ``slice_ranges(v) ==
            reference.slices(...)``
        each_query_once: slices are in order; each query but padding is in exactly one

    Example:
        >>> from fastslow import visible_intervals
        >>> slices = slice_ranges(visible_intervals(torch.tensor([0, 1, 2, 2, 3])))
        >>> slices.queries.tolist()
        [[0, 2], [2, 4], [4, 5]]
        >>> slices.keys.tolist(), slices.is_causal.tolist()
        ([[0, 2], [0, 4], [0, 5]], [True, False, True])
    """
    _check_nothing_is_kept(intervals)
    start, stop = intervals.start, intervals.stop
    real = start < stop
    index = torch.arange(len(start), dtype=torch.int32, device=start.device)
    new_start = starts_run(start)
    new_interval = new_start | starts_run(stop)
    is_single = new_interval & new_interval.roll(-1)
    is_step = is_single & (stop == index + 1)
    goes_on = is_step & is_step.roll(1) & ~new_start
    first = (real & new_interval & ~goes_on).nonzero()[:, 0]
    last = (real & (new_interval & ~goes_on).roll(-1)).nonzero()[:, 0]
    return SliceRanges(
        queries=torch.stack([index[first], index[last] + 1], 1),
        keys=torch.stack([start[first], stop[last]], 1),
        is_causal=is_step[first],
    )


def _check_nothing_is_kept(intervals: KeyIntervals) -> None:
    """Raise if some queries may read more than one interval."""
    if intervals.kept is not None:
        keys = int(intervals.kept.is_kept.sum())
        raise ValueError(
            f"is_kept holds {keys} keys; a query reads one interval of keys here, so "
            "nothing may be kept"
        )


def _check_plain(intervals: KeyIntervals) -> None:
    """Raise unless segments start with themselves and frames end with themselves."""
    start, stop = intervals.start, intervals.stop
    real = start < stop
    index = torch.arange(len(start), device=start.device)
    new_start = starts_run(start)
    is_cut = real & new_start & (start != index)
    if is_cut.any():
        query = int(is_cut.nonzero()[0])
        raise ValueError(
            f"query {query} reads from key {int(start[query])} on, unlike the one "
            "before it; a segment must not be cut by a window"
        )
    is_last = (new_start | starts_run(stop)).roll(-1)
    is_open = real & is_last & (stop != index + 1)
    if is_open.any():
        query = int(is_open.nonzero()[0])
        raise ValueError(
            f"query {query} is the last to read up to key {int(stop[query]) - 1}; the "
            "queries of a frame must end with the last key that they read"
        )


def _runs_of(values: Tensor) -> tuple[Tensor, int]:
    """Give the bounds of the runs of equal values, and the length of the longest."""
    lengths = values.unique_consecutive(return_counts=True)[1]
    return cu_seqlens_from_lengths(lengths), max(lengths.tolist(), default=0)
