"""Laws of ``fastslow.balancing``."""

from fractions import Fraction
from heapq import heappop
from itertools import pairwise
from math import inf, nan
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    Balanced,
    balance,
    balancing,
    deal_rounds,
    imbalance,
    imbalance_bound,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Problem = tuple[list[int], list[int], int, int]

problems = fst.balancing_problems()
costs_lists = st.lists(st.integers(0, 30), max_size=12)
few_costs = st.lists(st.integers(0, 30), max_size=6)
rank_counts = st.integers(1, 4)


few_rounds = st.builds(
    lambda costs, ranks: (costs[: len(costs) // ranks * ranks], ranks),
    few_costs,
    rank_counts,
)


def share_out(problem: Problem) -> Balanced:
    costs, lengths, num_ranks, capacity = problem
    return balance(costs, num_ranks, lengths=lengths, capacity=capacity)


def rank_costs(balanced: Balanced, costs: list[int]) -> list[int]:
    return [sum(costs[item] for item in items) for items in balanced.ranks]


@given(problems)
def test_balance__partition(problem: Problem) -> None:
    costs, _, num_ranks, _ = problem
    balanced = share_out(problem)
    parts = [*balanced.ranks, balanced.left]
    assert sorted(item for part in parts for item in part) == list(range(len(costs)))
    assert all(part == tuple(sorted(part)) for part in parts)
    assert len(balanced.ranks) == num_ranks


@given(problems)
@example(([3, 3, 2, 2], [5, 3, 4, 4], 2, 8))
@example(([7, 4, 3, 2], [2, 1, 2, 3], 2, 4))
def test_balance__capacity(problem: Problem) -> None:
    _, lengths, _, capacity = problem
    for items in share_out(problem).ranks:
        assert sum(lengths[item] for item in items) <= capacity


@given(st.data(), rank_counts, st.integers(0, 4))
def test_balance__equal_counts(data: st.DataObject, num_ranks: int, each: int) -> None:
    count = num_ranks * each
    costs = data.draw(st.lists(st.integers(0, 30), min_size=count, max_size=count))
    balanced = balance(costs, num_ranks, lengths=[1] * count, capacity=each)
    assert [len(items) for items in balanced.ranks] == [each] * num_ranks
    assert balanced.left == ()


@given(problems)
def test_balance__maximal(problem: Problem) -> None:
    _, lengths, _, capacity = problem
    balanced = share_out(problem)
    for items in balanced.ranks:
        room = capacity - sum(lengths[item] for item in items)
        assert all(lengths[item] > room for item in balanced.left)


@given(problems)
@example(([10, 3, 2], [0, 0, 0], 2, 0))
def test_balance__never_worse(problem: Problem) -> None:
    costs, lengths, num_ranks, capacity = problem
    balanced = share_out(problem)
    greedy, left = reference.greedy_ranks(costs, num_ranks, lengths, capacity)
    assert set(balanced.left) <= set(left)
    if balanced.left == tuple(left):
        peak = max(sum(costs[item] for item in items) for items in greedy)
        assert max(rank_costs(balanced, costs)) <= peak


@given(few_costs, rank_counts)
@example([3, 3, 2, 2, 2], 2)
def test_balance__guarantee(costs: list[int], num_ranks: int) -> None:
    balanced = balance(costs, num_ranks)
    assert balanced.left == ()
    factor = Fraction(4, 3) - Fraction(1, 3 * num_ranks)
    least = reference.least_peak(costs, num_ranks)
    assert least <= max(rank_costs(balanced, costs)) <= factor * least


@given(costs_lists, rank_counts)
@example([3, 3, 2, 2, 2], 2)
@example([8, 7, 6, 5, 4], 2)
@example([20_003, 20_000, 1, 1], 2)
@example([39, 38, 62, 85, 9, 60], 2)  # takes more exchanges than there are ranks
@example([91, 83, 9, 13, 12], 2)  # goes on within 1/100 of the mean
def test_balance__settled(costs: list[int], num_ranks: int) -> None:
    balanced = balance(costs, num_ranks)
    loads = rank_costs(balanced, costs)
    peak = max(loads)
    if peak * num_ranks * 10_000 <= sum(costs) * 10_001 or loads.count(peak) > 1:
        return
    giver = loads.index(peak)
    for taker in set(range(num_ranks)) - {giver}:
        gap = peak - loads[taker]
        taken = [0, *(costs[item] for item in balanced.ranks[taker])]
        for item in balanced.ranks[giver]:
            assert not any(0 < costs[item] - cost < gap for cost in taken)


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 6)),
        max_size=10,
        unique_by=lambda item: item[0],
    ),
    rank_counts,
    st.integers(0, 18),
    st.randoms(use_true_random=False),
)
def test_balance__renumbers(
    items: list[tuple[int, int]], num_ranks: int, capacity: int, random: Random
) -> None:
    order = list(range(len(items)))
    random.shuffle(order)

    def answer(numbers: list[int]) -> list[set[int]]:
        balanced = share_out(
            (
                [items[number][0] for number in numbers],
                [items[number][1] for number in numbers],
                num_ranks,
                capacity,
            )
        )
        parts = [*balanced.ranks, balanced.left]
        return [{numbers[item] for item in part} for part in parts]

    assert answer(order) == answer(list(range(len(items))))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8))
