"""Packing a stream: items wait in a window, and bins leave it one by one."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from fastslow._fits import check_length, check_lengths
from fastslow._plans import integers
from fastslow._shapes import whole_number

_ATTEMPTS = 8
"""Lengths that may be the longest beside the oldest item of a stream."""


def take_bin(lengths: Sequence[int], capacity: int) -> tuple[int, ...]:
    """Choose the next bin of a stream from the items that wait.

    The item that has waited longest always goes; the others fill the bin, longest
    first. Where that leaves space it is tried again without the longest, up to eight
    lengths, and the fullest bin goes. A packer over a stream is this function and a
    buffer: its whole state is the list of waiting items.

    Args:
        lengths: Tokens of each waiting item, oldest first, each at least 1.
        capacity: Tokens that the bin holds at most, at least 1.

    Returns:
        The chosen items' numbers, ascending.

    Raises:
        ValueError: If nothing waits, ``capacity`` is below 1, or an item is empty or
            longer than it.

    Laws:
        oldest_first: item 0 is always chosen, so no item waits for ever: ``0 in taken``
        capacity: the bin holds at most its capacity: ``sum(lengths[i] for i in taken)
            <= capacity``
        maximal: no item that stays behind would still fit: ``sum(lengths[i] for i in
            taken) + lengths[j] > capacity for j not in taken``
        matches_reference: equals the same attempts in plain loops: ``take_bin(...) ==
            reference.take_bin(...)``

    Example:
        >>> take_bin([3, 6, 5, 2], 8)
        (0, 2)
    """
    check_lengths(lengths, capacity)
    if not len(lengths):
        raise ValueError("lengths is empty; a bin holds at least one item")
    lengths = list(map(int, lengths))
    order = sorted(range(1, len(lengths)), key=lengths.__getitem__, reverse=True)
    negated = [-lengths[item] for item in order]
    fullest: list[int] = []
    least = capacity - lengths[0]
    start = bisect_left(negated, -least)
    for _ in range(_ATTEMPTS):
        places, free = _fill_up(negated, start, capacity - lengths[0])
        if free < least:
            fullest, least = places, free
        if start == len(order):
            break
        start = bisect_right(negated, negated[start])
    return tuple(sorted([0, *(order[place] for place in fullest)]))


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """Where an endless, shuffled stream of packed items stands.

    Attributes:
        epoch: Passes over the items that have been begun before the current one.
        position: Items of the current pass that have left the shuffled order.
        waiting: Items that have left the order but are in no bin yet, oldest first.
    """

    epoch: int = 0
    position: int = 0
    waiting: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Take a list, as JSON gives it, for the tuple that it was."""
        object.__setattr__(self, "waiting", tuple(self.waiting))


