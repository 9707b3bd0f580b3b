"""A3: attention within frames on a GPU, as the vision tower of Qwen2-VL has it.

16 heads of 80 channels, bfloat16, and frames of 32 x 32 patches, so 448 x 448 pixels:
the tower does most of a step's work, and this is its slowest part for its FLOPs. Ours
takes frames of any sizes; the others only frames of one size, as a batch. Without a GPU
nothing is timed: ``--benchmark-disable`` takes the same calls at a small size.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from fastslow import attention_flops
from fastslow.qwen2_vl import plan_tower
from fastslow.qwen2_vl.tower import attend_within_frames

HAS_GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if HAS_GPU else ("cpu", torch.float32)
FRAMES, SIDE = (256, 32) if HAS_GPU else (3, 4)
PATCHES, HEADS, DIM = SIDE**2, 16, 80
PLAN = plan_tower([(FRAMES, (SIDE // 2, SIDE // 2))])

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Run = Callable[[Attend], tuple[Tensor, ...]]


@cache
def inputs() -> tuple[Tensor, ...]:
    """Give queries, keys, values and slopes: ``(1, heads, patches, dim)``."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    shape = (1, HEADS, FRAMES * PATCHES, DIM)
    return tuple(
        torch.randn(shape, generator=generator, device=DEVICE, dtype=DTYPE)
        for _ in range(4)
    )


@cache
def bounds() -> Tensor:
    return PLAN.cu_seqlens.to(DEVICE)


def within_frames(*given: Tensor) -> Tensor:
    """Ours, for frames of any sizes; without gradients a kernel of our own."""
    attended, _ = attend_within_frames(
        nn.Identity(),
        *given,
        None,
        cu_seq_lens_q=bounds(),
        max_length_q=PLAN.max_seqlen,
    )
    return attended


def by_varlen_attn(*given: Tensor) -> Tensor:
    """torch's own call for frames of any sizes, which ours makes in training."""
    if not HAS_GPU:
        return within_frames(*given)
    q, k, v = (rearrange(x, "1 h n d -> n h d") for x in given)
    most = PLAN.max_seqlen
    attended: Any = varlen_attn(q, k, v, bounds(), bounds(), most, most)
    return attended[None]


def as_batch(*given: Tensor) -> Tensor:
    """SDPA over a batch of frames, with the kernel of its choice."""
    q, k, v = (rearrange(x, "1 h (t n) d -> t h n d", n=PATCHES) for x in given)
    attended = F.scaled_dot_product_attention(q, k, v)
    return rearrange(attended, "t h n d -> 1 (t n) h d")


def as_batch_by_cudnn(*given: Tensor) -> Tensor:
    """The same by cuDNN's kernel."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION if HAS_GPU else SDPBackend.MATH):
        return as_batch(*given)


def forward(attend: Attend) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (attend(*inputs()[:3]),)


def both_ways(attend: Attend) -> tuple[Tensor, ...]:
    *leaves, slopes = inputs()
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = attend(*leaves)
    slopes = rearrange(slopes, "1 h n d -> 1 n h d")
    return output.detach(), *torch.autograd.grad(output, leaves, slopes)


@pytest.mark.parametrize("run", [forward, both_ways])
@pytest.mark.parametrize(
    "way", [within_frames, by_varlen_attn, as_batch, as_batch_by_cudnn]
)
def test_a3(
    benchmark: BenchmarkFixture, to_the_end: Callable[[Any], Any], way: Attend, run: Run
) -> None:
    if benchmark.enabled and not HAS_GPU:
        pytest.skip("a small row on a CPU says nothing about kernels of a GPU")
    direction = "forward" if run is forward else "forward and backward"
    benchmark.group = f"A3: Attention within {FRAMES} frames, {direction}"
    limit = 2e-2 if HAS_GPU else 1e-4
    torch.testing.assert_close(run(way), run(within_frames), rtol=limit, atol=limit)
    benchmark.pedantic(to_the_end(run), args=(way,), rounds=10, warmup_rounds=2)
    if benchmark.enabled:
        flops = attention_flops(
            FRAMES * PATCHES**2,
            num_heads=HEADS,
            head_dim=DIM,
            backward=run is both_ways,
        )
        rate = flops / benchmark.stats.stats.min / 1e12
        benchmark.extra_info["TFLOP/s"] = round(rate)
