"""
The budget frontier
===================

How many of 32 frames can be slow within a budget, for four pairs of strides. Below,
what is left over: one pair of strides wastes up to one slow frame;
``schedule_for_budget``, which may choose the pair, wastes less.

.. alt: Above, rising staircases of the number of slow frames against the budget, less
   steep the finer the slow frames are. Below, unused tokens: teeth up to 56 for one
   pair, smaller ones for the best of all pairs.
"""

import matplotlib.pyplot as plt

import fastslow as fs

frames, grid = 32, (16, 16)
figure, (above, below) = plt.subplots(2, sharex=True, figsize=(8, 6))
for slow, fast in ((4, 8), (2, 8), (2, 4), (1, 8)):
    pair = {"slow_stride": slow, "fast_stride": fast}
    budgets = range(frames * (16 // fast) ** 2, 1025, 4)
    counts = [fs.slow_frames_for_budget(frames, grid, b, **pair) for b in budgets]
    above.step(budgets, counts, where="post", label=f"strides {slow} and {fast}")
    if (slow, fast) == (2, 8):
        used = [128 + 60 * count for count in counts]
above.set(ylabel="slow frames, of 32")
above.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))

budgets = range(128, 1025, 4)
plans = [fs.schedule_for_budget(frames, grid, budget) for budget in budgets]
best = [sum(fs.tokens_per_frame(grid, plan)) for plan in plans]
for name, totals in (("strides 2 and 8", used), ("the best of all pairs", best)):
    rest = [budget - total for budget, total in zip(budgets, totals, strict=True)]
    below.step(budgets, rest, color="C1" if totals is used else "C4", label=name)
below.set(xlabel="budget, tokens of the clip", ylabel="tokens left over")
below.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
