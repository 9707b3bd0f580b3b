"""Where the rows of a dataset are: local files, or a repository of the hub."""

import fnmatch
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, hf_hub_download

from recipes.edge.data.conversations import RowError, name_type

MOST_BYTES = 2**31
"""Bytes of a .json file at most, which is read as a whole."""

LONGEST_LINE = 2**24
"""Bytes of a line in a .jsonl file at most."""

DATA_SUFFIXES = (".json", ".jsonl", ".parquet")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_HUB = "hf://datasets/"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SPLITS = {"cap": "caption", "oe": "open_ended", "mc": "multi_choice"}


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Data files that lie in one folder, with the archives of their clips.

    Attributes:
        name: The folder's name; empty where the dataset is one folder.
        files: Data files, as paths or as ``hf://datasets/OWNER/NAME/PATH``.
        archives: Archives beside them, in the same form.
    """

    name: str
    files: tuple[str, ...]
    archives: tuple[str, ...]


def list_subsets(data_path: str, patterns: Sequence[str] = ()) -> list[Subset]:
    """Find the data files and archives of a dataset.

    A dataset is a file; a folder with data files directly inside; a folder of such
    folders, as LLaVA-Video-178K is once it is downloaded; or the name of such a
    repository on the hub.

    Args:
        data_path: Path or ``OWNER/NAME``.
        patterns: Which files to take, by ``SUBSET/SPLIT`` or ``SUBSET``, or by
            ``SPLIT`` where the dataset is one folder, with ``*`` for any text; all
            where there is no pattern. A file whose name says ``cap``,
            ``oe`` or ``mc`` is of the split ``caption``, ``open_ended`` or
            ``multi_choice``; any other is of a split of its own name.

    Returns:
        The subsets, ordered by name, as are their files.

    Raises:
        FileNotFoundError: If there is no such path and no repository can have that
            name, or nothing to read in it.
        ValueError: If a file has another suffix, or a pattern takes nothing.
    """
    subsets = [
        Subset(
            name=name,
            files=tuple(file for file in files if file.endswith(DATA_SUFFIXES)),
            archives=tuple(file for file in files if file.endswith(ARCHIVE_SUFFIXES)),
        )
        for name, files in _files_by_folder(data_path)
    ]
    if not patterns:
        return subsets
    wanted = set[str]()
    for pattern in patterns:
        taken = {f for each in subsets for f in each.files if _takes(pattern, each, f)}
        if not taken:
            known = {
                each.name or _split(file) for each in subsets for file in each.files
            }
            raise ValueError(
                f"data_subsets has {pattern!r}, which takes no file; {data_path} holds "
                f"{', '.join(sorted(known))}"
            )
        wanted |= taken
    chosen = [
        replace(each, files=tuple(file for file in each.files if file in wanted))
        for each in subsets
    ]
    return [each for each in chosen if each.files]


def state_of(subsets: Iterable[Subset]) -> list[tuple[Any, ...]]:
    """Tell what a dataset's own files are, without reading them.

    Args:
        subsets: Where the files are.

    Returns:
        Of each file on disk where it lies, its size and when it was changed; of a data
        file on the hub the commit that it is of, of an archive there its address.
    """
    return [
        (subset.name, str(fetch(file)) if file in subset.files else file, *_stat(file))
        for subset in subsets
        for file in (*subset.files, *subset.archives)
    ]


def _stat(file: str) -> tuple[int, ...]:
    """Give size and last change of a file; nothing of one on the hub."""
    if file.startswith(_HUB):
        return ()
    found = Path(file).stat()
    return found.st_size, found.st_mtime_ns


def fetch(file: str, folder: Path | None = None) -> Path:
    """Give the local path of a file, downloading it if it is on the hub.

    Args:
        file: A path, or ``hf://datasets/OWNER/NAME/PATH``.
        folder: Where a download goes; by default, where the hub's own cache is.

    Returns:
        The path.
    """
    if not file.startswith(_HUB):
        return Path(file)
    owner, name, path = file.removeprefix(_HUB).split("/", 2)
    return Path(
        hf_hub_download(f"{owner}/{name}", path, repo_type="dataset", local_dir=folder)
    )


def find_beside(folder: Path, name: str) -> Path:
    """Give the file that a row names, if there is one where such a file may lie.

    A clip lies in the folder of its data file or deeper, links followed. In the hub's
    cache, where every file is a link, it lies in the same repository.

    Args:
        folder: Folder of the data file.
        name: What the row names, relative to it.

    Returns:
        The path, of a file or of nothing.

    Raises:
        RowError: If it is a file elsewhere.
    """
    file = folder / name
    inside = _around(Path(os.path.realpath(folder)))
    if os.path.lexists(file) and inside not in Path(os.path.realpath(file)).parents:
        raise RowError(
            f"{file} is outside of {inside}; clips lie in the folder of their data file"
        )
    return file


def _around(folder: Path) -> Path:
    """Give the repository in the hub's cache that a folder is of; else the folder."""
    for snapshots in folder.parents:
        repository = snapshots.parent
        if snapshots.name == "snapshots" and (repository / "blobs").is_dir():
            return repository
    return folder


