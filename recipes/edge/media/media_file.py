"""Bytes of videos and pictures, in files and in archives."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """Where a video or a picture lies: a file, or a stretch of an archive.

    Attributes:
        path: The file, or the archive as it is read, unzipped.
        archive: What the dataset calls the archive; empty for a file.
        name: Its name in the archive; empty for a file.
        offset: First byte.
        size: Number of bytes; None for a whole file.
    """

    path: Path
    archive: str = ""
    name: str = ""
    offset: int = 0
    size: int | None = None

    def __str__(self) -> str:
        """Name the file, and where in it."""
        return f"{self.archive}:{self.name}" if self.name else str(self.path)

    def address(self) -> str:
        """Give what FFmpeg opens: the file, or its stretch as if that were all."""
        path = str(self.path.absolute())
        if self.size is None:
            return path
        end = self.offset + self.size
        return f"subfile,,start,{self.offset},end,{end},,:{path}"


def is_still(held: IO[bytes], path: Path) -> bool:
    """Tell whether a path still leads to an open file, and to no other in its place.

    Args:
        held: The file.
        path: Where it was opened.

    Returns:
        Whether who fails there has that file to blame.
    """
    try:
        return os.path.samestat(os.fstat(held.fileno()), path.stat())
    except FileNotFoundError:
        return False
