"""Checkpoints: sharded tensors by DCP, the rest in one JSON file, shown by a rename.

A checkpoint is a folder ``checkpoint-{step}`` that holds the files of
``torch.distributed.checkpoint`` and a ``state.json`` with these keys:

==================  ==========================================================
``format_version``  version of this list, an integer
``step``            optimizer steps that are done
``world_size``      number of ranks that wrote it
``state``           what the caller passed: data position, packer buffer, settings
``random_states``   one entry per rank: ``python``, ``numpy``, ``torch``, ``cuda``
==================  ==========================================================

All ranks need the same file system. Load only checkpoints that you trust: DCP itself
keeps its metadata and the optimizer's settings as pickles.
"""

import base64
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from recipes.edge.distributed import World, broadcast_from_main, gather_from_ranks

FORMAT_VERSION = 1
"""Version of ``state.json`` that this module writes and reads."""

_KEYS = ("step", "world_size", "state", "random_states")
_FOLDER = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


def save_checkpoint(
    output_dir: Path,
    step: int,
    *,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    state: Mapping[str, Any],
    world: World,
) -> Path:
    """Write ``checkpoint-{step}`` so that it is complete as soon as it is visible.

    All ranks call this together. They write into ``.checkpoint-{step}.partial``, and
    when everything is on disk the main rank renames it. A leftover of an earlier
    attempt is removed first. A ``checkpoint-{step}`` that exists stays until the new
    one is complete; then it is renamed away and removed (a crash exactly between the
    two renames leaves it as ``.checkpoint-{step}.replaced``).

    The run goes on as if it had not been saved: no random number is drawn, and
    parameters without optimizer state get the one that AdamW itself would start
    from.

    Args:
        output_dir: Folder of the run; made if it does not exist.
        step: Optimizer steps that are done, at least 0.
        model: Root module, sharded with ``fully_shard`` or not.
        optimizer: Its optimizer.
        state: What the caller needs to go on, the same on every rank (gather what
            differs first). Only what JSON knows: keys come back as text, tuples as
            lists; floats come back exact and must be finite.
        world: The ranks.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: If ``step`` is negative, ``state`` holds a non-finite number or
            ``state`` differs between ranks.
        TypeError: If ``state`` holds something that JSON has no form for.
        RuntimeError: On every rank, if the main rank cannot write.
    """
    if step < 0:
        raise ValueError(f"step is {step}; it must be at least 0")
    text = json.dumps(dict(state), allow_nan=False)
    partial = output_dir / f".checkpoint-{step}.partial"
    final = output_dir / f"checkpoint-{step}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    ranks = gather_from_ranks((digest, _random_states(world.device)), world)
    for rank, (other, _) in enumerate(ranks):
        if other != ranks[0][0]:
            raise ValueError(
                f"state of rank {rank} differs from rank 0's; "
                "one state is written for all ranks"
            )
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "world_size": world.size,
        "state": json.loads(text),
        "random_states": [random_states for _, random_states in ranks],
    }
    broadcast_from_main(lambda: _make_empty(partial), world)
    save(_tensors(model, optimizer), checkpoint_id=partial)
    dist.barrier()
    broadcast_from_main(lambda: _publish(partial, final, content), world)
    return final


def latest_checkpoint(output_dir: Path) -> Path | None:
    """Find the complete checkpoint with the highest step.

    A folder without a readable ``state.json`` is no checkpoint, nor is a partial or
    replaced one. On several ranks ask once, through ``broadcast_from_main``, so that
    all ranks get the same answer.

    Args:
        output_dir: Folder of a run; it need not exist.

    Returns:
        The folder ``checkpoint-{step}``, or None if there is none.
    """
    found: list[tuple[int, Path]] = []
    for folder in output_dir.glob("checkpoint-*"):
        match = _FOLDER.fullmatch(folder.name)
        if match and _read_json(folder) is not None:
            found.append((int(match[1]), folder))
    return max(found)[1] if found else None


def load_checkpoint(
    folder: Path, *, model: nn.Module, optimizer: torch.optim.AdamW, world: World
) -> dict[str, Any]:
    """Put model, optimizer and this rank's random states back, in place.

    All ranks call this together. The optimizer may be fresh or used; its settings
    (learning rate, weight decay and so on) come from the checkpoint as well. Random
    states are restored last, so draw nothing between this call and the next step.

    Another number of ranks is fine for the tensors: each rank reads the shards that
    it needs. Random states belong to ranks, though: a rank that the saving run did
    not have keeps its own, and so does a GPU if the saving rank had none. Such a run
    goes on from the same weights, but not bit for bit.

    Args:
        folder: A ``checkpoint-{step}``, as ``latest_checkpoint`` finds it.
        model: Root module of the same shape, sharded over ``world`` or not.
        optimizer: AdamW over the same trainable parameters, in the same groups.
        world: The ranks.

    Returns:
        The ``state`` that was saved, with its ``step``.

    Raises:
        ValueError: If ``state.json`` is unreadable, of another format or lacks a
            key, or if the tensors differ from the model's in name or shape.

    Laws:
        resume: n steps, save, load, m steps equal n + m steps bit for bit on CPU
    """
    content = _read_content(folder)
    tensors = _tensors(model, optimizer)
    _check_tensors(folder, tensors, optimizer)
    load(tensors, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=tensors["model"],
        optim_state_dict=tensors["optimizer"],
    )
    if world.rank < len(content["random_states"]):
        _restore_random_states(content["random_states"][world.rank], world.device)
    return {**content["state"], "step": content["step"]}


