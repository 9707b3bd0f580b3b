"""A2: attention on a GPU under the frame-causal mask of a packed row, both passes.

28 heads on 4 of keys, 128 channels, bfloat16: the language model of Qwen2-VL 7B. A row
holds 8 documents, each of 64 text tokens and frames of 144, 16, 16 and 16 tokens.
TFLOP/s count the pairs that the mask lets through, and no other. Plain causal attention
of the whole row is another mask, an upper bound for any kernel here.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    flex_attention,
)

from fastslow import (
    KeyIntervals,
    attention_flops,
    dense_mask,
    frame_causal_mask,
    interval_block_mask,
    interval_mask,
    visible_intervals,
    visible_pairs,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="FlexAttention has a backward pass on GPUs"
)

HEADS, KEY_HEADS, DIM, DOCUMENTS = 28, 4, 128, 8
SIZES = (16_384, 32_768)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Row = tuple[Tensor, Tensor]


@cache
def row(tokens: int) -> Row:
    size = tokens // DOCUMENTS
    runs = torch.tensor([1] * 64 + [144, 16, 16, 16] * (size // 192 + 1))
    ranks = torch.arange(len(runs)).repeat_interleave(runs)[:size].repeat(DOCUMENTS)
    segments = torch.arange(DOCUMENTS).repeat_interleave(size)
    return ranks.cuda(), segments.cuda()


@cache
def intervals(tokens: int) -> KeyIntervals:
    return visible_intervals(*row(tokens))


@cache
def compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def with_mask(mask: BlockMask) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output: Tensor = compiled()(query, key, value, block_mask=mask, enable_gqa=True)
        return output

    return attend


def flex_intervals(tokens: int) -> Attend:
    """Ours: the mask reads the two bounds of a query."""
    return with_mask(interval_block_mask(intervals(tokens)))


def flex_gather(tokens: int) -> Attend:
    """The same pairs by rank and segment of each key."""
    blocks = interval_block_mask(intervals(tokens))
    mask = BlockMask.from_kv_blocks(
        blocks.kv_num_blocks,
        blocks.kv_indices,
        blocks.full_kv_num_blocks,
        blocks.full_kv_indices,
        BLOCK_SIZE=blocks.BLOCK_SIZE,
        mask_mod=frame_causal_mask(*row(tokens)),
        seq_lengths=(tokens, tokens),
    )
    return with_mask(mask)


def flex_causal(tokens: int) -> Attend:
    """FlexAttention's own causal mask of the whole row: another mask."""

    def causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx >= kv_idx

    return with_mask(create_block_mask(causal, None, None, tokens, tokens))


def sdpa_dense(tokens: int) -> Attend:
    """SDPA under the mask as a matrix."""
    mask = dense_mask(interval_mask(intervals(tokens)), tokens, device="cuda")

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, enable_gqa=True
        )

    return attend


def sdpa_causal(_: int) -> Attend:
    """Flash attention, causal over the whole row: another mask."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )

    return attend


OTHER_MASKS = {flex_causal, sdpa_causal}
TARGETS = {sdpa_dense: "at least 8x at 16k", flex_gather: "at least 1.1x"}


@cache
def inputs(tokens: int) -> tuple[Tensor, ...]:
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = ((HEADS, DIM), (KEY_HEADS, DIM), (KEY_HEADS, DIM), (HEADS, DIM))
    return tuple(
        torch.randn(
            1, heads, tokens, dim, generator=generator, device="cuda"
        ).bfloat16()
        for heads, dim in shapes
    )


def both_ways(attend: Attend, tokens: int) -> tuple[Tensor, ...]:
    *leaves, slopes = inputs(tokens)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = attend(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, slopes)


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize(
    "way", [flex_intervals, flex_gather, flex_causal, sdpa_dense, sdpa_causal]
)
def test_a2(
    benchmark: BenchmarkFixture,
    to_the_end: Callable[[Any], Any],
    way: Callable[[int], Attend],
    tokens: int,
) -> None:
    if way is sdpa_dense and tokens > SIZES[0]:
        pytest.skip("the scores of 28 heads would take 56 GiB")
    benchmark.group = f"A2: Attention of {tokens:,} packed tokens, both passes"
    attend = way(tokens)
    if way not in OTHER_MASKS and way is not flex_intervals:
        found = both_ways(attend, tokens)
        for mine, other in zip(
            both_ways(flex_intervals(tokens), tokens), found, strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=0.05, atol=0.05)
    if way in TARGETS:
        benchmark.extra_info["target"] = TARGETS[way]
    benchmark.pedantic(
        to_the_end(both_ways), args=(attend, tokens), rounds=10, warmup_rounds=2
    )
    pairs = visible_pairs(intervals(tokens))
    if way in OTHER_MASKS:
        pairs = tokens * (tokens + 1) // 2
    flops = attention_flops(pairs, num_heads=HEADS, head_dim=DIM, backward=True)
    seconds = benchmark.stats.stats.min
    benchmark.extra_info["TFLOP/s of pairs"] = round(flops / seconds / 1e12)
