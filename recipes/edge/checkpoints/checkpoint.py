"""Checkpoints: sharded tensors by DCP, the rest in one JSON file, shown by a rename.

A checkpoint is a folder ``checkpoint-{step}`` that holds the files of
``torch.distributed.checkpoint``, a ``manifest.json`` with the size and the digest of
every other file, and a ``state.json`` with these keys:

====================  ========================================================
``format_version``    version of this list, an integer
``step``              optimizer steps that are done
``world_size``        number of ranks that wrote it
``parameter_groups``  of the optimizer: names of parameters, and settings
``state``             what the caller passed: data position, settings and so on
``random_states``     one entry per rank: ``python``, ``numpy``, ``torch``, ``cuda``
====================  ========================================================

All ranks need the same file system. Nothing in a checkpoint is executed when it is
read: ``recipes.edge.checkpoints.tensor_files`` says how.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from recipes.edge.checkpoints.tensor_files import (
    read_shapes,
    read_tensors,
    write_tensors,
)
from recipes.edge.files.manifests import digest_files, entry_of, write_manifest
from recipes.edge.files.publishing import make_partial, publish
from recipes.edge.ranks.distributed import World, broadcast_from_main, gather_from_ranks
from recipes.edge.ranks.random_states import random_states, restore_random_states
from recipes.settings.values import by_dotted_name

STATE = "state.json"
"""Name of the file that holds all but the tensors."""

FORMAT_VERSION = 2
"""Version of ``state.json`` that this module writes and reads."""

_KEYS = ("step", "world_size", "parameter_groups", "state", "random_states")


class OtherModelError(ValueError):
    """A checkpoint is of another model; every rank sees that alike."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run after some step, on one rank.

    Attributes:
        tensors: This rank's shards of model and optimizer state, by name.
        content: What ``state.json`` will hold, the same on every rank.
    """

    tensors: dict[str, Any]
    content: dict[str, Any]

    def copied(self) -> "Snapshot":
        """Copy the tensors to the host, where no further step changes them."""
        options = StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
        staged: Any = DefaultStager(options).stage(self.tensors)
        return replace(self, tensors=staged)


def take_snapshot(
    step: int,
    *,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    state: Mapping[str, Any],
    world: World,
) -> Snapshot:
    """Collect what a run needs to go on from here.

    All ranks call this together. The run goes on as if it had not: no random number is
    drawn, and parameters without optimizer state get the one that AdamW itself would
    start from.

    Args:
        step: Optimizer steps that are done, at least 0.
        model: Root module, sharded with ``fully_shard`` or not.
        optimizer: Its optimizer.
        state: What the caller needs to go on, the same on every rank (gather what
            differs first). Only what JSON knows: keys come back as text, tuples as
            lists; floats come back exact and must be finite.
        world: The ranks.

    Returns:
        The snapshot; its tensors are those of the run, so the next step changes them.

    Raises:
        ValueError: If ``step`` is negative, ``state`` holds a non-finite number or
            ``state`` differs between ranks.
        TypeError: If ``state`` holds something that JSON has no form for.
    """
    if step < 0:
        raise ValueError(f"step is {step}; it must be at least 0")
    text = json.dumps(dict(state), allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    ranks = gather_from_ranks((digest, random_states(world.device)), world)
    for rank, (other, _) in enumerate(ranks):
        if other != ranks[0][0]:
            raise ValueError(
                f"state of rank {rank} differs from rank 0's; "
                "one state is written for all ranks"
            )
    tensors, groups = _tensors(model, optimizer)
    return Snapshot(
        tensors=tensors,
        content={
            "format_version": FORMAT_VERSION,
            "step": step,
            "world_size": world.size,
            "parameter_groups": groups,
            "state": json.loads(text),
            "random_states": [states for _, states in ranks],
        },
    )


def write_snapshot(output_dir: Path, snapshot: Snapshot, world: World) -> Path:
    """Write ``checkpoint-{step}`` so that it is complete as soon as it is visible.

    All ranks call this together. They write into ``.checkpoint-{step}.partial``, and
    when everything is on disk the main rank renames it. A leftover of an earlier
    attempt is removed first.

    Args:
        output_dir: Folder of the run, which is there.
        snapshot: What to write.
        world: The ranks.

    Returns:
        The checkpoint's folder.

    Raises:
        RuntimeError: On every rank, if the main rank cannot write, or the step has a
            checkpoint already.
        OSError: On every rank, if any other cannot write.
    """
    final = output_dir / f"checkpoint-{snapshot.content['step']}"
    partial = broadcast_from_main(lambda: make_partial(final), world)
    write_tensors(partial, snapshot.tensors, world)
    entries = digest_files(partial, world)

    def finish() -> None:
        state = partial / STATE
        state.write_text(json.dumps(snapshot.content), encoding="utf-8")
        write_manifest(partial, {**entries, STATE: entry_of(state)})
        publish(partial, final)

    broadcast_from_main(finish, world)
    return final


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
        folder: A ``checkpoint-{step}``, as ``good_checkpoint`` finds it.
        model: Root module of the same shape, sharded over ``world`` or not.
        optimizer: AdamW over the same trainable parameters, in the same groups.
        world: The ranks.

    Returns:
        The ``state`` that was saved, with its ``step``.

    Raises:
        ValueError: If ``state.json`` is unreadable, of another format or lacks a key.
        OtherModelError: If the tensors differ from the model's in name or shape, or the
            optimizer has other groups of parameters; on every rank alike.

    Laws:
        resume: n steps, save, load, m steps equal n + m steps bit for bit on CPU
    """
    content = read_state(folder)
    tensors, groups = _tensors(model, optimizer)
    _check_groups(folder, content["parameter_groups"], groups)
    _check_shapes(folder, tensors)
    read_tensors(folder, tensors, world)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=tensors["model"],
        optim_state_dict={
            "state": tensors["optimizer"],
            "param_groups": [
                group | {"betas": tuple(group["betas"])}
                for group in content["parameter_groups"]
            ],
        },
    )
    if world.rank < len(content["random_states"]):
        restore_random_states(content["random_states"][world.rank], world.device)
    return {**content["state"], "step": content["step"]}


