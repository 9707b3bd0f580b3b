"""Fitting rules over items that are sorted by length: many equal items in one step.

A rule takes the different lengths, longest first, the number of items of each, and the
capacity. It answers with runs: a bin, and how many of the sorted items it takes next.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from operator import index
from typing import Any

from fastslow._shapes import positive

Place = Callable[[list[int], list[int], int], tuple[list[int], list[int]]]


def place_best(
    sizes: list[int], counts: list[int], capacity: int
) -> tuple[list[int], list[int]]:
    """Give bins, and how many of the sorted items each takes in turn, by best fit.

    While a space is the smallest that fits it stays so until its bin is full, and
    equally full bins fill one after another: both go as one step.
    """
    owners: list[int] = []
    takes: list[int] = []
    spaces: list[int] = []
    bins_with: dict[int, list[int]] = {}
    opened = 0
    for size, count in zip(sizes, counts, strict=True):
        left = count
        while left:
            fit = bisect_left(spaces, size)
            if fit == len(spaces):
                new = range(opened, opened - (-left // (capacity // size)))
                spaces.append(capacity)
                bins_with[capacity] = list(new)
                opened = new.stop
            space = spaces[fit]
            bins = bins_with[space]
            each = min(space // size, left)
            chosen = [heappop(bins) for _ in range(min(len(bins), left // each))]
            if not bins:
                del bins_with[space], spaces[fit]
            owners += chosen
            takes += [each] * len(chosen)
            left -= each * len(chosen)
            rest = space - each * size
            if rest >= sizes[-1]:
                if rest not in bins_with:
                    insort(spaces, rest)
                fuller = bins_with.setdefault(rest, [])
                for chosen_bin in chosen:
                    heappush(fuller, chosen_bin)
    return owners, takes


def place_first(
    sizes: list[int], counts: list[int], capacity: int
) -> tuple[list[int], list[int]]:
    """Give bins, and how many of the sorted items each takes in turn, by first fit.

    A tree over all the bins that there can be (at most one is under half full) holds
    the largest space below each node; its leaves are the bins, empty ones too.
    """
    tokens = sum(size * count for size, count in zip(sizes, counts, strict=True))
    leaves = 1 << (-(-2 * tokens // capacity)).bit_length()
    largest = [capacity] * (2 * leaves)
    owners: list[int] = []
    takes: list[int] = []
    for size, count in zip(sizes, counts, strict=True):
        left = count
        while left:
            node = 1
            while node < leaves:
                node = 2 * node + (largest[2 * node] < size)
            take = min(largest[node] // size, left)
            owners.append(node - leaves)
            takes.append(take)
            left -= take
            space = largest[node] - take * size
            while node and largest[node] != space:
                largest[node] = space
                space = max(space, largest[node ^ 1])
                node //= 2
    return owners, takes


def check_lengths(lengths: Sequence[int], capacity: int) -> None:
    """Raise a ValueError that names the first item that cannot be packed."""
    if positive("capacity", capacity) >= 2**63:
        raise ValueError(f"capacity is {capacity}; it must be less than 2**63")
    within = min(lengths, default=1) >= 1 and max(lengths, default=1) <= capacity
    if within and _is_whole(sum(lengths)):
        return
    for item, length in enumerate(lengths):
        check_length(item, length, capacity)


def check_length(item: int, length: int, capacity: int) -> None:
    """Raise a ValueError unless the item fits an empty bin."""
    if not (_is_whole(length) and 1 <= length <= capacity):
        raise ValueError(
            f"item {item} has {length} tokens; it must have a whole number of them, "
            f"between 1 and the capacity of {capacity}"
        )


def _is_whole(number: Any) -> bool:
    """Whether a number is an integer by its type; that of a tensor is its dtype."""
    try:
        index(number)
    except TypeError:
        return False
    return True
