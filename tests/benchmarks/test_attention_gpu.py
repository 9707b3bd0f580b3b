"""A2: attention on a GPU under the frame-causal mask of a packed row.

28 heads on 4 of keys, 128 channels, bfloat16: the language model of Qwen2-VL 7B. A row
holds 8 documents, each of 64 text tokens and frames of 144, 16, 16 and 16 tokens.
TFLOP/s count the pairs that the mask lets through, and no other. Plain causal attention
of the whole row is another mask, an upper bound for any kernel here. Without a GPU
nothing is timed: ``--benchmark-disable`` takes the same calls at a small size.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
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

HAS_GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if HAS_GPU else ("cpu", torch.float32)
HEADS, KEY_HEADS, DIM = (28, 4, 128) if HAS_GPU else (4, 2, 16)
SIZES = (16_384, 32_768) if HAS_GPU else (640,)
DOCUMENTS = 8 if HAS_GPU else 2

pytestmark = pytest.mark.filterwarnings("default")  # torch's compiler warns of itself

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Way = Callable[[int], Attend]
Run = Callable[[Attend, int], tuple[Tensor, ...]]


@pytest.fixture(autouse=True)
def no_graphs_of_others() -> Iterator[None]:
    """Compile anew: a second length would make kernels of any length, which differ."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@cache
def row(tokens: int) -> tuple[Tensor, Tensor]:
    size = tokens // DOCUMENTS
    runs = torch.tensor([1] * 64 + [144, 16, 16, 16] * (size // 192 + 1))
    ranks = torch.arange(len(runs)).repeat_interleave(runs)[:size].repeat(DOCUMENTS)
    segments = torch.arange(DOCUMENTS).repeat_interleave(size)
    return ranks.to(DEVICE), segments.to(DEVICE)


@cache
def intervals(tokens: int) -> KeyIntervals:
    return visible_intervals(*row(tokens))


def with_mask(mask: BlockMask) -> Attend:
    backend = "inductor" if HAS_GPU else "eager"
    compiled = torch.compile(flex_attention, dynamic=False, backend=backend)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output: Any = compiled(query, key, value, block_mask=mask, enable_gqa=True)
        assert isinstance(output, Tensor)
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


def sdpa_dense(tokens: int) -> Attend:
    """SDPA under the mask as a matrix, with keys repeated as transformers does.

    Heads that share keys and a mask together leave SDPA no kernel that is not quadratic
    in memory.
    """
    mask = dense_mask(interval_mask(intervals(tokens)), tokens, device=DEVICE)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return attend


def flex_causal(tokens: int) -> Attend:
    """FlexAttention's own causal mask of the whole row: another mask."""

    def causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx >= kv_idx

    mask = create_block_mask(causal, None, None, tokens, tokens, device=DEVICE)
    return with_mask(mask)


def flash_causal(_: int) -> Attend:
    """SDPA's flash attention, causal over the whole row: another mask."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if HAS_GPU else SDPBackend.MATH):
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )

    return attend


OTHER_MASKS = {flex_causal, flash_causal}
TARGETS = {
    sdpa_dense: "at least 8x at 16k",
    flex_gather: "at least 1.1x",
    flex_causal: "ours at least as many",
    flash_causal: "ours at least 85%",
}
RATES: dict[tuple[Run, int], float] = {}
"""TFLOP/s of ours."""


@cache
def inputs(tokens: int) -> tuple[Tensor, ...]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    return tuple(
        torch.randn(1, heads, tokens, DIM, generator=generator, device=DEVICE).to(DTYPE)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    )


def forward(attend: Attend, tokens: int) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (attend(*inputs(tokens)[:3]),)


def both_ways(attend: Attend, tokens: int) -> tuple[Tensor, ...]:
    *leaves, slopes = inputs(tokens)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = attend(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, slopes)


@cache
def ours(run: Run, tokens: int) -> tuple[Tensor, ...]:
    return run(flex_intervals(tokens), tokens)


def lengths(vectors: Tensor) -> Tensor:
    return vectors.square().sum((0, 1, 3)).sqrt()


def assert_near(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Compare all heads of a token as one vector, beside its length and the mean's."""
    for mine, other in zip(found, expected, strict=True):
        by_token = lengths(other.float())
        distance = lengths(mine.float() - other.float())
        limit = 0.05 if DTYPE is torch.bfloat16 else 1e-5
        assert (distance / (by_token + by_token.mean())).max() < limit


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("run", [forward, both_ways])
@pytest.mark.parametrize(
    "way", [flex_intervals, flex_gather, sdpa_dense, flex_causal, flash_causal]
)
def test_a2(
    benchmark: BenchmarkFixture,
    to_the_end: Callable[[Any], Any],
    way: Way,
    run: Run,
    tokens: int,
) -> None:
    if run is both_ways and not HAS_GPU:
        pytest.skip("FlexAttention has a backward pass on GPUs alone")
    if benchmark.enabled and not HAS_GPU:
        pytest.skip("a small row on a CPU says nothing about kernels of a GPU")
    direction = "forward" if run is forward else "forward and backward"
    benchmark.group = f"A2: Attention of {tokens:,} packed tokens, {direction}"
    attend = way(tokens)
    try:
        found = run(attend, tokens)
    except torch.OutOfMemoryError as error:
        pytest.skip(f"memory is too small: {error}")
    if way not in OTHER_MASKS and way is not flex_intervals:
        assert_near(ours(run, tokens), found)
    if way in TARGETS:
        benchmark.extra_info["target"] = TARGETS[way]
    benchmark.pedantic(
        to_the_end(run), args=(attend, tokens), rounds=10, warmup_rounds=2
    )
    if benchmark.enabled:
        rate = tflops(way, run, tokens) / benchmark.stats.stats.min
        benchmark.extra_info["TFLOP/s of pairs"] = round(rate)
        if way is flex_intervals:
            RATES[run, tokens] = rate
        elif (run, tokens) in RATES:
            benchmark.extra_info["ours in % of it"] = round(
                100 * RATES[run, tokens] / rate
            )


def tflops(way: Way, run: Run, tokens: int) -> float:
    """Count what the pairs of the way's own mask take."""
    pairs = visible_pairs(intervals(tokens))
    if way in OTHER_MASKS:
        pairs = tokens * (tokens + 1) // 2
    flops = attention_flops(
        pairs, num_heads=HEADS, head_dim=DIM, backward=run is both_ways
    )
    return flops / 1e12
