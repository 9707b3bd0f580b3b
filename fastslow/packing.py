"""Which samples share a bin: integers in, integers out."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F

from fastslow._fits import Place, place_best, place_first

_ATTEMPTS = 8
"""Lengths that may be the longest beside the oldest item of a stream."""


def best_fit_decreasing(
    lengths: Sequence[int], capacity: int
) -> tuple[tuple[int, ...], ...]:
    """Pack all items, longest first, each into the fullest bin that still holds it.

    Items of equal length go in the order given, equally full bins in that of opening.
    Items of one length are placed together, so the time follows the number of
    different lengths far more than the number of items.

    Args:
        lengths: Tokens of each item, at least 1.
        capacity: Tokens that a bin holds at most, at least 1.

    Returns:
        Bins as item numbers, ascending in each bin.

    Raises:
        ValueError: If ``capacity`` is below 1, or an item is empty or longer than it;
            nothing is dropped.

    Laws:
        partition: every item lies in exactly one bin
        capacity: no bin holds more than its capacity
        bound: at least ``fewest_bins_bound`` bins and at most 11/9 of the fewest
            possible plus 6/9
        scale: scaling lengths and capacity together changes nothing
        matches_reference: equals placing item by item in a loop

    Example:
        >>> best_fit_decreasing([5, 4, 3, 2, 2], 8)
        ((0, 2), (1, 3, 4))

    References:
        Johnson et al., "Worst-case performance bounds for simple one-dimensional
        packing algorithms" (SIAM J. Comput. 3, 1974).
    """
    return _pack(lengths, capacity, place_best)


def first_fit_decreasing(
    lengths: Sequence[int], capacity: int
) -> tuple[tuple[int, ...], ...]:
    """Pack all items, longest first, each into the first bin that still holds it.

    Items of equal length go in the order given, and together, as in
    ``best_fit_decreasing``; the numbers of bins of both rarely differ.

    Args:
        lengths: Tokens of each item, at least 1.
        capacity: Tokens that a bin holds at most, at least 1.

    Returns:
        Bins in the order of opening as item numbers, ascending in each bin.

    Raises:
        ValueError: If ``capacity`` is below 1, or an item is empty or longer than it;
            nothing is dropped.

    Laws:
        partition: every item lies in exactly one bin
        capacity: no bin holds more than its capacity
        bound: at least ``fewest_bins_bound`` bins and at most 11/9 of the fewest
            possible plus 6/9
        scale: scaling lengths and capacity together changes nothing
        matches_reference: equals placing item by item in a loop

    Example:
        >>> first_fit_decreasing([6, 5, 3, 2], 8)
        ((0, 3), (1, 2))

    References:
        Dosa, "The tight bound of first fit decreasing bin-packing algorithm is
        FFD(I) <= 11/9 OPT(I) + 6/9" (ESCAPE 2007).
    """
    return _pack(lengths, capacity, place_first)


def fewest_bins_bound(lengths: Sequence[int], capacity: int) -> int:
    """Bound from below the bins that any packing of the items needs.

    The tokens take at least ``ceil(sum / capacity)`` bins, and items over half a bin
    one bin each. Beside an item of more than ``capacity - k`` tokens there is no
    place for one of ``k`` or more, so for every ``k`` the items of ``k`` tokens or
    more need the spaces of the others alone; the ``k`` that proves most counts.

    Args:
        lengths: Tokens of each item, at least 1.
        capacity: Tokens that a bin holds at most, at least 1.

    Returns:
        The number of bins, 0 without items.

    Raises:
        ValueError: If ``capacity`` is below 1, or an item is empty or longer than it.

    Laws:
        lower_bound: no packing has fewer bins
        volume: at least ceil(sum / capacity)
        matches_reference: equals the loop over every ``k``

    Example:
        >>> fewest_bins_bound([5, 5, 5, 1], 8)
        3

    References:
        Martello and Toth, "Lower bounds and reduction procedures for the bin packing
        problem" (Discrete Appl. Math. 28, 1990), bound L2.
    """
    _check_lengths(lengths, capacity)
    sizes = torch.tensor(lengths, dtype=torch.int64).sort().values
    tokens = F.pad(sizes.cumsum(0), (1, 0))
    small = int(torch.searchsorted(sizes, capacity // 2, right=True))
    least = F.pad(sizes[:small].unique(), (1, 0))
    first = torch.searchsorted(sizes, least)
    last = torch.searchsorted(sizes, capacity - least, right=True)
    over = tokens[last] - tokens[first] - (last - small) * capacity
    more = (over + capacity - 1).div(capacity, rounding_mode="floor").clamp(min=0)
    return len(lengths) - small + int(more.max())


def fill(lengths: Sequence[int], bins: Sequence[Sequence[int]], capacity: int) -> float:
    """Tell which share of the bins' tokens is real; the rest is padding.

    Args:
        lengths: Tokens of every item.
        bins: Bins as item numbers, at least one bin.
        capacity: Tokens that a bin holds at most, at least 1.

    Returns:
        The share, between 0 and 1.

    Raises:
        ValueError: If there are no bins.

    Laws:
        share: real tokens over all tokens, counted one by one
        bound: at most the tokens over those of ``fewest_bins_bound`` bins

    Example:
        >>> fill([5, 4, 3], [(0, 2), (1,)], 8)
        0.75
    """
    if not bins:
        raise ValueError("bins is empty; a share of no tokens is undefined")
    return sum(lengths[i] for items in bins for i in items) / (len(bins) * capacity)


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
        oldest_first: item 0 is always chosen, so no item waits for ever
        capacity: the bin holds at most its capacity
        maximal: no item that stays behind would still fit
        matches_reference: equals the same attempts in plain loops

    Example:
        >>> take_bin([3, 6, 5, 2], 8)
        (0, 2)
    """
    _check_lengths(lengths, capacity)
    if not lengths:
        raise ValueError("lengths is empty; a bin holds at least one item")
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


