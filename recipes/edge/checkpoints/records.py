"""Records of a run that goes on, which a start that is refused leaves as they were."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipes.edge.checkpoints.folders import list_checkpoints
from recipes.edge.files.publishing import make_partial
from recipes.edge.ranks.distributed import World

_RECORDS = ("train.*", "held_out.*", "quarantine.jsonl")
"""What was read and planned of the data, and what of them cannot be used."""


@contextmanager
def records_unless_refused(output_dir: Path, world: World) -> Iterator[None]:
    """Put the records of a run back where an error ends what happens inside.

    A start reads its data before it can tell whether they are those of the run: by
    mistake they may be others. Records are replaced by then, which is never done in
    place, so a second link to each keeps it. A killed start's are put back by the next.

    Args:
        output_dir: Folder of a run that no other process is at. One without checkpoints
            has nothing to lose.
        world: The ranks.
    """
    if not world.is_main or not list_checkpoints(output_dir):
        yield
        return
    aside = output_dir / ".records"
    _put_back(output_dir, aside)
    partial = make_partial(aside)
    for file in _records(output_dir):
        _link(file, partial / file.name)
    partial.rename(aside)
    try:
        yield
    except BaseException:
        _put_back(output_dir, aside)
        raise
    shutil.rmtree(aside)


def _records(output_dir: Path) -> list[Path]:
    """List the records of a run."""
    return [file for pattern in _RECORDS for file in output_dir.glob(pattern)]


def _put_back(output_dir: Path, aside: Path) -> None:
    """Put all records back, if they are aside, and remove what came instead."""
    if not aside.exists():
        return
    for file in _records(output_dir):
        if not (aside / file.name).exists():
            file.unlink()
    for file in aside.iterdir():
        file.replace(output_dir / file.name)
    shutil.rmtree(aside)  # a rename leaves two links to one file as they are


def _link(file: Path, other: Path) -> None:
    """Give a file another name; copy it where there are no links."""
    try:
        os.link(file, other)
    except OSError:
        shutil.copy2(file, other)
