"""BlockMasks of packed rows beside torch's own builder; ``nox -s bench`` prints ratios.

A row is 8 documents, each 64 text tokens and then frames of 144, 16, 16 and 16 tokens
over and over. What is built is first compared with what ``create_block_mask`` builds
for a short row.
"""

from collections import deque
from collections.abc import Callable
from functools import cache
from itertools import groupby
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Qwen2Config
from transformers.masking_utils import create_causal_mask

from fastslow import (
    KeyIntervals,
    dense_mask,
    frame_causal_mask,
    interval_block_mask,
    interval_mask,
    to_device,
    visible_intervals,
)

DOCUMENTS = 8
WINDOW = 32
FORMS = ("plain", "window", "kept")
TABLES = [
    f"{f}{s}_{t}"
    for f in ("", "full_")
    for s in ("kv", "q")
    for t in ("num_blocks", "indices")
]


Row = tuple[Tensor, Tensor, Tensor]


def packed_row(tokens: int, device: torch.device) -> Row:
    """Give the ranks, segments and frames of the workload."""
    length = tokens // DOCUMENTS
    runs = torch.tensor([1] * 64 + [144, 16, 16, 16] * (length // 192 + 1))
    ranks = torch.arange(len(runs)).repeat_interleave(runs)[:length]
    segments = torch.arange(DOCUMENTS).repeat_interleave(length)
    frames = (ranks - 64).clamp(min=-1)
    row = ranks.repeat(DOCUMENTS), segments, frames.repeat(DOCUMENTS)
    return row[0].to(device), row[1].to(device), row[2].to(device)


def plan(row: Row, form: str) -> KeyIntervals:
    """Let a query see everything, 32 frames, or those and all slow frames and text."""
    ranks, segments, frames = row
    if form == "plain":
        return visible_intervals(ranks, segments)
    is_kept = (frames < 0) | (frames % 4 == 0) if form == "kept" else None
    return visible_intervals(
        ranks, segments, frame_ids=frames, window=WINDOW, is_kept=is_kept
    )


def closed_form(row: Row, form: str = "plain") -> BlockMask:
    return interval_block_mask(plan(row, form))


def from_every_pair(row: Row, _: str = "plain") -> BlockMask:
    rule = frame_causal_mask(row[0], row[1])
    tokens, device = len(row[0]), row[0].device
    return create_block_mask(rule, None, None, tokens, tokens, device=str(device))


@cache
def compiled_builder() -> Callable[..., BlockMask]:
    return torch.compile(create_block_mask)


def from_every_pair_compiled(row: Row, _: str = "plain") -> BlockMask:
    rule = frame_causal_mask(row[0], row[1])
    tokens, device = len(row[0]), row[0].device
    return compiled_builder()(rule, None, None, tokens, tokens, device=str(device))


def dense_of_transformers(row: Row) -> Tensor:
    """Let transformers write the mask that its SDPA takes, one boolean for each pair.

    Its own way to let the tokens of a block see each other; it would join blocks of
    one number across documents, so here they are numbered through the row.
    """
    ranks, segments, frames = row
    config = Qwen2Config(attn_implementation="sdpa")
    device = ranks.device
    places = torch.cat([torch.arange(int(n)) for n in segments.bincount()]).to(device)
    blocks = torch.where(frames < 0, -1, segments * (int(frames.max()) + 1) + frames)
    given = torch.empty(1, len(ranks), 0, device=device)
    mask = create_causal_mask(
        config,
        given,
        None,
        None,
        position_ids=places[None],
        block_sequence_ids=blocks[None],
    )
    assert isinstance(mask, Tensor)
    return mask[0, 0]


def tables_alone(row: Row, _: str) -> list[Tensor]:
    """Write four tables of the same size: what any builder has to do."""
    blocks, device = len(row[0]) // 128, row[0].device
    return [
        torch.ones(blocks, blocks, dtype=torch.int32, device=device) for _ in range(4)
    ]


M1_TARGETS: dict[Callable[[Row], object], str] = {
    closed_form: "1 ms",
    from_every_pair_compiled: "at least 100x",
    from_every_pair: "at least 5,000x",
}


def assert_equals_torchs(form: str, device: torch.device) -> None:
    intervals = plan(packed_row(4096, device), form)
    rule = interval_mask(intervals)
    expected = create_block_mask(rule, None, None, 4096, 4096, device=str(device))
    found = interval_block_mask(intervals)
    for name in TABLES:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def assert_transformers_agrees(device: torch.device) -> None:
    row = packed_row(2048, device)
    ours = dense_mask(interval_mask(plan(row, "plain")), 2048)
    assert torch.equal(dense_of_transformers(row), ours)


@pytest.mark.parametrize("tokens", [4096, 8192, 16_384])
@pytest.mark.parametrize(
    "build",
    [
        closed_form,
        from_every_pair_compiled,
        dense_of_transformers,
        from_every_pair,
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler of itself
def test_m1(
    benchmark: BenchmarkFixture,
    device: torch.device,
    to_the_end: Callable[[Any], Any],
    build: Callable[[Row], object],
    tokens: int,
) -> None:
    benchmark.group = f"M1: BlockMask of {tokens:,} packed tokens"
    assert_equals_torchs("plain", device)
    assert_transformers_agrees(device)
    if tokens == 16_384 and build in M1_TARGETS:
        benchmark.extra_info["target"] = M1_TARGETS[build]
    benchmark.pedantic(
        to_the_end(build),
        args=(packed_row(tokens, device),),
        rounds=2 if build in {from_every_pair, dense_of_transformers} else 20,
        warmup_rounds=1,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [131_072, 262_144])
@pytest.mark.parametrize("build", [closed_form, tables_alone])
def test_m2(
    benchmark: BenchmarkFixture,
    device: torch.device,
    to_the_end: Callable[[Any], Any],
    peak_bytes: Callable[[Callable[[], object]], int],
    build: Callable[[Row, str], object],
    tokens: int,
    form: str,
) -> None:
    benchmark.group = f"M2: BlockMask of {tokens:,} packed tokens, {form}"
    assert_equals_torchs(form, device)
    row = packed_row(tokens, device)
    peak = peak_bytes(lambda: build(row, form))
    benchmark.extra_info["peak MiB"] = round(peak / 2**20, 1)
    if build is closed_form:
        limit = 15 if tokens == 131_072 else 60
        benchmark.extra_info["target"] = f"{limit} ms, 150 MB"
    args = (row, form)
    benchmark.pedantic(to_the_end(build), args=args, rounds=5, warmup_rounds=1)


def every_pair_compiled(intervals: KeyIntervals) -> BlockMask:
    """Let torch look at every pair, under the rule that reads two bounds."""
    tokens, device = len(intervals.start), str(intervals.start.device)
    rule = interval_mask(intervals)
    return compiled_builder()(rule, None, None, tokens, tokens, device=device)


def without_waiting(build: Callable[[], BlockMask], device: torch.device) -> BlockMask:
    """Build a mask; if the GPU is waited for, fail."""
    build()  # libraries wait when they start
    if device.type == "cpu":
        return build()
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        return build()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("build", [interval_block_mask, every_pair_compiled])
@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself
def test_m3(
    benchmark: BenchmarkFixture,
    device: torch.device,
    to_the_end: Callable[[Any], Any],
    build: Callable[[KeyIntervals], BlockMask],
) -> None:
    """Build the mask of a planned row, as a training step does."""
    tokens = 65_536 if device.type == "cuda" else 4096
    if device.type == "cpu" and benchmark.enabled:
        pytest.skip("M1 and M2 measure this on a CPU")
    benchmark.group = f"M3: BlockMask of {tokens:,} planned tokens"
    torch.compiler.reset()  # a second length would make kernels of any length
    cpu = torch.device("cpu")
    intervals = to_device(plan(packed_row(tokens, cpu), "plain"), device)
    expected = every_pair_compiled(intervals)
    found = without_waiting(lambda: interval_block_mask(intervals), device)
    for name in TABLES:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    if build is every_pair_compiled:
        benchmark.extra_info["target"] = "at least 20x"
    benchmark.pedantic(to_the_end(build), args=(intervals,), rounds=20, warmup_rounds=2)


def visible_keys(row: Row, form: str) -> list[Tensor]:
    """Give first and last key of each query, and where kept keys of it begin."""
    found = plan(row, form)
    kept = [] if found.kept is None else [found.kept.start]
    return [found.start, found.stop, *kept]


def run_by_run(row: Row, form: str) -> list[Tensor]:
    """Go through the frames and words of every document in turn, in plain Python."""
    bounds: list[list[int]] = [[], [], []]
    tokens = zip(*(column.tolist() for column in row), strict=True)
    document, begins, end = -1, 0, 0
    marks = deque[tuple[int, int]]()  # clocks of the window, and where each begins
    for (_, segment, frame), run in groupby(tokens):
        start, end = end, end + sum(1 for _ in run)
        if segment != document:
            document, begins, marks = segment, start, deque([(0, start)])
        if frame >= 0:
            marks.append((frame + 1, start))
        while form != "plain" and marks[0][0] <= marks[-1][0] - WINDOW:
            marks.popleft()
        for bound, value in zip(bounds, (marks[0][1], end, begins), strict=True):
            bound.extend([value] * (end - start))
    wanted = bounds if form == "kept" else bounds[:2]
    return [torch.tensor(bound, dtype=torch.int32) for bound in wanted]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", [visible_keys, run_by_run])
def test_visible_intervals(
    benchmark: BenchmarkFixture,
    device: torch.device,
    to_the_end: Callable[[Any], Any],
    form: str,
    way: Callable[[Row, str], list[Tensor]],
) -> None:
    benchmark.group = f"M2: Visible intervals of 1,048,576 packed tokens, {form}"
    few = packed_row(2**14, torch.device("cpu"))
    for ours, theirs in zip(
        visible_keys(few, form), run_by_run(few, form), strict=True
    ):
        assert torch.equal(ours, theirs)
    args = (packed_row(2**20, device), form)
    benchmark.pedantic(to_the_end(way), args=args, rounds=5, warmup_rounds=1)
