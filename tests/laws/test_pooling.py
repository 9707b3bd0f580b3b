"""Laws of ``fastslow.pooling``."""

from dataclasses import fields
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import (
    FrameSchedule,
    Grid,
    plan_pooling,
    pool_frames,
    pool_tokens,
    repeat_strides,
    schedule_from_strides,
    select_frames,
    unpack_ragged,
)
from fastslow.grids import Mode
from fastslow.testing import reference
from fastslow.testing import strategies as fst
from tests.laws.pools import (
    MODES,
    Clip,
    Clips,
    assert_near,
    bags,
    cells_of,
    linear_modes,
    modes,
    plain,
)


@given(fst.scheduled_clips(), linear_modes, fst.seeds())
def test_pool_tokens__adjoint(clips: Clips, mode: Mode, seed: int) -> None:
    plan = plan_pooling(clips, mode=mode)
    tokens = cells_of(plan, seed).requires_grad_()
    pooled = pool_tokens(tokens, plan).values
    weights = fst.random_values(pooled.shape, seed=seed + 1, dtype=torch.float64)
    (grad,) = torch.autograd.grad(pooled, tokens, weights)
    assert_near((grad * tokens).sum(), (weights * pooled).sum())
    if mode == "average":
        expected = torch.zeros_like(tokens)
        windows = bags(plan.cells, plan.window_starts)
        shares = reference.pooling_shares(plain(clips))
        for weight, window, parts in zip(weights, windows, shares, strict=True):
            for cell, share in zip(window, parts, strict=True):
                expected[cell] += weight * share
        assert_near(grad, expected)


@given(fst.scheduled_clips(), st.lists(st.integers(0, 2), min_size=1), fst.seeds())
def test_pool_tokens__routes(clips: Clips, levels: list[int], seed: int) -> None:
    plan = plan_pooling(clips, mode="max")
    cells = torch.arange(2 * len(plan.cell_starts)) % len(levels)
    tokens = torch.tensor(levels, dtype=torch.float64)[cells].reshape(-1, 2)
    tokens.requires_grad_()
    pooled = pool_tokens(tokens, plan).values
    weights = fst.random_values(pooled.shape, seed=seed, dtype=torch.float64)
    (grad,) = torch.autograd.grad(pooled, tokens, weights)
    expected = torch.zeros_like(tokens)
    for weight, window in zip(
        weights, bags(plan.cells, plan.window_starts), strict=True
    ):
        for channel in (0, 1):
            best = max(window, key=lambda cell: (tokens[cell, channel].item(), -cell))
            expected[best, channel] += weight[channel]
    assert_near(grad, expected)


@given(fst.scheduled_clips(), st.booleans(), fst.seeds())
def test_pool_tokens__matches_reference(
    clips: Clips, takes_max: bool, seed: int
) -> None:
    plan = plan_pooling(clips, mode="max" if takes_max else "average")
    tokens = cells_of(plan, seed)
    pooled = pool_tokens(tokens, plan)
    by_frame = reference.pooling_windows(plain(clips))
    windows = [window for frame in by_frame for window in frame]
    shares = None if takes_max else reference.pooling_shares(plain(clips))
    for actual, expected in zip(
        pooled.values, reference.pool(tokens, windows, shares), strict=True
    ):
        assert_near(actual, expected)
    assert pooled.cu_seqlens.tolist() == reference.bounds(map(len, by_frame))


@given(fst.clips(), modes)
def test_pool_frames__identity(clip: Clip, mode: Mode) -> None:
    tokens, strides = clip
    pooled = pool_frames(tokens, [1] * len(strides), mode=mode)
    assert torch.equal(pooled.values, tokens.flatten(0, 2))
    area = tokens.shape[1] * tokens.shape[2]
    assert pooled.cu_seqlens.tolist() == reference.bounds([area] * len(strides))


