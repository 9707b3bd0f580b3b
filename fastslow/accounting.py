"""Exact integers of a row before anything runs: pairs, tiles, FLOPs and costs.

A mask's work is the pairs that it lets through. A block-sparse kernel computes whole
tiles of pairs, so it does somewhat more. Both follow from the intervals alone, and so
does what a sample costs, which is what ranks are balanced by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from fastslow._block_runs import readers_of_keys
from fastslow._shapes import whole_numbers
from fastslow.masks import KeyIntervals


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """What a sample costs, in FLOPs.

    Attributes:
        per_token: Work on each token of the language model.
        per_pair: Attention's work on each query and key that it may read, all layers.
        per_patch: Work of the vision tower on each patch, before any pooling.
    """

    per_token: int
    per_pair: int
    per_patch: int


def visible_pairs(intervals: KeyIntervals) -> int:
    """Count the pairs of a query and a key that it may read.

    Kept keys are counted by a running sum along the row, so this is linear in the
    tokens. Reads one number on the host.

    Args:
        intervals: The keys that each query may read.

    Returns:
        Pairs of one head of one layer.

    Laws:
        matches_reference: equals counting pair by pair, kept keys and padding included:
            ``visible_pairs(v) == dense_mask(interval_mask(v), n).sum()``
        additive: a pack has the pairs of its samples: ``visible_pairs(a ++ b) ==
            visible_pairs(a) + visible_pairs(b)``

    Example:
        >>> from fastslow import visible_intervals
        >>> visible_pairs(visible_intervals(torch.tensor([0, 1, 1, 2])))
        11
    """
    pairs = (intervals.stop - intervals.start).sum()
    if intervals.kept is not None:
        kept = torch.nn.functional.pad(intervals.kept.is_kept.cumsum(0), (1, 0))
        pairs += (kept[intervals.start] - kept[intervals.kept.start]).sum()
    return int(pairs)


def live_tiles(intervals: KeyIntervals, *, block_size: int = 128) -> int:
    """Count the tiles that a block-sparse kernel computes.

    A tile is one block of queries against one block of keys; it is live when any of
    its pairs is visible. The blocks of queries that read a block of keys are one run,
    so this is about linear in the tokens. Reads one number on the host.

    Args:
        intervals: The keys that each query may read.
        block_size: Queries, and keys, in one block.

    Returns:
        Partial and full tiles of one head of one layer.

    Raises:
        ValueError: If ``block_size`` is below 1.

    Laws:
        matches_create_block_mask: equals the tiles that ``create_block_mask`` lists:
            ``live_tiles(v) == kv_num_blocks.sum() + full_kv_num_blocks.sum()``
        matches_reference: equals looking at every tile's pairs: ``live_tiles(v) ==
            sum(tile.any() for tile in tiles of dense_mask)``

    Example:
        >>> from fastslow import visible_intervals
        >>> live_tiles(visible_intervals(torch.arange(384)))
        6
    """
    first, _, _, end = readers_of_keys(intervals, block_size)
    return int((end - first).sum())


def tile_efficiency(intervals: KeyIntervals, *, block_size: int = 128) -> float:
    """Divide the visible pairs by the pairs of the tiles that are computed.

    One over this is the work of a block-sparse kernel relative to the mask's own.
    Short samples and narrow windows leave tiles half empty; smaller blocks fill them.
    Reads two numbers on the host.

    Args:
        intervals: The keys that each query may read.
        block_size: Queries, and keys, in one block.

    Returns:
        A number above 0 and at most 1; 1 if no query reads anything.

    Raises:
        ValueError: If ``block_size`` is below 1.

    Laws:
        ratio: pairs over the pairs that live tiles hold, both counted one by one:
            ``tile_efficiency(v) == visible_pairs(v) / (live_tiles(v) * block_size **
            2)``
        single_tokens: blocks of 1 token waste nothing: ``tile_efficiency(v,
            block_size=1) == 1``

    Example:
        >>> from fastslow import visible_intervals
        >>> tile_efficiency(visible_intervals(torch.arange(4)), block_size=2)
        0.8333333333333334
    """
    tiles = live_tiles(intervals, block_size=block_size)
    return visible_pairs(intervals) / (tiles * block_size**2) if tiles else 1.0


def attention_flops(
    pairs: int,
    *,
    num_heads: int,
    head_dim: int,
    num_layers: int = 1,
    backward: bool = False,
) -> int:
    """Count the FLOPs of attention over so many pairs.

    Two products forward, 2 FLOPs for each of ``head_dim`` channels in each; five of the
    same size backward, the scores computed again among them. Softmax is not counted.

    Args:
        pairs: Pairs of one head of one layer, at least 0.
        num_heads: Query heads.
        head_dim: Channels of a head.
        num_layers: Layers that attend over the same pairs.
        backward: Whether the backward pass is added, 2.5 times the forward pass.

    Returns:
        FLOPs of all heads and layers.

    Laws:
        matches_torch: over all pairs, equals torch's own counts, forward and backward
        linear: proportional to pairs, heads and layers: ``attention_flops(a * pairs) ==
            a * attention_flops(pairs)``

    Example:
        >>> attention_flops(11, num_heads=28, head_dim=128)
        157696

    References:
        Dao, "FlashAttention-2" (arXiv:2307.08691), section 4.1, for the convention.
    """
    forward = 4 * pairs * head_dim * num_heads * num_layers
    return forward * 7 // 2 if backward else forward


def frame_causal_pairs(run_lengths: Sequence[int]) -> int:
    """Count the visible pairs of one sample from its runs alone.

    The tokens of a run read each other and all before them. A frame is a run of its
    tokens, a token of text a run of 1. No row is laid out.

    Args:
        run_lengths: Tokens of each run in order, at least 0.

    Returns:
        Pairs of one head of one layer, without a window.

    Raises:
        ValueError: If a length is no whole number from 0 on.

    Laws:
        matches_visible_pairs: summed over samples, equals ``visible_pairs`` of a
            layout: ``sum(map(frame_causal_pairs, runs)) ==
            visible_pairs(visible_keys(layout))``
        matches_reference: equals reading every run token by token:
            ``frame_causal_pairs(n) == sum(n[i] * sum(n[:i + 1]) for i)``
        ends: n runs of 1 read as a triangle, 1 run of n as a square:
            ``frame_causal_pairs([1] * n) == n * (n + 1) / 2`` and
            ``frame_causal_pairs([n]) == n * n``
        order_free: the order of the runs changes nothing:
            ``frame_causal_pairs(sorted(runs)) == frame_causal_pairs(runs)``

    Example:
        >>> frame_causal_pairs([1, 2, 1])
        11
    """
    runs = whole_numbers("run_lengths", run_lengths)
    return sum(n * end for n, end in zip(runs, accumulate(runs), strict=True))


def sample_cost(model: CostModel, *, tokens: int, pairs: int, patches: int) -> int:
    """Estimate the work of one sample: what ``balance`` takes as its cost.

    Args:
        model: Cost of each part.
        tokens: Tokens of the sample after pooling, at least 0.
        pairs: Its visible pairs, as ``frame_causal_pairs`` counts them.
        patches: Its patches that enter the vision tower, before pooling.

    Returns:
        FLOPs of what the terms count.

    Laws:
        terms: one token, pair or patch costs its term: ``sample_cost(c, tokens=t,
            pairs=p, patches=q) == c.per_token * t + c.per_pair * p + c.per_patch * q``
        additive: counts added up cost the sum of their costs: ``cost(a + b) == cost(a)
            + cost(b)``

    Example:
        >>> from fastslow import balance
        >>> model = CostModel(per_token=100, per_pair=1, per_patch=10)
        >>> samples = {"text": [1] * 30, "clip": [16, 4, 4], "short": [16, 4]}
        >>> patches = {"text": 0, "clip": 192, "short": 128}
        >>> costs = [
        ...     sample_cost(
        ...         model,
        ...         tokens=sum(runs),
        ...         pairs=frame_causal_pairs(runs),
        ...         patches=patches[name],
        ...     )
        ...     for name, runs in samples.items()
        ... ]
        >>> costs
        [3465, 4752, 3616]
        >>> balance(costs, 2).ranks
        ((1,), (0, 2))
    """
    return model.per_token * tokens + model.per_pair * pairs + model.per_patch * patches


def transformer_cost(
    *,
    language_parameters: int,
    hidden_size: int,
    num_layers: int,
    vision_parameters: int,
) -> CostModel:
    """Estimate the cost of a model's forward pass from its size.

    Every weight of a linear layer takes 2 FLOPs for each token. Of attention only
    what grows with pairs is added. The vision tower's own attention is left out.

    Args:
        language_parameters: Weights that every token meets: embeddings left out.
        hidden_size: Channels of the language model: query heads times their channels.
        num_layers: Its layers.
        vision_parameters: Weights that every patch meets.

    Returns:
        The cost of each part.

    Laws:
        matches_torch: terms of a token and a patch equal torch's count of a layer of as
            many weights
        matches_attention: the term of a pair is ``attention_flops`` of 1 pair:
            ``cost.per_pair == attention_flops(1)``

    Example:
        >>> transformer_cost(  # Qwen2-VL 7B
        ...     language_parameters=6_530_000_000,
        ...     hidden_size=3584,
        ...     num_layers=28,
        ...     vision_parameters=675_000_000,
        ... )
        CostModel(per_token=13060000000, per_pair=401408, per_patch=1350000000)
    """
    return CostModel(
        per_token=2 * language_parameters,
        per_pair=4 * hidden_size * num_layers,
        per_patch=2 * vision_parameters,
    )
