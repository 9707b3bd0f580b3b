"""Rows of conversations from JSON, JSONL and parquet files, good and bad."""

import json
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.edge.data.conversations import (
    BadSample,
    Conversation,
    Media,
    RowError,
    Turn,
    parse_row,
    row_id,
)
from recipes.edge.data.data_files import list_subsets, read_rows

VIDEO = Media(kind="video", name="v/a.mp4")
HUMAN = {"from": "human", "value": "What is it?"}
GPT = {"from": "gpt", "value": "A cat."}


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "video": "v/a.mp4", "conversations": [HUMAN, GPT]} | changes


def read_samples(data_path: Path) -> tuple[list[Conversation], list[BadSample]]:
    """Read every row of a dataset in one folder."""
    samples, bad = [], []
    (subset,) = list_subsets(str(data_path))
    for file in map(Path, subset.files):
        for number, content in read_rows(file):
            default = f"{file.name}:{number}"
            try:
                samples.append(parse_row(content, default))
            except RowError as error:
                try:
                    name = row_id(content, default)
                except RowError:
                    name = default
                source = f"{file}:{number}"
                bad.append(BadSample(sample_id=name, source=source, reason=str(error)))
    return samples, bad


def turns(*texts: str) -> list[dict[str, str]]:
    speakers = ("human", "gpt")
    return [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]


def write_json(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows))
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


WRITERS = {".json": write_json, ".jsonl": write_jsonl, ".parquet": write_parquet}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same(tmp_path: Path, suffix: str) -> None:
    rows = [row(), row(id=None, video="/abs/b.mp4"), row(id="c", video="../b.mp4")]
    file = WRITERS[suffix](tmp_path / f"rows{suffix}", rows)
    said = (
        Turn(role="user", text="<video>\nWhat is it?"),
        Turn(role="assistant", text="A cat."),
    )
    samples, bad = read_samples(file)
    assert samples == [
        Conversation(sample_id="a", category="", media=(VIDEO,), turns=said),
        Conversation(
            sample_id=f"rows{suffix}:2",
            category="",
            media=(Media(kind="video", name="/abs/b.mp4"),),
            turns=said,
        ),
    ]
    reason = "video is '../b.mp4'; it must name a file without '..'"
    assert bad == [BadSample(sample_id="c", source=f"{file}:3", reason=reason)]


def test_messages_layout(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "<video> What?"},
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "That."},
    ]
    one = {"video": "a.mp4", "messages": messages, "conversations": None}
    samples, bad = read_samples(write_json(tmp_path / "rows.json", [one]))
    assert bad == []
    assert [(turn.role, turn.text) for turn in samples[0].turns] == [
        ("user", "<video> What?"),
        ("assistant", "This."),
        ("user", "And?"),
        ("assistant", "That."),
    ]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("<image>\nWhat?", "x"), ("<video>\nWhat?", "x")),
        (("<video>\nWhat?", "x"), ("<video>\nWhat?", "x")),
        (("What?\n<image>", "x"), ("What?\n<video>", "x")),
        (("Hello", "x", "See <image>?", "y"), ("Hello", "x", "See <video>?", "y")),
        (("What?", "x", "And?", "y"), ("<video>\nWhat?", "x", "And?", "y")),
    ],
)
def test_placeholders(
    tmp_path: Path, texts: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [row(conversations=turns(*texts))])
    samples, bad = read_samples(file)
    assert bad == []
    assert tuple(turn.text for turn in samples[0].turns) == expected


def test_media_in_lists_are_in_the_order_of_their_placeholders() -> None:
    messages = [
        {"role": "user", "content": "<image> or <video>, <video> or <image>?"},
        {"role": "assistant", "content": "This."},
    ]
    media = {"videos": ["a.mp4", "b.mp4"], "images": ["c.png", "d.png"]}
    found = parse_row({"messages": messages} | media, "a")
    names = [(each.kind, each.name) for each in found.media]
    assert names == [
        ("image", "c.png"),
        ("video", "a.mp4"),
        ("video", "b.mp4"),
        ("image", "d.png"),
    ]


@pytest.mark.parametrize("empty", [None, "", []])
@pytest.mark.parametrize("names", ["v/a.mp4", ["v/a.mp4"]])
def test_videos_are_what_video_is(names: object, empty: object) -> None:
    assert parse_row(row(video=empty, videos=names), "a") == parse_row(row(), "a")
    assert parse_row(row(videos=empty, images=empty), "a") == parse_row(row(), "a")


