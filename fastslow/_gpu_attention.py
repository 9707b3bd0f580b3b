"""Attention within frames on a GPU, forward alone, as a frozen tower needs it.

Heads of a vision tower have 72 or 80 channels. torch's FlashAttention 2 pads them to
96, and does not know Hopper's own matrix instructions; this kernel multiplies 64
channels, then 16, and was 1.3 to 1.5 times as fast on an H100. Triton comes with torch
on GPUs, and FlexAttention needs it as well.
"""

from math import e, gcd, log2

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslow._typing import no_type_check

LEAST_CHANNELS = 16
"""Channels that a product of matrices takes at least."""
QUERIES, KEYS = 128, 64
"""Patches in a tile. With four warps and three stages this was the fastest of nine ways
on an H100."""
ALIGNED = 8
"""Channels in 16 bytes, which are copied at once, and meanwhile, where all rows and
heads are known to begin at a multiple of them. Triton itself asks whether a stride is a
multiple of 16, which that of heads of 72 channels is not."""

STRIDES = [f"{x}_{axis}" for x in ("query", "key", "value") for axis in ("row", "head")]


def attend_to_frames(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None,
) -> Tensor:
    """Let the patches of each frame see each other.

    Args:
        query: ``(patches, heads, channels)``, in half precision, on a GPU; of heads
            that ``MOST_CHANNELS`` of the tower lets through.
        key: As ``query``.
        value: As ``query``.
        cu_seqlens: Cumulative number of patches, frame by frame.
        max_seqlen: Patches of the largest frame. Offsets within a frame are 32 bits:
            with 16 heads of 80 channels, cut from one product with keys and values,
            they reach 559,000 patches.
        scale: Factor on the scores, above 0; ``channels ** -0.5`` by default.

    Returns:
        The weighted sums of values, in the shape and dtype of ``query``.
    """
    query, key, value = (
        each if each.stride(-1) == 1 else each.contiguous()
        for each in (query, key, value)
    )
    patches, heads, channels = query.shape
    attended = query.new_empty(patches, heads, channels)
    step = gcd(ALIGNED, *(s for x in (query, key, value) for s in x.stride()[:2]))
    tiles = triton.cdiv(max_seqlen, QUERIES)
    with torch.cuda.device_of(query):  # a kernel is launched on the current device
        # One axis: only the first has room for more than 65,535 frames.
        _attend[(tiles * heads * (len(cu_seqlens) - 1),)](
            query,
            key,
            value,
            attended,
            cu_seqlens,
            log2(e) * (channels**-0.5 if scale is None else scale),
            *(stride // step for x in (query, key, value) for stride in x.stride()[:2]),
            tiles,
            heads,
            channels,
            step=step,
            **cut(channels),
            num_queries=QUERIES,
            num_keys=KEYS,
            num_warps=4,
            num_stages=3,
        )
    return attended


def cut(channels: int) -> dict[str, int]:
    """Cut a head into two powers of 2 that hold it together, the wide one first."""
    wide = max(2 ** (channels.bit_length() - 1), LEAST_CHANNELS)
    narrow = max(triton.next_power_of_2(channels - wide), LEAST_CHANNELS)
    return {"wide": wide, "narrow": narrow}


@triton.jit(do_not_specialize=[*STRIDES, "tiles"])  # rows and views share one kernel
@no_type_check
def _attend(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    query,
    key,
    value,
    attended,
    cu_seqlens,
    scale,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    tiles,
    heads: tl.constexpr,
    channels: tl.constexpr,
    step: tl.constexpr,
    wide: tl.constexpr,
    narrow: tl.constexpr,
    num_queries: tl.constexpr,
    num_keys: tl.constexpr,
):
    """Attend from one tile of queries of a frame, in one head.

    Strides count steps of ``step`` channels. Heads are cut into ``wide`` channels and
    the ``narrow`` ones behind, two powers of 2. Scores are in bits: ``scale`` is
    multiplied by ``log2(e)``.
    """
    program = tl.program_id(0)
    frame, head = program // (tiles * heads), program // tiles % heads
    start = tl.load(cu_seqlens + frame)
    length = tl.load(cu_seqlens + frame + 1) - start
    first = program % tiles * num_queries
    if first >= length:
        return
    start, head = start.to(tl.int64), head.to(tl.int64)
    queries = first + tl.arange(0, num_queries)
    exist = queries < length
    query_row, key_row, value_row = query_row * step, key_row * step, value_row * step
    query += start * query_row + head * query_head * step
    front, back = _load(
        query + queries[:, None] * query_row, exist, channels, wide, narrow
    )
    total, front, back = _sum_values(
        front,
        back,
        key + start * key_row + head * key_head * step,
        value + start * value_row + head * value_head * step,
        length,
        scale,
        key_row,
        value_row,
        channels,
        num_keys,
    )
    row: tl.constexpr = heads * channels
    attended += start * row + head * channels + queries[:, None] * row
    _store(attended, front / total[:, None], 0, exist, channels)
    _store(attended, back / total[:, None], wide, exist, channels)


@triton.jit
@no_type_check
def _sum_values(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    query_front,
    query_back,
    key,
    value,
    length,
    scale,
    key_row,
    value_row,
    channels: tl.constexpr,
    num_keys: tl.constexpr,
):
    """Sum up shares, and values by their shares, over all keys of a frame."""
    num_queries: tl.constexpr = query_front.shape[0]
    wide: tl.constexpr = query_front.shape[1]
    narrow: tl.constexpr = query_back.shape[1]
    most = tl.full([num_queries], float("-inf"), tl.float32)
    total = tl.zeros([num_queries], tl.float32)
    sum_front = tl.zeros([num_queries, wide], tl.float32)
    sum_back = tl.zeros([num_queries, narrow], tl.float32)
    whole = length // num_keys * num_keys
    for is_cut in tl.static_range(2):  # whole tiles of keys, then what is left
        for first in tl.range(
            whole * is_cut,
            length if is_cut else whole,
            num_keys,
            num_stages=1 if is_cut else None,
        ):
            keys = first + tl.arange(0, num_keys)
            exist = keys < length if is_cut else tl.full([num_keys], True, tl.int1)
            front, back = _load(
                key + keys[:, None] * key_row, exist, channels, wide, narrow
            )
            scores = tl.dot(query_back, back.T, tl.dot(query_front, front.T))
            if is_cut:
                scores = tl.where(exist, scores, float("-inf"))
            higher = tl.maximum(most, scale * tl.max(scores, 1))
            shares = tl.exp2(scores * scale - higher[:, None])
            fade = tl.exp2(most - higher)
            most, total = higher, total * fade + tl.sum(shares, 1)
            front, back = _load(
                value + keys[:, None] * value_row, exist, channels, wide, narrow
            )
            shares = shares.to(value.dtype.element_ty)
            sum_front = tl.dot(shares, front, sum_front * fade[:, None])
            sum_back = tl.dot(shares, back, sum_back * fade[:, None])
    return total, sum_front, sum_back


@triton.jit
@no_type_check
def _load(  # type: ignore[no-untyped-def]
    rows, exist, channels: tl.constexpr, wide: tl.constexpr, narrow: tl.constexpr
):
    """Load the front channels of some rows, and those behind; others are 0."""
    front, back = tl.arange(0, wide), wide + tl.arange(0, narrow)
    return (
        tl.load(rows + front, mask=exist[:, None] & (front < channels), other=0),
        tl.load(rows + back, mask=exist[:, None] & (back < channels), other=0),
    )


@triton.jit
@no_type_check
def _store(  # type: ignore[no-untyped-def]
    rows, values, first: tl.constexpr, exist, channels: tl.constexpr
):
    """Store values as the channels of some rows from ``first`` on."""
    channel = first + tl.arange(0, values.shape[1])
    mask = exist[:, None] & (channel < channels)
    tl.store(rows + channel, values.to(rows.dtype.element_ty), mask=mask)
