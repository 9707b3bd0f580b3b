"""Whether two runs are the same run, bit for bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from recipes.config import FREE_TO_CHANGE
from recipes.edge.checkpoints.checkpoint import read_state
from recipes.edge.checkpoints.folders import list_checkpoints
from recipes.edge.files.manifests import entry_of
from recipes.edge.reports.metrics import CLOCKED, read_metrics
from recipes.settings.values import by_dotted_name


def differences(first: Path, second: Path) -> list[str]:
    """Compare the metrics, checkpoints and exports of two runs, bit for bit.

    Metrics that depend on the clock or the memory of the machine, and warnings of a
    rank that waits, are left out. Of checkpoints the last is compared: its tensors,
    with the optimizer's state and file by file, so both runs need as many ranks, and
    what lies beside them, settings aside that a run may change, and paths. Of every
    export for transformers it is weights and configuration.

    Args:
        first: Folder of a finished run.
        second: Folder of another.

    Returns:
        What differs, in words; nothing if the runs are the same.

    Raises:
        ValueError: If a run has no metrics, no checkpoint or no exported weights, or a
            file of them cannot be read.
    """
    return [
        *_compare("line of metrics.jsonl", _metrics(first), _metrics(second)),
        *_compare("checkpoint", _checkpoint(first), _checkpoint(second)),
        *_compare("state of", _state(first), _state(second)),
        *_compare("exported weights", _exports(first), _exports(second)),
        *_compare("configuration", _configurations(first), _configurations(second)),
    ]


def _compare(kind: str, first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    """Name what differs or is missing."""
    for name in first | second:
        if name not in first or name not in second:
            yield f"{kind} {name} is in one run alone"
        elif not _is_same(first[name], second[name]):
            yield f"{kind} {name} differs{_entries(first[name], second[name])}"


def _entries(first: Any, second: Any) -> str:
    """Name the entries in which two lines differ; nothing of other values."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return ""
    pairs = {
        name: (first.get(name, "absent"), second.get(name, "absent"))
        for name in first | second
    }
    found = [f"{name} is {a} and {b}" for name, (a, b) in pairs.items() if a != b]
    return ": " + ", ".join(found)


def _is_same(first: Any, second: Any) -> bool:
    """Compare two values; numbers in tensors by their bits, where nan equals nan."""
    if not isinstance(first, Tensor):
        return bool(first == second)
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return torch.equal(_bits(first), _bits(second))


def _bits(tensor: Tensor) -> Tensor:
    """Give the bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _metrics(run: Path) -> dict[str, Any]:
    """Read what does not depend on the clock, line by line."""
    file = run / "metrics.jsonl"
    if not file.exists():
        raise ValueError(f"{run} has no metrics.jsonl; it must be a folder of a run")
    lines = read_metrics(file)
    timeless = [line for line in lines if line.get("rule") != "waiting_rank"]
    return {
        str(number): {k: v for k, v in line.items() if k not in CLOCKED}
        for number, line in enumerate(timeless, start=1)
    }


def _checkpoint(run: Path) -> dict[str, Any]:
    """Sum up the files of tensors of the last checkpoint."""
    files = sorted(_last_checkpoint(run).glob("*.distcp"))
    return {f"{file.parent.name}/{file.name}": entry_of(file) for file in files}


def _state(run: Path) -> dict[str, Any]:
    """Read what is beside them, without what the same run may have otherwise."""
    folder = _last_checkpoint(run)
    state = dict(by_dotted_name(read_state(folder)))
    bad = state.pop("state.quarantine")  # sources and reasons name files
    state["state.quarantine"] = [sample["sample_id"] for sample in bad]
    free = {f"state.settings.{name}" for name in FREE_TO_CHANGE}
    return {f"{folder.name}/{k}": v for k, v in state.items() if k not in free}


def _last_checkpoint(run: Path) -> Path:
    """Name the folder of the last checkpoint."""
    folders = list_checkpoints(run)
    if not folders:
        raise ValueError(f"{run} has no checkpoint; a run saves one at its end")
    return folders[-1]


def _exports(run: Path) -> dict[str, Any]:
    """Read the weights that were written for transformers."""
    files = sorted(run.glob("model-*/*.safetensors"))
    if not files:
        raise ValueError(f"{run} has no model-N; a finished run has exported weights")
    return {
        f"{file.parent.name}/{name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


def _configurations(run: Path) -> dict[str, Any]:
    """Read the configurations beside those weights."""
    found = dict[str, Any]()
    for file in sorted(run.glob("model-*/config.json")):
        try:
            values = dict(by_dotted_name(json.loads(file.read_text("utf-8"))))
        except ValueError as error:
            raise ValueError(f"{file} is no whole JSON; an export has one") from error
        found |= {f"{file.parent.name}/{name}": each for name, each in values.items()}
    return found
