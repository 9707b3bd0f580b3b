"""Pooling against ``avg_pool2d`` frame by frame and against ``einops.reduce``."""

from typing import Any

import einops
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastslow import (
    Grid,
    _maxima,
    kernel_schedule,
    plan_pooling,
    pool_frames,
    pool_tokens,
    schedule_from_grids,
    schedule_from_strides,
    select_frames,
    unpack_ragged,
)
from fastslow.grids import Mode
from fastslow.pool_plans import plan_bags
from fastslow.testing import strategies as fst
from tests.laws.pools import assert_near

STRIDES = [1, 2, 3, 4, 8, 13, 40]


def clip(frames: int, grid: Grid, seed: int = 0) -> Tensor:
    tokens = fst.random_values((frames, *grid, 5), seed=seed, dtype=torch.float64)
    return tokens.requires_grad_()


def pool_one_by_one(tokens: Tensor, strides: list[int]) -> Tensor:
    """Pool each frame with torch's kernel."""
    pooled = [
        F.avg_pool2d(
            einops.rearrange(frame, "h w d -> d h w"),
            stride,
            ceil_mode=True,
            count_include_pad=False,
        )
        for frame, stride in zip(tokens, strides, strict=True)
    ]
    frames = [einops.rearrange(frame, "d h w -> (h w) d") for frame in pooled]
    return torch.cat(frames)


def assert_same_values_and_gradients(
    tokens: Tensor, actual: Tensor, expected: Tensor
) -> None:
    assert_near(actual, expected)
    weights = fst.random_values(actual.shape, seed=7, dtype=actual.dtype)
    (grad,) = torch.autograd.grad(actual, tokens, weights)
    (wanted,) = torch.autograd.grad(expected, tokens, weights)
    assert_near(grad, wanted)


def test_windows_that_are_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_maxima, "PIECE_BYTES", 1)
    tokens = clip(2, (5, 4))
    actual = pool_frames(tokens, [3, 2], mode="max").values
    pooled = [
        F.max_pool2d(einops.rearrange(frame, "h w d -> d h w"), stride, ceil_mode=True)
        for frame, stride in zip(tokens, [3, 2], strict=True)
    ]
    expected = torch.cat([einops.rearrange(x, "d h w -> (h w) d") for x in pooled])
    assert_same_values_and_gradients(tokens, actual, expected)


@pytest.mark.parametrize("grid", [(13, 23), (17, 30), (16, 16), (1, 7), (5, 1)])
def test_avg_pool2d_on_the_grids_of_real_clips(grid: Grid) -> None:
    tokens = clip(len(STRIDES), grid)
    actual = pool_frames(tokens, STRIDES).values
    assert_same_values_and_gradients(tokens, actual, pool_one_by_one(tokens, STRIDES))


@given(fst.clips(max_side=9))
def test_avg_pool2d_on_any_clip(drawn: tuple[Tensor, list[int]]) -> None:
    tokens, strides = drawn
    tokens = tokens.requires_grad_()
    actual = pool_frames(tokens, strides).values
    assert_same_values_and_gradients(tokens, actual, pool_one_by_one(tokens, strides))


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_einops_where_the_stride_divides_the_grid(stride: int) -> None:
    tokens = clip(3, (16, 24))
    actual = pool_frames(tokens, [stride] * 3).values
    expected = einops.reduce(
        tokens, "t (h a) (w b) d -> (t h w) d", "mean", a=stride, b=stride
    )
    assert_same_values_and_gradients(tokens, actual, expected)


def test_a_mixture_of_strides_where_all_divide() -> None:
    strides = [4, 2, 8, 1, 4]
    tokens = clip(5, (8, 16))
    frames = [
        einops.reduce(frame, "(h a) (w b) d -> (h w) d", "mean", a=stride, b=stride)
        for frame, stride in zip(tokens, strides, strict=True)
    ]
    actual = pool_frames(tokens, strides)
    for block, expected in zip(unpack_ragged(actual), frames, strict=True):
        assert_near(block, expected)
    assert_same_values_and_gradients(tokens, actual.values, torch.cat(frames))


