"""
Where slow and fast tokens stand
================================

The height and width that M-RoPE gives to the tokens of a slow frame and of a fast one,
on the grid before pooling. A token stands at the middle of its window, rounded down, so
both frames agree where things are; numbering each pooled grid from 0 would not.

.. alt: Left, a grid of 12 x 20 cells with 60 blue points of a slow frame, evenly
   spread, and 15 orange squares of a fast frame, spread over the same area. Right,
   numbered from 0 each: the fast frame's squares crowd into the upper left corner.
"""

import matplotlib.pyplot as plt
import torch

import fastslow as fs

grid, schedule = (12, 20), fs.schedule_from_strides([2, 4])
tokens = fs.tokens_per_frame(grid, schedule)
slow, fast = fs.video_positions(grid, schedule).split(tokens, 1)


def numbered(stride):
    """Count a pooled frame's rows and columns from 0."""
    rows, columns = (torch.arange(side // stride) for side in grid)
    return torch.cartesian_prod(rows, columns).T


figure, (left, right) = plt.subplots(1, 2, sharex=True, sharey=True, figsize=(9, 3.2))
for panel, (_, *a), (_, *b), title in (
    (left, slow, fast, "video_positions: the middle of the window"),
    (right, [0, *numbered(2)], [0, *numbered(4)], "each frame numbered from 0"),
):
    panel.plot(b[1], b[0], "s", color="C1", ms=11, alpha=0.6, label="fast, stride 4")
    panel.plot(a[1], a[0], "o", color="C0", ms=4, label="slow, stride 2")
    panel.set(title=title, xlabel="width, cells", aspect="equal")
left.set(ylabel="height, cells", xlim=(-0.5, 19.5), ylim=(11.5, -0.5))
right.legend(loc="lower right")
