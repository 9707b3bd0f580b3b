"""Laws of ``fastslow.packing``."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from math import ceil, floor
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import (
    StreamState,
    best_fit_decreasing,
    fewest_bins_bound,
    fill,
    first_fit_decreasing,
    next_bin,
    take_bin,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Problem = tuple[list[int], int]
Bins = list[tuple[int, ...]]
Pack = Callable[[list[int], int], tuple[tuple[int, ...], ...]]

problems = fst.packing_problems(max_items=15)
small_problems = fst.packing_problems(max_items=7)
repeated = fst.packing_problems(max_items=60, max_capacity=12)
PLANNERS = (best_fit_decreasing, first_fit_decreasing, fewest_bins_bound, take_bin)

windows = st.integers(1, 6)
stream_seeds = st.integers(-5, 2**62)


def run(
    problem: Problem, state: StreamState, count: int, *, window: int, seed: int
) -> tuple[Bins, list[StreamState]]:
    """Draw ``count`` bins; the states are those after each bin."""
    bins, states = [], []
    for _ in range(count):
        chosen, state = next_bin(*problem, state, window=window, seed=seed)
        bins.append(chosen)
        states.append(state)
    return bins, states


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


@given(problems)
def test_take_bin__oldest_first(problem: Problem) -> None:
    chosen = take_bin(*problem)
    assert chosen[0] == 0
    assert list(chosen) == sorted(set(chosen))


@given(problems)
def test_take_bin__capacity(problem: Problem) -> None:
    lengths, capacity = problem
    assert sum(lengths[item] for item in take_bin(lengths, capacity)) <= capacity


@given(problems)
def test_take_bin__maximal(problem: Problem) -> None:
    lengths, capacity = problem
    chosen = take_bin(lengths, capacity)
    free = capacity - sum(lengths[item] for item in chosen)
    assert all(
        length > free for item, length in enumerate(lengths) if item not in chosen
    )


@given(st.one_of(problems, repeated, fst.packing_problems(max_capacity=60)))
@example(([1, 1, 7], 8))
@example(([2, 5, 4, 4], 10))
@example(([2, 1, 4, 5, 4], 10))
@example(([1, *range(29, 21, -1), 17], 40))
@example(([1, *range(30, 21, -1), 17], 40))
def test_take_bin__matches_reference(problem: Problem) -> None:
    assert list(take_bin(*problem)) == reference.take_bin(*problem)


def test_a_bin_is_tried_from_eight_lengths() -> None:
    eight = [29, 28, 27, 26, 25, 24, 23, 22]
    assert take_bin([1, *eight, 17], 40) == (0, 8, 9)
    assert take_bin([1, 29, *eight, 17], 40) == (0, 9, 10)
    assert take_bin([1, 30, *eight, 17], 40) == (0, 1)


@given(problems, windows, stream_seeds)
def test_next_bin__once_per_pass(problem: Problem, window: int, seed: int) -> None:
    lengths, _ = problem
    bins, states = run(problem, StreamState(), 12, window=window, seed=seed)
    left: Counter[int] = Counter()
    for chosen, state in zip(bins, states, strict=True):
        left.update(chosen)
        begun = left + Counter(state.waiting)
        assert begun.total() == state.epoch * len(lengths) + state.position
        assert 0 <= state.position <= len(lengths)
        assert max(begun.values()) <= state.epoch + 1
        assert all(begun[item] >= state.epoch for item in range(len(lengths)))


@given(problems, windows, stream_seeds)
def test_next_bin__bounded_wait(problem: Problem, window: int, seed: int) -> None:
    bins, states = run(problem, StreamState(), 15, window=window, seed=seed)
    begun_at: defaultdict[int, list[int]] = defaultdict(list)
    before: tuple[int, ...] = ()
    for number, (chosen, state) in enumerate(zip(bins, states, strict=True)):
        assert len(state.waiting) < window
        for item in (Counter(chosen + state.waiting) - Counter(before)).elements():
            begun_at[item].append(number)
        for item in chosen:
            assert number - begun_at[item].pop(0) < window
        before = state.waiting


@given(problems, windows, stream_seeds, st.integers(0, 8), st.integers(0, 8))
def test_next_bin__resumes(
    problem: Problem, window: int, seed: int, first: int, second: int
) -> None:
    whole, _ = run(problem, StreamState(), first + second, window=window, seed=seed)
    before, states = run(problem, StreamState(), first, window=window, seed=seed)
    run(problem, StreamState(), 5, window=window, seed=seed + 1)
    saved = StreamState(**asdict([StreamState(), *states][-1]))
    after, _ = run(problem, saved, second, window=window, seed=seed)
    assert before + after == whole


@given(problems, windows, stream_seeds)
def test_the_oldest_item_leads_the_bin_and_the_window_is_full(
    problem: Problem, window: int, seed: int
) -> None:
    lengths, capacity = problem
    state = StreamState()
    for _ in range(6):
        chosen, after = next_bin(lengths, capacity, state, window=window, seed=seed)
        assert chosen[0] == (state.waiting + chosen)[0]
        assert sum(lengths[item] for item in chosen) <= capacity
        assert len(chosen) + len(after.waiting) == window
        state = after


def test_seeds_and_passes_have_their_own_order() -> None:
    def order(seed: int) -> list[int]:
        bins, _ = run(([1] * 30, 1), StreamState(), 60, window=1, seed=seed)
        return [item for (item,) in bins]

    one, two = order(1), order(2)
    assert one != two
    assert one[:30] != one[30:]
    assert sorted(one[:30]) == sorted(one[30:]) == list(range(30))
    assert one == order(1)


def test_the_order_is_shuffled_by_the_seed_alone() -> None:
    short, _ = run(([1] * 30, 1), StreamState(), 30, window=1, seed=3)
    long, _ = run(([4] * 30, 4), StreamState(), 30, window=1, seed=3)
    assert short == long


@pytest.mark.parametrize(("length", "item"), [(0, 1), (9, 1), (-1, 1)])
def test_an_item_that_cannot_be_packed_is_named(length: int, item: int) -> None:
    message = (
        f"item {item} has {length} tokens; it must have between 1 and the capacity of 8"
    )
    lengths = [8, length, 3]
    for plan in PLANNERS:
        with pytest.raises(ValueError) as error:
            plan(lengths, 8)
        assert str(error.value) == message


@pytest.mark.parametrize("seed", range(8))
def test_the_stream_names_the_item_that_does_not_fit(seed: int) -> None:
    with pytest.raises(ValueError) as error:
        next_bin([1, 1, 9, 1, 1], 8, StreamState(), window=5, seed=seed)
    assert str(error.value) == (
        "item 2 has 9 tokens; it must have between 1 and the capacity of 8"
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_stream_never_passes_over_an_item_that_does_not_fit(seed: int) -> None:
    with pytest.raises(ValueError, match="has 9 tokens; it must have between 1 and"):
        run(([1, 1, 9, 1, 1], 8), StreamState(), 5, window=1, seed=seed)


def test_an_empty_bin_is_an_error() -> None:
    with pytest.raises(ValueError) as error:
        take_bin([], 8)
    assert str(error.value) == "lengths is empty; a bin holds at least one item"


@pytest.mark.parametrize(("lengths", "window"), [([], 1), ([1], 0), ([1, 2], -1)])
def test_a_stream_needs_items_and_a_window(lengths: list[int], window: int) -> None:
    with pytest.raises(ValueError) as error:
        next_bin(lengths, 8, StreamState(), window=window, seed=0)
    assert str(error.value) == (
        f"lengths has {len(lengths)} items and window is {window}; both must be at "
        "least 1"
    )


@pytest.mark.parametrize(
    "state",
    [
        StreamState(position=3),
        StreamState(position=-1),
        StreamState(waiting=(0, 2)),
        StreamState(waiting=(-1,)),
    ],
)
def test_a_state_of_other_items_is_refused(state: StreamState) -> None:
    with pytest.raises(ValueError) as error:
        next_bin([3, 6], 8, state, window=2, seed=0)
    assert str(error.value) == (
        f"state stands at position {state.position} and items {state.waiting} wait; "
        "there are 2 items, counted from 0"
    )


def test_packing_leaves_its_arguments_alone() -> None:
    lengths = [3, 6, 5, 2]
    state = StreamState(waiting=(1, 2))
    for plan in PLANNERS:
        plan(lengths, 8)
    next_bin(lengths, 8, state, window=3, seed=0)
    assert lengths == [3, 6, 5, 2]
    assert state == StreamState(waiting=(1, 2))
