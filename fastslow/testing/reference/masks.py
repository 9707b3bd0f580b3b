"""Who reads whom, pair by pair."""

from collections.abc import Sequence


def visible_pairs(
    causal_ranks: Sequence[int], segment_ids: Sequence[int]
) -> list[list[bool]]:
    """Tell for every query (row) and key (column) whether the query may read the key.

    Args:
        causal_ranks: Order of each token in its segment.
        segment_ids: Segment of each token; -1 is padding.

    Returns:
        One row of flags per query.
    """
    pairs = []
    for query_rank, query_segment in zip(causal_ranks, segment_ids, strict=True):
        row = []
        for key_rank, key_segment in zip(causal_ranks, segment_ids, strict=True):
            together = query_segment != -1 and query_segment == key_segment
            row.append(together and not key_rank > query_rank)
        pairs.append(row)
    return pairs


def frame_clocks(segment_ids: Sequence[int], frame_ids: Sequence[int]) -> list[int]:
    """Count for every token the frames of its segment that have begun.

    Args:
        segment_ids: Segment of each token; -1 is padding.
        frame_ids: Frame of each video token; -1 is text.

    Returns:
        One more than the last frame up to the token; 0 before any frame and on padding.
    """
    clocks = []
    clock_of: dict[int, int] = {}
    for segment, frame in zip(segment_ids, frame_ids, strict=True):
        if segment != -1 and frame != -1:
            clock_of[segment] = frame + 1
        clocks.append(clock_of.get(segment, 0))
    return clocks


def window_pairs(
    causal_ranks: Sequence[int],
    segment_ids: Sequence[int],
    frame_ids: Sequence[int],
    window: int,
    is_kept: Sequence[bool],
) -> list[list[bool]]:
    """Tell who reads whom when keys expire after ``window`` frames, unless kept.

    Args:
        causal_ranks: Order of each token in its segment.
        segment_ids: Segment of each token; -1 is padding.
        frame_ids: Frame of each video token; -1 is text.
        window: Frames that a query sees, the latest one begun included.
        is_kept: Whether each key outlasts the window.

    Returns:
        One row of flags per query.
    """
    clocks = frame_clocks(segment_ids, frame_ids)
    pairs = visible_pairs(causal_ranks, segment_ids)
    for query, row in enumerate(pairs):
        for key in range(len(row)):
            age = clocks[query] - clocks[key]
            row[key] = row[key] and (age < window or is_kept[key])
    return pairs
