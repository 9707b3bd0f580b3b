"""Where the numbers of a run come from: code, packages, settings, data and seed."""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fastslow
from recipes.edge.files.publishing import write_whole

RECORD_FILE = "run.json"
"""Name of the record beside the checkpoints of a run."""

PACKAGES = (
    "fastslow",
    "torch",
    "transformers",
    "tokenizers",
    "einops",
    "numpy",
    "av",
    "datasets",
    "safetensors",
    "peft",
)
"""Packages whose code the numbers of a run go through."""


def time_stamp() -> str:
    """Give the local time with its offset, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def code_versions() -> dict[str, str | None]:
    """Give the versions of Python, CUDA and the packages; None for what is not there.

    Example:
        >>> code_versions()["python"] == platform.python_version()
        True
    """
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
    }
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def code_digest() -> str:
    """Sum up the code of library and recipes as it lies on disk, committed or not."""
    digest = hashlib.sha256()
    for package in (Path(fastslow.__file__).parent, Path(__file__).parents[2]):
        for file in sorted(package.rglob("*.py")):
            name = str(file.relative_to(package)).encode()
            digest.update(b"%d %s" % (len(name), name))
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def git_state(file: Path = Path(__file__)) -> dict[str, Any] | None:
    """Give the commit that a file belongs to, and whether tracked files differ from it.

    Args:
        file: A file of the code.

    Returns:
        ``commit`` and ``is_dirty``; None where the file is not part of a clone, or git
        is not there to say so.
    """
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)
        commit = _git(file, "rev-parse", "HEAD")
        changes = _git(file, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "is_dirty": bool(changes)}


def record_start(output_dir: Path, start: Mapping[str, Any]) -> None:
    """Add a start of a run to its record, which is complete at every moment.

    The record is a JSON object whose ``starts`` lists every start of the run, resumed
    ones too. To what the caller knows of a start are added its time, command line,
    versions and git state.

    Args:
        output_dir: Folder of the run.
        start: What JSON knows; paths become text.

    Raises:
        ValueError: If the file is there but is no such record.
    """
    starts = read_starts(output_dir)
    about = {
        "time": time_stamp(),
        "command": sys.argv,
        **start,
        "versions": code_versions(),
        "git": git_state(),
    }
    text = json.dumps({"starts": [*starts, about]}, indent=1, default=str)
    write_whole(output_dir / RECORD_FILE, f"{text}\n")


def read_starts(output_dir: Path) -> list[dict[str, Any]]:
    """Read what is known of every start of a run.

    Args:
        output_dir: Folder of the run.

    Returns:
        What ``record_start`` wrote, the first start first; nothing where no run is.

    Raises:
        ValueError: If the file is there but is no such record.
    """
    file = output_dir / RECORD_FILE
    if not file.exists():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        starts: list[dict[str, Any]] = [dict(each) for each in content["starts"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} is no record of a run; it must be a JSON object with starts"
        ) from error
    return starts


def _git(file: Path, *command: str) -> str:
    """Ask git about the folder of a file."""
    done = subprocess.run(
        ["git", "-C", str(file.parent), *command],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()