def test_sums_beyond_the_range_of_half_precision_are_no_means() -> None:
    clip = torch.full((1, 4, 4, 1), 60000.0, dtype=torch.float16)
    assert pool_frames(clip, [4]).values.item() == 60000.0


@given(fst.clips(), modes)
def test_pool_frames__constant(clip: Clip, mode: Mode) -> None:
    tokens, strides = clip
    constant = torch.ones_like(tokens) * tokens[0, 0, 0]
    pooled = pool_frames(constant, strides, mode=mode).values
    assert_near(pooled, tokens[0, 0, 0].expand_as(pooled))


@given(fst.clips(), fst.float_tensors((3, 4), dtype=torch.float64), linear_modes)
def test_pool_frames__linear(clip: Clip, channels: Tensor, mode: Mode) -> None:
    tokens, strides = clip
    mapped_after = pool_frames(tokens, strides, mode=mode).values @ channels
    mapped_before = pool_frames(tokens @ channels, strides, mode=mode).values
    assert_near(mapped_before, mapped_after)


@given(fst.clips())
def test_pool_frames__mean(clip: Clip) -> None:
    tokens, strides = clip
    pooled = pool_frames(tokens, strides)
    grid = (tokens.shape[1], tokens.shape[2])
    sizes = [
        len(cells)
        for stride in strides
        for cells in reference.window_cells(grid, reference.plain_frame(0, stride))
    ]
    weights = torch.tensor(sizes, dtype=tokens.dtype) / sum(sizes)
    assert_near(weights @ pooled.values, tokens.mean((0, 1, 2)))


