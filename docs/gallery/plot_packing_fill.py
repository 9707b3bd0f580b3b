"""
How full packed rows are
========================

Whoever sees all lengths leaves almost no padding. A stream sees only the samples that
wait, and 16 of them do as well. One open row, closed when the next sample does not fit,
leaves a fifth of its tokens empty.

.. alt: Share of real tokens in packed rows against the number of waiting samples. The
   stream's curve rises from 0.2 through the dotted line of one open row at 0.8 to the
   line of best fit decreasing near 1.
"""

import matplotlib.pyplot as plt
import torch

import fastslow as fs

tails = torch.randn(2000, generator=torch.Generator().manual_seed(0)).exp()
lengths = (1200 * tails).long().clamp(64, 8192).tolist()
best = fs.best_fit_decreasing(lengths, 8192)
open_row = [[]]
for item, length in enumerate(lengths):
    if sum(lengths[other] for other in open_row[-1]) + length > 8192:
        open_row.append([])
    open_row[-1].append(item)

windows, fills = ["1", "2", "4", "8", "16", "32", "64"], []
for window in windows:
    rows, state = [], fs.StreamState()
    for _ in range(300):
        row, state = fs.next_bin(lengths, 8192, state, window=int(window), seed=0)
        rows.append(row)
    fills.append(fs.fill(lengths, rows, 8192))
plt.axhline(fs.fill(lengths, best, 8192), label="best fit, all lengths known")
plt.plot(windows, fills, "o-", color="C1", label="next_bin on a stream")
plt.axhline(fs.fill(lengths, open_row, 8192), color="C2", ls=":", label="one open row")
plt.gca().set(xlabel="samples that wait", ylabel="share of real tokens")
plt.legend()
