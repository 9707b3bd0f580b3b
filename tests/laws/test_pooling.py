"""Laws of ``fastslow.pooling``."""

from dataclasses import fields
from itertools import pairwise
from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import (
    Grid,
    PoolPlan,
    lengths_from_cu_seqlens,
    plan_pooling,
    pool_frames,
    pool_tokens,
    unpack_ragged,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Clip = tuple[Tensor, list[int]]
Frames = list[tuple[Grid, int]]
Choice = tuple[list[Grid], list[int], list[int]]

frames_of_clips = st.lists(
    st.tuples(fst.grids(max_side=5), fst.strides()), min_size=1, max_size=4
)


def choose(frames: list[Grid], picks: list[tuple[int, int]]) -> Choice:
    """Turn numbers of any size into frames that exist."""
    return frames, [stride for _, stride in picks], [n % len(frames) for n, _ in picks]


choices = st.builds(
    choose,
    st.lists(fst.grids(max_side=4), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 11), fst.strides()), max_size=4),
)
"""Grids, and output frames that pool some of them: repeated, left out, in any order."""


def bags(entries: Tensor, starts: Tensor) -> list[list[int]]:
    bounds = [*starts.tolist(), len(entries)]
    return [entries[first:last].tolist() for first, last in pairwise(bounds)]


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@given(frames_of_clips)
def test_plan_pooling__partition(frames: Frames) -> None:
    grids, strides = zip(*frames, strict=True)
    plan = plan_pooling(grids, strides)
    num_cells = sum(height * width for height, width in grids)
    assert sorted(plan.cells.tolist()) == list(range(num_cells))
    assert plan.window_sizes.sum() == num_cells
    assert all(len(readers) == 1 for readers in bags(plan.windows, plan.cell_starts))


@given(choices)
def test_plan_pooling__transpose(choice: Choice) -> None:
    grids, strides, frames = choice
    plan = plan_pooling(grids, strides, frames=frames)
    by_window = bags(plan.cells, plan.window_starts)
    by_cell = bags(plan.windows, plan.cell_starts)
    assert plan.window_sizes.tolist() == [len(cells) for cells in by_window]
    forward = [
        (window, cell) for window, cells in enumerate(by_window) for cell in cells
    ]
    back = [
        (window, cell) for cell, windows in enumerate(by_cell) for window in windows
    ]
    assert sorted(forward) == sorted(back)


@given(choices)
def test_plan_pooling__matches_reference(choice: Choice) -> None:
    grids, strides, frames = choice
    plan = plan_pooling(grids, strides, frames=frames)
    for name, expected in reference.pool_plan(grids, strides, frames).items():
        assert getattr(plan, name).tolist() == expected, name


@given(choices, fst.seeds())
def test_pool_tokens__adjoint(choice: Choice, seed: int) -> None:
    grids, strides, frames = choice
    plan = plan_pooling(grids, strides, frames=frames)
    shape = (len(plan.cell_starts), 2)
    tokens = fst.random_values(shape, seed=seed, dtype=torch.float64).requires_grad_()
    pooled = pool_tokens(tokens, plan).values
    weights = fst.random_values(pooled.shape, seed=seed + 1, dtype=torch.float64)
    (grad,) = torch.autograd.grad(pooled, tokens, weights)
    expected = torch.zeros_like(tokens)
    windows = bags(plan.cells, plan.window_starts)
    for weight, window in zip(weights, windows, strict=True):
        for cell in window:
            expected[cell] += weight / len(window)
    assert_near(grad, expected)
    assert_near((grad * tokens).sum(), (weights * pooled).sum())


@given(choices, fst.seeds())
def test_pool_tokens__matches_reference(choice: Choice, seed: int) -> None:
    grids, strides, frames = choice
    plan = plan_pooling(grids, strides, frames=frames)
    shape = (len(plan.cell_starts), 3)
    tokens = fst.random_values(shape, seed=seed, dtype=torch.float64)
    pooled = pool_tokens(tokens, plan)
    by_frame = reference.pooling_windows(grids, strides, frames)
    for actual, windows in zip(unpack_ragged(pooled), by_frame, strict=True):
        assert_near(actual, torch.stack(reference.pool(tokens, windows)))


