"""Packing a stream: what leaves the window, when, and from which state."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastslow import StreamState, next_bin, stream_order, take_bin
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Problem = tuple[list[int], int]
Bins = list[tuple[int, ...]]

problems = fst.packing_problems(max_items=15)
repeated = fst.packing_problems(max_items=60, max_capacity=12)
windows = st.integers(1, 6)
stream_seeds = st.integers(-5, 2**62)
grouped = st.lists(st.integers(0, 4), max_size=20).map(tuple)


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
@example(([3, 3], 4), 5, 0)
def test_next_bin__even(problem: Problem, window: int, seed: int) -> None:
    lengths, capacity = problem
    for state in run(problem, StreamState(), 12, window=window, seed=seed)[1]:
        for place, item in enumerate(state.waiting):
            before = state.waiting[:place]
            if item in before:
                assert sum(lengths[each] for each in before) < capacity


@given(stream_seeds)
def test_no_copy_joins_what_fills_a_bin_exactly(seed: int) -> None:
    chosen, state = next_bin([2, 2], 4, StreamState(), window=5, seed=seed)
    assert sorted(chosen) == [0, 1]
    assert state.waiting == ()


@pytest.mark.parametrize(
    ("count", "capacity"), [(2, 640), (40, 640), (40, 16_384), (300, 16_384)]
)
def test_short_items_are_drawn_as_often_as_long_ones(count: int, capacity: int) -> None:
    lengths = [50 + 37 * item % 400 for item in range(count)]
    bins, states = run((lengths, capacity), StreamState(), 60, window=256, seed=0)
    drawn = Counter(item for chosen in bins for item in chosen)
    passes = states[-1].epoch
    assert passes > 1
    assert all(abs(drawn[item] - passes) <= 2 for item in range(count))
    used = sum(lengths[item] * times for item, times in drawn.items())
    assert used > 0.95 * len(bins) * capacity


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
def test_the_oldest_item_leads_a_window_that_is_full_but_for_copies(
    problem: Problem, window: int, seed: int
) -> None:
    lengths, capacity = problem
    state = StreamState()
    for _ in range(6):
        chosen, after = next_bin(lengths, capacity, state, window=window, seed=seed)
        assert chosen[0] == (state.waiting + chosen)[0]
        assert sum(lengths[item] for item in chosen) <= capacity
        shown = chosen + after.waiting
        if len(shown) < window:
            order = stream_order(len(lengths), seed=seed, epoch=after.epoch)
            if after.position == len(lengths):
                order = stream_order(len(lengths), seed=seed, epoch=after.epoch + 1)
            assert order[after.position % len(lengths)] in shown
            assert sum(lengths[item] for item in shown) >= capacity
        assert len(shown) <= window
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


@pytest.mark.parametrize("seed", range(8))
def test_the_stream_names_the_item_that_does_not_fit(seed: int) -> None:
    with pytest.raises(ValueError) as error:
        next_bin([1, 1, 9, 1, 1], 8, StreamState(), window=5, seed=seed)
    assert str(error.value) == (
        "item 2 has 9 tokens; it must have a whole number of them, between 1 and the "
        "capacity of 8"
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_stream_never_passes_over_an_item_that_does_not_fit(seed: int) -> None:
    with pytest.raises(ValueError, match="item 2 has 9 tokens"):
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


@given(grouped, stream_seeds, st.integers(0, 3))
def test_stream_order__permutation(
    groups: tuple[int, ...], seed: int, epoch: int
) -> None:
    for given_groups in (None, groups):
        order = stream_order(len(groups), seed=seed, epoch=epoch, groups=given_groups)
        assert sorted(order) == list(range(len(groups)))


@given(grouped, stream_seeds, st.integers(0, 3))
def test_stream_order__grouped(groups: tuple[int, ...], seed: int, epoch: int) -> None:
    order = stream_order(len(groups), seed=seed, epoch=epoch, groups=groups)
    runs = [group for group, _ in groupby(groups[item] for item in order)]
    assert len(runs) == len(set(groups))


@given(grouped, stream_seeds, st.integers(0, 3))
def test_stream_order__within(groups: tuple[int, ...], seed: int, epoch: int) -> None:
    order = stream_order(len(groups), seed=seed, epoch=epoch, groups=groups)
    mixed = stream_order(len(groups), seed=seed, epoch=epoch)
    for group in set(groups):
        assert [item for item in order if groups[item] == group] == [
            item for item in mixed if groups[item] == group
        ]


def test_groups_come_in_another_order_in_every_pass() -> None:
    groups = tuple(range(9))
    orders = {stream_order(9, seed=0, epoch=n, groups=groups) for n in range(5)}
    first = {stream_order(2, seed=n, epoch=0, groups=(0, 1))[0] for n in range(20)}
    assert (len(orders), first) == (5, {0, 1})


@pytest.mark.parametrize("groups", [(0,), (0, -1), (0, 1, 2)])
def test_groups_of_other_items_are_refused(groups: tuple[int, ...]) -> None:
    said = f"groups has {len(groups)} entries, at least {min(groups)}; it must have 2,"
    with pytest.raises(ValueError, match=said):
        stream_order(2, seed=0, epoch=0, groups=groups)


def test_a_stream_goes_group_by_group() -> None:
    groups = tuple(item % 3 for item in range(12))
    state, drawn = StreamState(), list[int]()
    for _ in range(12):
        chosen, state = next_bin([1] * 12, 1, state, window=1, seed=4, groups=groups)
        drawn += chosen
    assert len([group for group, _ in groupby(groups[item] for item in drawn)]) == 3


@pytest.mark.parametrize(("length", "item"), [(0, 1), (9, 1), (-1, 1)])
def test_an_item_that_cannot_be_taken_is_named(length: int, item: int) -> None:
    message = (
        f"item {item} has {length} tokens; it must have a whole number of them, "
        "between 1 and the capacity of 8"
    )
    with pytest.raises(ValueError) as error:
        take_bin([8, length, 3], 8)
    assert str(error.value) == message


def test_a_stream_leaves_its_arguments_alone() -> None:
    lengths = [3, 6, 5, 2]
    state = StreamState(waiting=(1, 2))
    take_bin(lengths, 8)
    next_bin(lengths, 8, state, window=3, seed=0)
    assert lengths == [3, 6, 5, 2]
    assert state == StreamState(waiting=(1, 2))


def test_groups_are_read_once_a_pass() -> None:
    class Watched(tuple[int, ...]):
        __hash__ = None  # type: ignore[assignment]
        reads = 0

        def __iter__(self) -> Iterator[int]:
            Watched.reads += 1
            return super().__iter__()

    groups, state = Watched((0, 1) * 10), StreamState()
    reads = set()
    for _ in range(15):
        _, state = next_bin([1] * 20, 1, state, window=2, seed=0, groups=groups)
        reads.add(Watched.reads)
    assert (state.epoch, len(reads)) == (0, 1)
