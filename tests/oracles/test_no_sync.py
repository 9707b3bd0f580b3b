"""What runs on a device never waits for it: no value is read on the host.

On any machine the calls run on fake tensors, which have shapes and no values, so that
whatever would read one is an error: ``item``, ``tolist``, ``if tensor``, a boolean
index, any size that depends on values. A copy to the host that nobody reads is not seen
there; on a GPU the same calls run with every wait made an error.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from fastslow import (
    KeyIntervals,
    LabelPlan,
    PoolPlan,
    Ragged,
    change_weights,
    dense_mask,
    frame_causal_block_mask,
    frame_causal_mask,
    interval_block_mask,
    interval_mask,
    labelled_cross_entropy,
    live_tiles,
    next_frame_loss,
    pack_ragged,
    plan_pooling,
    pool_tokens,
    position_ids_from_cu_seqlens,
    repeat_strides,
    select_ragged,
    tile_efficiency,
    unpack_ragged,
    visible_intervals,
    visible_pairs,
)
from fastslow.qwen2_vl import VisionGeometry, normalize_patches
from fastslow.testing import strategies as fst
from tests.plan_tensors import with_tensors

Reads = (DataDependentOutputException, DynamicOutputShapeException)
Call = tuple[Callable[..., object], tuple[Any, ...]]


def run_without_values(function: Callable[..., object], *arguments: Any) -> None:
    """Call a function with tensors that have no values."""
    with FakeTensorMode() as mode:
        function(*(with_tensors(mode.from_tensor, each) for each in arguments))


@contextmanager
def waits_forbidden() -> Iterator[None]:
    """Make every wait for a GPU an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


FRAMES = torch.arange(12).repeat_interleave(torch.arange(12) % 4 + 3)
SEGMENTS = torch.cat([0 * FRAMES, 0 * FRAMES + 1, 0 * FRAMES[:5] - 1])
ROW = torch.cat([FRAMES, FRAMES, FRAMES[:5]])


def intervals_of(form: str) -> KeyIntervals:
    if form == "plain":
        return visible_intervals(ROW, SEGMENTS)
    is_kept = ROW % 4 == 0 if form == "kept" else None
    return visible_intervals(ROW, SEGMENTS, frame_ids=ROW, window=3, is_kept=is_kept)


def read_rule(intervals: KeyIntervals) -> Tensor:
    device = intervals.start.device
    return dense_mask(interval_mask(intervals), len(intervals.start), device=device)


def read_frame_causal(ranks: Tensor, segments: Tensor) -> Tensor:
    rule = frame_causal_mask(ranks, segments)
    return dense_mask(rule, len(ranks), device=ranks.device)


def pool(tokens: Tensor, plan: PoolPlan) -> Tensor:
    tokens = tokens.requires_grad_()
    (gradient,) = torch.autograd.grad(pool_tokens(tokens, plan).values.sum(), tokens)
    return gradient


def next_frame(settings: dict[str, Any]) -> Callable[..., object]:
    def measure(
        predictions: Tensor, targets: Ragged, cu_videos: Tensor, weights: Tensor | None
    ) -> Tensor:
        predictions = predictions.requires_grad_()
        total, _ = next_frame_loss(
            predictions, targets, cu_videos=cu_videos, weights=weights, **settings
        )
        (gradient,) = torch.autograd.grad(total, predictions)
        return gradient

    return measure


def labelled(hidden: Tensor, weight: Tensor, plan: LabelPlan) -> object:
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    total, _ = labelled_cross_entropy(hidden, weight, plan)
    return torch.autograd.grad(total, (hidden, weight))


def normalise(patches: Tensor) -> Tensor:
    return normalize_patches(patches, VisionGeometry())


def values(*shape: int) -> Tensor:
    return fst.random_values(shape, seed=0)


