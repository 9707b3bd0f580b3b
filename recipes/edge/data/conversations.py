"""Conversations about videos and pictures, as rows of users' files hold them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from unicodedata import category

from fastslow.qwen2_vl.chat import PLACEHOLDER

Role = Literal["system", "user", "assistant"]
Kind = Literal["video", "image"]

MOST_TURNS = 256
"""Turns of a conversation at most."""

MOST_MEDIA = 256
"""Videos and pictures of a conversation at most."""

MOST_CHARACTERS = 2**20
"""Characters of all turns together at most."""

LONGEST_NAME = 4096
"""Characters of an id, a category or a name of a file at most."""

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_LAYOUTS = {"conversations": ("from", "value"), "messages": ("role", "content")}
_KINDS: tuple[Kind, ...] = ("video", "image")
_CATEGORIES = ("category", "question_type", "data_source")
_SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        text: What is said; ``<video>`` and ``<image>`` stand for what is shown.
    """

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True)
class Media:
    """A video or a picture, by name.

    Attributes:
        kind: Which of the two.
        name: Its path relative to the data file, or in an archive beside it.
    """

    kind: Kind
    name: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What a row says.

    Attributes:
        sample_id: The row's id, or ``file name:row number``.
        category: What kind of question it is; empty if the row does not say.
        media: What is shown, in the order of its placeholders.
        turns: User and assistant in turn, beginning with the user, perhaps after a
            system's; as many placeholders as there are media, in the user's.
    """

    sample_id: str
    category: str
    media: tuple[Media, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that cannot be used.

    Attributes:
        sample_id: Its id, or ``file name:row number`` where it has none.
        source: The file and row, or the path of the video.
        reason: One sentence.
    """

    sample_id: str
    source: str
    reason: str


class RowError(ValueError):
    """A row cannot be used; the message is the reason."""