def stream_order(
    num_items: int, *, seed: int, epoch: int, groups: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Shuffle the items of one pass of a stream.

    With groups, one group comes after another, both in random order: items that lie in
    one archive are read while it is at hand. The last orders are kept, for groups that
    are the same object.

    Args:
        num_items: Number of items.
        seed: Gives another order.
        epoch: Pass, counted from 0; each has its own order.
        groups: Group of each item, counted from 0 without large gaps, since memory goes
            with the largest; None mixes all items.

    Returns:
        Item numbers.

    Raises:
        ValueError: If ``groups`` does not have an entry for each item, or a negative
            one.

    Laws:
        permutation: every item comes once: ``sorted(order) == list(range(n))``
        grouped: the items of a group come one after another
        within: without their groups, the items of a group keep that order

    Example:
        >>> order = stream_order(4, seed=0, epoch=0, groups=(0, 1, 0, 1))
        >>> {order[:2], order[2:]} <= {(0, 2), (2, 0), (1, 3), (3, 1)}
        True
    """
    return _shuffled(num_items, seed, epoch, _Same(groups))


def next_bin(
    lengths: Sequence[int],
    capacity: int,
    state: StreamState,
    *,
    window: int,
    seed: int,
    groups: tuple[int, ...] | None = None,
) -> tuple[tuple[int, ...], StreamState]:
    """Draw the next bin of an endless, shuffled stream.

    Items wait in a window, refilled from the shuffled order of the current pass, and
    leave it as ``take_bin`` chooses. The state is all that there is to resume: the
    same state always gives the same bins, and a larger window gives fuller ones.

    A copy of an item that waits joins it only where the bin would not be full without
    it. Long items leave the window first, and where few items fill it with copies, they
    would be drawn far more often than short ones.

    Args:
        lengths: Tokens of every item, each at least 1.
        capacity: Tokens that a bin holds at most, at least 1.
        state: Where the stream stands; ``StreamState()`` is its beginning.
        window: Items that wait, at least 1.
        seed: Shuffles every pass; another seed gives another order.
        groups: Groups whose items come one after another, see ``stream_order``.

    Returns:
        The bin as item numbers, oldest first, and the state after it.

    Raises:
        ValueError: If there are no items, ``window`` or ``capacity`` is no whole number
            from 1 on, the state is of more
            items than there are, or an item that begins to wait does not fit a bin.

    Laws:
        once_per_pass: within a pass every item comes exactly once: ``sorted(sum(bins,
            ())) == list(range(n))``
        even: what waits before a copy does not fill a bin: ``sum(n[i] for i in
            waiting[:j]) < capacity if waiting[j] in waiting[:j]``
        bounded_wait: an item leaves within ``window`` bins after it begins to wait:
            ``leaves(i) - begins(i) < window``
        resumes: continuing from any state gives the bins of an uninterrupted stream:
            ``bins(state_k) == bins(state_0)[k:]``

    Example:
        >>> bins, state = next_bin([3, 6, 5, 2], 8, StreamState(), window=4, seed=0)
        >>> sorted(bins + state.waiting)
        [0, 1, 2, 3]
    """
    capacity = whole_number("capacity", capacity)
    if not len(lengths) or whole_number("window", window) < 1:
        raise ValueError(
            f"lengths has {len(lengths)} items and window is {window}; both must be at "
            "least 1"
        )
    epoch, position = state.epoch, state.position
    waiting = list(state.waiting)
    least, most = min(waiting, default=0), max(waiting, default=0)
    if not (0 <= position <= len(lengths) and 0 <= least <= most < len(lengths)):
        raise ValueError(
            f"state stands at position {position} and items {state.waiting} wait; "
            f"there are {len(lengths)} items, counted from 0"
        )
    order = stream_order(len(lengths), seed=seed, epoch=epoch, groups=groups)
    sizes = [int(lengths[item]) for item in waiting]
    present, total = set(waiting), sum(sizes)
    while len(waiting) < window:
        if position == len(lengths):
            epoch, position = epoch + 1, 0
            order = stream_order(len(lengths), seed=seed, epoch=epoch, groups=groups)
        item = order[position]
        if item in present and total >= capacity:
            break
        check_length(item, lengths[item], capacity)
        waiting.append(item)
        sizes.append(int(lengths[item]))
        present.add(item)
        total += sizes[-1]
        position += 1
    chosen = take_bin(sizes, capacity)
    taken = tuple(waiting[place] for place in chosen)
    for place in reversed(chosen):
        del waiting[place]
    after = StreamState(epoch=epoch, position=position, waiting=tuple(waiting))
    return taken, after


def _fill_up(negated: list[int], place: int, free: int) -> tuple[list[int], int]:
    """Take what fits from ``place`` on, longest first; give it and the space left."""
    places = []
    while place < len(negated):
        places.append(place)
        free += negated[place]
        place = bisect_left(negated, -free, lo=place + 1)
    return places, free


class _Same:
    """Tells groups apart by which object they are.

    A stream asks for the order of its pass with every bin, and a million groups take
    milliseconds to hash.
    """

    def __init__(self, groups: tuple[int, ...] | None) -> None:
        self.groups = groups

    def __hash__(self) -> int:
        return id(self.groups)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.groups is other.groups


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int, same: _Same) -> tuple[int, ...]:
    """Give the order of one pass."""
    groups = same.groups
    if groups is not None and (len(groups) != count or min(groups, default=0) < 0):
        raise ValueError(
            f"groups has {len(groups)} entries, at least {min(groups, default=0)}; it "
            f"must have {count}, counted from 0"
        )
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(count, generator=generator, device="cpu")
    if groups is not None:
        group = integers(groups)
        number = max(groups, default=-1) + 1
        ranks = torch.randperm(number, generator=generator, device="cpu")
        order = order[ranks[group[order]].argsort(stable=True)]
    return tuple(order.tolist())