@example([0, 0])
def test_imbalance__ratio(costs: list[int]) -> None:
    mean = Fraction(sum(costs), len(costs))
    expected = max(costs) / mean if mean else Fraction(1)
    assert imbalance(costs) == float(expected)


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=8))
@example([0.7] * 7)
@example([0.3] * 6)
def test_imbalance__range(costs: list[float]) -> None:
    assert 1 <= imbalance(costs) <= len(costs) * (1 + 1e-12)
    assert imbalance([costs[0]] * len(costs)) == pytest.approx(1, rel=1e-12)


@given(few_costs, rank_counts)
@example([], 2)
@example([0, 0], 2)
def test_imbalance_bound__lower_bound(costs: list[int], num_ranks: int) -> None:
    lowest = Fraction(1)
    if sum(costs):
        least = reference.least_peak(costs, num_ranks)
        lowest = Fraction(least * num_ranks, sum(costs))
    assert 1 <= imbalance_bound(costs, num_ranks) <= float(lowest)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8))
def test_imbalance_bound__attained(costs: list[int]) -> None:
    assert imbalance_bound(costs, len(costs)) == imbalance(costs)


def test_an_exchange_betters_the_greedy_rule() -> None:
    assert balance([3, 3, 2, 2, 2], 2).ranks == ((2, 3, 4), (0, 1))


def test_an_exchange_may_make_room_for_an_item_that_was_left() -> None:
    costs, lengths = [9, 4, 0, 5, 2], [1, 2, 3, 6, 2]
    greedy = reference.greedy_ranks(costs, 2, lengths, 7)
    assert greedy == ([[0, 1, 4], [3]], [2])
    balanced = balance(costs, 2, lengths=lengths, capacity=7)
    assert balanced == Balanced(ranks=((1, 2, 4), (0, 3)), left=())


@given(problems)
def test_items_are_placed_as_the_greedy_rule_in_loops_does(problem: Problem) -> None:
    costs, lengths, num_ranks, capacity = problem
    ranks = [balancing._Rank(cost=0, room=capacity, items=[]) for _ in range(num_ranks)]
    waiting = sorted(range(len(costs)), key=costs.__getitem__, reverse=True)
    left = balancing._place(waiting, ranks, costs, lengths)
    placed = [sorted(item for _, item in rank.items) for rank in ranks]
    expected = reference.greedy_ranks(costs, num_ranks, lengths, capacity)
    assert (placed, sorted(left)) == expected


def test_an_item_that_finds_no_room_does_not_visit_every_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    popped = []

    def pop(queue: list[tuple[float, int]]) -> tuple[float, int]:
        popped.append(queue[0])
        return heappop(queue)

    monkeypatch.setattr(balancing, "heappop", pop)
    balanced = balance([1.0] * 3000, 64, lengths=[1] * 3000, capacity=4)
    assert len(balanced.left) == 3000 - 64 * 4
    assert len(popped) < 64 * 5


