"""
Windows of frames
=================

A window hides what is some frames old. The prompt stays, and answers still read the
last frames. What has expired for one query has expired for all that follow, so a server
may drop it.

.. alt: Four masks of one row, under windows of 1, 2 and 4 frames and under none. The
   narrower the window, the thinner the band along the diagonal; the columns of the
   prompt stay filled in all of them.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap

import fastslow as fs

schedule = fs.build_schedule(8, slow_stride=4, fast_stride=8)
clip = fs.VideoSpan(grid=(8, 8), schedule=schedule)
words = fs.TextSpan(token_ids=(7, 8, 9))
row = fs.build_layout([[words, clip, words]], video_token_id=9)
kinds = torch.where(row.frame_ids < 0, 0, 2 - row.is_slow.long())
colours = ListedColormap(["C2", "C0", "C1"])

figure, panels = plt.subplots(1, 4, sharey=True, figsize=(9, 2.8))
windows = [fs.FrameWindow(frames=frames) for frames in (1, 2, 4)]
for panel, window in zip(panels, [*windows, None], strict=True):
    mask = fs.dense_mask(fs.interval_mask(fs.visible_keys(row, window)), len(kinds))
    panel.imshow(kinds.where(mask, torch.nan), colours, vmin=0, vmax=2)
    panel.set_title(f"window of {window.frames}" if window else "no window")
    panel.set_xlabel("key")
panels[0].set_ylabel("query")
figure.supxlabel("blue: slow, orange: fast, grey: text", fontsize="small")
