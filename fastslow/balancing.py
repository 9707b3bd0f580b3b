"""Which rank does which work: equal cost on every rank, under a cap of tokens."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from math import fsum, inf
from typing import TypeVar

from fastslow._shapes import positive

_Number = TypeVar("_Number", bound=float)


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """Which items each rank does.

    Attributes:
        ranks: Item numbers of each rank, ascending.
        left: Items that no rank has room for, ascending.
    """

    ranks: tuple[tuple[int, ...], ...]
    left: tuple[int, ...]


def balance(
    costs: Sequence[float],
    num_ranks: int,
    *,
    lengths: Sequence[int] | None = None,
    capacity: int | None = None,
) -> Balanced:
    """Share items out so that the costliest rank costs as little as may be.

    The costliest item goes first, to the rank that costs least so far among those
    that have room. Then the costliest rank swaps items with others, or gives them
    away, while that helps: at most 16 times per rank, and until it is within 1/10,000
    of the mean. Where a capacity leaves hardly any room, few exchanges fit, and the
    time that they are looked for grows with the square of the ranks. With tokens as
    lengths this fills a global batch; with lengths of 1 and the number of bins per rank
    as capacity it deals bins out.

    Args:
        costs: Cost of each item in any unit, at least 0.
        num_ranks: Ranks, at least 1.
        lengths: Room that each item takes, at least 0; none by default.
        capacity: Room of every rank, at least 0; given with ``lengths``.

    Returns:
        The items of each rank, and those that found no room.

    Raises:
        ValueError: If a number is out of range, ``lengths`` has another number of items
            than ``costs``, or one of ``lengths`` and ``capacity`` is missing.

    Laws:
        partition: every item lies on exactly one rank or is left: ``sorted(sum(ranks,
            left)) == list(range(n))``
        capacity: no rank holds more than its capacity: ``sum(lengths[i] for i in rank)
            <= capacity``
        equal_counts: as many items of length 1 as there are places fill every rank:
            ``[len(rank) for rank in ranks] == [capacity] * num_ranks``
        maximal: an item that is left fits on no rank: ``sum(lengths[i] for i in rank) +
            lengths[j] > capacity for j in left``
        never_worse: the costliest rank costs at most as much as the greedy rule's
            unless more items found room: ``max(loads) <= max(greedy loads)``
        guarantee: without lengths at most 4/3 - 1/(3 m) times the least possible cost
            of the costliest of m ranks: ``max(loads) <= (4/3 - 1/(3 m)) * least``
        settled: without lengths, and before 16 exchanges per rank, the costliest rank
            has no gift or swap left that helps, or is within 1/10,000 of the mean
        renumbers: where no two items cost the same, renumbering items renumbers the
            answer: ``balance(costs[p]) == p^-1 of balance(costs)``

    Example:
        >>> balance([3, 3, 2, 2, 2], 2).ranks
        ((2, 3, 4), (0, 1))
        >>> balance([3, 3, 2, 2], 2, lengths=[5, 3, 4, 4], capacity=8)
        Balanced(ranks=((0,), (1, 2)), left=(3,))

    References:
        Graham, "Bounds on multiprocessing timing anomalies" (SIAM J. Appl. Math. 17,
        1969), for the greedy rule and its guarantee.
    """
    if (lengths is None) != (capacity is None):
        missing = "lengths" if lengths is None else "capacity"
        raise ValueError(f"{missing} is missing; lengths and capacity go together")
    costs = _plain(costs)
    lengths = [0] * len(costs) if lengths is None else _plain(lengths)
    capacity = 0 if capacity is None else capacity
    _check(costs, num_ranks, lengths, capacity)
    ranks = [_Rank(cost=0, room=capacity, items=[]) for _ in range(num_ranks)]
    waiting = sorted(range(len(costs)), key=costs.__getitem__, reverse=True)
    while (left := _place(waiting, ranks, costs, lengths)) != waiting:
        waiting = left
        _exchange_items(ranks, lengths)
    return Balanced(
        ranks=tuple(tuple(sorted(item for _, item in r.items)) for r in ranks),
        left=tuple(sorted(left)),
    )


def deal_rounds(costs: Sequence[float], num_ranks: int) -> tuple[tuple[int, ...], ...]:
    """Deal items in rounds, one to each rank, so that ranks hardly wait for each other.

    Under FSDP every block of the model is gathered by all ranks together, so in each
    forward and backward pass all of them wait for the one with the costliest row. Items
    of like cost therefore share a round: the costliest of all are the first one. In a
    round the costliest goes to the rank whose items cost least so far.

    Args:
        costs: Cost of each item in any unit, at least 0.
        num_ranks: Ranks, at least 1; it divides the number of items.

    Returns:
        Rounds, each with the item of every rank.

    Raises:
        ValueError: If a number is out of range, or the items do not fill the rounds.

    Laws:
        partition: every item comes once: ``sorted(sum(rounds, ())) == list(range(n))``
        least: of all ways to deal, ranks that wait in every round for its costliest
            item take least time: ``sum(max(costs[i] for i in r) for r in rounds) ==
            reference.least_rounds(costs, m)``
        falling: no item costs more than one of a round before: ``min(costs[i] for i in
            rounds[k]) >= max(costs[i] for i in rounds[k + 1])``
        even: in all, two ranks differ by no more than two items of some round do:
            ``max(loads) - min(loads) <= max(max(costs[i] for i in r) - min(costs[i] for
            i in r) for r in rounds)``

    Example:
        >>> deal_rounds([9, 1, 8, 2], 2)
        ((0, 2), (1, 3))
    """
    costs = _plain(costs)
    _check_costs(costs)
    positive("num_ranks", num_ranks)
    if len(costs) % num_ranks:
        raise ValueError(
            f"costs has {len(costs)} items, which {num_ranks} ranks cannot share; "
            "their number must divide it"
        )
    order = sorted(range(len(costs)), key=costs.__getitem__, reverse=True)
    loads, rounds = [0.0] * num_ranks, []
    for first in range(0, len(order), num_ranks):
        ranks = sorted(range(num_ranks), key=loads.__getitem__)
        dealt = dict(zip(ranks, order[first : first + num_ranks], strict=True))
        for rank, item in dealt.items():
            loads[rank] += costs[item]
        rounds.append(tuple(dealt[rank] for rank in range(num_ranks)))
    return tuple(rounds)


def imbalance(costs_per_rank: Sequence[float]) -> float:
    """Divide the cost of the costliest rank by the mean cost.

    A step takes as long as its costliest rank, so this is the time of a step over the
    time that it would take if the work were shared evenly.

    Args:
        costs_per_rank: Cost of all the work of each rank, at least 0. There is at least
            one rank.

    Returns:
        The ratio, at least 1; 1 if there is no work.

    Raises:
        ValueError: If there is no rank or a cost is out of range.

    Laws:
        ratio: exactly the largest cost over the mean, for integers: ``imbalance(c) ==
            max(c) / (sum(c) / len(c))``
        range: between 1, which equal costs have, and the number of ranks: ``1 <=
            imbalance(c) <= len(c)``

    Example:
        >>> imbalance([3, 1])
        1.5
    """
    costs = _plain(costs_per_rank)
    _check_costs(costs)
    if not costs:
        raise ValueError("costs_per_rank is empty; there is at least one rank")
    total = fsum(costs)
    ratio = max(costs) * len(costs) / total if total else 1.0
    return min(max(ratio, 1.0), float(len(costs)))  # sums are rounded


def imbalance_bound(costs: Sequence[float], num_ranks: int) -> float:
    """Bound from below the imbalance of any assignment of items to ranks.

    Items are not divided, so some rank does the costliest one.

    Args:
        costs: Cost of each item, at least 0.
        num_ranks: Ranks, at least 1.

    Returns:
        The largest cost over the mean cost of a rank, or 1 if that is more.

    Raises:
        ValueError: If a number is out of range.

    Laws:
        lower_bound: no assignment of all items has a lower imbalance:
            ``imbalance(loads) >= imbalance_bound(costs, m)``
        attained: one item per rank has exactly this imbalance: ``imbalance(costs) ==
            imbalance_bound(costs, len(costs))``

    Example:
        >>> imbalance_bound([3, 1], 2)
        1.5
    """
    costs = _plain(costs)
    _check_costs(costs)
    positive("num_ranks", num_ranks)
    total = fsum(costs)
    return max(1.0, max(costs) * num_ranks / total) if total else 1.0


@dataclass(kw_only=True)
class _Rank:
    """What a rank has so far; its items with their costs, the cheapest first."""

    cost: float
    room: int
    items: list[tuple[float, int]]


def _place(
    waiting: list[int],
    ranks: list[_Rank],
    costs: Sequence[float],
    lengths: Sequence[int],
) -> list[int]:
    """Put items in turn on the rank that costs least and has room; give the others."""
    left = []
    widest = max(rank.room for rank in ranks)  # at least: rooms only shrink here
    queue = [(rank.cost, number) for number, rank in enumerate(ranks)]
    heapify(queue)
    for item in waiting:
        if lengths[item] > widest:
            left.append(item)
            continue
        full = []
        while queue and ranks[queue[0][1]].room < lengths[item]:
            full.append(heappop(queue))
        if queue:
            rank = ranks[queue[0][1]]
            rank.cost += costs[item]
            rank.room -= lengths[item]
            rank.items.append((costs[item], item))
            heapreplace(queue, (rank.cost, queue[0][1]))
        else:
            left.append(item)
            widest = max(rank.room for rank in ranks)
        for entry in full:
            heappush(queue, entry)
    for rank in ranks:
        rank.items.sort()
    return left


def _exchange_items(ranks: list[_Rank], lengths: Sequence[int]) -> None:
    """Let the costliest rank exchange items with others as long as that helps.

    It ends within 1/10,000 of the mean, and after 16 exchanges per rank.
    """
    enough = 1.0001 * fsum(rank.cost for rank in ranks) / len(ranks)
    for _ in range(16 * len(ranks)):
        *others, giver = sorted(ranks, key=lambda rank: rank.cost)
        if giver.cost <= enough:
            return
        for taker in others:
            if _exchange(giver, taker, lengths):
                break
        else:
            return


def _exchange(giver: _Rank, taker: _Rank, lengths: Sequence[int]) -> bool:
    """Make the exchange of an item for a cheaper one, or for none, that evens most."""
    gap = giver.cost - taker.cost
    best, found = gap / 2, None
    nothing = (0, -1)
    offers = [nothing, *taker.items]
    for given in giver.items:
        near = bisect_left(offers, (given[0] - gap / 2, -1))
        for taken in offers[max(near - 1, 0) : near + 1]:
            longer = lengths[given[1]] - (taken[1] >= 0 and lengths[taken[1]])
            off = abs(given[0] - taken[0] - gap / 2)
            if off < best and -giver.room <= longer <= taker.room:
                best, found = off, (given, taken, longer)
    if found is None:
        return False
    given, taken, longer = found
    giver.items.remove(given)
    insort(taker.items, given)
    if taken != nothing:
        taker.items.remove(taken)
        insort(giver.items, taken)
    giver.cost += taken[0] - given[0]
    taker.cost += given[0] - taken[0]
    giver.room += longer
    taker.room -= longer
    return True


def _plain(numbers: Sequence[_Number]) -> list[_Number]:
    """Give numbers that do not overflow, of arrays too."""
    return [each.item() if hasattr(each, "item") else each for each in numbers]


def _check(
    costs: Sequence[float], num_ranks: int, lengths: Sequence[int], capacity: int
) -> None:
    """Raise a ValueError unless items can be shared out."""
    _check_costs(costs)
    positive("num_ranks", num_ranks)
    if len(lengths) != len(costs):
        raise ValueError(
            f"lengths has {len(lengths)} items but costs has {len(costs)}; both "
            "describe the same items"
        )
    if capacity < 0:
        raise ValueError(f"capacity is {capacity}; it must be at least 0")
    for item, length in enumerate(lengths):
        if length < 0:
            raise ValueError(f"length {item} is {length}; it must be at least 0")


def _check_costs(costs: Sequence[float]) -> None:
    """Raise a ValueError unless every cost is a finite number that is not negative."""
    for item, cost in enumerate(costs):
        if not 0 <= cost < inf:
            raise ValueError(f"cost {item} is {cost}; it must be finite, at least 0")
