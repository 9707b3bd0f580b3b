"""Pooling slow and fast frames, beside the usual ways and beside a copy.

One frame in four keeps all its tokens, three are pooled by 3 x 3. A *copy* moves as
many bytes as pooling has to read and write, and allocates as many. On a GPU frames of
16 x 16 are pooled by 2 and 4 as well, ten times before the GPU is waited for, as steps
of a training are queued, and the bytes a second are held against those of as many
copies of the clip. That all ways give the same is checked on clips of 16 channels.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastslow import PoolPlan, plan_pooling, pool_tokens, schedule_from_strides
from fastslow._plans import to_device
from fastslow.grids import Mode

QUEUED = 10
SHAPES = [(64, 12, 12, 3584), (64, 24, 24, 1024)]
DTYPES = [torch.float32, torch.bfloat16]

Shape = tuple[int, int, int, int]
Pool = Callable[[Tensor, Mode], Tensor]

TORCHS: dict[Mode, Callable[[Tensor, int], Tensor]] = {
    "average": F.avg_pool2d,
    "max": F.max_pool2d,
}


def strides(clip: Tensor) -> list[int]:
    """Give the stride of each frame: those that divide its grid."""
    slow, fast = (2, 4) if clip.shape[1] % 3 else (1, 3)
    return [slow, fast, fast, fast] * (clip.shape[0] // 4)


def make_plan(clip: Tensor, mode: Mode) -> PoolPlan:
    grid = (clip.shape[1], clip.shape[2])
    plan = plan_pooling([(grid, schedule_from_strides(strides(clip)))], mode=mode)
    return to_device(plan, clip.device)


def with_its_plan(clip: Tensor, mode: Mode) -> Tensor:
    return pool_tokens(clip.flatten(0, 2), make_plan(clip, mode)).values


@cache
def known_plan(shape: Shape, device: torch.device, mode: Mode) -> PoolPlan:
    return make_plan(torch.empty(shape, device=device), mode)


def planned(clip: Tensor, mode: Mode) -> Tensor:
    frames, height, width, channels = clip.shape
    plan = known_plan((frames, height, width, channels), clip.device, mode)
    return pool_tokens(clip.flatten(0, 2), plan).values


def pool_one(frame: Tensor, stride: int, mode: Mode) -> Tensor:
    return TORCHS[mode](frame.permute(2, 0, 1), stride).flatten(1).T


def frame_by_frame(clip: Tensor, mode: Mode) -> Tensor:
    """Index and pool each frame: the common way."""
    chosen = strides(clip)
    return torch.cat([pool_one(clip[t], s, mode) for t, s in enumerate(chosen)])


def unbound_frames(clip: Tensor, mode: Mode) -> Tensor:
    """The same, with all frames taken apart at once."""
    frames = zip(clip.unbind(), strides(clip), strict=True)
    return torch.cat([pool_one(frame, stride, mode) for frame, stride in frames])


def whole_clip_twice(clip: Tensor, mode: Mode) -> Tensor:
    """Pool the whole clip by each stride, pick frames and join: LLaVA-NeXT's way."""
    cells, chosen = clip.permute(0, 3, 1, 2), strides(clip)
    pooled = {s: TORCHS[mode](cells, s).flatten(2).mT for s in set(chosen)}
    return torch.cat([pooled[s][t] for t, s in enumerate(chosen)])


def copy(clip: Tensor, mode: Mode) -> Tensor:
    """Read a third of the clip into new memory, and another third into old."""
    first, second, _ = clip.flatten(0, 2).chunk(3)
    pooled = first.clone()
    known_spare(second.shape, clip.dtype, clip.device).copy_(second)
    return pooled


def copy_back(slopes: Tensor) -> Tensor:
    """Read gradients of the pooled tokens, and write one as large as the clip."""
    return slopes[:, None].expand(-1, 3, -1).contiguous()