def _tensors(
    model: nn.Module, optimizer: torch.optim.AdamW
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Give all tensors by name, each rank its shards, and the optimizer's groups."""
    _fill_optimizer_state(optimizer)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    groups: Any = optimizer_state["param_groups"]
    return {"model": model_state, "optimizer": optimizer_state["state"]}, groups


def _fill_optimizer_state(optimizer: torch.optim.AdamW) -> None:
    """Give every trainable parameter without state the one that AdamW starts from.

    AdamW makes its state at a parameter's first gradient. A checkpoint needs it
    before: to have tensors to load into, and to name the same tensors whether or not
    a parameter had a gradient yet. DCP's own way is a step with zero gradients, which
    would count as the first step in the bias correction.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not parameter.requires_grad or optimizer.state.get(parameter):
                continue
            device = parameter.device if group["fused"] else "cpu"
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _check_groups(
    folder: Path, saved: list[dict[str, Any]], groups: list[dict[str, Any]]
) -> None:
    """Compare the parameters of each group with those of the run's optimizer."""
    if len(saved) != len(groups):
        raise OtherModelError(
            f"{folder} has {len(saved)} groups of parameters but the run's optimizer "
            f"has {len(groups)}; both must agree"
        )
    for index, (before, now) in enumerate(zip(saved, groups, strict=True)):
        if others := set(before["params"]) ^ set(now["params"]):
            raise OtherModelError(
                f"group {index} of {folder} and of the run's optimizer differ in "
                f"{min(others)}; they must hold the same parameters"
            )


def _check_shapes(folder: Path, tensors: Mapping[str, Any]) -> None:
    """Compare names and shapes in a checkpoint with those that will be loaded."""
    wanted = dict(by_dotted_name(tensors))  # named as DCP does
    saved = read_shapes(folder)
    missing, unknown = wanted.keys() - saved.keys(), saved.keys() - wanted.keys()
    if missing:
        raise OtherModelError(
            f"{folder} lacks {min(missing)}; the run needs all its tensors"
        )
    if unknown:
        raise OtherModelError(
            f"{folder} holds {min(unknown)}; the run has no such tensor"
        )
    for name, value in wanted.items():
        if saved[name] != value.shape:
            raise OtherModelError(
                f"{folder} holds {name} of shape {tuple(saved[name])} but the run's "
                f"is {tuple(value.shape)}; both must agree"
            )


def read_state(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint holds beside its tensors.

    Args:
        folder: A ``checkpoint-{step}``.

    Returns:
        The content of its ``state.json``.

    Raises:
        ValueError: If that is unreadable, of another format or lacks a key.
    """
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(
            f"{folder} has no readable {STATE}; a checkpoint holds one JSON object"
        )
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format_version {version}; it must be {FORMAT_VERSION}"
        )
    for key in _KEYS:
        if key not in content:
            raise ValueError(
                f"{folder} has a {STATE} without {key}; it must hold {', '.join(_KEYS)}"
            )
    return content
