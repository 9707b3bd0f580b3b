"""Attention within frames on a GPU, forward alone, as a frozen tower needs it.

Heads of a vision tower have 72 or 80 channels. torch's FlashAttention 2 pads them to
96, and does not know Hopper's own matrix instructions; this kernel multiplies 64
channels, then 16, and is 1.4 to 1.5 times as fast on an H100. Triton comes with torch
on GPUs, and FlexAttention needs it as well.
"""

from math import e, log2

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


def attend_to_frames(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    most: int,
    scale: float | None,
) -> Tensor:
    """Let the patches of each frame see each other.

    Args:
        query: ``(patches, heads, channels)``, in half precision, on a GPU.
        key: As ``query``.
        value: As ``query``.
        starts: Cumulative number of patches, frame by frame.
        most: Patches of the largest frame.
        scale: Factor on the scores; ``channels ** -0.5`` by default.

    Returns:
        The weighted sums of values, in the shape and dtype of ``query``.
    """
    query, key, value = (
        each if each.stride(-1) == 1 else each.contiguous()
        for each in (query, key, value)
    )
    patches, heads, channels = query.shape
    attended = query.new_empty(patches, heads, channels)
    wide = max(2 ** (channels.bit_length() - 1), LEAST_CHANNELS)
    narrow = max(triton.next_power_of_2(channels - wide), LEAST_CHANNELS)
    tiles = triton.cdiv(most, QUERIES)
    with torch.cuda.device_of(query):  # a kernel is launched on the current device
        _attend[tiles, heads, len(starts) - 1](
            query,
            key,
            value,
            attended,
            starts,
            log2(e) * (channels**-0.5 if scale is None else scale),
            *query.stride()[:2],
            *key.stride()[:2],
            *value.stride()[:2],
            channels,
            wide=wide,
            narrow=narrow,
            num_queries=QUERIES,
            num_keys=KEYS,
            num_warps=4,
            num_stages=3,
        )
    return attended


@triton.jit
@no_type_check
def _attend(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    query,
    key,
    value,
    attended,
    starts,
    scale,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    channels: tl.constexpr,
    wide: tl.constexpr,
    narrow: tl.constexpr,
    num_queries: tl.constexpr,
    num_keys: tl.constexpr,
):
    """Attend from one tile of queries of a frame, in one head.

    Heads are cut into ``wide`` channels and the ``narrow`` ones behind, two powers of
    2. Scores are in bits: ``scale`` is multiplied by ``log2(e)``.
    """
    frame, head = tl.program_id(2), tl.program_id(1)
    start = tl.load(starts + frame)
    length = tl.load(starts + frame + 1) - start
    first = tl.program_id(0) * num_queries
    if first >= length:
        return
    start = start.to(tl.int64)
    query += start * query_row + head * query_head
    key += start * key_row + head * key_head
    value += start * value_row + head * value_head
    attended += (start * tl.num_programs(1) + head) * channels

    rows = first + tl.arange(0, num_queries)
    front, back = tl.arange(0, wide), wide + tl.arange(0, narrow)
    in_front, in_back = front < channels, back < channels
    exists = rows < length
    query += rows[:, None] * query_row
    query_front = tl.load(query + front, mask=exists[:, None] & in_front, other=0)
    query_back = tl.load(query + back, mask=exists[:, None] & in_back, other=0)

    most = tl.full([num_queries], float("-inf"), tl.float32)
    total = tl.zeros([num_queries], tl.float32)
    sum_front = tl.zeros([num_queries, wide], tl.float32)
    sum_back = tl.zeros([num_queries, narrow], tl.float32)
    whole = length // num_keys * num_keys
    for is_cut in tl.static_range(2):  # whole tiles of keys, then what is left
        for first_key in tl.range(
            whole * is_cut,
            length if is_cut else whole,
            num_keys,
            num_stages=1 if is_cut else None,
        ):
            keys = first_key + tl.arange(0, num_keys)
            seen = keys < length if is_cut else tl.full([num_keys], True, tl.int1)
            some = key + keys[:, None] * key_row
            front_keys = tl.load(some + front, mask=seen[:, None] & in_front, other=0)
            back_keys = tl.load(some + back, mask=seen[:, None] & in_back, other=0)
            scores = tl.dot(query_front, front_keys.T)
            scores = tl.dot(query_back, back_keys.T, scores)
            if is_cut:
                scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(most, scale * tl.max(scores, 1))
            shares = tl.exp2(scores * scale - higher[:, None])
            fade = tl.exp2(most - higher)
            most, total = higher, total * fade + tl.sum(shares, 1)
            some = value + keys[:, None] * value_row
            front_values = tl.load(some + front, mask=seen[:, None] & in_front, other=0)
            back_values = tl.load(some + back, mask=seen[:, None] & in_back, other=0)
            shares = shares.to(value.dtype.element_ty)
            sum_front = tl.dot(shares, front_values, sum_front * fade[:, None])
            sum_back = tl.dot(shares, back_values, sum_back * fade[:, None])

    attended += rows[:, None] * (tl.num_programs(1) * channels)
    sum_front /= total[:, None]
    sum_back /= total[:, None]
    narrowed = attended.dtype.element_ty
    tl.store(attended + front, sum_front.to(narrowed), mask=exists[:, None] & in_front)
    tl.store(attended + back, sum_back.to(narrowed), mask=exists[:, None] & in_back)