@cache
def known_spare(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


WAYS = [
    planned,
    with_its_plan,
    frame_by_frame,
    unbound_frames,
    whole_clip_twice,
    copy,
]
FORWARD_TARGETS = {frame_by_frame: "at least 8x", copy: "at least 0.5x"}
BOTH_TARGETS = {copy: "at least 0.11x"}


def forward(pool: Pool, mode: Mode, clip: Tensor, _: Tensor) -> Tensor:
    with torch.no_grad():
        return pool(clip, mode)


def both_ways(
    pool: Pool, mode: Mode, clip: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    if pool is copy:
        return copy(clip, mode), copy_back(slopes)
    leaf = clip.detach().requires_grad_()
    pooled = pool(leaf, mode)
    (gradient,) = torch.autograd.grad(pooled, leaf, slopes)
    return pooled.detach(), gradient


@cache
def workload(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw a clip and the gradients of its pooled tokens."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(shape, generator=generator)
    tokens = sum(shape[1] * shape[2] // s**2 for s in strides(clip))
    slopes = torch.randn(tokens, shape[3], generator=generator)
    return clip.to(device, dtype), slopes.to(device, dtype)


@cache
def assert_equal(
    pool: Pool, mode: Mode, shape: Shape, dtype: torch.dtype, device: torch.device
) -> None:
    clip, slopes = workload((*shape[:3], 16), dtype, device)
    ours = both_ways(planned, mode, clip, slopes)
    torch.testing.assert_close(both_ways(pool, mode, clip, slopes), ours)


@pytest.mark.parametrize(
    ("mode", "shape"), [*(("average", shape) for shape in SHAPES), ("max", SHAPES[1])]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("run", [forward, both_ways])
@pytest.mark.parametrize("pool", WAYS)
def test_pooling(
    benchmark: BenchmarkFixture,
    device: torch.device,
    to_the_end: Callable[[Any], Any],
    peak_bytes: Callable[[Callable[[], object]], int],
    mode: Mode,
    shape: Shape,
    dtype: torch.dtype,
    run: Callable[[Pool, Mode, Tensor, Tensor], object],
    pool: Pool,
) -> None:
    size = " x ".join(f"{side:,}" for side in shape)
    kind = str(dtype).removeprefix("torch.")
    direction = "forward" if run is forward else "forward and backward"
    what = "Maxima of" if mode == "max" else "Pooling"
    benchmark.group = f"L1: {what} {size}, strides 1 and 3, {kind}, {direction}"
    if pool is not copy:
        assert_equal(pool, mode, shape, dtype, device)
    targets = FORWARD_TARGETS if run is forward else BOTH_TARGETS
    if pool in targets and not (mode == "max" and pool is copy):
        benchmark.extra_info["target"] = targets[pool]
    is_slow = run is both_ways and pool in {frame_by_frame, whole_clip_twice}
    args = (pool, mode, *workload(shape, dtype, device))
    if run is both_ways:
        peak = peak_bytes(lambda: run(*args))
        benchmark.extra_info["peak over clip"] = peak / args[2].nbytes
    benchmark.pedantic(
        to_the_end(run),
        args=args,
        rounds=1 if is_slow else 20 if run is forward else 8,
        warmup_rounds=0 if is_slow else 1,
    )


@cache
def copied_per_second(shape: Shape, device: torch.device) -> float:
    """Measure how many bytes a copy of the clip reads and writes in a second."""
    clip, _ = workload(shape, torch.bfloat16, device)
    times = []
    for _ in range(6):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(QUEUED):
            clip.clone()
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * clip.nbytes * QUEUED / min(times)


@pytest.mark.parametrize("run", [forward, both_ways])
@pytest.mark.parametrize(
    "pool", [planned, frame_by_frame, unbound_frames, whole_clip_twice]
)
def test_l2(
    benchmark: BenchmarkFixture,
    device: torch.device,
    to_the_end: Callable[[Any], Any],
    run: Callable[[Pool, Mode, Tensor, Tensor], object],
    pool: Pool,
) -> None:
    is_gpu = device.type == "cuda"
    if benchmark.enabled and not is_gpu:
        pytest.skip("L1 measures pooling on a CPU")
    shape = (256, 16, 16, 3584) if is_gpu else (8, 16, 16, 8)
    direction = "forward" if run is forward else "forward and backward"
    size = " x ".join(f"{side:,}" for side in shape)
    benchmark.group = (
        f"L2: Pooling {size} {QUEUED} times, strides 2 and 4, bfloat16, {direction}"
    )
    assert_equal(pool, "average", shape, torch.bfloat16, device)
    clip, slopes = workload(shape, torch.bfloat16, device)
    if pool is planned:
        benchmark.extra_info["target"] = "copies' bandwidth: 70%"

    def queue() -> None:
        for _ in range(QUEUED):
            run(pool, "average", clip, slopes)

    benchmark.pedantic(to_the_end(queue), rounds=5, warmup_rounds=1)
    if benchmark.enabled:
        moved = (clip.nbytes + slopes.nbytes) * (1 if run is forward else 2) * QUEUED
        share = moved / benchmark.stats.stats.min / copied_per_second(shape, device)
        benchmark.extra_info["% of a copy's bandwidth"] = round(100 * share)
