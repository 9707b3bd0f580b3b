"""Frame-causal masks: visible intervals, and what is read from them.

A mask is an order: query ``q`` may read key ``k`` when both lie in one segment and
``rank[k] <= rank[q]``. The relation is reflexive and transitive, so no depth of layers
can carry anything back from the future. Where ranks are sorted inside contiguous
segments the keys that ``q`` may read are one interval ``[start[q], stop[q])``. A window
over the frames moves ``start`` up; it never moves back, so what has expired may be
evicted from a server's cache.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

from fastslow._runs import starts_run
from fastslow._shapes import Kind, check_axes, check_dtype, positive
from fastslow._typing import MaskMod, no_type_check


@dataclass(frozen=True, kw_only=True)
class KeptKeys:
    """Keys that stay visible after their window has passed.

    Attributes:
        is_kept: Which keys they are.
        start: First key of each query's segment; 0 for padding.
    """

    is_kept: Bool[Tensor, " tokens"]
    start: Int32[Tensor, " tokens"]


@dataclass(frozen=True, kw_only=True)
class KeyIntervals:
    """The keys that each query may read: the one source of every form of a mask.

    Query ``q`` reads key ``k`` when ``start[q] <= k < stop[q]``, and, where some keys
    are kept beyond a window, also when ``kept.is_kept[k]`` and
    ``kept.start[q] <= k < start[q]``. Padding reads nothing: its bounds are 0. A real
    token reads itself, no token reads padding, and no bound falls from one real token
    to the next.

    Attributes:
        start: First key of the interval of each query.
        stop: One past its last key.
        kept: Keys that stay visible before it; None where nothing is kept.
    """

    start: Int32[Tensor, " tokens"]
    stop: Int32[Tensor, " tokens"]
    kept: KeptKeys | None = None


def frame_causal_mask(
    causal_ranks: Int[Tensor, " tokens"],
    segment_ids: Int[Tensor, " tokens"] | None = None,
) -> MaskMod:
    """Attend within a frame both ways, across frames only to the past.

    Query ``q`` may read key ``k`` when both lie in one segment and
    ``causal_ranks[k] <= causal_ranks[q]``. The tokens of one frame share a rank;
    every text token has its own, so plain text is ordinary causal attention. Ranks
    and segments may stand in any order; for that the rule gathers by key, which is the
    slow case of attention kernels. Rows of a layout are in order: ``interval_mask``
    gives the same pairs from two bounds of each query.

    Args:
        causal_ranks: Order of each token in its segment.
        segment_ids: Packed sample of each token; -1 marks padding, which reads
            nothing and is read by nothing. None means one sample.

    Returns:
        A ``mask_mod`` for ``create_block_mask``; it closes over both tensors.

    Raises:
        ValueError: If ranks or segments are not integers of one row, or the lengths
            differ.

    Laws:
        preorder: reflexive on real tokens, and two steps reach nothing that one does
            not: ``m.diagonal() == (segment >= 0)`` and ``(m @ m > 0) == m``
        no_cross_segment: no token reads another segment, padding reads nothing: ``not
            m[q, k] if segment[q] != segment[k] or segment[q] == -1``
        reduces_to_causal: one token per frame is causal attention, one frame is full:
            ``mask(arange(n)) == ones(n, n).tril()`` and ``mask(zeros(n)) == ones(n,
            n)``
        rank_order_only: a strictly increasing map of the ranks changes nothing:
            ``mask(f(ranks)) == mask(ranks) if f rises``
        packs_block_diagonally: the mask of a pack is the block diagonal of its parts:
            ``mask(a ++ b) == block_diag(mask(a), mask(b))``
        matches_reference: equals the loop-written reference: ``m ==
            reference.visible_pairs(ranks, segments)``

    Example:
        >>> ranks = torch.tensor([0, 1, 1, 2])
        >>> dense_mask(frame_causal_mask(ranks), 4).int()
        tensor([[1, 0, 0, 0],
                [1, 1, 1, 0],
                [1, 1, 1, 0],
                [1, 1, 1, 1]], dtype=torch.int32)
    """
    _check_row(causal_ranks, "integers", segment_ids=segment_ids)
    segment_ids = torch.zeros_like(causal_ranks) if segment_ids is None else segment_ids

    @no_type_check
    def frame_causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        query_segment = segment_ids[q_idx]
        return (
            (query_segment == segment_ids[kv_idx])
            & (query_segment >= 0)
            & (causal_ranks[kv_idx] <= causal_ranks[q_idx])
        )

    return frame_causal


def visible_intervals(
    causal_ranks: Int[Tensor, " tokens"],
    segment_ids: Int[Tensor, " tokens"] | None = None,
    *,
    frame_ids: Int[Tensor, " tokens"] | None = None,
    window: int | None = None,
    is_kept: Bool[Tensor, " tokens"] | None = None,
) -> KeyIntervals:
    """Give the keys that each query may read, as intervals.

    Without a window a query reads from the first token of its segment to the last one
    that shares its rank. A window hides what is ``window`` frames old: the clock of a
    token is 1 + its frame, or that of the last frame before it, and a query with clock
    ``c`` reads clocks above ``c - window``; text expires with the frame before it.
    Keys that are kept never expire. Loglinear time, linear memory. The order is
    checked, which reads the tensors on the host: plan on the CPU.

    Args:
        causal_ranks: Order of each token, non-decreasing within its segment.
        segment_ids: Packed sample of each token, contiguous; -1 marks padding. None
            means one sample.
        frame_ids: Frame of its sample that each token belongs to, non-decreasing among
            the video tokens of a segment; -1 marks text. Read with a window alone.
        window: Frames that a query sees, the latest one begun included; at least 1.
            None hides nothing.
        is_kept: Keys that stay visible after their window has passed.

    Returns:
        The intervals, half open; those of padding are [0, 0).

    Raises:
        ValueError: If axes, dtypes or lengths are others, ranks or frames fall within a
            segment, a segment is not contiguous, a frame is below -1, ``window`` is no
            whole number from 1 on or comes without ``frame_ids``, or ``is_kept`` comes
            without ``window``.

    Laws:
        matches_rule: without a window, the same pairs as ``frame_causal_mask``:
            ``(start[q] <= k < stop[q]) == m[q, k]``
        window_matches_reference: with one, the pairs of the loop-written reference:
            ``reads == reference.window_pairs(...)``
        wide_window: a window of all frames changes nothing: ``intervals(window=T + 1)
            == intervals()``
        within_causal: a window only removes pairs, fewer the wider it is: ``reads(w) <=
            reads(w + 1) <= m``
        evictable: a key that a later query of its segment cannot read is read by none
            after that query, so a server may evict it: ``not reads(r, k) if k < q < r
            and not reads(q, k)``
        holds_diagonal: a real token reads itself: ``start[q] <= q < stop[q]``
        monotone: no bound falls from one real token to the next: ``start[q] <= start[q
            + 1], stop[q] <= stop[q + 1]``

    Example:
        >>> visible = visible_intervals(torch.tensor([0, 1, 1, 2]))
        >>> visible.start.tolist(), visible.stop.tolist()
        ([0, 0, 0, 0], [1, 3, 3, 4])
        >>> frames = torch.tensor([-1, 0, 0, 1, 1, 2])
        >>> last = visible_intervals(frames, frame_ids=frames, window=2)
        >>> last.start.tolist(), last.stop.tolist()
        ([0, 0, 0, 1, 1, 3], [1, 3, 3, 5, 5, 6])
    """
    _check_row(causal_ranks, "integers", segment_ids=segment_ids, frame_ids=frame_ids)
    _check_row(causal_ranks, "booleans", is_kept=is_kept)
    if is_kept is not None and window is None:
        raise ValueError("is_kept needs a window; without one no key expires")
    segment_ids = torch.zeros_like(causal_ranks) if segment_ids is None else segment_ids
    _check_sorted(causal_ranks, segment_ids)
    tokens = len(causal_ranks)
    index = torch.arange(tokens, dtype=torch.int32, device=causal_ranks.device)
    new_segment = starts_run(segment_ids)
    new_run = new_segment | starts_run(causal_ranks)
    first = torch.where(new_segment, index, 0).cummax(0).values
    run_ends = torch.where(new_run.roll(-1), index + 1, tokens)
    stop = run_ends.flip(0).cummin(0).values.flip(0)
    padding = segment_ids < 0
    start = first
    if window is not None:
        start = _window_start(new_segment, padding, frame_ids, window)
    kept = None
    if is_kept is not None:
        kept = KeptKeys(is_kept=is_kept, start=first.masked_fill(padding, 0))
    return KeyIntervals(
        start=start.masked_fill(padding, 0),
        stop=stop.masked_fill(padding, 0),
        kept=kept,
    )


def interval_mask(intervals: KeyIntervals) -> MaskMod:
    """Read intervals as a FlexAttention rule.

    The rule gathers the bounds by query, which FlexAttention's kernels do once per
    row. A gather by key is their slow case: only ``is_kept`` needs one.

    Args:
        intervals: The keys that each query may read.

    Returns:
        A ``mask_mod``; it closes over the tensors.

    Laws:
        matches_rule: on visible intervals, the same pairs as ``frame_causal_mask``:
            ``dense_mask(interval_mask(visible_intervals(r, s))) ==
            dense_mask(frame_causal_mask(r, s))``
        matches_intervals: on any intervals, the pairs that ``KeyIntervals`` states:
            ``m[q, k] == (start[q] <= k < stop[q])``

    Example:
        >>> rule = interval_mask(visible_intervals(torch.tensor([0, 1])))
        >>> dense_mask(rule, 2)
        tensor([[ True, False],
                [ True,  True]])
    """
    start, stop, kept = intervals.start, intervals.stop, intervals.kept

    @no_type_check
    def interval(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (start[q_idx] <= kv_idx) & (kv_idx < stop[q_idx])

    if kept is None:
        return interval
    is_kept, kept_start = kept.is_kept, kept.start

    @no_type_check
    def interval_or_kept(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        lasting = is_kept[kv_idx] & (kept_start[q_idx] <= kv_idx)
        return (lasting | (start[q_idx] <= kv_idx)) & (kv_idx < stop[q_idx])

    return interval_or_kept


def dense_mask(
    mask_mod: MaskMod, num_tokens: int, *, device: torch.device | str = "cpu"
) -> Bool[Tensor, "queries keys"]:
    """Read any rule as a matrix: the oracle for small rows.

    Args:
        mask_mod: The rule; it has to broadcast, as all rules of this library do.
        num_tokens: Length of the row. Time and memory grow with its square.
        device: Where the tensors of the rule lie.

    Returns:
        True where the query (row) may read the key (column).

    Laws:
        matches_create_mask: equals torch's ``create_mask`` of the same rule:
            ``dense_mask(rule, n) == create_mask(rule, 1, 1, n, n)``

    Example:
        >>> dense_mask(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx, 3).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    index = torch.arange(num_tokens, device=device)
    zero = torch.zeros((), dtype=torch.long, device=device)
    mask = mask_mod(zero, zero, index[:, None], index[None, :])
    return mask.expand(num_tokens, num_tokens)


