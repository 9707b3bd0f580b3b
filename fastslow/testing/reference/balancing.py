"""Ranks, item by item."""

from collections.abc import Sequence
from itertools import permutations, product


def greedy_ranks(
    costs: Sequence[int], num_ranks: int, lengths: Sequence[int], capacity: int
) -> tuple[list[list[int]], list[int]]:
    """Put items, costliest first, on the rank with room that costs least so far.

    Items of equal cost go in the order given, ranks of equal cost in theirs. Gives the
    items of each rank and those that fit nowhere.
    """
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    left = []
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        with_room = [
            rank
            for rank in ranks
            if sum(lengths[i] for i in rank) + lengths[item] <= capacity
        ]
        if with_room:
            min(with_room, key=lambda rank: sum(costs[i] for i in rank)).append(item)
        else:
            left.append(item)
    return [sorted(rank) for rank in ranks], sorted(left)


def least_peak(costs: Sequence[int], num_ranks: int) -> int:
    """Find the least cost of the costliest rank by trying every assignment."""
    peaks = []
    for ranks in product(range(num_ranks), repeat=len(costs)):
        loads = [0] * num_ranks
        for rank, cost in zip(ranks, costs, strict=True):
            loads[rank] += cost
        peaks.append(max(loads))
    return min(peaks)


def least_rounds(costs: Sequence[int], num_ranks: int) -> int:
    """Find the least sum of the costliest items of all rounds, one item a rank.

    Every order of the items is tried, cut into rounds.
    """
    return min(
        sum(max(row[i : i + num_ranks]) for i in range(0, len(row), num_ranks))
        for row in permutations(costs)
    )
