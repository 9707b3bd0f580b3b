"""A schedule says how finely each frame is kept, and what that costs.

python docs/tutorial/schedule.py
"""

from pathlib import Path

from fastslow import build_schedule, describe_schedule, schedule_for_budget
from fastslow.plotting import schedule_svg

GRID = (13, 23)  # a video of 640 x 360 pixels, in merged tokens
SLOW, FAST = 2, 8  # strides: side of a pooling window, in merged tokens

print("every frame whole:  ", 16 * 13 * 23, "tokens")
for ratio in (1, 0.5, 0.25, 0):
    schedule = build_schedule(16, slow_ratio=ratio, slow_stride=SLOW, fast_stride=FAST)
    print(f"slow_ratio {ratio:<8}", describe_schedule(GRID, schedule))

for strategy in ("interleave", "first_slow", "last_slow", "uniform"):
    schedule = build_schedule(
        16, strategy=strategy, slow_ratio=0.25, slow_stride=SLOW, fast_stride=FAST
    )
    print(f"{strategy:19}", describe_schedule(GRID, schedule))

for budget in (4000, 1000, 250):
    schedule = schedule_for_budget(16, GRID, budget)
    used = sorted(set(schedule.strides))
    print(f"budget {budget:<12}", describe_schedule(GRID, schedule), "strides", used)

few = build_schedule(8, slow_ratio=0.25, slow_stride=SLOW, fast_stride=FAST)
Path(__file__).with_suffix(".svg").write_text(schedule_svg(GRID, few))
