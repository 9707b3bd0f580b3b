"""Work of a mask, pair by pair and tile by tile."""

from collections.abc import Sequence


def count_pairs(pairs: Sequence[Sequence[bool]]) -> int:
    """Count the flags that are set, one row of them per query."""
    total = 0
    for row in pairs:
        for visible in row:
            total += 1 if visible else 0
    return total


def count_live_tiles(pairs: Sequence[Sequence[bool]], block_size: int) -> int:
    """Count the tiles that hold a visible pair.

    Args:
        pairs: One row of flags per query.
        block_size: Side of a tile; those at the end may hang over.

    Returns:
        How many different tiles the visible pairs fall into.
    """
    live = set()
    for query, row in enumerate(pairs):
        for key, visible in enumerate(row):
            if visible:
                live.add((query // block_size, key // block_size))
    return len(live)


def count_run_pairs(run_lengths: Sequence[int]) -> int:
    """Count the keys that every token of a sample reads, token by token.

    Args:
        run_lengths: Tokens of each run; those of one run read each other.

    Returns:
        Pairs of the sample.
    """
    pairs = 0
    before = 0
    for length in run_lengths:
        for _ in range(length):
            pairs += before + length
        before += length
    return pairs
