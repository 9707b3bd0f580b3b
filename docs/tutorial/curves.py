"""A training run, read from its curves.

python docs/tutorial/curves.py [METRICS [PICTURE]]
"""

import json
import sys
from pathlib import Path

from drawing import Panel, curves_svg

given = [Path(name) for name in sys.argv[1:]]
source, *rest = given or [Path(__file__).with_name("metrics.jsonl")]
picture = rest[0] if rest else source.with_name("curves.svg")

records = [json.loads(line) for line in source.read_text().splitlines()]
steps = [record for record in records if "event" not in record]


def curve(name: str, block: int = 8) -> list[float]:
    """Give a number of the run, averaged over blocks of steps."""
    values = [step[name] for step in steps]
    blocks = [values[i : i + block] for i in range(0, len(values), block)]
    return [sum(part) / len(part) for part in blocks]


NAMES = ("language_loss", "autoregressive_loss", "copy_loss", "gradient_norm")
print("steps     ", *NAMES, sep="  ")
for first in range(0, len(steps), max(len(steps) // 8, 1)):
    part = steps[first : first + 8]
    print(f"{part[0]['step']:3} to {part[-1]['step']:3}", end="")
    for name in NAMES:
        mean = sum(step[name] for step in part) / len(part)
        print(f"{mean:{len(name) + 2}.3f}", end="")
    print()
for record in records:
    if record.get("event") == "evaluation":
        print(f"held-out accuracy {record['accuracy']}, chance {record['chance']}")

panels = [
    Panel(title=title, steps=len(steps), low=low, high=high, curves=curves)
    for title, low, high, curves in (
        ("Language loss", 0, 1, {"language_loss": curve("language_loss")}),
        (
            "Next-frame loss and copying",
            0,
            0.1,
            {name: curve(name) for name in ("autoregressive_loss", "copy_loss")},
        ),
        ("Skill", -1, 1, {"skill": curve("skill")}),
        ("Gradient norm", 0, 5, {"gradient_norm": curve("gradient_norm")}),
    )
]
picture.write_text(curves_svg(panels, "Means over eight steps of a tiny run."))
