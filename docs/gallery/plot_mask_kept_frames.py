"""
Slow frames that persist
========================

Fast frames expire with the next frame, slow ones stay for good: a memory of a few
detailed pictures, and a glimpse of now. The visible keys are then no interval any more,
but an interval and the kept keys before it.

.. alt: Two masks of one row under a window of one frame. Left, only the prompt and the
   latest frame are visible. Right, the columns of slow frames go on down to the last
   query.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap

import fastslow as fs

schedule = fs.build_schedule(12, slow_ratio=1 / 4, slow_stride=2, fast_stride=4)
clip = fs.VideoSpan(grid=(4, 4), schedule=schedule)
words = fs.TextSpan(token_ids=(7, 8, 9))
row = fs.build_layout([[words, clip, words]], video_token_id=9)
kinds = torch.where(row.frame_ids < 0, 0, 2 - row.is_slow.long())
colours = ListedColormap(["C2", "C0", "C1"])

figure, panels = plt.subplots(1, 2, sharey=True, figsize=(8, 4))
for panel, keep_slow in zip(panels, (False, True), strict=True):
    visible = fs.visible_keys(row, fs.FrameWindow(frames=1, keep_slow=keep_slow))
    mask = fs.dense_mask(fs.interval_mask(visible), len(kinds))
    panel.imshow(kinds.where(mask, torch.nan), colours, vmin=0, vmax=2)
    panel.set_title("slow frames persist" if keep_slow else "all frames expire")
    panel.set_xlabel("key")
panels[0].set_ylabel("query")
figure.supxlabel("blue: slow, orange: fast, grey: text", fontsize="small")
