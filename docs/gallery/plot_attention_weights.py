"""
Attention weights, seen through V = I
=====================================

The output of attention is its weights times V, so with the identity for V it *is* the
weights. Each row sums to 1 over the keys that it may read, and is exactly 0 elsewhere.

.. alt: Left, attention weights of a row with text, slow and fast frames, from green to
   yellow inside the mask's staircase of squares, nothing outside. Right, the sum of
   every row's weights: 1 inside the mask, 0 outside.
"""

import matplotlib.pyplot as plt
import torch

import fastslow as fs

schedule = fs.build_schedule(5, slow_stride=2, fast_stride=4)
clip = fs.VideoSpan(grid=(4, 4), schedule=schedule)
words = fs.TextSpan(token_ids=(7,) * 3)
visible = fs.visible_keys(fs.build_layout([[words, clip, words]], video_token_id=9))
tokens = len(visible.start)
generator = torch.Generator().manual_seed(0)
query, key = torch.randn(2, 1, 1, tokens, 8, generator=generator)
identity = torch.eye(tokens)[None, None]
weights = fs.interval_attention(query, key, identity, visible)[0, 0]

mask = fs.dense_mask(fs.interval_mask(visible), tokens)
figure, (panel, sums) = plt.subplots(1, 2, figsize=(9, 4))
drawn = panel.imshow(weights.where(mask, torch.nan), "summer", vmin=0, vmax=0.5)
panel.set(xlabel="key", ylabel="query", xticks=range(0, 20, 5), yticks=range(0, 20, 5))
figure.colorbar(drawn, label="weight, up to 0.5")
sums.plot((weights * mask).sum(1), "o", label="inside the mask")
sums.plot((weights * ~mask).sum(1), "s", label="outside")
sums.set(xlabel="query", ylabel="sum of its weights", xticks=range(0, 20, 5))
sums.legend(loc="center")
