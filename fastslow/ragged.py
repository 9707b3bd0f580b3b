"""Sequences of unequal length, end to end in one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int, Int32, Shaped
from torch import Tensor

from fastslow._plans import integers
from fastslow._shapes import check_axes, check_dtype, check_type, has_entries


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Sequences of unequal length, end to end.

    Sequence ``i`` is ``values[cu_seqlens[i]:cu_seqlens[i + 1]]``; it may be empty.

    Attributes:
        values: All items, sequence after sequence.
        cu_seqlens: Cumulative lengths, which start at 0, never fall and end at the
            number of items. This is not checked: reading them would wait for a GPU.
    """

    values: Shaped[Tensor, " items *feature"]
    cu_seqlens: Int32[Tensor, " bounds"]


def pack_ragged(sequences: Sequence[Shaped[Tensor, " _ *feature"]]) -> Ragged:
    """Lay sequences end to end.

    Args:
        sequences: Tensors that agree in dtype, device and all axes but the first;
            at least one.

    Returns:
        One ragged tensor; gradients flow back to every sequence.

    Raises:
        ValueError: If ``sequences`` is empty or no sequence of tensors, or they differ
            in more than the first axis.

    Laws:
        round_trip: unpacking gives back the sequences exactly:
            ``unpack_ragged(pack_ragged(xs)) == xs``
        associative: packing packs equals packing all their sequences:
            ``pack(unpack(pack(a)) + unpack(pack(b))) == pack(a + b)``

    Example:
        >>> pack_ragged([torch.tensor([1, 2]), torch.tensor([3])]).cu_seqlens
        tensor([0, 2, 3], dtype=torch.int32)
    """
    _check_alike(sequences)
    lengths = integers([len(sequence) for sequence in sequences])
    return Ragged(
        values=torch.cat(list(sequences)),
        cu_seqlens=cu_seqlens_from_lengths(lengths).to(sequences[0].device),
    )


def unpack_ragged(ragged: Ragged) -> tuple[Shaped[Tensor, " _ *feature"], ...]:
    """Give the sequences of a ragged tensor, as views.

    Reads ``cu_seqlens`` on the host, so it waits for a GPU.

    Args:
        ragged: Sequences end to end.

    Returns:
        One tensor per sequence.

    Raises:
        ValueError: If ``cu_seqlens`` does not start at 0, falls, or does not end at the
            number of items.

    Laws:
        round_trip: packing gives back r exactly, where r has a sequence:
            ``pack_ragged(unpack_ragged(r)) == r``

    Example:
        >>> ragged = pack_ragged([torch.tensor([1, 2]), torch.tensor([3])])
        >>> unpack_ragged(ragged)
        (tensor([1, 2]), tensor([3]))
    """
    bounds, items = ragged.cu_seqlens.tolist(), len(ragged.values)
    ends = (*bounds[:1], *bounds[-1:])
    if ends != (0, items):
        raise ValueError(
            f"cu_seqlens has the ends {ends} but there are {items} items; it must "
            "start at 0 and end at their number"
        )
    lengths = [stop - start for start, stop in pairwise(bounds)]
    least = min(lengths, default=0)
    if least < 0:
        raise ValueError(
            f"cu_seqlens falls by {-least} along sequence {lengths.index(least)}; "
            "bounds never fall"
        )
    return torch.split(ragged.values, lengths)


def select_ragged(ragged: Ragged, sequences: Int[Tensor, " chosen"]) -> Ragged:
    """Take some sequences of a ragged tensor, in one gather.

    Sums the chosen lengths on the host, so it waits for a GPU.

    Args:
        ragged: Sequences end to end.
        sequences: Numbers of the sequences to take, in any order; a number may stand
            here more than once, and -1 is the last one.

    Returns:
        Those sequences end to end.

    Laws:
        matches_unpacked: packs the sequences of ``unpack_ragged`` that are numbered:
            ``select(r, i) == pack([unpack(r)[j] for j in i])``
        identity: all numbers in order change nothing: ``select(r, arange(n)) == r``

    Example:
        >>> ragged = pack_ragged([torch.tensor([1, 2]), torch.tensor([3])])
        >>> select_ragged(ragged, torch.tensor([1, 0, 1])).values
        tensor([3, 1, 2, 3])
    """
    lengths = lengths_from_cu_seqlens(ragged.cu_seqlens)[sequences]
    cu_seqlens = cu_seqlens_from_lengths(lengths)
    shift = ragged.cu_seqlens[:-1][sequences] - cu_seqlens[:-1]
    items = torch.repeat_interleave(shift, lengths)
    items += torch.arange(len(items), dtype=items.dtype, device=items.device)
    return Ragged(values=ragged.values[items], cu_seqlens=cu_seqlens)


