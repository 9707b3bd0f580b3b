"""
A picture at strides 1, 2, 4 and 8
==================================

A photograph as 32 x 32 patches, pooled as four frames of a clip. Each square is a
token, its colour the mean of its patches. At stride 4 there is a face; at stride 8 only
where something is. A model pools features instead of colours, in the same windows.

.. alt: A portrait of Grace Hopper four times, as 32 x 32, 16 x 16, 8 x 8 and 4 x 4
   squares of one colour each, from recognisable to a few blots.
"""

import matplotlib.pyplot as plt
import torch
from einops import reduce
from matplotlib.cbook import get_sample_data

import fastslow as fs

strides = (1, 2, 4, 8)
with get_sample_data("grace_hopper.jpg") as file:  # comes with matplotlib
    photograph = torch.tensor(plt.imread(file, format="jpg"))[:512, :512]
patches = reduce(photograph / 255, "(h a) (w b) c -> h w c", "mean", a=16, b=16)

pooled = fs.unpack_ragged(fs.pool_frames(patches.expand(4, -1, -1, -1), strides))
figure, panels = plt.subplots(1, 4, figsize=(9, 2.6))
for panel, stride, tokens in zip(panels, strides, pooled, strict=True):
    side = 32 // stride
    panel.imshow(tokens.unflatten(0, (side, side)))
    panel.set_title(f"stride {stride}: {len(tokens)} tokens")
    panel.axis("off")