@given(fst.clips())
def test_pool_frames__identity(clip: Clip) -> None:
    tokens, strides = clip
    pooled = pool_frames(tokens, [1] * len(strides))
    assert torch.equal(pooled.values, tokens.flatten(0, 2))
    area = tokens.shape[1] * tokens.shape[2]
    assert pooled.cu_seqlens.tolist() == reference.bounds([area] * len(strides))


@given(fst.clips())
def test_pool_frames__constant(clip: Clip) -> None:
    tokens, strides = clip
    constant = torch.ones_like(tokens) * tokens[0, 0, 0]
    pooled = pool_frames(constant, strides).values
    assert_near(pooled, tokens[0, 0, 0].expand_as(pooled))


@given(fst.clips(), fst.float_tensors((3, 4), dtype=torch.float64))
def test_pool_frames__linear(clip: Clip, channels: Tensor) -> None:
    tokens, strides = clip
    mapped_after = pool_frames(tokens, strides).values @ channels
    assert_near(pool_frames(tokens @ channels, strides).values, mapped_after)


@given(fst.clips())
@example((torch.arange(3.0, dtype=torch.float64).reshape(1, 1, 3, 1), [2]))
def test_pool_frames__mean(clip: Clip) -> None:
    tokens, strides = clip
    pooled = pool_frames(tokens, strides)
    grid = (tokens.shape[1], tokens.shape[2])
    sizes = [
        len(cells)
        for stride in strides
        for cells in reference.window_cells(grid, stride)
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


@given(fst.clips())
def test_pool_frames__matches_avg_pool2d(clip: Clip) -> None:
    tokens, strides = clip
    blocks = unpack_ragged(pool_frames(tokens, strides))
    for frame, stride, block in zip(tokens, strides, blocks, strict=True):
        pooled = F.avg_pool2d(
            frame.movedim(-1, 0), stride, ceil_mode=True, count_include_pad=False
        )
        assert_near(block, pooled.movedim(0, -1).flatten(0, 1))


@given(fst.clips())
def test_a_token_depends_on_its_own_window_alone(clip: Clip) -> None:
    tokens, strides = clip
    grid = (tokens.shape[1], tokens.shape[2])
    frames = len(strides)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: pool_frames(x, strides).values, tokens
    )
    support = jacobian.abs().sum((1, 5)).flatten(1) > 0
    windows = reference.pooling_windows([grid] * frames, strides, range(frames))
    flat = [window for frame in windows for window in frame]
    for row, window in zip(support, flat, strict=True):
        assert row.nonzero()[:, 0].tolist() == sorted(window)


@pytest.mark.parametrize("strides", [[1, 2], [2, 3], [4, 1]])
def test_gradcheck(strides: list[int]) -> None:
    tokens = fst.random_values((2, 3, 4, 2), seed=0, dtype=torch.float64)
    tokens.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pool_frames(x, strides).values, tokens)
    assert torch.autograd.gradgradcheck(
        lambda x: pool_frames(x, strides).values ** 2, tokens
    )


def test_gradcheck_with_frames_repeated_and_left_out() -> None:
    plan = plan_pooling([(2, 3), (1, 2), (2, 2)], [2, 1, 2], frames=[2, 0, 2])
    tokens = fst.random_values((12, 2), seed=0, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pool_tokens(x, plan).values, tokens)


