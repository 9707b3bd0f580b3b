"""
What a network can see, layer by layer
======================================

Which outputs of attention depend on which inputs, by autograd. Frame-causal, above:
depth adds nothing. "Causal or same frame", below: the future leaks in from depth 2 on.

.. alt: Two rows of squares: a mask, then who depends on whom at depth 1, 2 and 3. All
   are alike above. Below, red pairs that the mask hides appear at depth 2.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import scaled_dot_product_attention

import fastslow as fs

frames, place = torch.tensor([0, 0, 1, 1, 0, 2, 2, 1]), torch.arange(8)
ordered = fs.dense_mask(fs.frame_causal_mask(frames), 8)
either = (place <= place[:, None]) | (frames == frames[:, None])
tokens = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def network(x, mask, depth):
    """Attend several times, each with a residual connection."""
    for _ in range(depth):
        x = x + scaled_dot_product_attention(x, x, x, mask)
    return x


figure, rows = plt.subplots(2, 4, sharex=True, sharey=True, figsize=(8, 4.2))
for row, mask in zip(rows, (ordered, either), strict=True):
    for depth, panel in enumerate(row):
        slopes = torch.func.jacrev(network)(tokens, mask, depth)
        seen = (slopes != 0).any(3).any(1) if depth else mask
        panel.imshow((1.0 * ~mask).where(seen, torch.nan), "coolwarm", vmin=0, vmax=1)
        panel.set_title(f"depth {depth}" if depth else "mask")
rows[1, 0].set(xlabel="input token", ylabel="output token")
