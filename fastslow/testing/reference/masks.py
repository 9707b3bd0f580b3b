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
