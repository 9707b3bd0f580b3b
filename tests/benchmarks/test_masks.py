"""BlockMasks of packed rows beside torch's own builder; ``nox -s bench`` prints ratios.

A row is 8 documents, each 64 text tokens and then frames of 144, 16, 16 and 16 tokens
over and over. What is built is first compared with what ``create_block_mask`` builds
for a short row.
"""

from collections.abc import Callable
from functools import cache
from itertools import accumulate

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from fastslow import (
    KeyIntervals,
    frame_causal_mask,
    interval_block_mask,
    interval_mask,
    visible_intervals,
)

DOCUMENTS = 8
FORMS = ("plain", "window", "kept")
TABLES = [
    f"{f}{s}_{t}"
    for f in ("", "full_")
    for s in ("kv", "q")
    for t in ("num_blocks", "indices")
]


def packed_row(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give the ranks, segments and frames of the workload."""
    length = tokens // DOCUMENTS
    runs = torch.tensor([1] * 64 + [144, 16, 16, 16] * (length // 192 + 1))
    ranks = torch.arange(len(runs)).repeat_interleave(runs)[:length]
    segments = torch.arange(DOCUMENTS).repeat_interleave(length)
    frames = (ranks - 64).clamp(min=-1)
    return ranks.repeat(DOCUMENTS), segments, frames.repeat(DOCUMENTS)


def plan(row: tuple[Tensor, Tensor, Tensor], form: str) -> KeyIntervals:
    """Let a query see everything, 32 frames, or those and all slow frames and text."""
    ranks, segments, frames = row
    if form == "plain":
        return visible_intervals(ranks, segments)
    is_kept = (frames < 0) | (frames % 4 == 0) if form == "kept" else None
    return visible_intervals(
        ranks, segments, frame_ids=frames, window=32, is_kept=is_kept
    )


def closed_form(row: tuple[Tensor, Tensor, Tensor], form: str = "plain") -> BlockMask:
    return interval_block_mask(plan(row, form))


def from_every_pair(row: tuple[Tensor, Tensor, Tensor]) -> BlockMask:
    rule = frame_causal_mask(row[0], row[1])
    tokens = len(row[0])
    return create_block_mask(rule, None, None, tokens, tokens, device="cpu")


@cache
def compiled_builder() -> Callable[..., BlockMask]:
    return torch.compile(create_block_mask)


def from_every_pair_compiled(row: tuple[Tensor, Tensor, Tensor]) -> BlockMask:
    rule = frame_causal_mask(row[0], row[1])
    tokens = len(row[0])
    return compiled_builder()(rule, None, None, tokens, tokens, device="cpu")


def assert_equals_torchs(form: str) -> None:
    intervals = plan(packed_row(4096), form)
    expected = create_block_mask(
        interval_mask(intervals), None, None, 4096, 4096, device="cpu"
    )
    found = interval_block_mask(intervals)
    for name in TABLES:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def peak_megabytes(row: tuple[Tensor, Tensor, Tensor], form: str) -> float:
    """Add up what one build allocates and frees, and give the highest sum."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        closed_form(row, form)
    events = profile.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(sizes)) / 2**20


@pytest.mark.parametrize("tokens", [4096, 8192, 16_384])
@pytest.mark.parametrize(
    "build", [closed_form, from_every_pair_compiled, from_every_pair]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler of itself
def test_m1(
    benchmark: BenchmarkFixture, build: Callable[..., BlockMask], tokens: int
) -> None:
    benchmark.group = f"M1: BlockMask of {tokens:,} packed tokens"
    assert_equals_torchs("plain")
    rounds = 2 if build is from_every_pair else 20
    benchmark.pedantic(
        build, args=(packed_row(tokens),), rounds=rounds, warmup_rounds=1
    )


def tables_alone(blocks: int) -> list[Tensor]:
    """Write four tables of the same size: what any builder has to do."""
    return [torch.ones(blocks, blocks, dtype=torch.int32) for _ in range(4)]


@pytest.mark.parametrize("tokens", [131_072, 262_144])
def test_m2_tables_alone(benchmark: BenchmarkFixture, tokens: int) -> None:
    benchmark.group = f"M2: BlockMask of {tokens:,} packed tokens"
    blocks = tokens // 128
    benchmark.extra_info["peak_megabytes"] = 16 * blocks**2 / 2**20
    benchmark.pedantic(tables_alone, args=(blocks,), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [131_072, 262_144])
def test_m2(benchmark: BenchmarkFixture, tokens: int, form: str) -> None:
    benchmark.group = f"M2: BlockMask of {tokens:,} packed tokens"
    assert_equals_torchs(form)
    row = packed_row(tokens)
    benchmark.extra_info["peak_megabytes"] = round(peak_megabytes(row, form), 1)
    benchmark.pedantic(closed_form, args=(row, form), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="Visible intervals of 1,048,576 packed tokens")
@pytest.mark.parametrize("form", FORMS)
def test_visible_intervals(benchmark: BenchmarkFixture, form: str) -> None:
    row = packed_row(2**20)
    benchmark.pedantic(plan, args=(row, form), rounds=5, warmup_rounds=1)
