"""Whether two runs are the same run, bit for bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from recipes.edge.checkpoint_folders import list_checkpoints
from recipes.edge.manifests import entry_of
from recipes.edge.metrics import CLOCKED


def differences(first: Path, second: Path) -> list[str]:
    """Compare the metrics and weights of two runs, bit for bit.

    Metrics that depend on the clock or the memory of the machine, and warnings of a
    rank that waits, are left out. Weights are those of the last checkpoint, with the
    optimizer's state and file by file, so both runs need as many ranks, and of every
    export for transformers.

    Args:
        first: Folder of a finished run.
        second: Folder of another.

    Returns:
        What differs, in words; nothing if the runs are the same.

    Raises:
        ValueError: If a run has no metrics, no checkpoint or no exported weights.
    """
    return [
        *_compare("line of metrics.jsonl", _metrics(first), _metrics(second)),
        *_compare("checkpoint", _checkpoint(first), _checkpoint(second)),
        *_compare("exported weights", _exports(first), _exports(second)),
    ]


def _compare(kind: str, first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    """Name what differs or is missing."""
    for name in first | second:
        if name not in first or name not in second:
            yield f"{kind} {name} is in one run alone"
        elif not _is_same(first[name], second[name]):
            yield f"{kind} {name} differs"


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
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    timeless = [line for line in lines if line.get("rule") != "waiting_rank"]
    return {
        str(number): {k: v for k, v in line.items() if k not in CLOCKED}
        for number, line in enumerate(timeless, start=1)
    }


def _checkpoint(run: Path) -> dict[str, Any]:
    """Sum up the files of tensors of the last checkpoint."""
    folders = list_checkpoints(run)
    if not folders:
        raise ValueError(f"{run} has no checkpoint; a run saves one at its end")
    sums = dict[str, Any]()
    for path in sorted(folders[-1].glob("*.distcp")):
        sums[f"{folders[-1].name}/{path.name}"] = entry_of(path)
    return sums


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
