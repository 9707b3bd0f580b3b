"""Which samples share a bin: integers in, integers out."""

from collections.abc import Sequence
from itertools import chain, pairwise

import torch
import torch.nn.functional as F

from fastslow._fits import Place, check_lengths, place_best, place_first
from fastslow._plans import integers
from fastslow._shapes import entries, positive


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
        partition: every item lies in exactly one bin: ``sorted(sum(bins, ())) ==
            list(range(n))``
        capacity: no bin holds more than its capacity: ``sum(lengths[i] for i in bin) <=
            capacity``
        bound: at least ``fewest_bins_bound`` bins and at most 11/9 of the fewest
            possible plus 6/9: ``bound <= len(bins) <= 11/9 * fewest + 6/9``
        scale: scaling lengths and capacity together changes nothing: ``bins(a *
            lengths, a * capacity) == bins(lengths, capacity)``
        matches_reference: equals placing item by item in a loop: ``bins ==
            reference.best_fit_decreasing(...)``

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
        partition: every item lies in exactly one bin: ``sorted(sum(bins, ())) ==
            list(range(n))``
        capacity: no bin holds more than its capacity: ``sum(lengths[i] for i in bin) <=
            capacity``
        bound: at least ``fewest_bins_bound`` bins and at most 11/9 of the fewest
            possible plus 6/9: ``bound <= len(bins) <= 11/9 * fewest + 6/9``
        scale: scaling lengths and capacity together changes nothing: ``bins(a *
            lengths, a * capacity) == bins(lengths, capacity)``
        matches_reference: equals placing item by item in a loop: ``bins ==
            reference.first_fit_decreasing(...)``

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
        lower_bound: no packing has fewer bins: ``bound <= len(bins)``
        volume: at least what the volume needs: ``bound >= ceil(sum(lengths) /
            capacity)``
        matches_reference: equals the loop over every ``k``: ``bound ==
            reference.fewest_bins_bound(...)``

    Example:
        >>> fewest_bins_bound([5, 5, 5, 1], 8)
        3

    References:
        Martello and Toth, "Lower bounds and reduction procedures for the bin packing
        problem" (Discrete Appl. Math. 28, 1990), bound L2.
    """
    check_lengths(lengths, capacity)
    sizes = torch.as_tensor(lengths, dtype=torch.int64, device="cpu").sort().values
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
        bins: Bins as item numbers, at least one bin. An item that stands in them twice,
            as in bins of a stream, counts twice.
        capacity: Tokens that a bin holds at most, at least 1.

    Returns:
        The share, between 0 and 1.

    Raises:
        ValueError: If there are no bins, ``capacity`` is no whole number from 1 on, an
            item does not exist, or a bin holds more.

    Laws:
        share: real tokens over all tokens, counted one by one: ``fill == sum(lengths) /
            (len(bins) * capacity)``
        bound: at most the tokens over those of ``fewest_bins_bound`` bins: ``fill <=
            sum(lengths) / (fewest_bins_bound * capacity)``

    Example:
        >>> fill([5, 4, 3], [(0, 2), (1,)], 8)
        0.75
    """
    if not bins:
        raise ValueError("bins is empty; a share of no tokens is undefined")
    capacity = positive("capacity", capacity)
    sizes: list[int] = list(entries(lengths))
    members = [tuple(items) for items in bins]
    named = list(chain.from_iterable(members))
    if min(named, default=0) < 0 or max(named, default=-1) >= len(sizes):
        number = next(n for n, b in enumerate(members) if set(b) - {*range(len(sizes))})
        raise ValueError(
            f"bin {number} holds the items {members[number]}; there are "
            f"{len(sizes)}, counted from 0"
        )
    tokens = [sum(sizes[i] for i in items) for items in members]
    if max(tokens) > capacity:
        raise ValueError(
            f"bin {tokens.index(max(tokens))} holds {max(tokens)} tokens; capacity is "
            f"{capacity}"
        )
    return sum(tokens) / (len(bins) * capacity)


def _pack(
    lengths: Sequence[int], capacity: int, place: Place
) -> tuple[tuple[int, ...], ...]:
    """Place the items of one length after another and list the items of each bin."""
    check_lengths(lengths, capacity)
    sizes, order = torch.as_tensor(lengths, dtype=torch.int64, device="cpu").sort(
        descending=True, stable=True
    )
    groups, counts = sizes.unique_consecutive(return_counts=True)
    bins, takes = place(groups.tolist(), counts.tolist(), capacity)
    bin_in_order = integers(bins).repeat_interleave(integers(takes))
    bin_of = torch.empty_like(order)
    bin_of[order] = bin_in_order
    items: list[int] = bin_of.argsort(stable=True).tolist()
    stops = bin_of.bincount().cumsum(0).tolist()
    return tuple(tuple(items[i:j]) for i, j in pairwise([0, *stops]))