def parse_row(row: object, default_id: str) -> Conversation:
    """Check a row, and give its conversation.

    A row names its ``video`` or ``image``, or several of them in a list, also as
    ``videos`` or ``images``. It holds its turns as ``conversations`` (``from``,
    ``value``) or ``messages`` (``role``, ``content``). Where all are videos,
    ``<image>`` stands for a video too. A row whose text has no placeholder shows
    everything before its first question. A row that names nothing to show is text.

    Args:
        row: What the file holds; an error stands for a row that could not be read.
        default_id: Its id, if it has none of its own.

    Returns:
        The conversation.

    Raises:
        RowError: If the row cannot be used.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError(f"the row is {name_type(row)}; it must be an object")
    media = [media for kind in _KINDS for media in _media(row, kind)]
    if len(media) > MOST_MEDIA:
        raise RowError(
            f"the row names {len(media)} videos and pictures; it may name {MOST_MEDIA}"
        )
    turns = _parse_turns(row)
    ordered, placed = _place(media, turns)
    return Conversation(
        sample_id=row_id(row, default_id),
        category=_category(row),
        media=ordered,
        turns=placed,
    )


def row_id(row: object, default: str) -> str:
    """Give the id of a row, or the default where it has none.

    Whole numbers may come as floating-point ones, and a missing one as no number: so
    tables hold columns of integers with gaps.
    """
    value = row.get("id") if isinstance(row, dict) else None
    if isinstance(value, float) and math.isnan(value):
        value = None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "":
        return default
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else _name("id", value)


def _category(row: dict[str, object]) -> str:
    """Give what a row says that its questions are, if that is text."""
    key = next((key for key in _CATEGORIES if row.get(key)), None)
    if key is None or not isinstance(row[key], str):
        return ""
    return _name(key, row[key])


def _media(row: dict[str, object], kind: Kind) -> Iterator[Media]:
    """Read the names of what a row shows."""
    keys = [key for key in (kind, f"{kind}s") if row.get(key) not in (None, "", [])]
    if len(keys) > 1:
        raise RowError(f"the row has {kind} and {kind}s; it may have one of them")
    for key in keys:
        value = row[key]
        for entry in value if isinstance(value, list) else [value]:
            name = _name(key, entry)
            if not name or ".." in PurePosixPath(name).parts:
                raise RowError(
                    f"{key} is {_shown(name)}; it must name a file without '..'"
                )
            yield Media(kind=kind, name=name)


def _parse_turns(row: dict[str, object]) -> list[Turn]:
    """Read the turns of a row in either layout and check their order."""
    layouts = [name for name in _LAYOUTS if row.get(name) not in (None, "", [])]
    if len(layouts) > 1:
        raise RowError(f"the row has {' and '.join(layouts)}; it may have one of them")
    if not layouts:
        known = " or ".join(_LAYOUTS)
        raise RowError(f"the row has no conversation; it needs {known}")
    (layout,) = layouts
    items = row[layout]
    if not isinstance(items, list):
        raise RowError(f"{layout} is {name_type(items)}; it must be a list of turns")
    if len(items) > MOST_TURNS:
        raise RowError(f"the row has {len(items)} turns; it may have {MOST_TURNS}")
    role_key, text_key = _LAYOUTS[layout]
    turns = [
        _parse_turn(item, f"turn {number}", role_key, text_key)
        for number, item in enumerate(items, start=1)
    ]
    length = sum(len(turn.text) for turn in turns)
    if length > MOST_CHARACTERS:
        raise RowError(
            f"the turns have {length:,} characters; they may have {MOST_CHARACTERS:,}"
        )
    spoken = turns[1:] if turns[0].role == "system" else turns
    before = len(turns) - len(spoken) + 1
    for number, turn in enumerate(spoken):
        if turn.role != ("assistant" if number % 2 else "user"):
            raise RowError(
                f"turn {before + number} is the {turn.role}'s; user and assistant must "
                "alternate, beginning with the user"
            )
    if len(spoken) < 2:
        raise RowError("the row has no assistant turn")
    return turns


def _parse_turn(item: object, name: str, role_key: str, text_key: str) -> Turn:
    """Read one turn."""
    if not isinstance(item, dict):
        raise RowError(f"{name} is {name_type(item)}; it must be an object")
    speaker = item.get(role_key)
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise RowError(
            f"{name} has {role_key} {_shown(speaker)}; it must be one of "
            f"{', '.join(_ROLES)}"
        )
    text = _string(f"{text_key} of {name}", item.get(text_key))
    if role == "assistant" and not text.strip():
        raise RowError(f"{name} is an empty answer")
    return Turn(role=role, text=text)


def _place(
    media: Sequence[Media], turns: Sequence[Turn]
) -> tuple[tuple[Media, ...], tuple[Turn, ...]]:
    """Give every medium a placeholder, and put the media in the order of these."""
    if all(each.kind == "video" for each in media):
        turns = [
            Turn(role=turn.role, text=turn.text.replace("<image>", "<video>"))
            for turn in turns
        ]
    for number, turn in enumerate(turns, start=1):
        if turn.role != "user" and PLACEHOLDER.search(turn.text):
            raise RowError(
                f"turn {number} is the {turn.role}'s and has a placeholder; what is "
                "shown belongs in a user turn"
            )
    places = [kind for turn in turns for kind in PLACEHOLDER.findall(turn.text)]
    if not places:
        shown = "".join(f"<{each.kind}>\n" for each in media)
        first = next(n for n, turn in enumerate(turns) if turn.role == "user")
        asked = Turn(role="user", text=shown + turns[first].text)
        return tuple(media), (*turns[:first], asked, *turns[first + 1 :])
    if sorted(places) != sorted(each.kind for each in media):
        raise RowError(
            f"the row has {len(places)} placeholders but names {len(media)} videos and "
            "pictures; each needs one of its kind"
        )
    waiting = {kind: iter([m for m in media if m.kind == kind]) for kind in _KINDS}
    return tuple(next(waiting[kind]) for kind in places), tuple(turns)


def _string(name: str, value: object) -> str:
    """Give a value that must be a string of valid characters."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {name_type(value)}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"{name} has half of a surrogate pair at character {error.start}; it must "
            "be valid Unicode"
        ) from error
    return value


def _name(name: str, value: object) -> str:
    """Give a value that must be a string of one line, and not too long a one."""
    text = _string(name, value)
    if len(text) > LONGEST_NAME:
        raise RowError(
            f"{name} has {len(text):,} characters; it may have {LONGEST_NAME:,}"
        )
    if any(category(each) == "Cc" for each in text):
        raise RowError(f"{name} is {_shown(text)}; it must have no control characters")
    return text


def _shown(value: object) -> str:
    """Write a value for a message, the first part of it where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def name_type(value: object) -> str:
    """Name the type of a value, in the words of JSON where it has any."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    number = "a number" if isinstance(value, int | float) else None
    return names.get(type(value)) or number or f"a {type(value).__name__}"