def _check_row(causal_ranks: Tensor, kind: Kind, **others: Tensor | None) -> None:
    """Raise unless others of a kind describe the row that the ranks are of."""
    check_axes("causal_ranks", causal_ranks, "tokens")
    check_dtype("causal_ranks", causal_ranks, "integers")
    for name, each in others.items():
        if each is None:
            continue
        check_axes(name, each, "tokens")
        check_dtype(name, each, kind)
        if len(each) != len(causal_ranks):
            raise ValueError(
                f"{name} has {len(each)} tokens but causal_ranks has "
                f"{len(causal_ranks)}; both describe the same row"
            )


def _check_sorted(causal_ranks: Tensor, segment_ids: Tensor) -> None:
    """Raise unless segments are contiguous and ranks sorted inside them."""
    new_segment = starts_run(segment_ids)
    first_ids = segment_ids[new_segment & (segment_ids >= 0)]
    values, counts = first_ids.unique(return_counts=True)
    if (counts > 1).any():
        first = int((counts > 1).nonzero()[0])
        raise ValueError(
            f"segment {int(values[first])} has tokens in {int(counts[first])} separate "
            "runs; the tokens of a segment must be contiguous"
        )
    falls = ~new_segment & (causal_ranks < causal_ranks.roll(1)) & (segment_ids >= 0)
    if falls.any():
        token = int(falls.nonzero()[0])
        raise ValueError(
            f"causal_ranks falls from {int(causal_ranks[token - 1])} to "
            f"{int(causal_ranks[token])} at token {token}; ranks must be sorted within "
            "a segment"
        )


def _window_start(
    new_segment: Tensor, padding: Tensor, frame_ids: Tensor | None, window: int
) -> Tensor:
    """Find the first key of each query's segment that its window has not passed.

    A segment's number in the high bits and the clock in the low ones make one key that
    never falls along the row.
    """
    if frame_ids is None:
        raise ValueError(f"window is {window} but frame_ids is None; it counts frames")
    window = positive("window", window)
    segment = new_segment.cumsum(0) << 32
    clock = (segment + frame_ids + 1).cummax(0).values - segment
    falls = (frame_ids >= 0) & (frame_ids + 1 < clock)
    is_wrong = (falls | (frame_ids < -1)) & ~padding
    if is_wrong.any():
        token = int(is_wrong.nonzero()[0])
        frame = int(frame_ids[token])
        if frame < -1:
            raise ValueError(
                f"frame_ids[{token}] is {frame}; it must be a frame, or -1 for text"
            )
        raise ValueError(
            f"frame_ids falls from {int(clock[token]) - 1} to {frame} at token "
            f"{token}; frames must be sorted within a segment"
        )
    oldest = segment + (clock - window + 1).clamp(min=0)
    return torch.searchsorted(segment + clock, oldest, out_int32=True)
