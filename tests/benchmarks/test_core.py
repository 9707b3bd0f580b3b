"""Ours beside the usual way of doing the same work; ``nox -s bench`` prints the ratios.

Every benchmark first checks that both ways give the same answer.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from fastslow import (
    frame_causal_block_mask,
    frame_causal_mask,
    plan_pooling,
    pool_tokens,
    schedule_from_strides,
)

FRAMES, SIDE, WIDTH = 64, 16, 1536
STRIDES = [2, 4] * (FRAMES // 2)


def packed_row(tokens: int) -> tuple[Tensor, Tensor]:
    """Give ranks and segments of documents of 64 text tokens and mixed frames."""
    runs = torch.tensor(([1] * 64 + [144, 16, 16, 16] * 10) * (tokens // 1984 + 1))
    ranks = torch.repeat_interleave(runs)[:tokens]
    segments = torch.arange(tokens) // 1984
    return ranks, segments


def closed_form(tokens: int) -> object:
    return frame_causal_block_mask(*packed_row(tokens))


def from_every_pair(tokens: int) -> object:
    rule = frame_causal_mask(*packed_row(tokens))
    return create_block_mask(rule, None, None, tokens, tokens, device="cpu")


def planned(clip: Tensor) -> Tensor:
    plan = plan_pooling([((SIDE, SIDE), schedule_from_strides(STRIDES))])
    return pool_tokens(clip.view(-1, WIDTH), plan).values


def frame_by_frame(clip: Tensor) -> Tensor:
    pooled = [
        F.avg_pool2d(clip[t].permute(2, 0, 1), stride).flatten(1).T
        for t, stride in enumerate(STRIDES)
    ]
    return torch.cat(pooled)


@pytest.mark.benchmark(group="BlockMask of 16,384 packed tokens")
@pytest.mark.parametrize("build", [closed_form, from_every_pair])
def test_block_mask(
    benchmark: BenchmarkFixture, build: Callable[[int], object]
) -> None:
    small = [built(2048) for built in (closed_form, from_every_pair)]
    assert str(small[0]) == str(small[1])
    benchmark.pedantic(build, args=(16_384,), rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="Pooling of 64 x 16 x 16 x 1,536, strides 2 and 4")
@pytest.mark.parametrize("pool", [planned, frame_by_frame, torch.clone])
def test_pooling_forward(
    benchmark: BenchmarkFixture, pool: Callable[[Tensor], Tensor]
) -> None:
    clip = torch.randn(FRAMES, SIDE, SIDE, WIDTH)
    torch.testing.assert_close(planned(clip), frame_by_frame(clip))
    benchmark.pedantic(pool, args=(clip,), rounds=10, warmup_rounds=2)


@pytest.mark.benchmark(group="The same, forward and backward")
@pytest.mark.parametrize("pool", [planned, frame_by_frame])
def test_pooling_both_ways(
    benchmark: BenchmarkFixture, pool: Callable[[Tensor], Tensor]
) -> None:
    clip = torch.randn(FRAMES, SIDE, SIDE, WIDTH, requires_grad=True)

    def both_ways() -> None:
        pool(clip).sum().backward()

    benchmark.pedantic(both_ways, rounds=5, warmup_rounds=1)
