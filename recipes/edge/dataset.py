"""Conversations about videos, read from the user's own files."""

import glob
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["user", "assistant"]

_SUFFIXES = (".json", ".jsonl", ".parquet")
_ROLES: dict[object, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_LAYOUTS = {"conversations": ("from", "value"), "messages": ("role", "content")}


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        text: What is said; ``<video>`` stands for the clip.
    """

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation about one video.

    Attributes:
        sample_id: Unique among the samples that were read together.
        video: Path of the video file, which may not exist.
        turns: User and assistant in turn, beginning with the user; exactly one
            ``<video>``, in a user turn.
    """

    sample_id: str
    video: Path
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


class _RowError(ValueError):
    """A row cannot be used; the message is the reason."""


def read_samples(data_path: Path) -> tuple[list[Sample], list[BadSample]]:
    """Read conversations about videos, and say which rows cannot be used and why.

    A row names its ``video``, relative to the data file, and holds its turns as
    ``conversations`` (``from``, ``value``) or ``messages`` (``role``, ``content``).
    ``<image>`` and ``<video>`` both stand for the clip; a row with neither gets
    ``<video>`` before its first turn. Whether the video exists is not looked at.

    Args:
        data_path: A .json, .jsonl or .parquet file, or a folder with such files
            directly inside it, which are read in the order of their names.

    Returns:
        The samples and the bad rows, both in the order of the files. Rows count from
        1; those of a .jsonl file are its lines, of which blank ones are skipped.

    Raises:
        FileNotFoundError: If the path does not exist, or a folder has no data file.
        ValueError: If a file has another suffix or is broken as a whole.
    """
    samples: list[Sample] = []
    bad: list[BadSample] = []
    seen: set[str] = set()
    for file in _data_files(data_path):
        for number, content in _read_rows(file):
            sample_id = f"{file.name}:{number}"
            try:
                row = _row_object(content)
                sample_id = _sample_id(row, sample_id)
                sample = _parse_row(row, sample_id, file.parent)
                if sample_id in seen:
                    raise _RowError(f"id {sample_id!r} was used before; ids are unique")
            except _RowError as error:
                source = f"{file}:{number}"
                bad.append(
                    BadSample(sample_id=sample_id, source=source, reason=str(error))
                )
            else:
                seen.add(sample_id)
                samples.append(sample)
    return samples, bad


def most_common_share(train: Sequence[Sample], held_out: Sequence[Sample]) -> float:
    """Tell how often the most common answer of the training set is right.

    What a model reaches that has learnt the answers but looks at no clip.

    Args:
        train: Samples whose answers are counted; of a conversation, all its answers.
        held_out: Samples that are asked.

    Returns:
        Share of the held-out samples, 0 if there are none.
    """
    answers = Counter(_answers(sample) for sample in train)
    guess = answers.most_common(1)[0][0] if answers else ()
    right = sum(_answers(sample) == guess for sample in held_out)
    return right / max(len(held_out), 1)


def _answers(sample: Sample) -> tuple[str, ...]:
    """Give everything that the assistant says in a sample."""
    return tuple(turn.text for turn in sample.turns if turn.role == "assistant")


def _data_files(data_path: Path) -> list[Path]:
    """Find the files to read."""
    known = ", ".join(_SUFFIXES)
    if not data_path.exists():
        raise FileNotFoundError(
            f"data_path is {data_path}, which does not exist; it must be a file "
            f"({known}) or a folder of such files"
        )
    if not data_path.is_dir():
        if data_path.suffix not in _SUFFIXES:
            raise ValueError(
                f"data_path is {data_path}; a data file must end in one of {known}"
            )
        return [data_path]
    inside = (file for file in data_path.iterdir() if file.is_file())
    files = sorted(file for file in inside if file.suffix in _SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"data_path is {data_path}, a folder without data files; it must directly "
            f"hold at least one ({known})"
        )
    return files


def _read_rows(file: Path) -> Iterator[tuple[int, object]]:
    """Yield the number and the content of each row; broken lines as a _RowError."""
    if file.suffix == ".json":
        yield from enumerate(_read_json(file), start=1)
    elif file.suffix == ".jsonl":
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _read_line(line.strip())
    else:
        yield from enumerate(_read_parquet(file), start=1)


def _read_json(file: Path) -> list[object]:
    """Read a .json file, which must hold an array."""
    try:
        rows: object = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} holds {_name(rows)}; it must hold an array of rows")
    return rows


