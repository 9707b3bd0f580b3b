"""Hold the kernel of bags for GPUs to the CPU's, in Triton's interpreter.

``test_gpu_bags.py`` runs this with ``TRITON_INTERPRET=1``, which has to be set before
Triton is imported.
"""

import torch
from torch import Tensor

from fastslow import (
    FrameSchedule,
    PoolPlan,
    kernel_schedule,
    plan_pooling,
    pool_tokens,
    pooling,
    scale_fast_frames,
    schedule_from_grids,
    schedule_from_strides,
    two_level_schedule,
)
from fastslow._gpu_bags import sum_bags_on_gpu

CLIPS = [
    ((3, 4), schedule_from_strides([2, 1, 3], edge="floor")),  # cells that none reads
    ((4, 3), schedule_from_grids([(2, 2), (1, 1)])),  # and some that several read
    ((2, 2), kernel_schedule(3, (2, 2, 1))),
    ((4, 4), scale_fast_frames(two_level_schedule([True, False]), 2)),
]
on_cpu = pooling._sum_bags


def results(
    tokens: Tensor, upstream: Tensor, plan: PoolPlan, kernel: object
) -> tuple[Tensor, Tensor]:
    """Pool with one of the kernels, and send a gradient back."""
    pooling._sum_bags = kernel  # type: ignore[assignment]
    leaf = tokens.detach().requires_grad_()
    pooled = pool_tokens(leaf, plan).values
    (gradient,) = torch.autograd.grad(pooled, leaf, upstream)
    return pooled.detach(), gradient


def compare(tokens: Tensor, plan: PoolPlan) -> None:
    """Compare with float64 on the CPU, where half precision rounds weights too."""
    shape = len(plan.window_sizes), tokens.shape[1]
    upstream = torch.randn(shape, generator=generator).to(tokens.dtype)
    found = results(tokens, upstream, plan, sum_bags_on_gpu)
    wanted = results(tokens.double(), upstream.double(), plan, on_cpu)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.to(tokens.dtype))


generator = torch.Generator().manual_seed(0)
plans = {
    mode: plan_pooling(CLIPS, mode=mode)
    for mode in ("average", "max", "area", "bilinear")
}
cells = len(plans["average"].cell_starts)
for plan in plans.values():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        compare(torch.randn(cells, 7, generator=generator).to(dtype), plan)
for channels in (0, 1, 3584, 5000):  # the last takes two blocks, one of them cut
    compare(torch.randn(cells, channels, generator=generator), plans["area"])
compare(torch.randn(7, cells, generator=generator).T, plans["bilinear"])
compare(torch.randn(cells, 14, generator=generator)[:, ::2], plans["average"])
nothing = plan_pooling([((2, 2), FrameSchedule(num_frames=1, frames=()))])
compare(torch.randn(4, 3, generator=generator), nothing)

pooling._sum_bags = sum_bags_on_gpu
small = [((2, 3), schedule_from_strides([2, 1]))]
for mode in ("average", "max"):
    plan = plan_pooling(small, mode=mode)
    tokens = torch.randn(12, 2, generator=generator).double().requires_grad_()
    torch.autograd.gradgradcheck(
        lambda x, plan=plan: pool_tokens(x, plan).values ** 3, tokens
    )
