"""M-RoPE positions of text and of pooled video tokens.

Qwen2-VL gives every token three coordinates: time, height and width. Text moves along
all three at once; a video token stands where its frame and window are.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from fastslow._typing import Grid
from fastslow.grids import tokens_per_frame

AfterVideo = Literal["all_axes", "spatial_axes"]


def video_positions(
    grid: Grid, strides: Sequence[int], *, start: int = 0
) -> Int[Tensor, "3 tokens"]:
    """Place the pooled tokens of a clip on its unpooled grid.

    A token takes the coordinates of the centre of its window, rounded down, so slow
    and fast frames agree about where things are. Time counts frames.

    Args:
        grid: Height and width of a frame before pooling, in merged tokens.
        strides: Pooling stride of each frame, in the same tokens.
        start: Position at which the clip begins, on all three axes.

    Returns:
        Rows time, height and width; frames in order, each in raster order.

    Raises:
        ValueError: If a side or a stride is below 1.

    Laws:
        stride_one: stride 1 gives Qwen2-VL's own positions
        inside_window: every coordinate lies inside the window that it stands for
        translation: ``start`` is added to every coordinate
        lengths: as many tokens per frame as ``tokens_per_frame`` counts

    Example:
        >>> video_positions((4, 4), [2, 4])
        tensor([[0, 0, 0, 0, 1],
                [0, 0, 2, 2, 1],
                [0, 2, 0, 2, 1]])

    References:
        Wang et al., "Qwen2-VL" (arXiv:2409.12191), section 2.1: multimodal rotary
        position embedding.
    """
    time = torch.repeat_interleave(torch.tensor(tokens_per_frame(grid, strides)))
    planes = {stride: _frame_plane(grid, stride) for stride in set(strides)}
    plane = torch.cat([planes[stride] for stride in strides], dim=1)
    return torch.cat([time[None], plane]) + start


def after_video(grid: Grid, num_frames: int, *, rule: AfterVideo = "all_axes") -> int:
    """Tell how far a clip moves the position of the text that follows it.

    Args:
        grid: Height and width of a frame before pooling, in merged tokens.
        num_frames: Frames of the clip.
        rule: ``all_axes``: past the largest coordinate of any axis, as the published
            weights were trained. ``spatial_axes``: past the largest of height and
            width, as transformers 5 does; later frames then overlap the text in time.

    Returns:
        Positions to add to the start of the clip.

    Raises:
        ValueError: If ``rule`` is unknown.

    Laws:
        independent_of_strides: pooling never moves the text
        clears_video: under ``all_axes`` no video coordinate reaches the text

    Example:
        >>> after_video((4, 6), 8), after_video((4, 6), 8, rule="spatial_axes")
        (8, 6)
    """
    if rule not in get_args(AfterVideo):
        known = ", ".join(get_args(AfterVideo))
        raise ValueError(f"rule is {rule!r}; it must be one of {known}")
    return max(*grid, num_frames) if rule == "all_axes" else max(grid)


def _frame_plane(grid: Grid, stride: int) -> Tensor:
    """Give height and width of every window centre of one frame."""
    height, width = (_centres(side, stride) for side in grid)
    return torch.cartesian_prod(height, width).T


def _centres(side: int, stride: int) -> Tensor:
    """Give the middle cell of each window along one side, rounded down."""
    first = torch.arange(0, side, stride)
    last = (first + stride - 1).clamp(max=side - 1)
    return (first + last) // 2
