"""
What a block-sparse kernel computes
===================================

FlexAttention works in blocks: it skips those without a visible pair, and computes all
pairs of the others. Small blocks waste little, and packs of short samples waste most.

.. alt: Left, the blocks of a row of three samples: full inside each triangle, partial
   at its edges. Right, the visible share falls as blocks grow, most for short samples.
"""

import matplotlib.pyplot as plt
import torch

import fastslow as fs


def pack(*frames):
    """Let samples of so many frames share a row, 36 tokens a frame."""
    ranks = torch.arange(sum(frames)).repeat_interleave(36)
    segments = torch.repeat_interleave(36 * torch.tensor(frames))
    return fs.visible_intervals(ranks, segments)


row = pack(20, 30, 14)
mask = fs.dense_mask(fs.interval_mask(row), 64 * 36).float()
seen = mask.view(18, 128, 18, 128).mean((1, 3))
figure, (tiles, shares) = plt.subplots(1, 2, figsize=(9, 3.6))
drawn = tiles.imshow(seen.where(seen > 0, torch.nan), "summer", vmin=0)
figure.colorbar(drawn, label="visible share of its pairs")
tiles.set_title(f"{fs.live_tiles(row)} of {seen.numel()} blocks are computed")
tiles.set(xlabel="block of 128 keys", ylabel="block of 128 queries")
sizes = ["16", "32", "64", "128"]
for frames in (80, 20, 5):
    row = pack(*[frames] * (320 // frames))
    values = [fs.tile_efficiency(row, block_size=int(size)) for size in sizes]
    shares.plot(sizes, values, "o-", label=f"{36 * frames:,} tokens")
shares.set(xlabel="block size, tokens", ylabel="visible share of computed pairs")
shares.legend(title="samples of")
