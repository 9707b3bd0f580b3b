"""Samples that cannot be used: each is named once, counted, and their share bounded."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from recipes.edge.data.conversations import BadSample
from recipes.edge.files.publishing import write_whole
from recipes.edge.ranks.distributed import World, gather_from_ranks


class Quarantine:
    """The samples of a run that were left out, listed in ``quarantine.jsonl``.

    All ranks hold the same list, so that all stop together when it grows too long.
    The main rank writes the file: one JSON object per sample, with its id, where it
    comes from and why it was left out.

    Args:
        output_dir: Folder of the run.
        num_samples: Samples of the run, unusable ones included.
        max_share: Largest share of them that may be unusable, 0 to 1.
        world: The ranks.
    """

    def __init__(
        self, output_dir: Path, *, num_samples: int, max_share: float, world: World
    ) -> None:
        """Begin with no sample."""
        self._path = output_dir / "quarantine.jsonl"
        self._num_samples = num_samples
        self._max_share = max_share
        self._world = world
        self._samples: dict[str, BadSample] = {}
        self._listed = 0
        self._end = 0

    def __len__(self) -> int:
        """Count the samples that were left out."""
        return len(self._samples)

    def __iter__(self) -> Iterator[BadSample]:
        """Give the samples that were left out."""
        return iter(self._samples.values())

    def share(self, found: Iterable[BadSample]) -> list[BadSample]:
        """Leave out what any rank has found; all ranks call this together.

        Args:
            found: The samples that this rank could not use.

        Returns:
            Those that were not left out before.

        Raises:
            ValueError: On every rank, as ``check`` does.
        """
        before = len(self)
        self.add(chain.from_iterable(gather_from_ranks(list(found), self._world)))
        self.check(f" ({self._path} names them all, held-out ones too)")
        return list(islice(self, before, None))

    def add(self, bad: Iterable[BadSample]) -> None:
        """Leave samples out; a sample that already is counts once, as it was reported.

        Args:
            bad: The samples, the same on every rank.
        """
        for sample in bad:
            self._samples.setdefault(sample.source, sample)
        if self._world.is_main:
            self._list_new()

    def check(self, named: str = "") -> None:
        """Refuse to leave out so much.

        Args:
            named: Where all are named; not while a start may still be refused, which
                leaves the file as it was.

        Raises:
            ValueError: If too large a share of all samples is left out.
        """
        refuse_too_many([*self], self._num_samples, self._max_share, named)

    def _list_new(self) -> None:
        """List what is not listed yet, after the last line that is whole."""
        if not (self._listed and self._is_there()):
            write_whole(self._path, as_lines(self))
            self._end = self._path.stat().st_size
        elif self._listed < len(self):
            lines = as_lines(islice(self, self._listed, None))
            with self._path.open("r+b") as file:
                file.truncate(self._end)
                file.seek(self._end)
                file.write(lines.encode())
            self._end = self._path.stat().st_size
        self._listed = len(self)

    def _is_there(self) -> bool:
        """Tell whether the file still has all that was written."""
        return self._path.exists() and self._path.stat().st_size >= self._end


def refuse_too_many(
    bad: Sequence[BadSample], num_samples: int, max_share: float, named: str = ""
) -> None:
    """Refuse data of which too much cannot be used.

    Args:
        bad: The samples that cannot.
        num_samples: All samples.
        max_share: Largest share of them that may be unusable, 0 to 1.
        named: Where all are named.

    Raises:
        ValueError: If more are.
    """
    if len(bad) > max_share * num_samples:
        raise ValueError(
            f"{len(bad)} of {num_samples} samples cannot be used, more than the share "
            f"of {max_share} that max_bad_share allows; the first is "
            f"{bad[0].sample_id}: {bad[0].reason}{named}"
        )


def as_lines(samples: Iterable[BadSample]) -> str:
    """Write samples as lines of JSON."""
    return "".join(f"{json.dumps(dataclasses.asdict(each))}\n" for each in samples)