def _tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Any]:
    """Give the tensors of model and optimizer by name, each rank its shards."""
    _fill_optimizer_state(optimizer)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def _fill_optimizer_state(optimizer: torch.optim.AdamW) -> None:
    """Give every trainable parameter without state the one that AdamW starts from.

    AdamW makes its state at a parameter's first gradient. A checkpoint needs it
    before: to have tensors to load into, and to name the same tensors whether or not
    a parameter had a gradient yet. DCP's own way is a step with zero gradients, which
    would count as the first step in the bias correction.
    """
    for group in optimizer.param_groups:
        step_on_device = group["capturable"] or group["fused"]
        for parameter in group["params"]:
            if not parameter.requires_grad or optimizer.state.get(parameter):
                continue
            entry = {
                "step": torch.zeros(
                    (),
                    dtype=torch.float32 if group["fused"] else None,
                    device=parameter.device if step_on_device else "cpu",
                ),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            if group["amsgrad"]:
                entry["max_exp_avg_sq"] = torch.zeros_like(parameter)
            optimizer.state[parameter] = entry


def _check_tensors(
    folder: Path, tensors: Mapping[str, Any], optimizer: torch.optim.AdamW
) -> None:
    """Compare names and shapes in a checkpoint with those that will be loaded."""
    wanted = {f"model.{name}": value for name, value in tensors["model"].items()}
    for name, entry in tensors["optimizer"]["state"].items():
        for key, value in entry.items():
            wanted[f"optimizer.state.{name}.{key}"] = value
    for index in range(len(optimizer.param_groups)):
        wanted[f"optimizer.param_groups.{index}.params"] = None
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    saved = {
        name: value
        for name, value in metadata.items()
        if not name.startswith("optimizer.param_groups.") or name.endswith(".params")
    }
    missing, unknown = wanted.keys() - saved.keys(), saved.keys() - wanted.keys()
    if missing:
        raise ValueError(
            f"{folder} lacks {min(missing)}; the run needs all its tensors"
        )
    if unknown:
        raise ValueError(f"{folder} holds {min(unknown)}; the run has no such tensor")
    for name, value in wanted.items():
        size = getattr(saved[name], "size", None)
        if isinstance(value, Tensor) and size is not None and size != value.shape:
            raise ValueError(
                f"{folder} holds {name} of shape {tuple(size)} but the run's is "
                f"{tuple(value.shape)}; both must agree"
            )


def _read_content(folder: Path) -> dict[str, Any]:
    """Read and check ``state.json``."""
    content = _read_json(folder)
    if content is None:
        raise ValueError(
            f"{folder} has no readable state.json; a checkpoint holds one JSON object"
        )
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format_version {version}; it must be {FORMAT_VERSION}"
        )
    for key in _KEYS:
        if key not in content:
            raise ValueError(
                f"{folder} has a state.json without {key}; "
                f"it must hold {', '.join(_KEYS)}"
            )
    return content


def _read_json(folder: Path) -> dict[str, Any] | None:
    """Read ``state.json``; None if it is missing or holds no JSON object."""
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _make_empty(folder: Path) -> None:
    """Make a folder, without what an earlier attempt left in it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _publish(partial: Path, final: Path, content: Mapping[str, Any]) -> None:
    """Write ``state.json``, wait for the disk, and rename the folder."""
    with (partial / "state.json").open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(partial)
    replaced = final.with_name(f".{final.name}.replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    _sync_folder(final.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _random_states(device: torch.device) -> dict[str, Any]:
    """Give the states of all global generators of this rank, as JSON values."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    cuda_state = None
    if device.type == "cuda":
        cuda_state = _text_from_bytes(torch.cuda.get_rng_state(device))
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": _text_from_bytes(torch.get_rng_state()),
        "cuda": cuda_state,
    }


def _restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Set the global generators of this rank to what ``_random_states`` gave."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    inner = states["numpy"]["state"]
    key = np.array(inner["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**inner, "key": key}})
    torch.set_rng_state(_bytes_from_text(states["torch"]))
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(_bytes_from_text(states["cuda"]), device)


def _text_from_bytes(state: UInt8[Tensor, " bytes"]) -> str:
    """Write bytes as base64 text."""
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _bytes_from_text(text: str) -> UInt8[Tensor, " bytes"]:
    """Read what ``_text_from_bytes`` wrote."""
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
