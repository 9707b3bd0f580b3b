"""Attention on the CPU: query tiles beside SDPA under a dense boolean mask.

A packed row holds 8 documents, each of 64 text tokens and frames of 144, 16, 16 and 16
tokens. ``nox -s bench`` prints the ratios.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastslow import interval_attention
from fastslow.masks import KeyIntervals

DOCUMENTS, HEADS, DIM = 8, 8, 64
SIZES = (4096, 8192)

Attention = Callable[[Tensor, Tensor, Tensor, KeyIntervals], Tensor]


@cache
def packed_row(tokens: int) -> KeyIntervals:
    size = tokens // DOCUMENTS
    runs = torch.tensor([1] * 64 + [144, 16, 16, 16] * (size // 192 + 1))
    ends = runs.cumsum(0).repeat_interleave(runs)[:size].clamp(max=size)
    first = torch.arange(DOCUMENTS).repeat_interleave(size) * size
    return KeyIntervals(start=first.int(), stop=(first + ends.repeat(DOCUMENTS)).int())


@cache
def dense(tokens: int) -> Tensor:
    row, key = packed_row(tokens), torch.arange(tokens)
    return (row.start[:, None] <= key) & (key < row.stop[:, None])


@cache
def inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    query, key, value = torch.randn(3, 1, HEADS, tokens, DIM, generator=generator)
    return query, key, value


def in_tiles(
    query: Tensor, key: Tensor, value: Tensor, intervals: KeyIntervals
) -> Tensor:
    return interval_attention(query, key, value, intervals)


def under_a_dense_mask(
    query: Tensor, key: Tensor, value: Tensor, intervals: KeyIntervals
) -> Tensor:
    mask = dense(len(intervals.start))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def forward(attend: Attention, tokens: int) -> Tensor:
    with torch.no_grad():
        return attend(*inputs(tokens), packed_row(tokens))


def both_ways(attend: Attention, tokens: int) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs(tokens)]
    output = attend(*leaves, packed_row(tokens))
    return output.detach(), *torch.autograd.grad(output, leaves, output.detach())


@cache
def largest_difference(tokens: int) -> float:
    """Compare output and gradients, and give the largest difference of the output."""
    ours = both_ways(in_tiles, tokens)
    theirs = both_ways(under_a_dense_mask, tokens)
    torch.testing.assert_close(ours, theirs)
    return float((ours[0] - theirs[0]).abs().max())


@pytest.mark.parametrize("run", [forward, both_ways])
@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("attend", [in_tiles, under_a_dense_mask])
def test_attention(
    benchmark: BenchmarkFixture,
    run: Callable[[Attention, int], object],
    tokens: int,
    attend: Attention,
) -> None:
    direction = "forward" if run is forward else "forward and backward"
    benchmark.group = f"A1: Attention of {tokens:,} packed tokens, 8 heads, {direction}"
    difference = largest_difference(tokens)
    assert difference < 5e-6
    benchmark.extra_info["largest difference"] = difference
    if attend is under_a_dense_mask:
        least = 8 if run is forward else 5
        benchmark.extra_info["target"] = f"at least {least}x"
    rounds = 5 if attend is in_tiles else 1
    benchmark.pedantic(run, args=(attend, tokens), rounds=rounds)
