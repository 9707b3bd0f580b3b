"""Exact attention under key intervals, in tiles of queries and linear memory."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fastslow._once import once_differentiable
from fastslow._shapes import check_axes, check_type, positive
from fastslow.masks import KeyIntervals


def interval_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch key_heads tokens dim"],
    value: Float[Tensor, "batch key_heads tokens value_dim"],
    intervals: KeyIntervals,
    *,
    scale: float | None = None,
    tile: int = 64,
) -> Float[Tensor, "batch heads tokens value_dim"]:
    """Attend to the keys of each query's interval.

    Exact, and differentiable once, not by ``torch.func``. For each tile of queries the
    keys are cut to those that any of them may read, and only the tile's own mask is
    made. The backward pass computes every tile anew, in float32 or wider, and keeps no
    more than query, key, value and output. Made for the CPU: the bounds of the tiles
    are read on the host, which waits for any other device. Inputs are finite: what is
    not may reach other queries of its tile, as in other kernels.

    Args:
        query: One vector for each query head and token.
        key: One vector for each key head and token; ``heads`` is a multiple of
            ``key_heads``, and neighbouring query heads share a key head.
        value: One vector for each key head and token.
        intervals: The keys that each query may read, in every sample and head alike.
        scale: Factor on the scores; ``dim ** -0.5`` by default.
        tile: Queries in one tile, at least 1. Time and temporary memory depend on it,
            the result does not.

    Returns:
        The weighted means of the values; zero for queries that read nothing.

    Raises:
        ValueError: If query, key or value has other axes, they and the intervals are
            not of the same rows on one device, ``heads`` is not a multiple of
            ``key_heads``, there is no channel, or ``tile`` is no whole number from 1
            on.
        NotImplementedError: If the backward pass is to have a graph.

    Laws:
        matches_sdpa: equals ``scaled_dot_product_attention`` under the dense mask of
            the intervals on every query that reads a key: ``interval_attention(q, k, v,
            visible) == sdpa(q, k, v, dense_mask(interval_mask(visible), n))``
        gradients_match: so do the gradients of query, key and value
        reads_nothing: a query without keys gives zero and sends back no gradient:
            ``out[q] == 0 if not mask[q].any()``
        support: an output depends on a value exactly where its query may read that key,
            and on no key elsewhere: ``(d out[q] / d value[k] != 0) == mask[q, k]``
        tile_free: the size of the tiles changes nothing
        heads_grouped: query heads that share a key head equal a repeated key head:
            ``attend(q, k, v) == attend(q, k.repeat_interleave(g),
            v.repeat_interleave(g))``

    Example:
        >>> bounds = KeyIntervals(start=torch.tensor([0, 0, 2], dtype=torch.int32),
        ...                       stop=torch.tensor([2, 2, 2], dtype=torch.int32))
        >>> value = torch.tensor([1.0, 3.0, 5.0]).view(1, 1, 3, 1)
        >>> interval_attention(0 * value, value, value, bounds).flatten()
        tensor([2., 2., 0.])

    References:
        Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with
        IO-Awareness" (NeurIPS 2022), section 3 and appendix B: the backward pass.
    """
    _check_heads(query, key, value)
    wanted = "KeyIntervals, as visible_intervals gives"
    check_type("intervals", intervals, KeyIntervals, wanted)
    tokens, bounds = query.shape[2], len(intervals.start)
    if bounds != tokens:
        raise ValueError(
            f"intervals has {bounds} tokens but query has {tokens}; both describe the "
            "same row"
        )
    if intervals.start.device != query.device:
        raise ValueError(
            f"intervals are on {intervals.start.device} but query is on "
            f"{query.device}; to_device moves them"
        )
    tile = positive("tile", tile)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    plan = _plan_tiles(intervals, tile)
    output: Tensor = _IntervalAttention.apply(query, key, value, plan, scale)
    return output


def _check_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise unless there are heads, and query, key and value are of the same ones."""
    for name, each in (("query", query), ("key", key), ("value", value)):
        check_axes(name, each, "batch", "heads", "tokens", "dim")
    if key.shape[::2] != query.shape[::2] or value.shape[:3] != key.shape[:3]:
        shapes = [tuple(each.shape[:3]) for each in (query, key, value)]
        raise ValueError(
            f"query, key and value have {shapes} batches, heads and tokens; batches "
            "and tokens must agree, and key and value have as many heads"
        )
    if not key.shape[1] or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"query has {query.shape[1]} heads but key has {key.shape[1]}; the first "
            "must be a multiple of the second"
        )
    if not query.shape[3] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"query has {query.shape[3]} channels but key has {key.shape[3]}; both "
            "must have as many, at least 1"
        )


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """A run of queries, and the keys that any of them reads.

    Attributes:
        queries: The queries.
        keys: The keys from the least ``start`` to the greatest ``stop``.
        kept: Which of all kept keys lie before those and are read as well.
        is_full: Whether every query that reads at all reads all of these keys.
    """

    queries: slice
    keys: slice
    kept: slice
    is_full: bool


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The tiles that read any keys.

    Attributes:
        intervals: The intervals that they cut.
        kept: Every kept key, ascending.
        reads: Queries that read any keys.
        tiles: The tiles in order.
    """

    intervals: KeyIntervals
    kept: Tensor
    reads: Tensor
    tiles: list[_Tile]


def _plan_tiles(intervals: KeyIntervals, size: int) -> _Plan:
    """Cut queries into tiles of one size, and the keys to what each tile reads."""
    start, stop = intervals.start.long(), intervals.stop.long()
    kept, first, end = _kept_runs(intervals)
    reads = (start < stop) | (first < end)
    tokens = len(start)
    size = min(size, max(tokens, 1))
    bounds = torch.stack([start, stop, first, end])
    low, high = (
        F.pad(bounds.masked_fill(~reads, fill), (0, -tokens % size), value=fill)
        for fill in (tokens, 0)
    )
    least = low.view(4, -1, size).amin(2)
    greatest = high.view(4, -1, size).amax(2)
    tiles = [
        _Tile(
            queries=slice(number * size, (number + 1) * size),
            keys=slice(lows[0], highs[1]),
            kept=slice(lows[2], lows[3]),
            is_full=lows[:3] == highs[:3],
        )
        for number, (lows, highs) in enumerate(
            torch.stack([least, greatest]).permute(2, 0, 1).tolist()
        )
        if lows[0] <= highs[0]
    ]
    return _Plan(intervals=intervals, kept=kept, reads=reads, tiles=tiles)


def _kept_runs(intervals: KeyIntervals) -> tuple[Tensor, Tensor, Tensor]:
    """List the kept keys, and which run of that list each query reads."""
    if intervals.kept is None:
        zeros = torch.zeros_like(intervals.start, dtype=torch.long)
        return zeros[:0], zeros, zeros
    is_kept = intervals.kept.is_kept
    counts = F.pad(is_kept.cumsum(0), (1, 0))
    kept = is_kept.nonzero().squeeze(1)
    return kept, counts[intervals.kept.start], counts[intervals.start]


def _visible(plan: _Plan, tile: _Tile) -> Tensor | None:
    """Give the mask of a tile, kept keys first; None where it hides nothing.

    A query that reads nothing is shown everything: its output is dropped, and without
    a key its softmax would not be a number.
    """
    if tile.is_full:
        return None
    rows = tile.queries
    start, stop = plan.intervals.start[rows, None], plan.intervals.stop[rows, None]
    slots = torch.arange(tile.keys.start, tile.keys.stop, device=start.device)
    slots = torch.cat([plan.kept[tile.kept], slots])
    visible = (start <= slots) & (slots < stop) | ~plan.reads[rows, None]
    kept = plan.intervals.kept
    if kept is None:
        return visible
    first = kept.start[rows, None]
    return visible | kept.is_kept[slots] & (first <= slots) & (slots < start)


def _bias(visible: Tensor | None, groups: int, like: Tensor) -> Tensor:
    """Give what the scores of a tile start from: minus infinity on hidden keys."""
    if visible is None:
        return like.new_zeros(1, 1)
    bias = like.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)
    return bias.repeat(groups, 1)


def _keys_of(tokens: Tensor, plan: _Plan, tile: _Tile) -> Tensor:
    """Cut keys, or values, to those of a tile; a copy only where some are kept."""
    kept, keys = plan.kept[tile.kept], tokens[..., tile.keys, :]
    if not len(kept):
        return keys
    return torch.cat([tokens.index_select(-2, kept), keys], -2)


def _add_product(
    total: Tensor, weights: Tensor, rows: Tensor, plan: _Plan, tile: _Tile
) -> None:
    """Add the transposed ``weights`` times ``rows`` to the keys of a tile, in place."""
    kept = plan.kept[tile.kept]
    from_kept, from_keys = weights.mT.split(
        [len(kept), weights.shape[-1] - len(kept)], 1
    )
    total[:, tile.keys].baddbmm_(from_keys, rows)
    if len(kept):
        total.index_add_(1, kept, from_kept @ rows)


class _IntervalAttention(torch.autograd.Function):
    """Attention tile by tile; both passes hold the scores of one tile at a time."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: _Plan, scale: float
    ) -> Tensor:
        output = query.new_zeros(*query.shape[:3], value.shape[-1])
        for tile in plan.tiles:
            output[:, :, tile.queries] = F.scaled_dot_product_attention(
                query[:, :, tile.queries],
                _keys_of(key, plan, tile),
                _keys_of(value, plan, tile),
                attn_mask=_visible(plan, tile),
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        output.masked_fill_(~plan.reads[:, None], 0)
        ctx.save_for_backward(query, key, value, output)
        ctx.plan, ctx.scale = plan, scale
        return output

    @staticmethod
    @once_differentiable(of="interval_attention")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output = ctx.saved_tensors
        plan: _Plan = ctx.plan
        wide = torch.promote_types(query.dtype, torch.float32)
        keys, values = (x.flatten(0, 1).to(wide) for x in (key, value))
        groups = query.shape[1] // key.shape[1]
        grad = grad.masked_fill(~plan.reads[:, None], 0)
        dquery = torch.zeros_like(query)
        dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
        with torch.autocast(query.device.type, enabled=False):
            for tile in plan.tiles:
                # Query heads that share a key head are rows of one matrix.
                q, g, o = (
                    x[:, :, tile.queries].reshape(len(keys), -1, x.shape[3]).to(wide)
                    for x in (query, grad, output)
                )
                q = q * ctx.scale
                k, v = (_keys_of(x, plan, tile) for x in (keys, values))
                bias = _bias(_visible(plan, tile), groups, q)
                shares = torch.baddbmm(bias, q, k.mT).softmax(-1)
                mean = (g * o).sum(-1, keepdim=True)
                slopes = torch.baddbmm(mean, g, v.mT, beta=-1).mul_(shares)
                dtile = dquery[:, :, tile.queries]
                dtile.copy_((slopes @ k).mul_(ctx.scale).view_as(dtile))
                _add_product(dkeys, slopes, q, plan, tile)
                _add_product(dvalues, shares, g, plan, tile)
        dkey, dvalue = dkeys.view(key.shape), dvalues.view(value.shape)
        return dquery, dkey.to(key.dtype), dvalue.to(value.dtype), None, None
