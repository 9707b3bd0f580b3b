"""Packing and balancing beside the usual ways; ``nox -s bench`` prints the ratios.

Lengths are those of a mixture with a long tail: 60% clips of 4 to 384 frames, every
fourth of them slow, and text. Fill, bins over their lower bound, items per second and
imbalance are in the extra info of each row.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastslow import (
    StreamState,
    balance,
    best_fit_decreasing,
    deal_rounds,
    fewest_bins_bound,
    fill,
    first_fit_decreasing,
    imbalance,
    next_bin,
)

CAPACITY = 32_768
SLOW, FAST, PERIOD = 144, 16, 4
PATCHES = 24 * 24  # of every frame, before pooling
STEPS_SUMMED = 4
BATCH_FILL = 0.95

Bins = Sequence[Sequence[int]]
Pack = Callable[[list[int], int], Bins]


class Workload(NamedTuple):
    lengths: list[int]
    costs: list[float]


@cache
def workload(items: int) -> Workload:
    """Draw samples; their cost is the forward FLOPs of a 7B model and its tower."""
    generator = torch.Generator().manual_seed(0)

    def log_normal(median: int, low: int, high: int) -> torch.Tensor:
        values = median * torch.randn(items, generator=generator).exp()
        return values.round().long().clamp(low, high)

    is_video = torch.rand(items, generator=generator) < 0.6
    frames = log_normal(28, 4, 384) * is_video
    slow = (frames + PERIOD - 1) // PERIOD
    fast = frames - slow
    tokens = log_normal(300, 1, 8192) + SLOW * slow + FAST * fast
    in_frames = SLOW * (SLOW - 1) // 2 * slow + FAST * (FAST - 1) // 2 * fast
    pairs = tokens * (tokens + 1) // 2 + in_frames
    patches = PATCHES * frames
    costs = 13.06e9 * tokens.double() + 401_408 * pairs + 1.35e9 * patches
    return Workload(tokens.tolist(), costs.tolist())


def uniform(low: float, high: float, items: int = 100_000) -> list[int]:
    random = Random(0)
    return [
        random.randint(round(low * CAPACITY), round(high * CAPACITY))
        for _ in range(items)
    ]


def next_fit(lengths: list[int], capacity: int) -> Bins:
    """One open bin, items as they come: the way of lmms-engine."""
    bins: list[list[int]] = []
    free = 0
    for item, length in enumerate(lengths):
        if length > free:
            bins.append([])
            free = capacity
        bins[-1].append(item)
        free -= length
    return bins


def best_fit_by_bisection(lengths: list[int], capacity: int) -> Bins:
    """Best fit decreasing item by item, over a sorted list of spaces."""
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fit = bisect_left(spaces, (lengths[item], 0))
        if fit < len(spaces):
            space, chosen = spaces.pop(fit)
            bins[chosen].append(item)
        else:
            space, chosen = capacity, len(bins)
            bins.append([item])
        insort(spaces, (space - lengths[item], chosen))
    return [sorted(items) for items in bins]


def best_fit_by_tree(lengths: list[int], capacity: int) -> Bins:
    """Best fit decreasing item by item, over a tree of spaces: the way of TRL."""
    leaves = 1 << capacity.bit_length()
    tree = [0] * (2 * leaves)
    bins: list[list[int]] = []
    bins_with: dict[int, deque[int]] = {capacity: deque()}

    def mark(space: int, value: int) -> None:
        node = leaves + space
        tree[node] = value
        while node > 1:
            node //= 2
            tree[node] = max(tree[2 * node], tree[2 * node + 1])

    mark(capacity, capacity)
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        node = 1
        while node < leaves:
            node = 2 * node + (tree[2 * node] < lengths[item])
        space = node - leaves
        if space == capacity:
            chosen = len(bins)
            bins.append([])
        else:
            chosen = bins_with[space].popleft()
            if not bins_with[space]:
                mark(space, 0)
        bins[chosen].append(item)
        rest = space - lengths[item]
        bins_with.setdefault(rest, deque()).append(chosen)
        if rest:
            mark(rest, rest)
    return bins


GROUP = 100_000


@cache
def compiled_first_fit() -> Callable[..., int]:
    """Compile a loop over all open bins for every item."""
    numba = pytest.importorskip("numba")

    def put(lengths: Any, capacity: int, spaces: Any, chosen: Any) -> int:
        bins = 0
        for item in range(len(lengths)):
            number = 0
            while number < bins and spaces[number] < lengths[item]:
                number += 1
            if number == bins:
                spaces[bins] = capacity
                bins += 1
            spaces[number] -= lengths[item]
            chosen[item] = number
        return bins

    compiled: Callable[..., int] = numba.njit(put)
    return compiled


def first_fit_as_they_come(lengths: list[int], capacity: int) -> Bins:
    """The first bin with room, 100,000 items at a time: the way of axolotl."""
    bins: list[list[int]] = []
    for first in range(0, len(lengths), GROUP):
        group = torch.tensor(lengths[first : first + GROUP]).numpy()
        spaces, chosen = (torch.empty(len(group)).long().numpy() for _ in range(2))
        made = compiled_first_fit()(group, capacity, spaces, chosen)
        opened: list[list[int]] = [[] for _ in range(made)]
        for item, number in enumerate(chosen.tolist(), first):
            opened[number].append(item)
        bins += opened
    return bins


def in_windows(lengths: list[int], capacity: int, bins: int) -> Bins:
    """Draw bins of a shuffled stream with a window of 1,000 items."""
    state = StreamState()
    drawn = []
    for _ in range(bins):
        chosen, state = next_bin(lengths, capacity, state, window=1_000, seed=0)
        drawn.append(chosen)
    return drawn


def chunk_by_chunk(lengths: list[int], capacity: int, bins: int) -> Bins:
    """Shuffle, and pack 1,000 items after 1,000: what a buffer in a loader does."""
    order = list(range(len(lengths)))
    Random(0).shuffle(order)
    drawn = list[list[int]]()
    for first in range(0, len(order), 1_000):
        chunk = order[first : first + 1_000]
        packed = best_fit_by_bisection([lengths[item] for item in chunk], capacity)
        drawn += [[chunk[place] for place in each] for each in packed]
        if len(drawn) >= bins:
            break
    return drawn[:bins]


PACKERS = [
    best_fit_decreasing,
    first_fit_decreasing,
    first_fit_as_they_come,
    next_fit,
]
ITEM_BY_ITEM = [best_fit_by_bisection, best_fit_by_tree]


TARGETS = {best_fit_decreasing: {"target": "bins at the bound, 1M items a second"}}


def measure_packing(
    benchmark: BenchmarkFixture, pack: Pack, lengths: list[int]
) -> None:
    pack([1], CAPACITY)  # compiles what is compiled
    bins = benchmark.pedantic(pack, args=(lengths, CAPACITY), rounds=3)
    assert sorted(chain.from_iterable(bins)) == list(range(len(lengths)))
    bound = fewest_bins_bound(lengths, CAPACITY)
    benchmark.extra_info["fill"] = fill(lengths, bins, CAPACITY)
    benchmark.extra_info["bins over bound"] = len(bins) / bound
    if benchmark.enabled:
        rate = len(lengths) / benchmark.stats["min"]
        benchmark.extra_info["items per second"] = round(rate)


@pytest.mark.benchmark(group="P1: Packing 10,000 long-tailed lengths")
@pytest.mark.parametrize("pack", PACKERS + ITEM_BY_ITEM)
def test_pack_10k(benchmark: BenchmarkFixture, pack: Pack) -> None:
    lengths = workload(10_000).lengths
    ours = best_fit_decreasing(lengths, CAPACITY)
    assert list(map(list, ours)) == best_fit_by_bisection(lengths, CAPACITY)
    assert len(ours) == len(best_fit_by_tree(lengths, CAPACITY))
    benchmark.extra_info.update(TARGETS.get(pack, {}))
    measure_packing(benchmark, pack, lengths)


@pytest.mark.benchmark(group="P1: Packing 100,000 long-tailed lengths")
@pytest.mark.parametrize("pack", PACKERS + ITEM_BY_ITEM)
def test_pack_100k(benchmark: BenchmarkFixture, pack: Pack) -> None:
    benchmark.extra_info.update(TARGETS.get(pack, {}))
    measure_packing(benchmark, pack, workload(100_000).lengths)


@pytest.mark.benchmark(group="P1: Packing 1,000,000 long-tailed lengths")
@pytest.mark.parametrize("pack", PACKERS)
def test_pack_1m(benchmark: BenchmarkFixture, pack: Pack) -> None:
    benchmark.extra_info.update(TARGETS.get(pack, {}))
    measure_packing(benchmark, pack, workload(1_000_000).lengths)


@pytest.mark.parametrize("share", [(0.05, 0.5), (0.2, 0.6), (0.3, 0.7)], ids=str)
@pytest.mark.parametrize("pack", PACKERS)
def test_pack_uniform(
    benchmark: BenchmarkFixture, pack: Pack, share: tuple[float, float]
) -> None:
    low, high = share
    benchmark.group = f"P1: Packing 100,000 lengths of {low} to {high} of the capacity"
    measure_packing(benchmark, pack, uniform(low, high))


@pytest.mark.parametrize("kind", ["long-tailed", "uniform"])
@pytest.mark.parametrize("draw", [in_windows, chunk_by_chunk])
def test_stream(
    benchmark: BenchmarkFixture, kind: str, draw: Callable[[list[int], int, int], Bins]
) -> None:
    benchmark.group = f"P1: 5,000 bins of a stream of 1,000,000 items, {kind}"
    long_tailed = kind == "long-tailed"
    lengths = (
        workload(1_000_000).lengths if long_tailed else uniform(0.05, 0.5, 1_000_000)
    )
    in_windows(lengths, CAPACITY, 1)  # shuffles the pass
    bins = benchmark.pedantic(draw, args=(lengths, CAPACITY, 5_000), rounds=1)
    benchmark.extra_info["fill"] = fill(lengths, bins, CAPACITY)
    if benchmark.enabled:
        rate = sum(map(len, bins)) / benchmark.stats["min"]
        benchmark.extra_info["items per second"] = round(rate)


Steps = list[list[Bins]]
"""Rows of items of every rank of every step."""


def packs_in_steps(lengths: list[int], num_ranks: int) -> Iterator[Bins]:
    """Pack by first fit decreasing and give whole steps of packs in random order."""
    bins = list(first_fit_decreasing(lengths, CAPACITY))
    Random(0).shuffle(bins)
    each = STEPS_SUMMED * num_ranks
    for stop in range(each, len(bins) + 1, each):
        yield bins[stop - each : stop]


def in_step(bins: Bins, ranks: Iterable[Iterable[int]]) -> list[Bins]:
    """Give the rows of each rank from the numbers of its bins."""
    return [[bins[number] for number in rank] for rank in ranks]


def as_they_come(num_ranks: int) -> list[range]:
    """Give every rank its bins of a step, by their numbers alone."""
    return [range(r, STEPS_SUMMED * num_ranks, num_ranks) for r in range(num_ranks)]


def packs_as_they_come(work: Workload, num_ranks: int) -> Steps:
    """Give every rank the next packs."""
    return [
        in_step(packs, as_they_come(num_ranks))
        for packs in packs_in_steps(work.lengths, num_ranks)
    ]


def packs_dealt(work: Workload, num_ranks: int) -> Steps:
    """Deal the packs of every step by cost, equally many to each rank."""
    steps = []
    for packs in packs_in_steps(work.lengths, num_ranks):
        costs = [sum(work.costs[item] for item in pack) for pack in packs]
        dealt = balance(
            costs, num_ranks, lengths=[1] * len(packs), capacity=STEPS_SUMMED
        )
        assert {len(rank) for rank in dealt.ranks} == {STEPS_SUMMED}
        steps.append(in_step(packs, dealt.ranks))
    return steps


def packs_in_rounds(work: Workload, num_ranks: int) -> Steps:
    """Deal packs of like cost to the ranks at the same time."""
    steps = []
    for packs in packs_in_steps(work.lengths, num_ranks):
        costs = [sum(work.costs[item] for item in pack) for pack in packs]
        rounds = deal_rounds(costs, num_ranks)
        steps.append(in_step(packs, zip(*rounds, strict=True)))
    return steps


def items_placed(work: Workload, num_ranks: int) -> Steps:
    """Place the items of a global batch by cost into its rows; the left ones wait."""
    rows = STEPS_SUMMED * num_ranks
    order = list(range(len(work.lengths)))
    Random(0).shuffle(order)
    steps: Steps = []
    batch: list[int] = []
    tokens = 0
    for item in order:
        if tokens + work.lengths[item] > BATCH_FILL * rows * CAPACITY:
            placed = balance(
                [work.costs[i] for i in batch],
                rows,
                lengths=[work.lengths[i] for i in batch],
                capacity=CAPACITY,
            )
            row_items = [[batch[i] for i in row] for row in placed.ranks]
            steps.append(in_step(row_items, as_they_come(num_ranks)))
            batch = [batch[i] for i in placed.left]
            tokens = sum(work.lengths[i] for i in batch)
        batch.append(item)
        tokens += work.lengths[item]
    return steps


BALANCE_TARGETS = {
    packs_dealt: "imbalance at most 1.03",
    items_placed: "imbalance at most 1.005",
}


@pytest.mark.parametrize("num_ranks", [8, 64])
@pytest.mark.parametrize(
    "assign", [items_placed, packs_in_rounds, packs_dealt, packs_as_they_come]
)
def test_balance(
    benchmark: BenchmarkFixture,
    assign: Callable[[Workload, int], Steps],
    num_ranks: int,
) -> None:
    benchmark.group = f"P2: Steps of {num_ranks} ranks over 200,000 samples"
    work = workload(200_000)
    steps = benchmark.pedantic(assign, args=(work, num_ranks), rounds=1)
    done = [i for step in steps for rank in step for row in rank for i in row]
    assert len(set(done)) == len(done)
    costs = [
        [[sum(work.costs[i] for i in row) for row in rank] for rank in step]
        for step in steps
    ]
    ratios = [imbalance(list(map(sum, step))) for step in costs]
    waits = [
        sum(map(max, zip(*step, strict=True))) * num_ranks / sum(map(sum, step))
        for step in costs
    ]
    tokens = [
        sum(work.lengths[i] for rank in step for row in rank for i in row)
        for step in steps
    ]
    room = STEPS_SUMMED * num_ranks * CAPACITY
    if assign in BALANCE_TARGETS:
        benchmark.extra_info["target"] = BALANCE_TARGETS[assign]
    benchmark.extra_info["steps"] = len(steps)
    benchmark.extra_info["mean imbalance"] = sum(ratios) / len(steps)
    benchmark.extra_info["worst imbalance"] = max(ratios)
    benchmark.extra_info["mean imbalance row by row"] = sum(waits) / len(steps)
    benchmark.extra_info["mean fill"] = sum(tokens) / len(steps) / room
    benchmark.extra_info["least fill"] = min(tokens) / room