def next_bin(
    lengths: Sequence[int], capacity: int, state: StreamState, *, window: int, seed: int
) -> tuple[tuple[int, ...], StreamState]:
    """Draw the next bin of an endless, shuffled stream.

    Items wait in a window, refilled from the shuffled order of the current pass, and
    leave it as ``take_bin`` chooses. The state is all that there is to resume: the
    same state always gives the same bins, and a larger window gives fuller ones.

    Args:
        lengths: Tokens of every item, each at least 1.
        capacity: Tokens that a bin holds at most, at least 1.
        state: Where the stream stands; ``StreamState()`` is its beginning.
        window: Items that wait, at least 1.
        seed: Shuffles every pass; another seed gives another order.

    Returns:
        The bin as item numbers, oldest first, and the state after it.

    Raises:
        ValueError: If there are no items, ``window`` is below 1, the state is of more
            items than there are, or an item that begins to wait does not fit a bin.

    Laws:
        once_per_pass: within a pass every item comes exactly once
        bounded_wait: an item leaves within ``window`` bins after it begins to wait
        resumes: continuing from any state gives the bins of an uninterrupted stream

    Example:
        >>> bins, state = next_bin([3, 6, 5, 2], 8, StreamState(), window=4, seed=0)
        >>> sorted(bins + state.waiting)
        [0, 1, 2, 3]
    """
    if not lengths or window < 1:
        raise ValueError(
            f"lengths has {len(lengths)} items and window is {window}; both must be at "
            "least 1"
        )
    epoch, position = state.epoch, state.position
    waiting = list(state.waiting)
    known = range(len(lengths))
    if not 0 <= position <= len(lengths) or any(item not in known for item in waiting):
        raise ValueError(
            f"state stands at position {position} and items {state.waiting} wait; "
            f"there are {len(lengths)} items, counted from 0"
        )
    while len(waiting) < window:
        if position == len(lengths):
            epoch, position = epoch + 1, 0
        item = _shuffled(len(lengths), seed, epoch)[position]
        _check_length(item, lengths[item], capacity)
        waiting.append(item)
        position += 1
    chosen = take_bin([lengths[item] for item in waiting], capacity)
    taken = set(chosen)
    left = tuple(item for i, item in enumerate(waiting) if i not in taken)
    after = StreamState(epoch=epoch, position=position, waiting=left)
    return tuple(waiting[i] for i in chosen), after


def _fill_up(negated: list[int], place: int, free: int) -> tuple[list[int], int]:
    """Take what fits from ``place`` on, longest first; give it and the space left."""
    places = []
    while place < len(negated):
        places.append(place)
        free += negated[place]
        place = bisect_left(negated, -free, lo=place + 1)
    return places, free


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Give the order of one pass."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return tuple(torch.randperm(count, generator=generator).tolist())


def _pack(
    lengths: Sequence[int], capacity: int, place: Place
) -> tuple[tuple[int, ...], ...]:
    """Place the items of one length after another and list the items of each bin."""
    _check_lengths(lengths, capacity)
    sizes, order = torch.tensor(lengths, dtype=torch.int64).sort(
        descending=True, stable=True
    )
    groups, counts = sizes.unique_consecutive(return_counts=True)
    bins, takes = place(groups.tolist(), counts.tolist(), capacity)
    bin_in_order = torch.tensor(bins, dtype=torch.int64).repeat_interleave(
        torch.tensor(takes, dtype=torch.int64)
    )
    bin_of = torch.empty_like(order)
    bin_of[order] = bin_in_order
    items: list[int] = bin_of.argsort(stable=True).tolist()
    stops = bin_of.bincount().cumsum(0).tolist()
    return tuple(tuple(items[i:j]) for i, j in pairwise([0, *stops]))


def _check_lengths(lengths: Sequence[int], capacity: int) -> None:
    """Raise a ValueError that names the first item that cannot be packed."""
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; it must be at least 1")
    if min(lengths, default=1) >= 1 and max(lengths, default=1) <= capacity:
        return
    for item, length in enumerate(lengths):
        _check_length(item, length, capacity)


def _check_length(item: int, length: int, capacity: int) -> None:
    """Raise a ValueError unless the item fits an empty bin."""
    if not 1 <= length <= capacity:
        raise ValueError(
            f"item {item} has {length} tokens; it must have between 1 and the "
            f"capacity of {capacity}"
        )
