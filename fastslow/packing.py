"""Which samples share a bin: integers in, integers out."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch


def best_fit_decreasing(
    lengths: Sequence[int], capacity: int
) -> tuple[tuple[int, ...], ...]:
    """Pack all items, longest first, each into the fullest bin that still holds it.

    Args:
        lengths: Tokens of each item, at least 1.
        capacity: Tokens that a bin holds at most.

    Returns:
        Bins as item numbers, ascending in each bin.

    Raises:
        ValueError: If an item is empty or longer than ``capacity``; nothing is dropped.

    Laws:
        partition: every item lies in exactly one bin
        capacity: no bin holds more than its capacity
        bound: at least ceil(sum / capacity) bins and at most 11/9 of the fewest
            possible plus 6/9
        scale: scaling lengths and capacity together changes nothing

    Example:
        >>> best_fit_decreasing([5, 4, 3, 2, 2], 8)
        ((0, 2), (1, 3, 4))

    References:
        Johnson et al., "Worst-case performance bounds for simple one-dimensional
        packing algorithms" (SIAM J. Comput. 3, 1974).
    """
    _check_lengths(lengths, capacity)
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fit = bisect_left(spaces, (lengths[item], 0))
        if fit < len(spaces):
            free, chosen = spaces.pop(fit)
            bins[chosen].append(item)
        else:
            free, chosen = capacity, len(bins)
            bins.append([item])
        insort(spaces, (free - lengths[item], chosen))
    return tuple(tuple(sorted(items)) for items in bins)


def take_bin(lengths: Sequence[int], capacity: int) -> tuple[int, ...]:
    """Choose the next bin of a stream from the items that wait.

    The item that has waited longest always goes; the others fill the bin, longest
    first. A packer over a stream is this function and a buffer: its whole state is
    the list of waiting items.

    Args:
        lengths: Tokens of each waiting item, oldest first, each at least 1.
        capacity: Tokens that the bin holds at most.

    Returns:
        The chosen items' numbers, ascending.

    Raises:
        ValueError: If nothing waits, or an item is empty or longer than ``capacity``.

    Laws:
        oldest_first: item 0 is always chosen, so no item waits for ever
        capacity: the bin holds at most its capacity
        maximal: no item that stays behind would still fit

    Example:
        >>> take_bin([3, 6, 5, 2], 8)
        (0, 2)
    """
    _check_lengths(lengths, capacity)
    if not lengths:
        raise ValueError("lengths is empty; a bin holds at least one item")
    free = capacity - lengths[0]
    chosen = [0]
    for item in sorted(range(1, len(lengths)), key=lambda i: -lengths[i]):
        if lengths[item] <= free:
            chosen.append(item)
            free -= lengths[item]
    return tuple(sorted(chosen))


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
        capacity: Tokens that a bin holds at most.
        state: Where the stream stands; ``StreamState()`` is its beginning.
        window: Items that wait, at least 1.
        seed: Shuffles every pass; another seed gives another order.

    Returns:
        The bin as item numbers, oldest first, and the state after it.

    Raises:
        ValueError: If there are no items, ``window`` is below 1, or an item that begins
            to wait does not fit a bin.

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
    while len(waiting) < window:
        if position == len(lengths):
            epoch, position = epoch + 1, 0
        item = _shuffled(len(lengths), seed, epoch)[position]
        _check_length(item, lengths[item], capacity)
        waiting.append(item)
        position += 1
    chosen = take_bin([lengths[item] for item in waiting], capacity)
    left = tuple(item for i, item in enumerate(waiting) if i not in chosen)
    after = StreamState(epoch=epoch, position=position, waiting=left)
    return tuple(waiting[i] for i in chosen), after


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Give the order of one pass."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return tuple(torch.randperm(count, generator=generator).tolist())


def _check_lengths(lengths: Sequence[int], capacity: int) -> None:
    """Raise a ValueError that names the first item that cannot be packed."""
    for item, length in enumerate(lengths):
        _check_length(item, length, capacity)


def _check_length(item: int, length: int, capacity: int) -> None:
    """Raise a ValueError unless the item fits an empty bin."""
    if not 1 <= length <= capacity:
        raise ValueError(
            f"item {item} has {length} tokens; it must have between 1 and the "
            f"capacity of {capacity}"
        )
