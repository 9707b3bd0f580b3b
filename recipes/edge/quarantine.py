"""Samples that cannot be used: each is named once, counted, and their share bounded."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from recipes.edge.conversations import BadSample
from recipes.edge.distributed import World, gather_from_ranks


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

    def __len__(self) -> int:
        """Count the samples that were left out."""
        return len(self._samples)

    def __iter__(self) -> Iterator[BadSample]:
        """Give the samples that were left out."""
        return iter(self._samples.values())

    def share(self, found: Iterable[BadSample]) -> None:
        """Leave out what any rank has found; all ranks call this together.

        Args:
            found: The samples that this rank could not use.

        Raises:
            ValueError: On every rank, as ``add`` does.
        """
        self.add(chain.from_iterable(gather_from_ranks(list(found), self._world)))

    def add(self, bad: Iterable[BadSample]) -> None:
        """Leave samples out; a sample that already is counts once.

        Args:
            bad: The samples, the same on every rank.

        Raises:
            ValueError: If too large a share of all samples is left out.
        """
        self._samples |= {sample.source: sample for sample in bad}
        if self._world.is_main:
            lines = (
                json.dumps(dataclasses.asdict(sample))
                for sample in self._samples.values()
            )
            self._path.write_text("".join(f"{line}\n" for line in lines))
        if len(self) > self._max_share * self._num_samples:
            first = next(iter(self._samples.values()))
            raise ValueError(
                f"{len(self)} of {self._num_samples} samples cannot be used, more than "
                f"the share of {self._max_share} that max_bad_share allows; the first "
                f"is {first.sample_id}: {first.reason} ({self._path} names them all)"
            )
