"""Lengths and places, item by item."""

from collections.abc import Iterable, Sequence


def bounds(lengths: Iterable[int]) -> list[int]:
    """Add lengths up, beginning with 0."""
    totals = [0]
    for length in lengths:
        totals.append(totals[-1] + length)
    return totals


def segments_and_places(
    lengths: Sequence[int], num_items: int
) -> list[tuple[int, int]]:
    """Give sequence and place of every item; items left over are padding, -1."""
    pairs = []
    for sequence, length in enumerate(lengths):
        for place in range(length):
            pairs.append((sequence, place))
    for place in range(num_items - len(pairs)):
        pairs.append((-1, place))
    return pairs
