"""Hostile rows: wrong types, impossible conversations, names of others' files."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from recipes.edge.weights.tiny import SPECIAL_TOKENS
from tests.recipes.fuzz.cases import (
    ANSWERED,
    ASKED,
    HARMLESS,
    SKIPPED,
    SKIPPED_OR_REFUSED,
    Case,
    Verdict,
    row,
    write_rows,
)
from tests.recipes.fuzz.videos import seed

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "a number": 7,
    "nan": float("nan"),
    "infinity": float("inf"),
    "a huge number": 10**300,
    "an empty text": "",
    "a space": " ",
    "a text": "x",
    "zero byte": "a\0b",
    "half a pair": "a\ud800",
    "the other half": "\udfff",
    "controls": "\x01\x1b[2J\x7f\u202e",
    "a list": [],
    "lists in lists": [[[]]],
    "an object": {},
    "nested": {"a": [{"b": None}]},
    "a long text": "x" * 2_000_000,
}

PLACES: dict[str, tuple[Any, ...]] = {
    "id": ("id",),
    "video": ("video",),
    "image": ("image",),
    "category": ("category",),
    "conversations": ("conversations",),
    "a turn": ("conversations", 0),
    "a speaker": ("conversations", 0, "from"),
    "a question": ("conversations", 0, "value"),
    "an answer": ("conversations", 1, "value"),
}


def row_cases() -> Iterator[Case]:
    """Give all hostile rows."""
    yield from _wrong_types()
    yield from _conversations()
    yield from _special_tokens()
    yield from _paths()
    yield from _links()


def row_case(
    family: str,
    name: str,
    rows: Sequence[object],
    may: tuple[Verdict, ...] = SKIPPED,
    *,
    prepare: Callable[[Path], object] = lambda data: None,
) -> Case:
    """Give the case of some rows beside a good clip."""

    def make(folder: Path) -> None:
        data = write_rows(folder, rows)
        (data / "clip.mp4").write_bytes(seed("mp4"))
        (folder / "outside.mp4").write_bytes(seed("mp4"))
        prepare(data)

    return Case(kind="data", family=f"row: {family}", name=name, make=make, may=may)


def _wrong_types() -> Iterator[Case]:
    for name, value in VALUES.items():
        yield row_case("wrong type", f"the row is {name}", [value])
        for place, path in PLACES.items():
            changed = copy.deepcopy(row(image=None, category="c"))
            inner: Any = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            yield row_case("wrong type", f"{place} is {name}", [changed], HARMLESS)
    for key in ("conversations", "video"):
        less = {name: value for name, value in row().items() if name != key}
        yield row_case("wrong type", f"no {key}", [less], HARMLESS)


def said(*texts: str) -> list[dict[str, str]]:
    """Give turns of user and assistant."""
    return [
        {"from": ("human", "gpt")[number % 2], "value": text}
        for number, text in enumerate(texts)
    ]


def _conversations() -> Iterator[Case]:
    everything = {
        "ten thousand turns": row(conversations=said(*["a"] * 10_000)),
        "a million turns": row(conversations=said(*["a"] * 1_000_000)),
        "no answer": row(conversations=[ASKED]),
        "no question": row(conversations=[ANSWERED]),
        "answer first": row(conversations=[ANSWERED, ASKED]),
        "two questions": row(conversations=[ASKED, ASKED, ANSWERED]),
        "an empty answer": row(conversations=said("What?", "")),
        "a blank answer": row(conversations=said("What?", " \n\t")),
        "one placeholder too many": row(conversations=said("<video><video>?", "b")),
        "ten thousand placeholders": row(conversations=said("<video>" * 10_000, "b")),
        "a placeholder and no clip": row(
            video=None, conversations=said("<video>", "b")
        ),
        "a placeholder of another kind": row(
            video=None, image="a.png", conversations=said("<video>", "b")
        ),
        "two clips and one placeholder": row(
            video=["clip.mp4"] * 2, conversations=said("<video>", "b")
        ),
        "a placeholder in an answer": row(conversations=said("What?", "<video>")),
        "a placeholder in a system turn": row(
            conversations=[{"from": "system", "value": "<video>"}, ASKED, ANSWERED]
        ),
        "a system turn too late": row(
            conversations=[ASKED, ANSWERED, {"from": "system", "value": "x"}]
        ),
        "only a system turn": row(conversations=[{"from": "system", "value": "x"}]),
        "a thousand clips": row(video=["clip.mp4"] * 1000),
        "a hundred thousand clips": row(video=["clip.mp4"] * 100_000),
        "a long question": row(conversations=said("word " * 2_000_000, "b")),
        "a long word": row(conversations=said("a" * 4_000_000, "b")),
        "a long answer": row(conversations=said("a", "b " * 2_000_000)),
        "many long turns": row(conversations=said(*["word " * 20_000] * 256)),
        "a long unknown speaker": row(
            conversations=[{"from": "x" * 1_000_000, "value": "a"}, ANSWERED]
        ),
        "surrogates in the speaker": row(
            conversations=[{"from": "\ud800", "value": "a"}, ANSWERED]
        ),
    }
    for name, hostile in everything.items():
        yield row_case("conversation", name, [hostile], SKIPPED_OR_REFUSED)
    same = [row(id="same", conversations=[ASKED])] * 3
    yield row_case("conversation", "three rows of one id", same)


def _special_tokens() -> Iterator[Case]:
    for token in SPECIAL_TOKENS:
        for number, who in enumerate(("the question", "the answer")):
            texts = ["a", "b"]
            texts[number] += token
            hostile = row(conversations=said(*texts))
            yield row_case("special token", f"{token} in {who}", [hostile])
        turns = [{"from": "system", "value": token}, ASKED, ANSWERED]
        yield row_case(
            "special token", f"{token} as system", [row(conversations=turns)]
        )


def _paths() -> Iterator[Case]:
    def names() -> Iterator[str]:
        yield from ("../outside.mp4", "a/../../outside.mp4", "./../outside.mp4", "..")
        yield from ("/etc/passwd", "/proc/self/mem", "/dev/zero", "//etc/passwd", "/")
        yield from ("~/outside.mp4", "file:///etc/passwd", "http://127.0.0.1:9/a.mp4")
        yield from ("..\\outside.mp4", "%2e%2e/outside.mp4", ".", "rows.jsonl")
        yield from ("concat:clip.mp4", "subfile,,start,0,end,9,,:clip.mp4", "pipe:0")
        yield from ("clip.mp4\0.png", "\ud800.mp4", "x" * 300, "x/" * 3000, "", "-")
        yield from ("clip.mp4/", "clip.mp4/..", "clip.mp4/clip.mp4", "CLIP.mp4")

    for name in names():
        may = HARMLESS if name in {"", "clip.mp4/"} else SKIPPED
        shown = repr(name[:40])
        yield row_case("path", shown, [row(video=name)], may)
        two = [row(video=["clip.mp4", name])]
        listed = HARMLESS if name == "clip.mp4/" else SKIPPED
        yield row_case("path", f"{shown} in a list", two, listed)

    def absolute(data: Path) -> None:
        outside = data.parent / "outside.mp4"
        write_rows(data.parent, [row(video=str(outside))])

    yield row_case("path", "absolute, outside", [], prepare=absolute)


def _links() -> Iterator[Case]:
    def links(data: Path) -> None:
        (data / "up.mp4").symlink_to("../outside.mp4")
        (data / "absolute.mp4").symlink_to(data.parent / "outside.mp4")
        (data / "lost.mp4").symlink_to("nothing.mp4")
        (data / "loop.mp4").symlink_to("loop.mp4")
        (data / "secret.mp4").symlink_to("/etc/passwd")
        (data / "chain.mp4").symlink_to("up.mp4")
        (data / "folder").symlink_to(data.parent)
        (data / "inside.mp4").symlink_to("clip.mp4")
        os.link(data / "clip.mp4", data / "hard.mp4")

    for name in ("up", "absolute", "lost", "loop", "secret", "chain", "folder/outside"):
        hostile = [row(video=f"{name}.mp4")]
        yield row_case("link", name, hostile, prepare=links)
    for name in ("inside", "hard"):
        yield row_case(
            "link", name, [row(video=f"{name}.mp4")], ("used",), prepare=links
        )
