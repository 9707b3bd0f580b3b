"""A training run, read from its curves.

python docs/tutorial/curves.py [METRICS [PICTURE]]
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

from drawing import Panel, curves_svg

given = [Path(name) for name in sys.argv[1:]]
source, *rest = given or [Path(__file__).with_name("metrics.jsonl")]
picture = rest[0] if rest else source.with_name("curves.svg")

records = [json.loads(line) for line in source.read_text().splitlines()]
steps = [record for record in records if "event" not in record]


def mean(name: str, part: list[dict[str, Any]]) -> float:
    """Average a number over the steps that have it; null is one that is not finite."""
    known = [step[name] for step in part if step.get(name) is not None]
    return math.fsum(known) / len(known) if known else math.nan


def curve(name: str, block: int = 8) -> list[float]:
    """Give a number of the run, averaged over blocks of steps."""
    return [mean(name, steps[i : i + block]) for i in range(0, len(steps), block)]


PANELS = (
    ("Language loss", 0, 1, ("language_loss",)),
    ("Next-frame loss and copying", 0, 0.1, ("autoregressive_loss", "copy_loss")),
    ("Skill", -1, 1, ("skill",)),
    ("Gradient norm", 0, 5, ("gradient_norm",)),
)
lost = {
    name: sum(step.get(name) is None for step in steps)
    for *_, names in PANELS
    for name in names
}
there = [name for name, count in lost.items() if count < len(steps)]

shown = [name for name in there if name != "skill"]
print("steps     ", *shown, sep="  ")
for first in range(0, len(steps), max(len(steps) // 8, 1)):
    part = steps[first : first + 8]
    print(f"{part[0]['step']:3} to {part[-1]['step']:3}", end="")
    for name in shown:
        print(f"{mean(name, part):{len(name) + 2}.3f}", end="")
    print()
if any(lost.values()):
    words = (f"{name} in {count}" for name, count in lost.items() if count)
    print(f"of {len(steps)} steps without a number:", ", ".join(words))
for record in records:
    if record.get("event") == "evaluation":
        found = f"held-out accuracy {record['accuracy']}, chance {record['chance']}"
        print(f"after step {record['step']}: {found}")

panels = []
for title, low, high, names in PANELS:
    curves = {name: curve(name) for name in names if name in there}
    if curves:
        panels.append(
            Panel(title=title, steps=len(steps), low=low, high=high, curves=curves)
        )
picture.write_text(curves_svg(panels, "Means over eight steps of a tiny run."))