def cu_seqlens_from_lengths(
    lengths: Int[Tensor, " sequences"],
) -> Int32[Tensor, " bounds"]:
    """Add lengths up, beginning with 0.

    Args:
        lengths: Items of each sequence, at least 0; fewer than 2**31 in all.

    Returns:
        ``sequences + 1`` bounds, as FlashAttention expects them.

    Raises:
        ValueError: If ``lengths`` holds no integers along one axis.

    Laws:
        round_trip: ``lengths_from_cu_seqlens`` undoes it:
            ``lengths_from_cu_seqlens(cu_seqlens_from_lengths(n)) == n``
        bounds: begins with 0, never falls, ends with the total: ``cu[0] == 0, cu[i] <=
            cu[i + 1], cu[-1] == sum(n)``

    Example:
        >>> cu_seqlens_from_lengths(torch.tensor([2, 0, 3]))
        tensor([0, 2, 2, 5], dtype=torch.int32)
    """
    check_axes("lengths", lengths, "sequences")
    check_dtype("lengths", lengths, "integers")
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def lengths_from_cu_seqlens(
    cu_seqlens: Int[Tensor, " bounds"],
) -> Int[Tensor, " sequences"]:
    """Give the length of each sequence.

    Args:
        cu_seqlens: Cumulative lengths, beginning with 0.

    Returns:
        Differences of neighbouring bounds.

    Laws:
        round_trip: ``cu_seqlens_from_lengths`` undoes it:
            ``cu_seqlens_from_lengths(lengths_from_cu_seqlens(cu)) == cu``

    Example:
        >>> lengths_from_cu_seqlens(torch.tensor([0, 2, 2, 5]))
        tensor([2, 0, 3])
    """
    return cu_seqlens.diff()


def segment_ids_from_cu_seqlens(
    cu_seqlens: Int[Tensor, " bounds"], num_items: int
) -> Int[Tensor, " items"]:
    """Tell for each item which sequence it belongs to.

    Args:
        cu_seqlens: Cumulative lengths, beginning with 0.
        num_items: Items in all; known on the host, so that no device is waited for.
            Items past the last bound are padding.

    Returns:
        0-based sequence of each item, -1 for padding.

    Laws:
        round_trip: ``lengths_from_segment_ids`` gives the lengths back:
            ``lengths_from_segment_ids(segment_ids_from_cu_seqlens(cu)) == cu.diff()``
        sorted: ids never fall within the sequences: ``ids[i] <= ids[i + 1]``
        padding: items past the last bound are -1: ``ids[cu[-1]:] == -1``

    Example:
        >>> segment_ids_from_cu_seqlens(torch.tensor([0, 2, 2, 5]), 6)
        tensor([ 0,  0,  2,  2,  2, -1])
    """
    items = torch.arange(num_items, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    ids = torch.searchsorted(cu_seqlens, items, right=True) - 1
    return ids.masked_fill(items >= cu_seqlens[-1], -1)


def lengths_from_segment_ids(
    segment_ids: Int[Tensor, " items"], num_segments: int
) -> Int[Tensor, " num_segments"]:
    """Count the items of each sequence.

    Args:
        segment_ids: 0-based sequence of each item, -1 for padding.
        num_segments: Sequences in all; empty ones at the end leave no trace in
            ``segment_ids``.

    Returns:
        One length per sequence; padding is not counted.

    Laws:
        round_trip: ``segment_ids_from_cu_seqlens`` of the lengths gives the ids back:
            ``segment_ids_from_cu_seqlens(cu_seqlens_from_lengths(n)) == ids``

    Example:
        >>> lengths_from_segment_ids(torch.tensor([0, 0, 2, -1]), 4)
        tensor([2, 0, 1, 0])
    """
    counts = segment_ids.new_zeros(num_segments + 1)
    return counts.index_add_(0, segment_ids + 1, torch.ones_like(segment_ids))[1:]


def position_ids_from_cu_seqlens(
    cu_seqlens: Int[Tensor, " bounds"], num_items: int
) -> Int[Tensor, " items"]:
    """Count the items of each sequence from 0.

    Args:
        cu_seqlens: Cumulative lengths, beginning with 0.
        num_items: Items in all, as for ``segment_ids_from_cu_seqlens``.

    Returns:
        Position of each item in its sequence; padding counts from 0 as well.

    Laws:
        restarts: each sequence and the padding begin at 0 and step by 1: ``ids[i] == i
            - cu[segment[i]]``

    Example:
        >>> position_ids_from_cu_seqlens(torch.tensor([0, 2, 2, 5]), 6)
        tensor([0, 1, 0, 1, 2, 0])
    """
    items = torch.arange(num_items, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    first = torch.searchsorted(cu_seqlens, items, right=True) - 1
    return items - cu_seqlens[first]


def _check_alike(sequences: Sequence[Tensor]) -> None:
    """Raise unless there are tensors, which differ in the length of an axis alone."""
    if isinstance(sequences, Tensor) or not has_entries(sequences):
        found = type(sequences).__name__
        raise ValueError(f"sequences is a {found}; it must be a sequence of tensors")
    if not len(sequences):
        raise ValueError("sequences is empty; at least one fixes dtype and shape")
    first: tuple[torch.dtype, torch.device, torch.Size] | None = None
    for number, each in enumerate(sequences):
        check_type(f"sequences[{number}]", each, Tensor, "a tensor")
        if not each.ndim:
            raise ValueError(
                f"sequences[{number}] has no axis; its first one counts items"
            )
        kind = each.dtype, each.device, each.shape[1:]
        first = first or kind
        if kind != first:
            raise ValueError(
                f"sequences[{number}] is {_told(each)} but sequences[0] is "
                f"{_told(sequences[0])}; they must agree in all but the first axis"
            )


def _told(tensor: Tensor) -> str:
    """Tell what tensors have to agree in."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