def read_rows(file: Path) -> Iterator[tuple[int, object]]:
    """Read the rows of a data file.

    Args:
        file: A .json file that holds an array, a .jsonl or a .parquet file.

    Yields:
        Number and content of each row, counted from 1; those of a .jsonl file are its
        lines, of which blank ones are skipped and broken ones are a ``RowError``.

    Raises:
        ValueError: If the file is broken as a whole.
    """
    if file.suffix == ".json":
        yield from enumerate(_read_json(file), start=1)
    elif file.suffix == ".jsonl":
        with file.open("rb") as lines:
            read = partial(lines.readline, LONGEST_LINE + 1)
            for number, line in enumerate(iter(read, b""), start=1):
                if len(line) > LONGEST_LINE:
                    raise ValueError(
                        f"{file} has more than {LONGEST_LINE:,} bytes in line {number},"
                        " which is one row"
                    )
                if line.strip():
                    yield number, _read_line(line.strip())
    else:
        yield from enumerate(_read_parquet(file), start=1)


def _files_by_folder(data_path: str) -> list[tuple[str, list[str]]]:
    """List the files of every folder that has data files, under the folder's name."""
    path = Path(data_path)
    if path.is_file():
        if path.suffix not in DATA_SUFFIXES:
            raise ValueError(
                f"{data_path} is no data file; its name must end in one of "
                f"{', '.join(DATA_SUFFIXES)}"
            )
        beside = [file for file in _inside(path.parent) if not _is_data(file)]
        return [("", sorted([str(path), *beside]))]
    if path.is_dir():
        files = _inside(path)
        folders = [("", files)]
        if not any(map(_is_data, files)):
            inner = sorted(each for each in path.iterdir() if each.is_dir())
            folders = [(each.name, _inside(each)) for each in inner]
    elif _REPOSITORY.fullmatch(data_path) and path.suffix not in DATA_SUFFIXES:
        folders = _group(_HUB + data_path, _on_hub(data_path))
    else:
        raise FileNotFoundError(
            f"{data_path} does not exist; data are a file "
            f"({', '.join(DATA_SUFFIXES)}), a folder of such files, or the name of a "
            "dataset on the hub"
        )
    found = [(name, files) for name, files in folders if any(map(_is_data, files))]
    if not found:
        raise FileNotFoundError(
            f"{data_path} has no data files; it or its folders must hold at least one "
            f"({', '.join(DATA_SUFFIXES)})"
        )
    return found


def _inside(folder: Path) -> list[str]:
    """List the files directly inside a folder, by name."""
    return sorted(str(file) for file in folder.iterdir() if file.is_file())


def _on_hub(repository: str) -> list[str]:
    """List the files of a dataset on the hub."""
    try:
        return HfApi().list_repo_files(repository, repo_type="dataset")
    except (OSError, ValueError):
        raise
    except Exception as error:  # of its transport, whose classes change
        raise ConnectionError(
            f"the hub cannot be asked for the files of {repository}: {error}; a folder "
            "of them does as well"
        ) from error


def _group(root: str, files: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Sort files that have a path inside a repository by their folder."""
    folders = dict[str, list[str]]()
    for file in sorted(files):
        folder = str(PurePosixPath(file).parent)
        name = "" if folder == "." else folder
        folders.setdefault(name, []).append(f"{root}/{file}")
    return sorted(folders.items())


def _is_data(file: str) -> bool:
    """Tell whether a file may hold rows."""
    return file.endswith(DATA_SUFFIXES)


def _takes(pattern: str, subset: Subset, file: str) -> bool:
    """Tell whether a pattern takes a data file."""
    split = _split(file)
    names = (subset.name or split, f"{subset.name}/{split}")
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _split(file: str) -> str:
    """Name the split that a data file is of."""
    stem = PurePosixPath(file).stem
    words = set(re.split(r"[^a-z]+", stem.lower()))
    return next((name for word, name in _SPLITS.items() if word in words), stem)


def _read_json(file: Path) -> list[object]:
    """Read a .json file, which must hold an array."""
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(
            f"{file} has {size:,} bytes; a .json file, which is read as a whole, may "
            f"have {MOST_BYTES:,}, and a .jsonl file any number"
        )
    try:
        rows: object = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(
            f"{file} holds {name_type(rows)}; it must hold an array of rows"
        )
    return rows


def _read_line(line: bytes) -> object:
    """Read a line of a .jsonl file."""
    try:
        row: object = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return RowError(f"the line is not readable as JSON: {error}")
    return row


def _read_parquet(file: Path) -> Iterator[object]:
    """Yield the rows of a .parquet file, a few at a time, media columns as they are.

    A dictionary lets a small file hold a long text many times, so it is the rows at a
    time that bound the memory.
    """
    from pyarrow.parquet import (  # type: ignore[import-untyped]  # noqa: PLC0415
        ParquetFile,
    )

    try:
        with ParquetFile(file) as table:
            for rows in table.iter_batches(batch_size=16):
                yield from rows.to_pylist()
    except (ValueError, OSError) as error:
        message = re.sub(r"[^ -~\n]", "?", str(error))  # bytes of the file among it
        raise ValueError(f"{file} is not a readable parquet file: {message}") from error
