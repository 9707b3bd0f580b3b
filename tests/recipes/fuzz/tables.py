"""Hostile data files: broken JSON, lines without end, parquet of other columns."""

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.recipes.fuzz.cases import (
    ANY,
    GOOD,
    HARMLESS,
    REFUSED,
    SKIPPED,
    Case,
    Verdict,
    cuts,
    flips,
    row,
)
from tests.recipes.fuzz.videos import seed


def table_cases() -> Iterator[Case]:
    """Give all hostile data files."""
    yield from _json()
    yield from _lines()
    yield from _parquet()
    yield from _no_files()


def table_case(
    family: str,
    name: str,
    content: bytes | Callable[[Path], object],
    may: tuple[Verdict, ...],
    *,
    file: str,
) -> Case:
    """Give the case of one data file beside a good clip."""

    def make(folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        (data / "clip.mp4").write_bytes(seed("mp4"))
        if isinstance(content, bytes):
            (data / file).write_bytes(content)
        else:
            content(data / file)

    return Case(kind="data", family=f"file: {family}", name=name, make=make, may=may)


ROWS = [GOOD, row(), row(id="other")]


def _json() -> Iterator[Case]:
    whole = json.dumps(ROWS).encode()
    for name, cut in cuts(whole, 10):
        yield table_case("json", f"cut, {name}", cut, REFUSED, file="rows.json")
    for name, damaged in flips(whole, 25, seed=1):
        yield table_case("json", name, damaged, ANY, file="rows.json")
    broken = {
        "empty": b"",
        "an object": b"{}",
        "a number": b"7",
        "deep": b"[" * 1_000_000,
        "deep objects": b'{"a":' * 500_000,
        "no text": b"\xff\xfe\x00",
        "utf-16": json.dumps(ROWS).encode("utf-16"),
        "a huge number": b"[" + b"9" * 100_000 + b"]",
        "zeros": bytes(10_000),
        "two values": whole + whole,
    }
    for name, content in broken.items():
        yield table_case("json", name, content, REFUSED, file="rows.json")


def _lines() -> Iterator[Case]:
    whole = "".join(f"{json.dumps(each)}\n" for each in ROWS).encode()
    for name, cut in cuts(whole, 10):
        yield table_case("lines", f"cut, {name}", cut, ANY, file="rows.jsonl")
    for name, damaged in flips(whole, 25, seed=2):
        yield table_case("lines", name, damaged, ANY, file="rows.jsonl")
    good = json.dumps(GOOD).encode() + b"\n"
    lines = {
        "half": b'{"id": "a", "video',
        "no json": b"hello",
        "deep": b"[" * 1_000_000,
        "deep objects": b'{"a":' * 500_000,
        "no text": b"\xff\xfe\x00",
        "a huge number": b'{"id": ' + b"9" * 100_000 + b"}",
        "python": b"{'id': 'a'}",
        "zeros": bytes(10_000),
        "carriage returns": good.strip() + b"\r" + good.strip(),
    }
    for name, line in lines.items():
        content = good + line + b"\n" + good
        yield table_case("lines", name, content, SKIPPED, file="rows.jsonl")

    def long(path: Path) -> None:
        path.write_bytes(good + b'{"id": "' + b"a" * 100_000_000 + b'"}\n' + good)

    yield table_case("lines", "a long line", long, REFUSED, file="rows.jsonl")

    def holes(path: Path) -> None:
        path.write_bytes(good)
        os.truncate(path, 2**40)

    yield table_case("lines", "1 TiB of holes", holes, REFUSED, file="rows.jsonl")
    yield table_case("lines", "1 TiB of holes", holes, REFUSED, file="rows.json")
    yield table_case("lines", "1 TiB of holes", holes, REFUSED, file="rows.parquet")


@cache
def parquet(rows: str, **options: Any) -> bytes:
    """Write rows, given as JSON, as a parquet file."""
    file = BytesIO()
    pq.write_table(pa.Table.from_pylist(json.loads(rows)), file, **options)
    return file.getvalue()


def _parquet() -> Iterator[Case]:
    plain = parquet(json.dumps(ROWS))
    for name, cut in cuts(plain, 15):
        yield table_case("parquet", f"cut, {name}", cut, REFUSED, file="rows.parquet")
    for number, (place, within) in enumerate(
        {"data": slice(0, 600), "footer": slice(-1500, None)}.items()
    ):
        for name, damaged in flips(plain, 40, seed=3 + number, within=within):
            yield table_case(
                "parquet", f"{place}, {name}", damaged, ANY, file="rows.parquet"
            )
    for column in ("id", "video", "conversations"):
        less = [{k: v for k, v in row().items() if k != column}]
        may = SKIPPED if column == "conversations" else ("used",)
        content = parquet(json.dumps(less))
        yield table_case("parquet", f"without {column}", content, may, file="a.parquet")
        renamed = [{k.upper() if k == column else k: v for k, v in row().items()}]
        content = parquet(json.dumps(renamed))
        yield table_case("parquet", f"{column} renamed", content, may, file="a.parquet")
    yield from _parquet_types()


def _parquet_types() -> Iterator[Case]:
    columns: dict[str, Any] = {
        "numbers": pa.array([1.5]),
        "bytes": pa.array([b"\xff"]),
        "times": pa.array([0], pa.timestamp("us")),
        "decimals": pa.array(["1"]).cast(pa.decimal128(20, 3)),
        "dictionary": pa.array(["x"]).dictionary_encode(),
        "nulls": pa.nulls(1),
        "a map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "durations": pa.array([1], pa.duration("s")),
        "lists of bytes": pa.array([[b"a"]]),
        "an empty struct": pa.array([{}], pa.struct([("a", pa.int64())])),
    }
    for name, column in columns.items():
        for key in ("id", "video", "conversations"):
            table = pa.Table.from_pylist([row()])
            table = table.set_column(table.column_names.index(key), key, column)
            file = BytesIO()
            pq.write_table(table, file)
            yield table_case(
                "parquet types",
                f"{key} as {name}",
                file.getvalue(),
                ANY if name == "a map" else HARMLESS,
                file="rows.parquet",
            )
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["id", "id"])
    file = BytesIO()
    pq.write_table(table, file)
    yield table_case(
        "parquet types", "one name twice", file.getvalue(), ANY, file="rows.parquet"
    )
    yield table_case("parquet types", "a bomb", _bomb, ANY, file="rows.parquet")


def _bomb(path: Path) -> None:
    """Write half a gigabyte of one text twice, as a small file."""
    numbers, text = pa.array([0] * 500, pa.int32()), pa.array(["x" * 1_000_000])
    column = pa.DictionaryArray.from_arrays(numbers, text)
    table = pa.table({"id": column, "conversations": column})
    pq.write_table(table, path, compression="zstd", store_schema=False)


def _no_files() -> Iterator[Case]:
    for suffix in (".json", ".jsonl", ".parquet"):
        file = f"rows{suffix}"
        for device in ("/dev/zero", "/dev/tty"):
            yield table_case(
                "no file",
                f"{suffix} is a link to {device}",
                lambda path, target=device: path.symlink_to(target),
                REFUSED,
                file=file,
            )
        yield table_case(
            "no file", f"{suffix} is a fifo", os.mkfifo, REFUSED, file=file
        )
        yield table_case(
            "no file", f"{suffix} is a folder", Path.mkdir, REFUSED, file=file
        )
        yield table_case(
            "no file",
            f"{suffix} links to itself",
            lambda path: path.symlink_to(path.name),
            REFUSED,
            file=file,
        )
