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


Slice = tuple[tuple[int, int], tuple[int, int], bool]


def slices(start: Sequence[int], stop: Sequence[int]) -> list[Slice]:
    """Cut a mask of intervals into rectangles and staircases, query by query.

    Args:
        start: First key of each query.
        stop: One past its last key; both are 0 on padding.

    Returns:
        Bounds of queries, bounds of keys, and whether the last query reads all of the
        keys and each one before reads one key less.
    """
    frames: list[list[int]] = []
    for query, interval in enumerate(zip(start, stop, strict=True)):
        if interval == (0, 0):
            continue
        if frames and frames[-1][1:] == [query, *interval]:
            frames[-1][1] = query + 1
        else:
            frames.append([query, query + 1, *interval])
    found: list[Slice] = []
    for first, end, first_key, end_key in frames:
        is_step = end == first + 1 and end_key == end
        if is_step and found:
            (before, last), (key, _), was_steps = found[-1]
            if was_steps and (last, key) == (first, first_key):
                found[-1] = ((before, end), (key, end_key), True)
                continue
        found.append(((first, end), (first_key, end_key), is_step))
    return found


def slice_reads(slices: Sequence[Slice], num_tokens: int) -> list[list[int]]:
    """Count how often every query (row) reads every key (column) in slices."""
    reads = [[0] * num_tokens for _ in range(num_tokens)]
    for (first, end), (first_key, end_key), is_causal in slices:
        for query in range(first, end):
            hidden = end - 1 - query if is_causal else 0
            for key in range(first_key, end_key - hidden):
                reads[query][key] += 1
    return reads


def varlen_reads(
    queries: Sequence[int],
    keys: Sequence[int],
    cu_seqlens: Sequence[int],
    num_tokens: int,
    *,
    upper: bool,
) -> list[list[int]]:
    """Count how often every query (row) reads every key (column) in one varlen call.

    Args:
        queries: Row number of each query of the call.
        keys: Row number of each key.
        cu_seqlens: Bounds of the sequences among both.
        num_tokens: Length of the row.
        upper: Whether query ``i`` of a sequence reads keys ``j >= i``, else ``j <= i``.

    Returns:
        One row of counts per query.
    """
    reads = [[0] * num_tokens for _ in range(num_tokens)]
    for number in range(len(cu_seqlens) - 1):
        members = range(cu_seqlens[number], cu_seqlens[number + 1])
        for i in members:
            for j in members:
                if (j >= i) if upper else (j <= i):
                    reads[queries[i]][keys[j]] += 1
    return reads
