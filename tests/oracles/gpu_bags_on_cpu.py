"""Hold the kernel of bags for GPUs to the CPU's, in Triton's interpreter.

``test_gpu_kernels.py`` runs this with ``TRITON_INTERPRET=1``, which has to be set
before Triton is imported.
"""

from typing import Any

import torch
from torch import Tensor

from fastslow import (
    FrameSchedule,
    PoolPlan,
    _maxima,
    kernel_schedule,
    plan_pooling,
    pool_tokens,
    pooling,
    scale_fast_frames,
    schedule_from_grids,
    schedule_from_strides,
    two_level_schedule,
)
from fastslow.grids import Mode

CLIPS = [
    ((3, 4), schedule_from_strides([2, 1, 3], edge="floor")),  # cells that none reads
    ((4, 3), schedule_from_grids([(2, 2), (1, 1)])),  # and some that several read
    ((2, 2), kernel_schedule(3, (2, 2, 1))),
    ((4, 4), scale_fast_frames(two_level_schedule([True, False]), 2)),
]
on_cpu = pooling.sum_bags


def results(
    tokens: Tensor, upstream: Tensor, plan: PoolPlan, kernel: Any
) -> tuple[Tensor, Tensor]:
    """Pool with one of the kernels, and send a gradient back."""
    pooling.sum_bags = _maxima.sum_bags = kernel
    leaf = tokens.detach().requires_grad_()
    pooled = pool_tokens(leaf, plan).values
    (gradient,) = torch.autograd.grad(pooled, leaf, upstream)
    return pooled.detach(), gradient


def compare(tokens: Tensor, plan: PoolPlan, kernel: Any) -> None:
    """Compare with float64 on the CPU, where half precision rounds weights too."""
    shape = len(plan.window_sizes), tokens.shape[1]
    upstream = torch.randn(shape).to(tokens.dtype)
    found = results(tokens, upstream, plan, kernel)
    wanted = results(tokens.double(), upstream.double(), plan, on_cpu)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.to(tokens.dtype))


def main(kernel: Any) -> None:
    """Compare in each mode, dtype and form of the tokens, and differentiate twice."""
    torch.manual_seed(0)
    modes: list[Mode] = ["average", "max", "area", "bilinear"]
    plans = {mode: plan_pooling(CLIPS, mode=mode) for mode in modes}
    cells = len(plans["average"].cell_starts)
    for plan in plans.values():
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            compare(torch.randn(cells, 7).to(dtype), plan, kernel)
    for channels in (0, 1, 3584, 5000):  # the last takes two blocks, one of them cut
        compare(torch.randn(cells, channels), plans["area"], kernel)
    compare(torch.randn(7, cells).T, plans["bilinear"], kernel)
    compare(torch.randn(cells, 14)[:, ::2], plans["average"], kernel)
    nothing = plan_pooling([((2, 2), FrameSchedule(num_frames=1, frames=()))])
    compare(torch.randn(4, 3), nothing, kernel)

    pooling.sum_bags = _maxima.sum_bags = kernel
    for mode in modes[:2]:
        plan = plan_pooling([((2, 3), schedule_from_strides([2, 1]))], mode=mode)
        tokens = torch.randn(12, 2, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradgradcheck(
            lambda x, plan=plan: pool_tokens(x, plan).values ** 3, tokens
        )


if __name__ == "__main__":
    from fastslow._gpu_bags import sum_bags_on_gpu

    main(sum_bags_on_gpu)
