"""Variable-stride pooling of a clip's tokens into a ragged sequence."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from fastslow._bags import sum_bags
from fastslow._maxima import window_maxima
from fastslow._plans import to_device
from fastslow._shapes import check_axes, check_dtype
from fastslow.grids import Edge, Mode
from fastslow.pool_plans import PoolPlan, plan_pooling
from fastslow.ragged import Ragged
from fastslow.schedules import schedule_from_strides


def pool_tokens(tokens: Float[Tensor, "cells dim"], plan: PoolPlan) -> Ragged:
    """Pool the cells of every window of a plan, in one kernel or one for each size.

    ``pooled[w]`` is the weighted sum or the maximum of ``tokens[c]`` over the
    cells ``c`` of window ``w``. No NaN is hidden. The backward pass is a gather as
    well: each cell reads the windows that read it, of a maximum those that it has won.
    Nothing of the size of a whole clip is built per frame, and nothing is sorted or
    scattered. It may be differentiated twice, and by ``torch.func.grad``.

    Args:
        tokens: Cells of all frames in raster order, frame after frame.
        plan: A plan for that many cells, on the device of ``tokens``.

    Returns:
        The pooled tokens, ragged by frame, in the dtype of ``tokens``.

    Raises:
        ValueError: If ``tokens`` has other axes, or no floats to sum, or the plan
            another number of cells, or weights that were cast to half precision.

    Laws:
        adjoint: the backward pass of a linear mode is the transpose of the forward
            pass: ``<P x, y> == <x, P' y>``
        routes: the gradient of a maximum goes to the cell that it came from, the first
            of equal ones (beside a NaN, an infinity counts as one); where windows
            overlap these add up, in at least float32
        matches_reference: equals the loop-written reference: ``pool_tokens(x, plan) ==
            reference.pool(x)``

    Example:
        >>> from fastslow import schedule_from_strides
        >>> clips = [((2, 2), schedule_from_strides([2])),
        ...          ((1, 3), schedule_from_strides([1]))]
        >>> pool_tokens(torch.arange(7.0)[:, None], plan_pooling(clips))
        Ragged(values=tensor([[1.5000],
                [4.0000],
                [5.0000],
                [6.0000]]), cu_seqlens=tensor([0, 1, 4], dtype=torch.int32))
    """
    check_axes("tokens", tokens, "cells", "dim")
    if len(tokens) != len(plan.cell_starts):
        raise ValueError(
            f"tokens has {len(tokens)} cells but the plan is for "
            f"{len(plan.cell_starts)}; both describe the same frames"
        )
    values: Tensor
    if plan.weights is None:
        values = window_maxima(tokens, plan)
    else:
        check_dtype("tokens", tokens, "floats")
        if plan.weights.dtype.itemsize < 4:
            raise ValueError(
                f"plan.weights is {plan.weights.dtype}, too narrow for shares of a "
                "window; FSDP2 casts plans as well, unless its MixedPrecisionPolicy is "
                "given cast_forward_inputs=False"
            )
        values = _WindowSum.apply(tokens, plan, False)
    return Ragged(values=values, cu_seqlens=plan.cu_seqlens)


def pool_frames(
    tokens: Float[Tensor, "frames height width dim"],
    strides: Sequence[int],
    *,
    mode: Mode = "average",
    edge: Edge = "ceil",
) -> Ragged:
    """Pool every frame of a clip with its own stride.

    Args:
        tokens: The clip before pooling.
        strides: Side of the square window of each frame, in tokens, at least 1.
        mode: ``average``, ``max``, ``area`` or ``bilinear``, see ``plan_pooling``.
        edge: What becomes of cells that fill no whole window: ``ceil`` keeps them in a
            smaller window, ``floor`` drops them, ``error`` refuses them.

    Returns:
        The pooled tokens in raster order, ragged by frame: by default frame ``t`` keeps
        ``ceil(height / strides[t]) * ceil(width / strides[t])``.

    Raises:
        ValueError: If ``tokens`` has other axes, there is not one stride per frame, one
            is below 1, or the edges or the mode do not allow it.

    Laws:
        identity: stride 1 changes nothing, in any mode: ``pool(x, 1) == x``
        constant: a constant clip stays constant, in any mode, but for rounding:
            ``pool(c * ones) == c * ones``
        linear: commutes with every linear map of the channels, but for ``max``:
            ``pool(x @ A) == pool(x) @ A``
        mean: the mean weighted by window size is that of the clip: ``sum(size[w] *
            pool(x)[w]) / sum(size) == x.mean()``
        composes: on grids that both strides divide, a then b is a * b: ``pool(pool(x,
            a), b) == pool(x, a * b)``
        frame_order: permuting frames permutes the blocks of the result: ``pool(x[p],
            s[p]) == blocks of pool(x, s) in order p``
        matches_torch: equals ``avg_pool2d``, ``max_pool2d`` or ``interpolate`` frame by
            frame: ``pool(x, s)[t] == avg_pool2d(x[t], s[t], ceil_mode=True,
            count_include_pad=False)``

    Example:
        >>> clip = torch.arange(8.0).reshape(2, 2, 2, 1)
        >>> pool_frames(clip, [1, 2]).values.flatten()
        tensor([0.0000, 1.0000, 2.0000, 3.0000, 5.5000])

    References:
        Zhang et al., "Video Instruction Tuning With Synthetic Data"
        (arXiv:2410.02713), section 4.
    """
    check_axes("tokens", tokens, "frames", "height", "width", "dim")
    frames, height, width, _ = tokens.shape
    if not hasattr(strides, "__len__"):
        raise ValueError(f"strides is {strides}; it must hold one stride per frame")
    if len(strides) != frames:
        raise ValueError(
            f"strides has {len(strides)} frames but tokens has {frames}; each frame "
            "needs one stride"
        )
    schedule = schedule_from_strides(strides, edge=edge)
    plan = plan_pooling([((height, width), schedule)], mode=mode)
    cells = rearrange(tokens, "t h w d -> (t h w) d")
    return pool_tokens(cells, to_device(plan, tokens.device))


class _WindowSum(torch.autograd.Function):
    """Weighted sum of each window's cells, or its transpose: each is a bag of rows.

    One is the gradient of the other, so it may be differentiated any number of times,
    by kernels that autograd does not know too.
    """

    @staticmethod
    def forward(rows: Tensor, plan: PoolPlan, is_transposed: bool) -> Tensor:
        entries, starts, weights = plan.cells, plan.window_starts, plan.weights
        if is_transposed:
            entries, starts, weights = plan.windows, plan.cell_starts, plan.back_weights
        assert weights is not None
        return sum_bags(rows, entries, starts, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.plan, ctx.is_transposed = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        back: Tensor = _WindowSum.apply(grad, ctx.plan, not ctx.is_transposed)
        return back, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, rows: Tensor, plan: PoolPlan, is_transposed: bool
    ) -> tuple[Tensor, int]:
        """Sum a batch as so many more channels."""
        rows = rows.movedim(in_dims[0], 1)
        sums = _WindowSum.apply(rows.flatten(1), plan, is_transposed)
        return sums.unflatten(1, rows.shape[1:]), 1
