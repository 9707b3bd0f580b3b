"""Laws of ``fastslow.packing``."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from math import ceil, floor
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    best_fit_decreasing,
    fewest_bins_bound,
    fill,
    first_fit_decreasing,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Problem = tuple[list[int], int]
Bins = list[tuple[int, ...]]
Pack = Callable[[list[int], int], tuple[tuple[int, ...], ...]]

problems = fst.packing_problems(max_items=15)
small_problems = fst.packing_problems(max_items=7)
repeated = fst.packing_problems(max_items=60, max_capacity=12)
PLANNERS = (best_fit_decreasing, first_fit_decreasing, fewest_bins_bound)


def assert_partition(bins: tuple[tuple[int, ...], ...], count: int) -> None:
    """Check that every item lies in one bin and that no bin is empty or unsorted."""
    assert sorted(item for items in bins for item in items) == list(range(count))
    assert all(items == tuple(sorted(items)) and items for items in bins)


def assert_near_fewest(bins: int, problem: Problem) -> None:
    """Check the guarantee of both decreasing rules against every packing."""
    fewest = reference.fewest_bins(*problem)
    assert fewest_bins_bound(*problem) <= fewest <= bins
    assert bins <= floor(Fraction(11 * fewest + 6, 9))


@given(problems)
def test_best_fit_decreasing__partition(problem: Problem) -> None:
    assert_partition(best_fit_decreasing(*problem), len(problem[0]))


@given(problems)
def test_best_fit_decreasing__capacity(problem: Problem) -> None:
    lengths, capacity = problem
    for items in best_fit_decreasing(lengths, capacity):
        assert sum(lengths[item] for item in items) <= capacity


@given(small_problems)
@example(([5, 4, 3, 2, 2], 8))
def test_best_fit_decreasing__bound(problem: Problem) -> None:
    assert_near_fewest(len(best_fit_decreasing(*problem)), problem)


@given(problems, st.integers(1, 9))
def test_best_fit_decreasing__scale(problem: Problem, factor: int) -> None:
    lengths, capacity = problem
    scaled = best_fit_decreasing([factor * n for n in lengths], factor * capacity)
    assert scaled == best_fit_decreasing(lengths, capacity)


@given(st.one_of(problems, repeated))
@example(([12, 9, 9, 2], 20))
@example(([12, 10, 9, 7, 1], 20))
@example(([3] * 7 + [2] * 9 + [1], 8))
@example(([5, 5, 5, 3, 3, 2, 2, 2, 2, 1, 1, 1], 10))
def test_best_fit_decreasing__matches_reference(problem: Problem) -> None:
    expected = reference.best_fit_decreasing(*problem)
    assert [list(items) for items in best_fit_decreasing(*problem)] == expected


@given(problems)
def test_first_fit_decreasing__partition(problem: Problem) -> None:
    assert_partition(first_fit_decreasing(*problem), len(problem[0]))


@given(problems)
def test_first_fit_decreasing__capacity(problem: Problem) -> None:
    lengths, capacity = problem
    for items in first_fit_decreasing(lengths, capacity):
        assert sum(lengths[item] for item in items) <= capacity


@given(small_problems)
@example(([5, 4, 3, 2, 2], 8))
def test_first_fit_decreasing__bound(problem: Problem) -> None:
    assert_near_fewest(len(first_fit_decreasing(*problem)), problem)


@given(problems, st.integers(1, 9))
def test_first_fit_decreasing__scale(problem: Problem, factor: int) -> None:
    lengths, capacity = problem
    scaled = first_fit_decreasing([factor * n for n in lengths], factor * capacity)
    assert scaled == first_fit_decreasing(lengths, capacity)


@given(st.one_of(problems, repeated))
@example(([6, 5, 3, 2], 8))
@example(([5] * 11, 8))
@example(([3] * 7 + [2] * 9 + [1], 8))
@example(([5, 5, 5, 3, 3, 2, 2, 2, 2, 1, 1, 1], 10))
def test_first_fit_decreasing__matches_reference(problem: Problem) -> None:
    expected = reference.first_fit_decreasing(*problem)
    assert [list(items) for items in first_fit_decreasing(*problem)] == expected


@given(small_problems)
@example(([5, 5, 5, 1], 8))
@example(([4, 4], 8))
def test_fewest_bins_bound__lower_bound(problem: Problem) -> None:
    assert fewest_bins_bound(*problem) <= reference.fewest_bins(*problem)


@given(st.one_of(problems, repeated))
def test_fewest_bins_bound__volume(problem: Problem) -> None:
    lengths, capacity = problem
    assert fewest_bins_bound(*problem) >= ceil(Fraction(sum(lengths), capacity))


@given(st.one_of(problems, repeated))
@example(([6, 3, 3], 8))
@example(([5, 3, 3, 3], 8))
@example(([4, 4, 4], 8))
def test_fewest_bins_bound__matches_reference(problem: Problem) -> None:
    assert fewest_bins_bound(*problem) == reference.fewest_bins_bound(*problem)


@given(problems, st.sampled_from([best_fit_decreasing, first_fit_decreasing]))
def test_fill__share(problem: Problem, pack: Pack) -> None:
    lengths, capacity = problem
    bins = pack(lengths, capacity)
    rows = [[0] * capacity for _ in bins]
    for row, items in zip(rows, bins, strict=True):
        real = [1 for item in items for _ in range(lengths[item])]
        row[: len(real)] = real
    tokens = [token for row in rows for token in row]
    assert fill(lengths, bins, capacity) == tokens.count(1) / len(tokens)


@given(problems)
def test_fill__bound(problem: Problem) -> None:
    lengths, capacity = problem
    fewest = fewest_bins_bound(lengths, capacity)
    alone = [(item,) for item in range(len(lengths))]
    for bins in (best_fit_decreasing(lengths, capacity), alone):
        assert fill(lengths, bins, capacity) <= sum(lengths) / (fewest * capacity) <= 1


@given(problems, st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(problem: Problem, random: Random) -> None:
    lengths, capacity = problem
    order = list(range(len(lengths)))
    random.shuffle(order)
    shuffled = [lengths[item] for item in order]

    def loads(values: list[int]) -> Counter[tuple[int, ...]]:
        bins = best_fit_decreasing(values, capacity)
        return Counter(tuple(sorted(values[i] for i in items)) for items in bins)

    assert loads(shuffled) == loads(lengths)


def test_no_items_need_no_bins() -> None:
    assert best_fit_decreasing([], 4) == first_fit_decreasing([], 4) == ()
    assert fewest_bins_bound([], 4) == 0


@pytest.mark.parametrize("pack", [best_fit_decreasing, first_fit_decreasing])
def test_long_tailed_lengths_fill_the_fewest_bins(pack: Pack) -> None:
    random = Random(0)
    lengths = [
        min(int(500 * random.lognormvariate(0, 1)) + 1, 4096) for _ in range(2000)
    ]
    assert len(pack(lengths, 4096)) == ceil(Fraction(sum(lengths), 4096))


def test_a_bound_may_prove_more_than_the_volume() -> None:
    assert fewest_bins_bound([5] * 6, 8) == 6
    assert fewest_bins_bound([6, 6, 3, 3], 8) == 3


def test_a_share_of_no_bins_is_an_error() -> None:
    with pytest.raises(ValueError) as error:
        fill([3], [], 8)
    assert str(error.value) == "bins is empty; a share of no tokens is undefined"


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_one_is_named(capacity: int) -> None:
    for plan in PLANNERS:
        with pytest.raises(ValueError) as error:
            plan([], capacity)
        assert str(error.value) == f"capacity is {capacity}; it must be at least 1"


@pytest.mark.parametrize(("length", "item"), [(0, 1), (9, 1), (-1, 1)])
def test_an_item_that_cannot_be_packed_is_named(length: int, item: int) -> None:
    message = (
        f"item {item} has {length} tokens; it must have a whole number of them, "
        "between 1 and the capacity of 8"
    )
    lengths = [8, length, 3]
    for plan in PLANNERS:
        with pytest.raises(ValueError) as error:
            plan(lengths, 8)
        assert str(error.value) == message


def test_a_capacity_that_no_tensor_holds_is_named() -> None:
    for plan in PLANNERS:
        with pytest.raises(ValueError) as error:
            plan([2**70], 2**71)
        assert str(error.value) == f"capacity is {2**71}; it must be less than 2**63"


@pytest.mark.parametrize("item", [-1, 2])
def test_an_item_that_does_not_exist_fills_nothing(item: int) -> None:
    with pytest.raises(ValueError) as error:
        fill([4, 4], [(0,), (1, item)], 8)
    assert str(error.value) == (
        f"bin 1 holds the items (1, {item}); there are 2, counted from 0"
    )


def test_an_item_counts_as_often_as_bins_of_a_stream_hold_it() -> None:
    assert fill([4, 4], [(0, 0), (1,)], 8) == 0.75


def test_packing_leaves_its_arguments_alone() -> None:
    lengths = [3, 6, 5, 2]
    for plan in PLANNERS:
        plan(lengths, 8)
    assert lengths == [3, 6, 5, 2]


def test_a_share_of_empty_bins_is_named() -> None:
    with pytest.raises(ValueError) as error:
        fill([1], [(0,)], 0)
    assert str(error.value) == "capacity is 0; it must be at least 1"


def test_a_bin_that_holds_too_much_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        fill([3, 3, 1], [(2,), (0, 1)], 4)
    assert str(error.value) == "bin 1 holds 6 tokens; capacity is 4"