def _read_line(line: bytes) -> object:
    """Read a line of a .jsonl file."""
    try:
        row: object = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return _RowError(f"the line is not readable as JSON: {error}")
    return row


def _read_parquet(file: Path) -> Iterator[object]:
    """Yield the rows of a .parquet file, without decoding media columns.

    By default ``datasets`` reports every ``load_dataset`` to its makers over the
    network; that is switched off, since the file is local.
    """
    import datasets  # type: ignore[import-untyped]  # noqa: PLC0415

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield from datasets.load_dataset(
            "parquet",
            data_files=glob.escape(str(file.absolute())),
            split="train",
            streaming=True,
            batch_size=1000,
        ).decode(False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is not a readable parquet file: {error}") from error


def _row_object(row: object) -> dict[str, object]:
    """Give a row that must be an object."""
    if isinstance(row, _RowError):
        raise row
    if not isinstance(row, dict):
        raise _RowError(f"the row is {_name(row)}; it must be an object")
    return row


def _sample_id(row: dict[str, object], default: str) -> str:
    """Give the id of a row, or the default where it has none."""
    value = row.get("id")
    if value is None or value == "":
        return default
    return str(value) if isinstance(value, int) else _string("id", value)


def _parse_row(row: dict[str, object], sample_id: str, folder: Path) -> Sample:
    """Check a row and give its sample."""
    video = row.get("video")
    if video is None or video == "":
        raise _RowError("the row has no video")
    path = folder / _string("video", video)
    turns = _place_video(_parse_turns(row))
    return Sample(sample_id=sample_id, video=path, turns=turns)


def _parse_turns(row: dict[str, object]) -> list[Turn]:
    """Read the turns of a row in either layout and check their order."""
    layout = next((name for name in _LAYOUTS if row.get(name) is not None), None)
    if layout is None or row[layout] == []:
        known = " or ".join(_LAYOUTS)
        raise _RowError(f"the row has no conversation; it needs {known}")
    items = row[layout]
    if not isinstance(items, list):
        raise _RowError(f"{layout} is {_name(items)}; it must be a list of turns")
    role_key, text_key = _LAYOUTS[layout]
    turns = [
        _parse_turn(item, f"turn {number}", role_key, text_key)
        for number, item in enumerate(items, start=1)
    ]
    for number, turn in enumerate(turns, start=1):
        expected = "user" if number % 2 else "assistant"
        if turn.role != expected:
            raise _RowError(
                f"turn {number} is the {turn.role}'s; user and assistant must "
                "alternate, beginning with the user"
            )
    if len(turns) < 2:
        raise _RowError("the row has no assistant turn")
    return turns


def _parse_turn(item: object, name: str, role_key: str, text_key: str) -> Turn:
    """Read one turn."""
    if not isinstance(item, dict):
        raise _RowError(f"{name} is {_name(item)}; it must be an object")
    speaker = item.get(role_key)
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        known = ", ".join(map(str, _ROLES))
        raise _RowError(f"{name} has {role_key} {speaker!r}; it must be one of {known}")
    text = _string(f"{text_key} of {name}", item.get(text_key))
    if role == "assistant" and not text.strip():
        raise _RowError(f"{name} is an empty answer")
    return Turn(role=role, text=text)


def _place_video(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Make ``<video>`` stand exactly once, in a user turn."""
    turns = [
        Turn(role=turn.role, text=turn.text.replace("<image>", "<video>"))
        for turn in turns
    ]
    counts = [turn.text.count("<video>") for turn in turns]
    if sum(counts) > 1:
        raise _RowError(
            f"the row has {sum(counts)} placeholders; it must have at most one "
            "<image> or <video>"
        )
    if sum(counts) == 0:
        first = Turn(role="user", text=f"<video>\n{turns[0].text}")
        return (first, *turns[1:])
    if turns[counts.index(1)].role != "user":
        raise _RowError(
            f"turn {counts.index(1) + 1} is an answer with a placeholder; the clip "
            "belongs in a user turn"
        )
    return tuple(turns)


def _string(name: str, value: object) -> str:
    """Give a value that must be a string of valid characters."""
    if not isinstance(value, str):
        raise _RowError(f"{name} is {_name(value)}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _RowError(
            f"{name} has half of a surrogate pair at character {error.start}; it must "
            "be valid Unicode"
        ) from error
    return value


def _name(value: object) -> str:
    """Name the type of a value, in the words of JSON where it has any."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    number = "a number" if isinstance(value, int | float) else None
    return names.get(type(value)) or number or f"a {type(value).__name__}"