BAD_ROWS = {
    "the row has video and videos; it may have one of them": row(videos=["b.mp4"]),
    "the row has image and images; it may have one of them": row(
        image="b.png", images=["b.png"]
    ),
    "images is an object; it must be a string": row(images=[{"bytes": "", "path": ""}]),
    "videos is '../b.mp4'; it must name a file without '..'": row(
        video=None, videos=["a.mp4", "../b.mp4"]
    ),
    "the row is an array; it must be an object": [1, 2],
    "the row is a string; it must be an object": "a.mp4",
    "the row is null; it must be an object": None,
    "video is an array; it must be a string": row(video=[["a.mp4"]]),
    "the row has 1 placeholders but names 0 videos and pictures; each needs one of its "
    "kind": row(video=None, conversations=turns("<image>?", "b")),
    "the row has 2 placeholders but names 2 videos and pictures; each needs one of its "
    "kind": row(image="b.png", conversations=turns("<video><video>", "b")),
    "the row has 257 turns; it may have 256": row(conversations=[HUMAN] * 257),
    "video is a number; it must be a string": row(video=7),
    "video is a boolean; it must be a string": row(video=True),
    "id is an object; it must be a string": row(id={}),
    "the row has no conversation; it needs conversations or messages": row(
        conversations=[]
    ),
    "the row has conversations and messages; it may have one of them": row(
        messages=[HUMAN]
    ),
    "conversations is a string; it must be a list of turns": row(conversations="hi"),
    "turn 2 is a string; it must be an object": row(conversations=[HUMAN, "hi"]),
    "turn 2 has from 'robot'; it must be one of human, user, gpt, assistant, "
    "system": row(conversations=[HUMAN, {"from": "robot", "value": "hi"}]),
    "turn 1 has from None; it must be one of human, user, gpt, assistant, system": row(
        conversations=[{"role": "user", "content": "hi"}, GPT]
    ),
    "value of turn 2 is null; it must be a string": row(
        conversations=[HUMAN, {"from": "gpt"}]
    ),
    "turn 1 is the assistant's; user and assistant must alternate, beginning with "
    "the user": row(conversations=[GPT, HUMAN]),
    "turn 2 is the user's; user and assistant must alternate, beginning with the "
    "user": row(conversations=[HUMAN, HUMAN, GPT]),
    "the row has no assistant turn": row(conversations=[HUMAN]),
    "turn 3 is the user's; user and assistant must alternate, beginning with the "
    "user": row(conversations=[{"from": "system", "value": "Hi."}, HUMAN, HUMAN]),
    "turn 4 is an empty answer": row(conversations=turns("a", "b", "c", " \n")),
    "the row has 2 placeholders but names 1 videos and pictures; each needs one of its "
    "kind": row(conversations=turns("<image> and <video>", "b")),
    "turn 2 is the assistant's and has a placeholder; what is shown belongs in a user "
    "turn": row(conversations=turns("a", "<image>")),
    "the row names 257 videos and pictures; it may name 256": row(
        video=["a.mp4"] * 257
    ),
    "the turns have 1,048,577 characters; they may have 1,048,576": row(
        conversations=turns("a" * 2**20, "b")
    ),
    "video is 'a\\x00.mp4'; it must have no control characters": row(video="a\0.mp4"),
    "id has 4,097 characters; it may have 4,096": row(id="a" * 4097),
    "category has half of a surrogate pair at character 0; it must be valid "
    "Unicode": row(category="\ud800"),
    f"turn 1 has from '{'x' * 99}...; it must be one of human, user, gpt, assistant, "
    "system": row(conversations=[{"from": "x" * 9999, "value": "a"}, GPT]),
    "video has half of a surrogate pair at character 1; it must be valid Unicode": row(
        video="a\ud800.mp4"
    ),
}


