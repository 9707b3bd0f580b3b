"""Bytes of videos and pictures, in files and in archives."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """Where a video or a picture lies: a file, or a stretch of an archive.

    Attributes:
        path: The file, or the archive.
        name: Its name in the archive; empty for a file.
        offset: First byte.
        size: Number of bytes; None for a whole file.
    """

    path: Path
    name: str = ""
    offset: int = 0
    size: int | None = None

    def __str__(self) -> str:
        """Name the file, and where in it."""
        return f"{self.path}:{self.name}" if self.name else str(self.path)

    def open(self) -> str | io.RawIOBase:
        """Give what a decoder can open."""
        return _Stretch(self) if self.size else str(self.path.absolute())


class _Stretch(io.RawIOBase):
    """A stretch of a file, read as if it were the whole."""

    def __init__(self, file: MediaFile) -> None:
        super().__init__()
        assert file.size is not None
        self._file: BinaryIO = file.path.open("rb")
        self._offset, self._size, self._position = file.offset, file.size, 0

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._size - self._position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        self._file.seek(self._offset + self._position)
        content = self._file.read(wanted)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._position,
            io.SEEK_END: self._size,
        }[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
