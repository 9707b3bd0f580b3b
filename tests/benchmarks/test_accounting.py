"""Tiles that masks cost, and the time to know them; ``nox -s bench`` prints both.

M4: clips of some 16,384 tokens in frames of several sizes. The pairs in the tiles of
128 x 128 that a kernel computes, relative to those that are visible: for the two calls
of the varlen form, and for the one call of a block-sparse kernel. The time is that of
counting the latter, beside counting them in what ``create_block_mask`` builds.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.attention.flex_attention import create_block_mask

from fastslow import (
    KeyIntervals,
    Span,
    TextSpan,
    VideoSpan,
    count_tokens,
    interval_block_mask,
    interval_mask,
    live_tiles,
    repeat_strides,
    slice_ranges,
    tile_efficiency,
    varlen_plan,
    visible_intervals,
    visible_pairs,
)
from fastslow.qwen2_vl import RowPlan, plan_row

TILE = 128
CLIPS = {
    "84 frames of 196": [196] * 84,
    "340 frames of 144, 16, 16, 16": [144, 16, 16, 16] * 85,
    "1,024 frames of 16": [16] * 1024,
    "4,096 frames of 4": [4] * 4096,
}
TARGETS = dict(
    zip(
        CLIPS,
        ("1.02; 1.03", "1.02; 1.07", "1.01; 1.13", "1.01; 1.51"),
        strict=True,
    )
)


def clip(name: str) -> KeyIntervals:
    """Lay out the frames of a clip."""
    sizes = torch.tensor(CLIPS[name])
    return visible_intervals(torch.arange(len(sizes)).repeat_interleave(sizes))


def pairs_in_call(cu_seqlens: torch.Tensor) -> int:
    """Count the pairs of a triangle with its diagonal in each sequence."""
    lengths = cu_seqlens.diff().long()
    return int((lengths * (lengths + 1) // 2).sum())


def tiles_in_call(cu_seqlens: torch.Tensor) -> int:
    """Count the tiles of such triangles; each sequence begins a tile of its own."""
    blocks = -(-cu_seqlens.diff().long() // TILE)
    return int((blocks * (blocks + 1) // 2).sum())


def work(intervals: KeyIntervals) -> dict[str, float]:
    """Divide the pairs of the tiles that each call computes by the visible pairs."""
    plan = varlen_plan(intervals)
    needed = visible_pairs(intervals)
    causal, ahead = plan.cu_seqlens, plan.ahead_cu_seqlens
    assert pairs_in_call(causal) + pairs_in_call(ahead) == needed
    ratios = {
        "part_a": tiles_in_call(causal) * TILE**2 / needed,
        "part_b": tiles_in_call(ahead) * TILE**2 / needed,
        "one_call": live_tiles(intervals) * TILE**2 / needed,
    }
    ratios["two_calls"] = ratios["part_a"] + ratios["part_b"]
    return {name: round(ratio, 4) for name, ratio in ratios.items()}


def counted_by_torch(intervals: KeyIntervals) -> int:
    tokens = len(intervals.start)
    blocks = create_block_mask(
        interval_mask(intervals), None, None, tokens, tokens, device="cpu"
    )
    full = blocks.full_kv_num_blocks
    assert full is not None
    return int(blocks.kv_num_blocks.sum()) + int(full.sum())


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("count", [live_tiles, counted_by_torch])
def test_m4(benchmark: BenchmarkFixture, count: object, name: str) -> None:
    benchmark.group = f"M4: live tiles of a clip of {name}"
    intervals = clip(name)
    tiles = live_tiles(intervals)
    assert tiles == counted_by_torch(intervals)
    benchmark.extra_info |= {"live_tiles": tiles, **work(intervals)}
    if count is live_tiles:
        benchmark.extra_info["target"] = f"one call; two: {TARGETS[name]}"
    rounds = 20 if count is live_tiles else 1
    benchmark.pedantic(count, args=(intervals,), rounds=rounds)


def counted_in_tables(intervals: KeyIntervals) -> int:
    blocks = interval_block_mask(intervals)
    full = blocks.full_kv_num_blocks
    assert full is not None
    return int(blocks.kv_num_blocks.sum()) + int(full.sum())


@pytest.mark.parametrize("tokens", [2**18, 2**20])
@pytest.mark.parametrize("count", [live_tiles, counted_in_tables])
def test_tiles_of_long_rows(
    benchmark: BenchmarkFixture, count: object, tokens: int
) -> None:
    benchmark.group = f"Live tiles of {tokens:,} tokens, kept slow frames of 64"
    frames = torch.arange(tokens // 64).repeat_interleave(64)
    intervals = visible_intervals(
        frames, frame_ids=frames, window=32, is_kept=frames % 4 == 0
    )
    assert live_tiles(intervals) == counted_in_tables(intervals)
    benchmark.pedantic(count, args=(intervals,), rounds=3, warmup_rounds=1)


PLANS = [visible_pairs, tile_efficiency, varlen_plan, slice_ranges]


@pytest.mark.benchmark(group="Plans of 102,400 tokens in frames of 144, 16, 16, 16")
@pytest.mark.parametrize("plan", PLANS)
def test_plans(benchmark: BenchmarkFixture, plan: object) -> None:
    sizes = torch.tensor([144, 16, 16, 16] * 534)
    ranks = torch.arange(len(sizes)).repeat_interleave(sizes)[:102_400]
    intervals = visible_intervals(ranks)
    benchmark.pedantic(plan, args=(intervals,), rounds=5, warmup_rounds=1)


def row_of_clips(frames: int = 64, clips: int = 320) -> list[list[Span]]:
    """Give samples of a clip between two texts; every fourth frame keeps all tokens."""
    schedule = repeat_strides(frames, (1, 3, 3, 3))
    question, answer = TextSpan(token_ids=(1,) * 20), TextSpan(token_ids=(2,) * 44)
    return [
        [question, VideoSpan(grid=(12, 12), schedule=schedule), answer]
        for _ in range(clips)
    ]


def whole_row(samples: list[list[Span]]) -> RowPlan:
    return plan_row(samples, video_token_id=9)


def tensors_of(plan: object) -> Iterator[torch.Tensor]:
    """Give every tensor of a plan."""
    if isinstance(plan, torch.Tensor):
        yield plan
    elif is_dataclass(plan):
        for field in fields(plan):
            yield from tensors_of(getattr(plan, field.name))


def its_numbers_copied(samples: list[list[Span]]) -> list[torch.Tensor]:
    return [each.clone() for each in known_plan()]


@cache
def known_plan() -> list[torch.Tensor]:
    return list(tensors_of(whole_row(row_of_clips())))


@pytest.mark.parametrize("way", [whole_row, its_numbers_copied])
def test_long_row(benchmark: BenchmarkFixture, way: object) -> None:
    samples = row_of_clips()
    tokens = sum(map(count_tokens, samples))
    benchmark.group = f"The whole plan of a row of {tokens:,} tokens"
    if way is whole_row:
        benchmark.extra_info["MiB"] = sum(t.nbytes for t in known_plan()) // 2**20
    benchmark.pedantic(way, args=(samples,), rounds=5, warmup_rounds=2)