def test_frames_repeated_and_left_out_on_mixed_grids() -> None:
    grids, strides = [(13, 23), (17, 30)], [[4, 8], [3, 5]]
    clips = [
        (grid, select_frames(schedule_from_strides([*pair, 2]), [1, 0, 1]))
        for grid, pair in zip(grids, strides, strict=True)
    ]
    areas = [3 * height * width for height, width in grids]
    tokens = fst.random_values((sum(areas), 5), seed=0, dtype=torch.float64)
    tokens.requires_grad_()
    expected = torch.cat(
        [
            pool_one_by_one(part.reshape(3, *grid, 5)[[1, 0, 1]], [b, a, b])
            for part, grid, (a, b) in zip(
                tokens.split(areas), grids, strides, strict=True
            )
        ]
    )
    actual = pool_tokens(tokens, plan_pooling(clips)).values
    assert_same_values_and_gradients(tokens, actual, expected)


@pytest.mark.parametrize("kernel", [(2, 1, 1), (4, 2, 2), (3, 5, 2)])
def test_avg_pool3d_where_the_kernel_reads_several_frames(
    kernel: tuple[int, int, int],
) -> None:
    tokens = clip(7, (5, 6))
    plan = plan_pooling([((5, 6), kernel_schedule(7, kernel))])
    actual = pool_tokens(tokens.flatten(0, 2), plan).values
    pooled = F.avg_pool3d(tokens.movedim(-1, 0)[None], kernel, ceil_mode=True)[0]
    expected = pooled.movedim(0, -1).flatten(0, 2)
    assert_same_values_and_gradients(tokens, actual, expected)


@pytest.mark.parametrize("size", [(4, 4), (1, 1), (5, 3)])
def test_adaptive_pooling_to_a_target_grid(size: tuple[int, int]) -> None:
    tokens = clip(2, (13, 7))
    images = tokens.movedim(-1, 1)
    schedule = schedule_from_grids([size] * 2)
    for mode, pool in (
        ("average", F.adaptive_avg_pool2d),
        ("max", F.adaptive_max_pool2d),
    ):
        plan = plan_pooling([((13, 7), schedule)], mode=mode)
        actual = pool_tokens(tokens.flatten(0, 2), plan).values
        expected = pool(images, size).movedim(1, -1).flatten(0, 2)
        assert_same_values_and_gradients(tokens, actual, expected)


@pytest.mark.parametrize("mode", ["average", "max", "area", "bilinear"])
def test_second_derivatives(mode: Mode) -> None:
    tokens = clip(2, (3, 2)).detach()[..., :2].requires_grad_()

    def cubes(tokens: Tensor) -> Tensor:
        return pool_frames(tokens, [2, 1], mode=mode).values ** 3

    assert torch.autograd.gradgradcheck(cubes, tokens)


@pytest.mark.parametrize("mode", ["average", "area", "bilinear"])
def test_the_jacobian_of_torch_func_holds_the_shares(mode: Mode) -> None:
    plan = plan_pooling([((3, 4), schedule_from_strides([2, 3]))], mode=mode)
    tokens = clip(2, (3, 4)).detach().flatten(0, 2)
    jacobian = torch.func.jacrev(lambda x: pool_tokens(x, plan).values)(tokens)
    assert plan.weights is not None
    matrix = torch.zeros(len(plan.window_sizes), len(tokens), dtype=torch.float64)
    window = torch.repeat_interleave(plan.window_sizes)
    matrix.index_put_((window, plan.cells), plan.weights, accumulate=True)
    channels = torch.eye(tokens.shape[1], dtype=torch.float64)
    assert_near(jacobian, torch.einsum("wc,de->wdce", matrix, channels))


def test_the_gradient_of_torch_func_is_that_of_autograd() -> None:
    tokens = clip(2, (3, 4))

    def energy(tokens: Tensor) -> Tensor:
        return pool_frames(tokens, [2, 3], mode="max").values.square().sum()

    (expected,) = torch.autograd.grad(energy(tokens), tokens)
    assert_near(torch.func.grad(energy)(tokens.detach()), expected)
    slopes = torch.autograd.functional.jacobian(energy, tokens.detach())
    assert_near(torch.func.jacrev(energy)(tokens.detach()), slopes)


def test_the_jacobian_of_maxima_marks_one_cell_of_each_window() -> None:
    tokens = clip(2, (3, 4)).detach()

    def pool(tokens: Tensor) -> Tensor:
        return pool_frames(tokens, [2, 3], mode="max").values

    jacobian = torch.func.jacrev(pool)(tokens).flatten(2)
    assert ((jacobian == 0) | (jacobian == 1)).all()
    assert (jacobian.sum(-1) == 1).all()
    assert_near(jacobian @ tokens.flatten(), pool(tokens))