def calls() -> Iterator[tuple[str, Call]]:
    """Name the calls that promise not to wait, with their arguments on the CPU."""
    for form in ("plain", "window", "kept"):
        intervals = intervals_of(form)
        yield f"interval_block_mask, {form}", (interval_block_mask, (intervals,))
        yield f"interval_mask, {form}", (read_rule, (intervals,))
    yield "frame_causal_mask", (read_frame_causal, (ROW, SEGMENTS))
    for mode in ("average", "max", "area", "bilinear"):
        plan = plan_pooling([((5, 4), repeat_strides(4, (1, 2)))], mode=mode)
        yield f"pool_tokens, {mode}", (pool, (values(80, 8), plan))
    targets = pack_ragged([values(n, 5) for n in (3, 1, 2)])
    cu_videos = torch.tensor([0, 2, 3], dtype=torch.int32)
    settings: list[dict[str, Any]] = [
        *({"distance": name} for name in ("cosine", "mse", "smooth_l1", "l1")),
        *({"reduction": name} for name in ("token", "frame", "video")),
        {"distance": "mse+cosine", "normalize_targets": True},
    ]
    for setting in settings:
        for weights in (None, values(6).abs()):
            name = ", ".join(map(str, setting.values()))
            name += "" if weights is None else ", weights"
            arguments = (values(6, 5), targets, cu_videos, weights)
            yield f"next_frame_loss, {name}", (next_frame(setting), arguments)
    yield "change_weights", (change_weights, (values(6, 6), values(6, 6)))
    for rows, form in ((8, "whole"), (70_000, "in chunks")):
        labels = LabelPlan(rows=torch.arange(rows), targets=torch.arange(rows) % 1000)
        arguments = (values(rows, 2), values(1000, 2), labels)
        yield f"labelled_cross_entropy, {form}", (labelled, arguments)
    bounds = targets.cu_seqlens
    yield "position_ids_from_cu_seqlens", (position_ids_from_cu_seqlens, (bounds, 7))
    patches = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    yield "normalize_patches", (normalise, (patches,))


CALLS = dict(calls())


@pytest.mark.parametrize("name", CALLS)
def test_no_value_is_read(name: str) -> None:
    function, arguments = CALLS[name]
    run_without_values(function, *arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CALLS)
def test_no_gpu_is_waited_for(name: str) -> None:
    function, arguments = CALLS[name]
    arguments = tuple(with_tensors(Tensor.cuda, each) for each in arguments)
    function(*arguments)  # libraries wait when they start
    with waits_forbidden():
        function(*arguments)


READERS: dict[str, Call] = {
    "item": (lambda x: x.sum().item(), (ROW,)),
    "tolist": (lambda x: x.tolist(), (ROW,)),
    "if": (lambda x: bool((x > 3).any()), (ROW,)),
    "slice": (lambda x: x[: x[0]], (ROW,)),
    "boolean index": (lambda x: x[x > 3], (ROW,)),
    "nonzero": (torch.nonzero, (ROW,)),
    "unique": (torch.unique, (ROW,)),
    "equal": (torch.equal, (ROW, ROW)),
    "repeat_interleave": (torch.repeat_interleave, (ROW,)),
    "visible_intervals": (visible_intervals, (ROW, SEGMENTS)),
    "frame_causal_block_mask": (frame_causal_block_mask, (ROW, SEGMENTS)),
    "visible_pairs": (visible_pairs, (intervals_of("kept"),)),
    "live_tiles": (live_tiles, (intervals_of("kept"),)),
    "tile_efficiency": (tile_efficiency, (intervals_of("kept"),)),
    "select_ragged": (
        select_ragged,
        (pack_ragged([values(2, 3)]), torch.tensor([0, 0])),
    ),
    "unpack_ragged": (unpack_ragged, (pack_ragged([values(2, 3)]),)),
}
"""What reads values, and the functions whose pages say that they do."""


@pytest.mark.parametrize("name", READERS)
def test_a_read_value_is_noticed(name: str) -> None:
    function, arguments = READERS[name]
    with pytest.raises(Reads):
        run_without_values(function, *arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", READERS)
def test_a_wait_is_noticed(name: str) -> None:
    function, arguments = READERS[name]
    arguments = tuple(with_tensors(Tensor.cuda, each) for each in arguments)
    function(*arguments)
    with waits_forbidden(), pytest.raises(RuntimeError, match="synchroniz"):
        function(*arguments)
