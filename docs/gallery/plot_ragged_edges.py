"""
Ragged edges
============

Few grids are divided by their stride. Under ``ceil`` the cells that remain get smaller
windows; under ``floor`` they are lost: on small grids up to three quarters of a frame.

.. alt: Left, a grid of 13 x 23 cells in windows of 8 x 8, with the smaller windows at
   its right and bottom edges marked. Right, the share of cells that floor drops: teeth
   that start at 0.67 and 0.72 and sink as grids grow.
"""

import matplotlib.pyplot as plt

import fastslow as fs

figure, (grid, lost) = plt.subplots(1, 2, figsize=(9, 3.4))
for top, bottom in fs.window_bounds(13, stride=8):
    for left, right in fs.window_bounds(23, stride=8):
        height, width = bottom - top, right - left
        colour = "C0" if height == width == 8 else "C1"
        window = plt.Rectangle((left, top), width, height, fc=colour, ec="white")
        grid.add_patch(window)
grid.set(xlim=(0, 23), ylim=(13, 0), aspect="equal")
grid.set(xlabel="column, cells", ylabel="row, cells")
grid.set_title("13 x 23 at stride 8; orange: only ceil keeps it")

for stride in (4, 8):
    sides = range(stride, 49)
    windows = [fs.window_bounds(side, stride=stride, edge="floor") for side in sides]
    shares = [1 - (w[-1][1] / n) ** 2 for w, n in zip(windows, sides, strict=True)]
    lost.plot(sides, shares, ".-", label=f"stride {stride}")
lost.set(xlabel="side of a square grid, cells", ylabel="share lost under floor")
lost.legend()