@given(few_rounds)
def test_deal_rounds__partition(problem: tuple[list[int], int]) -> None:
    costs, num_ranks = problem
    rounds = deal_rounds(costs, num_ranks)
    assert sorted(item for row in rounds for item in row) == list(range(len(costs)))
    assert all(len(row) == num_ranks for row in rounds)


@given(few_rounds)
def test_deal_rounds__least(problem: tuple[list[int], int]) -> None:
    costs, num_ranks = problem
    taken = sum(max(costs[i] for i in row) for row in deal_rounds(costs, num_ranks))
    assert taken == reference.least_rounds(costs, num_ranks)


@given(few_rounds)
def test_deal_rounds__falling(problem: tuple[list[int], int]) -> None:
    costs, num_ranks = problem
    for before, after in pairwise(deal_rounds(costs, num_ranks)):
        assert min(costs[i] for i in before) >= max(costs[i] for i in after)


@given(few_rounds)
@example(([9, 5, 4, 1], 2))
def test_deal_rounds__even(problem: tuple[list[int], int]) -> None:
    costs, num_ranks = problem
    rounds = deal_rounds(costs, num_ranks)
    loads = [sum(costs[row[rank]] for row in rounds) for rank in range(num_ranks)]
    dealt = [[costs[i] for i in row] for row in rounds]
    apart = max((max(row) - min(row) for row in dealt), default=0)
    assert max(loads) - min(loads) <= apart


def test_rounds_that_cannot_be_filled_are_refused() -> None:
    with pytest.raises(ValueError) as error:
        deal_rounds([1, 2, 3], 2)
    assert str(error.value) == (
        "costs has 3 items, which 2 ranks cannot share; their number must divide it"
    )


def test_no_items_leave_every_rank_empty() -> None:
    assert balance([], 2) == Balanced(ranks=((), ()), left=())


def test_costs_may_be_real_numbers() -> None:
    assert balance([0.5, 0.25, 0.25], 2).ranks == ((0,), (1, 2))


@pytest.mark.parametrize("cost", [-1.0, nan, inf])
def test_a_cost_out_of_range_is_named(cost: float) -> None:
    message = f"cost 1 is {cost}; it must be finite, at least 0"
    for act in (
        lambda: balance([1.0, cost], 2),
        lambda: deal_rounds([1.0, cost], 2),
        lambda: imbalance([1.0, cost]),
        lambda: imbalance_bound([1.0, cost], 2),
    ):
        with pytest.raises(ValueError) as error:
            act()
        assert str(error.value) == message


def test_a_number_of_ranks_below_one_is_named() -> None:
    for act in (
        lambda: balance([1], 0),
        lambda: deal_rounds([1], 0),
        lambda: imbalance_bound([1], 0),
    ):
        with pytest.raises(ValueError) as error:
            act()
        assert str(error.value) == "num_ranks is 0; it must be at least 1"
    with pytest.raises(ValueError) as error:
        imbalance([])
    assert str(error.value) == "costs_per_rank is empty; there is at least one rank"


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        (None, 3, "lengths is missing; lengths and capacity go together"),
        ([1, 1], None, "capacity is missing; lengths and capacity go together"),
        (
            [1],
            3,
            "lengths has 1 items but costs has 2; both describe the same items",
        ),
        ([1, 1], -1, "capacity is -1; it must be at least 0"),
        ([1, -1], 3, "length 1 is -1; it must be at least 0"),
    ],
)
def test_lengths_that_cannot_be_are_named(
    lengths: list[int] | None, capacity: int | None, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        balance([1, 2], 2, lengths=lengths, capacity=capacity)
    assert str(error.value) == message


def test_balancing_leaves_its_arguments_alone() -> None:
    costs, lengths = [3, 3, 2, 2], [5, 3, 4, 4]
    balance(costs, 2, lengths=lengths, capacity=8)
    assert (costs, lengths) == ([3, 3, 2, 2], [5, 3, 4, 4])


def test_rounding_leaves_an_imbalance_in_its_range() -> None:
    assert imbalance([0.38864224283144744, 0, 0, 0, 0, 0]) == 6.0