@pytest.mark.parametrize("reason", BAD_ROWS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_bad_rows(tmp_path: Path, suffix: str, reason: str) -> None:
    good = row(id="good")
    file = WRITERS[suffix](tmp_path / f"rows{suffix}", [BAD_ROWS[reason], good])
    samples, bad = read_samples(file)
    assert [sample.sample_id for sample in samples] == ["good"]
    assert [(one.source, one.reason) for one in bad] == [(f"{file}:1", reason)]


def test_what_json_cannot_hold_is_named_too() -> None:
    with pytest.raises(RowError, match=r"^id is a bytes; it must be a string$"):
        parse_row(row(id=b"a"), "a")


def test_long_values_are_cut_short() -> None:
    for length, shown in ((98, f"{'a' * 98}'"), (99, f"{'a' * 99}...")):
        messages = [{"role": "a" * length, "content": "Hi"}]
        with pytest.raises(RowError) as caught:
            parse_row({"messages": messages}, "a")
        assert str(caught.value).startswith(f"turn 1 has role '{shown}; it must be ")


def test_ids(tmp_path: Path) -> None:
    rows = [row(id=7), row(id="7"), row(id=""), row(id="b", video=7), row(id=True)]
    samples, bad = read_samples(write_json(tmp_path / "rows.json", rows))
    assert [sample.sample_id for sample in samples] == ["7", "7", "rows.json:3"]
    assert [(one.sample_id, one.reason) for one in bad] == [
        ("b", "video is a number; it must be a string"),
        ("rows.json:5", "id is a boolean; it must be a string"),
    ]


def test_what_is_shown_is_in_the_order_of_its_placeholders() -> None:
    shown = parse_row(
        row(
            video=["a.mp4", "b.mp4"],
            image="c.png",
            conversations=turns("<video> <image>", "x", "<video>", "y"),
            question_type="counting",
        ),
        "1",
    )
    assert [media.name for media in shown.media] == ["a.mp4", "c.png", "b.mp4"]
    assert shown.category == "counting"
    ahead = parse_row(
        row(video="a.mp4", image="c.png", conversations=turns("What?", "x")), "1"
    )
    assert ahead.turns[0].text == "<video>\n<image>\nWhat?"


def test_text_alone_and_a_system_turn() -> None:
    said = [{"from": "system", "value": "Be brief."}, HUMAN, GPT]
    read = parse_row(row(video=None, conversations=said), "1")
    assert read.media == ()
    assert [turn.role for turn in read.turns] == ["system", "user", "assistant"]
    assert read.turns[1].text == "What is it?"


def test_broken_lines_are_bad_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [
        b"\xef\xbb\xbf" + json.dumps(row(id="first")).encode(),
        b'{"id": "cut", "video": ',
        b"",
        b'{"id": "\xff"}',
        b"[" * 100_000,
        b'{"id": ' + b"1" * 5000 + b"}",
        json.dumps(row(id="last")).encode(),
    ]
    file.write_bytes(b"\r\n".join(lines))
    samples, bad = read_samples(file)
    assert [sample.sample_id for sample in samples] == ["first", "last"]
    assert [one.source for one in bad] == [f"{file}:{n}" for n in (2, 4, 5, 6)]
    assert [one.sample_id for one in bad] == [f"rows.jsonl:{n}" for n in (2, 4, 5, 6)]
    for one in bad:
        assert one.reason.startswith("the line is not readable as JSON: ")
    assert "line 1 column 23" in bad[0].reason
    assert "position 8" in bad[1].reason


def test_a_folder_is_read_by_name_and_not_deeper(tmp_path: Path) -> None:
    write_json(tmp_path / "b.json", [row(id="b", video="b.mp4")])
    write_jsonl(tmp_path / "c.jsonl", [row(id="c"), row(id="a")])
    write_parquet(tmp_path / "a.parquet", [row(id="a")])
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / "deeper.json").mkdir()
    write_json(tmp_path / "deeper.json" / "d.json", [row(id="d")])
    samples, bad = read_samples(tmp_path)
    assert [sample.sample_id for sample in samples] == ["a", "b", "c", "a"]
    assert bad == []


def test_parquet_beside_names_that_look_like_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "set[1]*"
    folder.mkdir()
    write_parquet(folder / "x?.parquet", [row()])
    write_parquet(folder / "xy.parquet", [row(id="other")])
    samples, bad = read_samples(folder / "x?.parquet")
    assert ([sample.sample_id for sample in samples], bad) == (["a"], [])


def test_a_local_parquet_file_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("this test has no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    samples, bad = read_samples(write_parquet(tmp_path / "rows.parquet", [row()]))
    assert (len(samples), bad, asked) == (1, [], [])


def test_parquet_with_embedded_videos(tmp_path: Path) -> None:
    """A media column is a bad row each, and no decoder is asked for."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.mp4").write_bytes(b"any")
    rows = [row(video=str(tmp_path / "a.mp4"))]
    table = datasets.Dataset.from_list(rows).cast_column("video", datasets.Video())
    table.to_parquet(tmp_path / "rows.parquet")
    samples, bad = read_samples(tmp_path / "rows.parquet")
    assert samples == []
    assert [one.reason for one in bad] == ["video is an object; it must be a string"]


def test_ids_from_a_column_of_integers_with_gaps(tmp_path: Path) -> None:
    ids = [7.0, float("nan"), None, -(2.0**53), 0.5, float("inf")]
    file = write_parquet(tmp_path / "rows.parquet", [row(id=each) for each in ids])
    samples, bad = read_samples(file)
    assert [each.sample_id for each in samples] == [
        "7",
        "rows.parquet:2",
        "rows.parquet:3",
        "-9007199254740992",
    ]
    assert {each.reason for each in bad} == {"id is a number; it must be a string"}
    assert [each.sample_id for each in bad] == ["rows.parquet:5", "rows.parquet:6"]


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_without_rows(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row()])[:0], file)
    else:
        WRITERS[suffix](file, [])
    assert read_samples(file) == ([], [])


@pytest.mark.parametrize("data", [b"", b"no parquet", b"PAR1" + bytes(50) + b"PAR1"])
def test_broken_parquet(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "rows.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"rows\.parquet is not a readable parquet"):
        read_samples(tmp_path / "rows.parquet")


def test_cut_parquet(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "rows.parquet", [row(id=str(i)) for i in range(99)])
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"rows\.parquet is not a readable parquet"):
        read_samples(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"id": 1},\n{"id"]', "line 2 column 6"),
        (b"", "line 1 column 1"),
        (b'["\xff"]', "position 2"),
        (b"[" * 100_000, "decoding a JSON array"),
    ],
)
def test_broken_json(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "rows.json").write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"rows\.json is not readable as JSON: .*{message}"
    ):
        read_samples(tmp_path / "rows.json")


def test_json_without_an_array(tmp_path: Path) -> None:
    write_json(tmp_path / "rows.json", row())
    with pytest.raises(
        ValueError, match=r"rows\.json holds an object; it must hold an array of rows"
    ):
        read_samples(tmp_path / "rows.json")
