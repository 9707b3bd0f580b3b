"""Bins, item by item."""

from collections.abc import Sequence


def fewest_bins(lengths: Sequence[int], capacity: int) -> int:
    """Find the fewest bins by trying every packing; for about 8 items at most."""

    def place(item: int, spaces: list[int]) -> int:
        if item == len(lengths):
            return len(spaces)
        answers = [place(item + 1, [*spaces, capacity - lengths[item]])]
        for i, space in enumerate(spaces):
            if lengths[item] <= space:
                left = [*spaces[:i], space - lengths[item], *spaces[i + 1 :]]
                answers.append(place(item + 1, left))
        return min(answers)

    return place(0, [])


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items, longest first, each into the fullest bin that still holds it.

    Items of equal length go in the order given; equally full bins in that of opening.
    """
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        loads = [sum(lengths[i] for i in chosen) for chosen in bins]
        fitting = [
            b for b, load in enumerate(loads) if load + lengths[item] <= capacity
        ]
        if fitting:
            bins[max(fitting, key=lambda b: (loads[b], -b))].append(item)
        else:
            bins.append([item])
    return [sorted(chosen) for chosen in bins]


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items, longest first, each into the first bin that still holds it.

    Items of equal length go in the order given.
    """
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for chosen in bins:
            if sum(lengths[i] for i in chosen) + lengths[item] <= capacity:
                chosen.append(item)
                break
        else:
            bins.append([item])
    return [sorted(chosen) for chosen in bins]


def fewest_bins_bound(lengths: Sequence[int], capacity: int) -> int:
    """Prove a number of bins once for every ``k`` up to half a bin; keep the best.

    Items over ``capacity - k`` and items over half a bin have a bin each; only the
    spaces beside the latter hold items of ``k`` tokens or more.
    """
    proven = []
    for k in range(capacity // 2 + 1):
        alone = [n for n in lengths if n > capacity - k]
        large = [n for n in lengths if n <= capacity - k and 2 * n > capacity]
        small = [n for n in lengths if 2 * n <= capacity and n >= k]
        spaces = sum(capacity - n for n in large)
        bins = len(alone) + len(large)
        while spaces < sum(small):
            bins, spaces = bins + 1, spaces + capacity
        proven.append(bins)
    return max(proven)


def take_bin(lengths: Sequence[int], capacity: int) -> list[int]:
    """Fill a bin beside item 0, longest first, from each of the 8 longest that fit.

    Items of equal length go in the order given. The fullest bin counts, the first of
    equally full ones.
    """
    fitting = {n for n in lengths[1:] if lengths[0] + n <= capacity}
    bins = [[0]]
    for longest in sorted(fitting, reverse=True)[:8]:
        chosen = [0]
        for item in sorted(range(1, len(lengths)), key=lambda i: (-lengths[i], i)):
            load = sum(lengths[i] for i in chosen)
            if lengths[item] <= min(longest, capacity - load):
                chosen.append(item)
        bins.append(chosen)
    return sorted(max(bins, key=lambda chosen: sum(lengths[i] for i in chosen)))
