"""A2: attention on a GPU under the frame-causal mask of a packed row.

28 heads on 4 of keys, 128 channels, bfloat16: the language model of Qwen2-VL 7B. A row
holds 1 or 8 documents, each of 64 text tokens and frames of 144, 16, 16 and 16 tokens.
TFLOP/s count the pairs that the mask lets through, and no other. Plain causal
attention, of the whole row or of its documents, is another mask and about the most that
a kernel can do here. Without a GPU nothing is timed: ``--benchmark-disable`` takes the
same calls at a small size.
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
from torch.nn.attention.varlen import varlen_attn

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
Size = tuple[int, int]
"""Tokens of a row, and documents in it."""
SIZES: list[Size] = (
    [(16_384, 8), (32_768, 8), (16_384, 1)] if HAS_GPU else [(640, 2), (640, 1)]
)

pytestmark = pytest.mark.filterwarnings("default")  # torch's compiler warns of itself

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Way = Callable[[Size], Attend]
Run = Callable[[Attend, Size], tuple[Tensor, ...]]


@pytest.fixture(autouse=True)
def no_graphs_of_others() -> Iterator[None]:
    """Compile anew: a second length would make kernels of any length, which differ."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@cache
def row(size: Size) -> tuple[Tensor, Tensor]:
    tokens, documents = size
    each = tokens // documents
    runs = torch.tensor([1] * 64 + [144, 16, 16, 16] * (each // 192 + 1))
    ranks = torch.arange(len(runs)).repeat_interleave(runs)[:each].repeat(documents)
    segments = torch.arange(documents).repeat_interleave(each)
    return ranks.to(DEVICE), segments.to(DEVICE)


@cache
def intervals(size: Size) -> KeyIntervals:
    return visible_intervals(*row(size))


def with_mask(mask: BlockMask) -> Attend:
    backend = "inductor" if HAS_GPU else "eager"
    compiled = torch.compile(flex_attention, dynamic=False, backend=backend)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output: Any = compiled(query, key, value, block_mask=mask, enable_gqa=True)
        assert isinstance(output, Tensor)
        return output

    return attend


def flex_intervals(size: Size) -> Attend:
    """Ours: the mask reads the two bounds of a query."""
    return with_mask(interval_block_mask(intervals(size)))


def flex_gather(size: Size) -> Attend:
    """The same pairs by rank and segment of each key."""
    blocks, (tokens, _) = interval_block_mask(intervals(size)), size
    mask = BlockMask.from_kv_blocks(
        blocks.kv_num_blocks,
        blocks.kv_indices,
        blocks.full_kv_num_blocks,
        blocks.full_kv_indices,
        BLOCK_SIZE=blocks.BLOCK_SIZE,
        mask_mod=frame_causal_mask(*row(size)),
        seq_lengths=(tokens, tokens),
    )
    return with_mask(mask)


def sdpa_dense(size: Size) -> Attend:
    """SDPA under the mask as a matrix, with keys repeated as transformers does.

    Heads that share keys and a mask together leave SDPA no kernel that is not quadratic
    in memory.
    """
    mask = dense_mask(interval_mask(intervals(size)), size[0], device=DEVICE)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return attend


def flex_causal(size: Size) -> Attend:
    """FlexAttention's own causal mask of the whole row: another mask."""
    tokens, _ = size

    def causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx >= kv_idx

    mask = create_block_mask(causal, None, None, tokens, tokens, device=DEVICE)
    return with_mask(mask)


def flash_causal(_: Size) -> Attend:
    """SDPA's flash attention, causal over the whole row: another mask."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if HAS_GPU else SDPBackend.MATH):
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )

    return attend


def flash_causal_documents(size: Size) -> Attend:
    """Flash attention, causal in each document: the same rows without frames."""
    tokens, documents = size
    each = tokens // documents
    bounds = torch.arange(0, tokens + 1, each, dtype=torch.int32, device=DEVICE)

    def attend(*given: Tensor) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in given)
        k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (k, v))
        attended: Any = varlen_attn(
            *(q, k, v, bounds, bounds, each, each), window_size=(-1, 0)
        )
        return torch.as_tensor(attended).transpose(0, 1)[None]

    return attend


OTHER_MASKS = {flex_causal, flash_causal, flash_causal_documents}
TARGETS = {
    sdpa_dense: "at least 8x at 16k",
    flex_gather: "at least 1.1x",
    flex_causal: "ours at least as many",
    flash_causal: "ours at least 85%",
    flash_causal_documents: "ours at least 85%",
}
RATES: dict[tuple[Run, Size], float] = {}
"""TFLOP/s of ours."""


@cache
def inputs(size: Size) -> tuple[Tensor, ...]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    return tuple(
        torch.randn(1, heads, size[0], DIM, generator=generator, device=DEVICE).to(
            DTYPE
        )
        for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    )


def forward(attend: Attend, size: Size) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (attend(*inputs(size)[:3]),)


def both_ways(attend: Attend, size: Size) -> tuple[Tensor, ...]:
    *leaves, slopes = inputs(size)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = attend(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, slopes)


@cache
def ours(run: Run, size: Size) -> tuple[Tensor, ...]:
    return run(flex_intervals(size), size)


def lengths(vectors: Tensor) -> Tensor:
    return vectors.square().sum((0, 1, 3)).sqrt()


def assert_near(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Compare all heads of a token as one vector, beside its length and the mean's."""
    for mine, other in zip(found, expected, strict=True):
        by_token = lengths(other.float())
        distance = lengths(mine.float() - other.float())
        limit = 0.05 if DTYPE is torch.bfloat16 else 1e-5
        assert (distance / (by_token + by_token.mean())).max() < limit


@pytest.mark.parametrize(
    "way",
    [
        flex_intervals,
        flex_gather,
        sdpa_dense,
        flex_causal,
        flash_causal,
        flash_causal_documents,
    ],
)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("run", [both_ways, forward])
def test_a2(
    benchmark: BenchmarkFixture,
    to_the_end: Callable[[Any], Any],
    way: Way,
    run: Run,
    size: Size,
) -> None:
    if not HAS_GPU and (run is both_ways or way is flash_causal_documents):
        pytest.skip("this runs on GPUs alone")
    if benchmark.enabled and not HAS_GPU:
        pytest.skip("a small row on a CPU says nothing about kernels of a GPU")
    direction = "forward" if run is forward else "forward and backward"
    benchmark.group = (
        f"A2: Attention of {size[0]:,} tokens in {size[1]} samples, {direction}"
    )
    attend = way(size)
    try:
        found = run(attend, size)
    except torch.OutOfMemoryError as error:
        pytest.skip(f"memory is too small: {error}")
    if way not in OTHER_MASKS and way is not flex_intervals:
        assert_near(ours(run, size), found)
    if way in TARGETS:
        benchmark.extra_info["target"] = TARGETS[way]
    benchmark.pedantic(to_the_end(run), args=(attend, size), rounds=10, warmup_rounds=2)
    if benchmark.enabled:
        rate = tflops(way, run, size) / benchmark.stats.stats.min
        benchmark.extra_info["TFLOP/s of pairs"] = round(rate)
        if way is flex_intervals:
            RATES[run, size] = rate
        elif (run, size) in RATES:
            benchmark.extra_info["ours in % of it"] = round(
                100 * RATES[run, size] / rate
            )


def tflops(way: Way, run: Run, size: Size) -> float:
    """Count what the pairs of the way's own mask take."""
    tokens, documents = size
    pairs = visible_pairs(intervals(size))
    if way in OTHER_MASKS:
        parts = documents if way is flash_causal_documents else 1
        each = tokens // parts
        pairs = parts * each * (each + 1) // 2
    flops = attention_flops(
        pairs, num_heads=HEADS, head_dim=DIM, backward=run is both_ways
    )
    return flops / 1e12