@given(
    fst.clips(max_side=16, dtype=torch.float32),
    st.sampled_from(("bfloat16", "float16")),
)
def test_half_precision_is_within_one_ulp_of_float32(clip: Clip, name: str) -> None:
    tokens, strides = clip
    narrow = tokens.to(getattr(torch, name))
    pooled = pool_frames(narrow, strides).values
    exact = pool_frames(narrow.float(), strides).values.to(narrow.dtype)
    assert pooled.dtype == narrow.dtype
    infinity = torch.full_like(exact, torch.inf)
    assert (torch.nextafter(exact, -infinity) <= pooled).all()
    assert (pooled <= torch.nextafter(exact, infinity)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_gradients_keep_the_dtype(dtype: torch.dtype) -> None:
    tokens = torch.ones(2, 3, 3, 2, dtype=dtype, requires_grad=True)
    pooled = pool_frames(tokens, [2, 3]).values
    assert pooled.dtype == dtype
    pooled.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.dtype == dtype


def test_device_follows_the_tokens() -> None:
    pooled = pool_frames(torch.zeros(2, 3, 3, 2, device="meta"), [2, 3])
    assert pooled.values.device.type == pooled.cu_seqlens.device.type == "meta"
    assert pooled.values.shape == (5, 2)


def test_strided_tokens_pool_like_contiguous_ones() -> None:
    tokens = fst.random_values((3, 4, 5, 2), seed=0).permute(3, 1, 2, 0)
    expected = pool_frames(tokens.contiguous(), [2, 3])
    assert torch.equal(pool_frames(tokens, [2, 3]).values, expected.values)


def test_pooling_leaves_its_arguments_alone() -> None:
    grids, strides, frames = [(2, 2), (1, 3)], [1, 2], [1, 0]
    plan = plan_pooling(grids, strides, frames=frames)
    assert (grids, strides, frames) == ([(2, 2), (1, 3)], [1, 2], [1, 0])
    before = {field.name: getattr(plan, field.name).clone() for field in fields(plan)}
    tokens = torch.arange(14.0).reshape(7, 2).requires_grad_()
    pooled = pool_tokens(tokens, plan)
    pooled.values.sum().backward()
    assert torch.equal(tokens.detach(), torch.arange(14.0).reshape(7, 2))
    for name, value in before.items():
        assert torch.equal(getattr(plan, name), value)


@pytest.mark.parametrize("num_frames", [0, 1])
def test_no_output_frame_gives_no_token_and_no_gradient(num_frames: int) -> None:
    plan = plan_pooling([(2, 2)] * num_frames, [], frames=[])
    tokens = torch.zeros(4 * num_frames, 3, requires_grad=True)
    pooled = pool_tokens(tokens, plan)
    assert pooled.values.shape == (0, 3)
    assert pooled.cu_seqlens.tolist() == [0]
    pooled.values.sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, torch.zeros(4 * num_frames, 3))


def test_plans_are_int64_with_int32_bounds() -> None:
    plan = plan_pooling([(2, 2)], [2])
    for field in fields(PoolPlan):
        expected = torch.int32 if field.name == "cu_seqlens" else torch.int64
        assert getattr(plan, field.name).dtype == expected
        assert getattr(plan, field.name).device.type == "cpu"
    assert lengths_from_cu_seqlens(plan.cu_seqlens).tolist() == [1]


def test_one_stride_per_frame() -> None:
    message = "strides has 1 frames but 2 are pooled; each needs one stride"
    with pytest.raises(ValueError) as error:
        plan_pooling([(2, 2), (2, 2)], [1])
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        plan_pooling([(2, 2)], [1], frames=[0, 0])
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        pool_frames(torch.zeros(2, 2, 2, 1), [1])
    assert str(error.value) == message


@pytest.mark.parametrize(("grid", "stride"), [((0, 2), 1), ((2, 0), 1), ((2, 2), 0)])
def test_sides_and_strides_are_at_least_1(grid: Grid, stride: int) -> None:
    with pytest.raises(ValueError) as error:
        plan_pooling([grid], [stride])
    assert str(error.value) == (
        f"grid is {grid} and stride is {stride}; all must be at least 1"
    )


def test_a_plan_is_for_its_number_of_cells() -> None:
    with pytest.raises(ValueError) as error:
        pool_tokens(torch.zeros(5, 1), plan_pooling([(2, 2)], [1]))
    assert str(error.value) == (
        "tokens has 5 cells but the plan is for 4; both describe the same frames"
    )


@pytest.mark.parametrize("frames", [[-1], [0, 2]])
def test_only_frames_that_exist_are_pooled(frames: list[int]) -> None:
    with pytest.raises(ValueError) as error:
        plan_pooling([(2, 2), (2, 2)], [1] * len(frames), frames=frames)
    assert str(error.value) == (
        f"frames lies between {min(frames)} and {max(frames)}; there are 2 frames, "
        "counted from 0"
    )
