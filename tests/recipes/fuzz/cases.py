"""What a hostile input is, and what may become of it."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["used", "skipped", "refused"]

SKIPPED: tuple[Verdict, ...] = ("skipped",)
REFUSED: tuple[Verdict, ...] = ("refused",)
SKIPPED_OR_REFUSED: tuple[Verdict, ...] = ("skipped", "refused")
USED_OR_REFUSED: tuple[Verdict, ...] = ("used", "refused")
HARMLESS: tuple[Verdict, ...] = ("used", "skipped")
ANY: tuple[Verdict, ...] = ("used", "skipped", "refused")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile input.

    Attributes:
        kind: What it is an input of; a key of ``worker.RUNNERS``.
        family: What is wrong with it; the short form of the corpus takes some of each.
        name: Tells it from others of its family.
        make: Writes it into an empty folder.
        may: What may become of it. A skip is counted and has a reason; a refusal is
            an error that names the file. Damage that no reader can see may be used.
    """

    kind: str
    family: str
    name: str
    make: Callable[[Path], object]
    may: tuple[Verdict, ...]


def cuts(content: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Cut content short, at even distances."""
    for number in range(1, count + 1):
        length = len(content) * number // (count + 1)
        yield f"{length} of {len(content)} bytes", content[:length]


def flips(
    content: bytes, count: int, *, seed: int, within: slice = slice(None)
) -> Iterator[tuple[str, bytes]]:
    """Turn over one to eight bits at a time, somewhere in a part of the content."""
    places = range(len(content))[within]
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        damaged, bits = bytearray(content), []
        for _ in range(2 ** rng.randrange(4)):
            place, bit = rng.choice(places), rng.randrange(8)
            damaged[place] ^= 1 << bit
            bits.append(f"{place}.{bit}")
        yield f"bits {' '.join(bits)}", bytes(damaged)


ASKED = {"from": "human", "value": "What is it?"}
ANSWERED = {"from": "gpt", "value": "A cat."}
GOOD = {"id": "good", "conversations": [ASKED, ANSWERED]}
"""A row of text, which stands in every data file and has to be used."""


def row(**changes: Any) -> dict[str, Any]:
    """Give a row about a clip."""
    turns = {"conversations": [ASKED, ANSWERED]}
    return {"id": "hostile", "video": "clip.mp4"} | turns | changes


def write_rows(folder: Path, rows: Sequence[object]) -> Path:
    """Write the rows of a dataset, with a good one before them."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    lines = [json.dumps(each) for each in (GOOD, *rows)]
    (data / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return data