class Operations(TorchDispatchMode):
    """Writes down the name of every operation that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["average", "max", "area", "bilinear"])
def test_no_pass_scatters_or_sorts(mode: Mode) -> None:
    tokens = clip(2, (3, 4)).detach().flatten(0, 2).requires_grad_()
    plan = plan_pooling([((3, 4), schedule_from_strides([2, 3]))], mode=mode)
    with Operations() as operations:
        energy = pool_tokens(tokens, plan).values.square().sum()
        (grad,) = torch.autograd.grad(energy, tokens, create_graph=True)
        torch.autograd.grad(grad.square().sum(), tokens)
    bags = [name for name in operations.names if "embedding_bag" in name]
    assert len(bags) == (4 if mode != "max" else 2)
    moves = ("scatter", "index_put", "index_add", "::sort", "argsort", "backward")
    assert not [name for name in operations.names if any(m in name for m in moves)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_many_windows_are_rounded_once(dtype: torch.dtype) -> None:
    windows = 5000  # in half precision, a sum of ones ends at 256 or 2048
    sizes = torch.ones(windows, dtype=torch.long)
    bounds = torch.tensor([0, windows], dtype=torch.int32)
    for weights in (None, torch.ones(windows, dtype=torch.float64)):
        plan = plan_bags(torch.zeros_like(sizes), sizes, bounds, weights, num_cells=1)
        tokens = torch.ones(1, 3, dtype=dtype, requires_grad=True)
        pool_tokens(tokens, plan).values.sum().backward()
        assert tokens.grad is not None
        assert tokens.grad.tolist() == [[torch.tensor(windows).to(dtype).item()] * 3]


TIES = plan_bags(
    torch.tensor([0, 1, 1, 2]),
    torch.tensor([2, 2]),
    torch.tensor([0, 2], dtype=torch.int32),
    None,
    num_cells=3,
)
"""Two windows that share a cell, and take maxima."""


def maxima(tokens: Tensor) -> Tensor:
    return pool_tokens(tokens, TIES).values


def test_equal_cells_are_told_apart_however_a_batch_is_differentiated() -> None:
    tokens = torch.ones(2, 3, 1)
    expected = torch.tensor([[1.0], [1.0], [0.0]]).expand(2, 3, 1)
    batched = torch.vmap(maxima)
    leaf = tokens.clone().requires_grad_()
    (grad,) = torch.autograd.grad(batched(leaf).sum(), leaf)
    assert torch.equal(grad, expected)
    inside = torch.vmap(torch.func.grad(lambda x: maxima(x).sum()))(tokens)
    assert torch.equal(inside, expected)
    outside = torch.func.grad(lambda x: batched(x).sum())(tokens)
    assert torch.equal(outside, expected)
    leaf = tokens[0].clone().requires_grad_()
    (rows,) = torch.autograd.grad(
        maxima(leaf), leaf, torch.eye(2)[..., None], is_grads_batched=True
    )
    assert torch.equal(rows, torch.eye(3)[:2, :, None])


def test_the_gradient_of_nan_goes_where_it_is() -> None:
    tokens = torch.tensor([[1.0], [torch.nan], [2.0]], requires_grad=True)
    expected = tokens.detach().clone().requires_grad_()
    maxima(tokens).sum().backward()
    F.max_pool1d(expected.mT, 2, stride=1).sum().backward()
    assert torch.equal(tokens.grad, expected.grad)


@pytest.mark.parametrize("mode", ["average", "max"])
def test_tokens_without_channels_have_a_gradient(mode: Mode) -> None:
    tokens = torch.ones(2, 3, 4, 0, requires_grad=True)
    pooled = pool_frames(tokens, [2, 3], mode=mode).values
    assert pooled.shape == (6, 0)
    pooled.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.shape == (2, 3, 4, 0)


@pytest.mark.parametrize("cells", [127, 128, 300])
@pytest.mark.parametrize("winner", [0, 1, -1])
def test_any_of_many_cells_may_win(cells: int, winner: int) -> None:
    size = torch.tensor([cells])
    bounds = torch.tensor([0, 1], dtype=torch.int32)
    plan = plan_bags(torch.arange(cells), size, bounds, None, num_cells=cells)
    tokens = torch.zeros(cells, 1)
    tokens[winner] = 1
    expected = tokens.clone()
    pool_tokens(tokens.requires_grad_(), plan).values.backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, expected)
