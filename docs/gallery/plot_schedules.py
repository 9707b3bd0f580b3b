"""
Schedules side by side
======================

The same 16 frames under six schedules. Tall bars are slow frames, short ones fast. What
differs is where the tokens go, and how many there are in all.

.. alt: Six rows of 16 bars, one row for each schedule, with its total of tokens. Blue
   bars of 64 tokens are slow frames, orange bars of 16 fast ones; one row has bars of
   three heights.
"""

import matplotlib.pyplot as plt

import fastslow as fs

grid, two = (16, 16), {"slow_stride": 2, "fast_stride": 4, "slow_ratio": 1 / 4}
schedules = {
    "interleave": fs.build_schedule(16, strategy="interleave", **two),
    "first_slow": fs.build_schedule(16, strategy="first_slow", **two),
    "last_slow": fs.build_schedule(16, strategy="last_slow", **two),
    "uniform": fs.build_schedule(16, strategy="uniform", **two),
    "strides 2, 8, 4, 8 in turn": fs.repeat_strides(16, (2, 8, 4, 8)),
    "the best within 600 tokens": fs.schedule_for_budget(16, grid, 600),
}
figure, rows = plt.subplots(len(schedules), sharex=True, sharey=True, figsize=(7, 8))
for row, (name, schedule) in zip(rows, schedules.items(), strict=True):
    tokens = fs.tokens_per_frame(grid, schedule)
    colours = ["C0" if slow else "C1" for slow in schedule.is_slow]
    row.bar(range(16), tokens, width=0.9, color=colours)
    row.set_title(f"{name}: {sum(tokens)} tokens", loc="left")
figure.supxlabel("frame")
figure.supylabel("tokens of the frame, of 256 before pooling")