@given(
    fst.grids(max_side=2),
    fst.strides(max_stride=3),
    fst.strides(max_stride=3),
    fst.seeds(),
)
def test_pool_frames__composes(grid: Grid, first: int, second: int, seed: int) -> None:
    height, width = (side * first * second for side in grid)
    tokens = fst.random_values((2, height, width, 2), seed=seed, dtype=torch.float64)
    once = pool_frames(tokens, [first, first]).values
    once = once.reshape(2, height // first, width // first, 2)
    twice = pool_frames(once, [second, second])
    whole = pool_frames(tokens, [first * second] * 2)
    assert_near(twice.values, whole.values)
    assert torch.equal(twice.cu_seqlens, whole.cu_seqlens)


@given(fst.clips(), st.randoms(use_true_random=False))
def test_pool_frames__frame_order(clip: Clip, random: Random) -> None:
    tokens, strides = clip
    order = list(range(len(strides)))
    random.shuffle(order)
    blocks = unpack_ragged(pool_frames(tokens, strides))
    shuffled = pool_frames(tokens[order], [strides[frame] for frame in order])
    for block, frame in zip(unpack_ragged(shuffled), order, strict=True):
        assert torch.equal(block, blocks[frame])


def pool_one_frame(frame: Tensor, stride: int, mode: Mode, edge: str) -> Tensor:
    """Pool one frame, (height, width, dim), with torch's own operation."""
    image = frame.movedim(-1, 0)[None]
    keeps = edge == "ceil"
    size = [(n + (stride - 1) * keeps) // stride for n in frame.shape[:2]]
    if mode == "average":
        pooled = F.avg_pool2d(image, stride, ceil_mode=keeps)
    elif mode == "max":
        pooled = F.max_pool2d(image, stride, ceil_mode=keeps)
    else:
        pooled = F.interpolate(image, size=size, mode=mode)
    return pooled[0].movedim(0, -1).flatten(0, 1)


@pytest.mark.parametrize("cell", range(16))
@pytest.mark.parametrize("beside", [0.0, torch.inf])
def test_a_maximum_does_not_hide_nan(cell: int, beside: float) -> None:
    tokens = torch.arange(16.0) + beside
    tokens[cell] = torch.nan
    found = pool_frames(tokens.view(1, 4, 4, 1), [2], mode="max").values[:, 0]
    expected = F.max_pool2d(tokens.view(1, 4, 4), 2).flatten()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@given(fst.clips(), modes, st.sampled_from(("ceil", "floor")))
def test_pool_frames__matches_torch(clip: Clip, mode: Mode, edge: Any) -> None:
    tokens, strides = clip
    if edge == "floor":
        strides = [min(stride, *tokens.shape[1:3]) for stride in strides]
    tokens.requires_grad_()
    pooled = pool_frames(tokens, strides, mode=mode, edge=edge)
    expected = [
        pool_one_frame(frame, stride, mode, edge)
        for frame, stride in zip(tokens, strides, strict=True)
    ]
    for block, frame in zip(unpack_ragged(pooled), expected, strict=True):
        assert_near(block, frame)
    weights = fst.random_values(pooled.values.shape, seed=1, dtype=torch.float64)
    (grad,) = torch.autograd.grad(pooled.values, tokens, weights)
    (wanted,) = torch.autograd.grad(torch.cat(expected), tokens, weights)
    assert_near(grad, wanted)


@given(fst.clips())
def test_a_token_depends_on_its_own_window_alone(clip: Clip) -> None:
    tokens, strides = clip
    grid = (tokens.shape[1], tokens.shape[2])
    jacobian = torch.autograd.functional.jacobian(
        lambda x: pool_frames(x, strides).values, tokens
    )
    support = jacobian.abs().sum((1, 5)).flatten(1) > 0
    windows = reference.pooling_windows(plain([(grid, schedule_from_strides(strides))]))
    flat = [window for frame in windows for window in frame]
    for row, window in zip(support, flat, strict=True):
        assert row.nonzero()[:, 0].tolist() == sorted(window)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strides", [[1, 2], [2, 3], [4, 1]])
def test_gradcheck(strides: list[int], mode: Mode) -> None:
    tokens = fst.random_values((2, 3, 4, 2), seed=0, dtype=torch.float64)
    tokens.requires_grad_()

    def pool(x: Tensor) -> Tensor:
        return pool_frames(x, strides, mode=mode).values

    assert torch.autograd.gradcheck(pool, tokens)
    assert torch.autograd.gradgradcheck(lambda x: pool(x) ** 2, tokens)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck_with_frames_repeated_and_left_out(mode: Mode) -> None:
    schedule = select_frames(schedule_from_strides([1, 3, 2]), [2, 0, 2])
    plan = plan_pooling([((2, 3), schedule)], mode=mode)
    tokens = fst.random_values((18, 2), seed=0, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pool_tokens(x, plan).values, tokens)


@example((fst.random_values((2, 15, 16, 3), seed=1421), [1, 3]), "bfloat16", "area")
@given(
    fst.clips(max_side=16, dtype=torch.float32),
    st.sampled_from(("bfloat16", "float16")),
    modes,
)
def test_half_precision_is_rounded_once(clip: Clip, name: str, mode: Mode) -> None:
    tokens, strides = clip
    dtype = getattr(torch, name)
    wide = tokens.to(dtype).double().requires_grad_()
    narrow = wide.detach().to(dtype).requires_grad_()
    exact, pooled = (pool_frames(x, strides, mode=mode).values for x in (wide, narrow))
    slopes = fst.random_values(pooled.shape, seed=1).to(dtype)
    gradients = [
        torch.autograd.grad(values, x, slopes.to(values.dtype))[0]
        for values, x in ((exact, wide), (pooled, narrow))
    ]
    largest = tokens.abs().amax(), slopes.abs().amax()
    for (wanted, found), bound in zip(
        ((exact, pooled), gradients), largest, strict=True
    ):
        assert found.dtype == dtype
        spacing = torch.finfo(dtype).eps * 2 ** wanted.abs().log2().floor()
        tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        error = (found.double() - wanted).abs()
        assert (error <= 0.5 * spacing + bound.double() * 2**-15 + tiny).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", range(9))
def test_a_mean_does_not_hide_infinities(dtype: torch.dtype, cell: int) -> None:
    for infinity in (torch.inf, -torch.inf):
        clip = torch.ones(9, dtype=dtype)
        clip[cell] = infinity
        pooled = pool_frames(clip.view(1, 3, 3, 1), [3])
        assert pooled.values.item() == infinity


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nor_does_one_of_shares_that_half_precision_holds(dtype: torch.dtype) -> None:
    clip = torch.tensor([1, torch.inf, 1, 1], dtype=dtype)
    assert pool_frames(clip.view(1, 2, 2, 1), [2]).values.item() == torch.inf


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_gradients_keep_the_dtype(dtype: torch.dtype) -> None:
    tokens = torch.ones(2, 3, 3, 2, dtype=dtype, requires_grad=True)
    pooled = pool_frames(tokens, [2, 3]).values
    assert pooled.dtype == dtype
    pooled.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_device_follows_the_tokens(dtype: torch.dtype) -> None:
    clip = torch.zeros(2, 3, 3, 2, device="meta", dtype=dtype)
    pooled = pool_frames(clip, [2, 3])
    assert pooled.values.device.type == pooled.cu_seqlens.device.type == "meta"
    assert pooled.values.shape == (5, 2)


def test_strided_tokens_pool_like_contiguous_ones() -> None:
    tokens = fst.random_values((3, 4, 5, 2), seed=0).permute(3, 1, 2, 0)
    expected = pool_frames(tokens.contiguous(), [2, 3])
    assert torch.equal(pool_frames(tokens, [2, 3]).values, expected.values)


def test_pooling_leaves_its_arguments_alone() -> None:
    plan = plan_pooling([((1, 3), schedule_from_strides([2, 1]))], mode="bilinear")
    before = {
        field.name: value.clone()
        for field in fields(plan)
        if isinstance(value := getattr(plan, field.name), Tensor)
    }
    tokens = torch.arange(12.0).reshape(6, 2).requires_grad_()
    pooled = pool_tokens(tokens, plan)
    pooled.values.sum().backward()
    assert torch.equal(tokens.detach(), torch.arange(12.0).reshape(6, 2))
    for name, value in before.items():
        assert torch.equal(getattr(plan, name), value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_frames", [0, 1])
def test_no_pooled_frame_gives_no_token_and_no_gradient(
    num_frames: int, mode: Mode
) -> None:
    empty = FrameSchedule(num_frames=num_frames, frames=())
    plan = plan_pooling([((2, 2), empty)] * num_frames, mode=mode)
    tokens = torch.zeros(4 * num_frames, 3, requires_grad=True)
    pooled = pool_tokens(tokens, plan)
    assert pooled.values.shape == (0, 3)
    assert pooled.cu_seqlens.tolist() == [0]
    pooled.values.sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, torch.zeros(4 * num_frames, 3))


def test_one_stride_per_frame() -> None:
    with pytest.raises(ValueError) as error:
        pool_frames(torch.zeros(2, 2, 2, 1), [1])
    assert str(error.value) == (
        "strides has 1 frames but tokens has 2; each frame needs one stride"
    )


def test_edges_may_be_refused() -> None:
    with pytest.raises(ValueError) as error:
        pool_frames(torch.zeros(1, 3, 4, 1), [2], edge="error")
    assert str(error.value) == (
        "a side of 3 tokens is no multiple of stride 2; edge 'ceil' keeps what remains "
        "and 'floor' drops it"
    )


def test_a_plan_is_for_its_number_of_cells() -> None:
    plan = plan_pooling([((2, 2), repeat_strides(1, (1,)))])
    with pytest.raises(ValueError) as error:
        pool_tokens(torch.zeros(5, 1), plan)
    assert str(error.value) == (
        "tokens has 5 cells but the plan is for 4; both describe the same frames"
    )
