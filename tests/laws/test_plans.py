"""Laws of ``fastslow._plans``."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from torch import Tensor

from fastslow import (
    FrameWindow,
    Ragged,
    Span,
    TextSpan,
    TokenLayout,
    VideoSpan,
    best_fit_decreasing,
    build_layout,
    build_schedule,
    dense_mask,
    fewest_bins_bound,
    interval_attention,
    interval_block_mask,
    interval_mask,
    keep_tokens,
    labelled_cross_entropy,
    live_tiles,
    next_frame_loss,
    pack_ragged,
    pin_memory,
    plan_labels,
    plan_next_frame,
    plan_pooling,
    pool_frames,
    schedule_for_budget,
    schedule_from_strides,
    slow_by_similarity,
    stream_order,
    to_device,
    varlen_plan,
    video_positions,
    visible_keys,
    visible_pairs,
)
from fastslow.plotting import render_mask
from fastslow.testing import strategies as fst
from tests.plan_tensors import assert_equal, tensors


def plans_of(layout: TokenLayout) -> list[object]:
    return [
        layout,
        plan_labels(layout),
        plan_next_frame(layout),
        plan_pooling([(c.grid, c.schedule) for c in layout.clips], mode="bilinear"),
        Ragged(values=torch.ones(3, 2), cu_seqlens=torch.tensor([0, 3]).int()),
    ]


@given(fst.layouts())
def test_to_device__lossless(layout: TokenLayout) -> None:
    for plan in plans_of(layout):
        before = dict(tensors(plan))
        assert before
        for device in ("cpu", "meta"):
            moved = to_device(plan, device)
            assert type(moved) is type(plan)
            after = dict(tensors(moved))
            assert after.keys() == before.keys()
            for name, tensor in after.items():
                assert tensor.device.type == device
                assert tensor.shape == before[name].shape
                assert tensor.dtype == before[name].dtype
                assert device == "meta" or torch.equal(tensor, before[name])
        assert all(tensor.device.type == "cpu" for _, tensor in tensors(plan))


@given(fst.layouts())
def test_pin_memory__lossless(layout: TokenLayout) -> None:
    """Without a GPU there is no such memory: a copy stands for it there."""
    has_gpu = torch.cuda.is_available()
    copied = patch.object(Tensor, "pin_memory", Tensor.clone)
    for plan in plans_of(layout):
        before = dict(tensors(plan))
        with nullcontext() if has_gpu else copied:
            pinned = pin_memory(plan)
        assert type(pinned) is type(plan)
        after = dict(tensors(pinned))
        assert after.keys() == before.keys()
        for name, tensor in after.items():
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name])
            assert tensor is not before[name]
            assert tensor.is_pinned() == has_gpu


def test_fields_without_tensors_are_kept() -> None:
    clip = VideoSpan(grid=(2, 2), schedule=schedule_from_strides((1, 2)))
    text = TextSpan(token_ids=(5,))
    layout = build_layout([[text, clip]], video_token_id=9)
    assert to_device(layout, "meta").clips == (clip,)
    schedule = build_schedule(4)
    assert to_device(schedule, "meta") == schedule


@pytest.mark.parametrize("plan", [{"labels": torch.ones(1)}, [torch.ones(1)], TextSpan])
def test_what_is_no_plan_is_not_left_where_it_is(plan: object) -> None:
    wanted = f"plan is a {type(plan).__name__}; it must be a dataclass, or a tensor"
    for go in (partial(to_device, device="meta"), pin_memory):
        with pytest.raises(TypeError) as error:
            go(plan)
        assert str(error.value) == wanted


def test_plans_stay_frozen() -> None:
    moved = to_device(plan_pooling([((2, 2), build_schedule(1))]), torch.device("meta"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        moved.cells = torch.zeros(1)  # type: ignore[misc]


STRIDES = schedule_from_strides((1, 2, 2))
CLIP = VideoSpan(
    grid=(2, 3),
    schedule=keep_tokens(STRIDES, [None, [True, False], [True, True]]),
    times=(0, 2, 5),
    between=((7,), (7, 8)),
)
SAMPLE: Sequence[Span] = [TextSpan(token_ids=(5, 6)), CLIP, TextSpan(token_ids=(5,))]
LAYOUT = build_layout([SAMPLE, SAMPLE], video_token_id=9)
VISIBLE = visible_keys(LAYOUT, FrameWindow(frames=1))
FEATURES = torch.arange(24.0).reshape(2, 2, 3, 2)
GOAL = pack_ragged([torch.ones(2, 3), torch.eye(3)])
HEADS = torch.ones(1, 1, len(VISIBLE.start), 2)


@pytest.mark.parametrize(
    "work",
    [
        lambda: build_layout([SAMPLE], video_token_id=9),
        lambda: plan_labels(LAYOUT),
        lambda: [
            plan_next_frame(LAYOUT, pairing="source_grid"),
            plan_next_frame(LAYOUT, pairing="common_grid"),
            plan_next_frame(LAYOUT, pairing="frame_mean"),
        ],
        lambda: plan_pooling([(CLIP.grid, CLIP.schedule)]),
        lambda: plan_pooling([(CLIP.grid, STRIDES)], mode="bilinear"),
        lambda: video_positions(CLIP.grid, CLIP.schedule, times=CLIP.times),
        lambda: pool_frames(FEATURES, (1, 2), mode="max"),
        lambda: slow_by_similarity(torch.eye(3, device="cpu"), 0.5),
        lambda: schedule_for_budget(3, CLIP.grid, 12),
        lambda: visible_keys(LAYOUT, FrameWindow(frames=1, keep_slow=True)),
        lambda: [varlen_plan(visible_keys(LAYOUT)), live_tiles(VISIBLE)],
        lambda: list(interval_block_mask(VISIBLE).as_tuple()[:6]),
        lambda: interval_attention(HEADS, HEADS, HEADS, VISIBLE),
        lambda: next_frame_loss(GOAL.values, GOAL, weights=GOAL.values[:, 0]),
        lambda: visible_pairs(VISIBLE),
        lambda: dense_mask(interval_mask(VISIBLE), len(VISIBLE.start)),
        lambda: render_mask(interval_mask(VISIBLE), len(VISIBLE.start)),
        lambda: labelled_cross_entropy(
            GOAL.values[LAYOUT.input_ids % 5],
            GOAL.values.repeat(3, 1),
            plan_labels(LAYOUT),
        ),
        lambda: [best_fit_decreasing([3, 4, 5], 8), fewest_bins_bound([3, 4, 5], 8)],
        lambda: stream_order(4, seed=1, epoch=0, groups=(0, 1, 0, 1)),
    ],
)
def test_the_default_device_decides_nothing(work: Callable[[], object]) -> None:
    with torch.device("meta"):
        found = work()
    assert_equal(found, work())
