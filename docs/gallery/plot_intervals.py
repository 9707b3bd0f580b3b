"""
A mask is two integers per query
================================

The keys of a query lie between its ``start`` and its ``stop``. The two lines say all
that the grey matrix says, in twice the length of the row instead of its square.

.. alt: A packed mask of two samples in grey. A blue line runs down its left edge and an
   orange staircase down its right one: the bounds of each query's keys.
"""

import matplotlib.pyplot as plt
import torch

import fastslow as fs

schedule = fs.build_schedule(6, slow_stride=2, fast_stride=4)
clip = fs.VideoSpan(grid=(4, 4), schedule=schedule)
words = fs.TextSpan(token_ids=(7,) * 4)
row = fs.build_layout([[words, clip, words], [clip, words]], video_token_id=9)
visible = fs.visible_keys(row)

tokens = len(row.input_ids)
mask = fs.dense_mask(fs.interval_mask(visible), tokens)
figure, panel = plt.subplots(figsize=(5.5, 5.5))
grey = torch.full((tokens, tokens), 0.5).where(mask, torch.nan)
panel.imshow(grey, "gray", vmin=0, vmax=1, alpha=0.4, extent=(0, tokens, tokens, 0))
edges = torch.arange(tokens + 1)
for name, bounds in (("start", visible.start), ("stop", visible.stop)):
    panel.stairs(bounds, edges, orientation="horizontal", baseline=None, label=name)
panel.set(xlabel="key", ylabel="query")
panel.legend(loc="upper right")
