"""The folders of checkpoints: found, put aside, and removed."""

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from recipes.edge.files.manifests import find_damage
from recipes.edge.ranks.distributed import World, broadcast_from_main

_FOLDER = re.compile(r"checkpoint-(0|[1-9][0-9]*)")

_HALF_WRITTEN = (".*.partial", ".clips-*")
"""What a killed run leaves: checkpoints, exports, files, clips that it makes."""


def list_checkpoints(output_dir: Path) -> list[Path]:
    """List the checkpoints of a run, damaged ones too, by their steps.

    Args:
        output_dir: Folder of the run; it need not exist.

    Returns:
        The folders ``checkpoint-{step}``.
    """
    found = [
        (int(match[1]), folder)
        for folder in output_dir.glob("checkpoint-*")
        if (match := _FOLDER.fullmatch(folder.name))
    ]
    return [folder for _, folder in sorted(found)]


def good_checkpoint(output_dir: Path, world: World) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint whose files are what was written.

    All ranks call this together. Newer ones, which are damaged, are renamed to
    ``checkpoint-{step}.damaged``, so that the run can save these steps again.

    Args:
        output_dir: Folder of a run; it need not exist.
        world: The ranks.

    Returns:
        The folder, or None if there is none; and a sentence for each newer one that was
        passed over, newest first.

    Raises:
        MainRankError: If there are checkpoints and all are damaged.
    """
    known = broadcast_from_main(lambda: list_checkpoints(output_dir), world)
    damages = dict[Path, str]()
    for folder in reversed(known):
        damage = find_damage(folder, world)
        if damage is None:
            broadcast_from_main(lambda: _put_aside(damages), world)
            return folder, [
                f"{damaged} is passed over: {words}"
                for damaged, words in damages.items()
            ]
        damages[folder] = damage
    broadcast_from_main(lambda: _refuse_damaged(output_dir, damages), world)
    return None, []


def remove_old_checkpoints(output_dir: Path, *, keep: int) -> None:
    """Remove all but the newest checkpoints; the main rank calls this.

    What cannot be removed (over NFS, a folder of which another process has a file open)
    stays, under a name that begins with a dot: a later call or start tries again.

    Args:
        output_dir: Folder of a run.
        keep: Checkpoints to keep, at least 1.
    """
    for folder in list_checkpoints(output_dir)[:-keep]:
        removed = folder.with_name(f".{folder.name}.removed")
        with suppress(OSError):  # what stayed of the same step may be in the way
            folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def remove_leftovers(output_dir: Path) -> None:
    """Remove what was half written or half removed when a run ended.

    The main rank calls this before its data are planned: where the disk is full, that
    may be what fills it.

    Args:
        output_dir: Folder of a run that no process is at; it need not exist.
    """
    for pattern in _HALF_WRITTEN:
        for path in output_dir.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    for folder in output_dir.glob(".checkpoint-*.removed"):
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_damaged(output_dir: Path, damages: Mapping[Path, str]) -> None:
    """Refuse a folder in which every checkpoint is damaged."""
    if damages:
        reasons = "; ".join(f"{folder.name}: {it}" for folder, it in damages.items())
        raise ValueError(
            f"no checkpoint in {output_dir} is whole ({reasons}); remove them to begin "
            "anew"
        )


def _put_aside(damaged: Mapping[Path, str]) -> None:
    """Rename damaged checkpoints, over those that were damaged at the same step."""
    for folder in damaged:
        aside = folder.with_name(f"{folder.name}.damaged")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
