"""Weights out: from shards to a folder that transformers loads.

The next-frame head, which transformers does not know, goes into a file of its own,
where ``loading.load_pretrained`` finds it. An index names the files of the backbone
alone, so that a program that reads whatever tensors it finds leaves the head.
"""

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from fastslow.qwen2_vl import FastSlowQwen2VL
from recipes.edge.files.publishing import make_partial, publish
from recipes.edge.ranks.distributed import World, broadcast_from_main
from recipes.edge.weights.loading import COMPANIONS, set_dtype
from recipes.edge.weights.names import (
    HEAD_PREFIX,
    bare_backbone,
    first_names,
    named_weights,
    names_in_files,
)
from recipes.edge.weights.shards import on_mesh

HEAD_FILE = "next_frame_head.safetensors"
"""The file of the next-frame head, beside those of transformers."""


def export_pretrained(
    folder: Path,
    model: FastSlowQwen2VL,
    world: World,
    *,
    dtype: torch.dtype = torch.bfloat16,
    source: Path | None = None,
    max_file_bytes: int = 5_000_000_000,
) -> None:
    """Write a folder that ``from_pretrained`` loads, visible when it is complete.

    All ranks call this together. Parameters are gathered one by one, and the main
    rank holds those of one file at a time. Names are those of the hub, and a tied
    weight is written once. Everything goes into ``.{name}.partial`` beside the
    folder, which is renamed when all is on disk; a leftover of an earlier attempt is
    removed first.

    Args:
        folder: The folder to make; its parent is there.
        model: Root module, sharded in any way or not at all.
        world: The ranks.
        dtype: Type of the numbers in the files, and of a model loaded from them.
        source: Folder of a checkpoint to copy tokenizer, processor and generation
            files from.
        max_file_bytes: Most bytes of tensors in a file, at least 1; a tensor with
            more has a file of its own.

    Raises:
        RuntimeError: On every rank, if the folder exists or cannot be written.
    """
    partial = broadcast_from_main(lambda: make_partial(folder), world)
    weights = named_weights(model)
    first = dict.fromkeys(first_names(weights).values())
    head = {name: weights[name] for name in first if name.startswith(HEAD_PREFIX)}
    renamed = names_in_files((name for name in first if name not in head), model)
    backbone = {saved: weights[name] for name, saved in renamed.items()}
    split = split_torch_state_dict_into_shards(
        {
            name: torch.empty(weight.shape, dtype=dtype, device="meta")
            for name, weight in backbone.items()
        },
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_file_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        part = {name: backbone[name] for name in names}
        _write_tensors(partial / file, part, dtype, world)
    _write_tensors(partial / HEAD_FILE, head, dtype, world)

    def finish() -> None:
        _write_index(partial, split)
        _write_settings(partial, model, dtype, source)
        for path in partial.glob("*.safetensors"):  # written for their owner alone
            shutil.copymode(partial / "config.json", path)
        publish(partial, folder)

    broadcast_from_main(finish, world)


def _write_tensors(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, world: World
) -> None:
    """Gather tensors one by one and let the main rank write them."""
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        gathered = _gather(tensor.detach(), dtype)
        if world.is_main:
            whole[name] = gathered.cpu()
    broadcast_from_main(
        lambda: save_file(whole, path, metadata={"format": "pt"}), world
    )


def _gather(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert this rank's part, then give the whole tensor to every rank."""
    if not isinstance(tensor, DTensor):
        return tensor.to(dtype).contiguous()
    return cast(DTensor, on_mesh(tensor.to(dtype))).full_tensor()


def _write_index(folder: Path, split: StateDictSplit) -> None:
    """Say which file holds which tensor, and how many bytes they are."""
    index = {
        "metadata": split.metadata,
        "weight_map": dict(sorted(split.tensor_to_filename.items())),
    }
    text = json.dumps(index, indent=2) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _write_settings(
    folder: Path, model: FastSlowQwen2VL, dtype: torch.dtype, source: Path | None
) -> None:
    """Write the configuration, and copy what the source has beside its own."""
    config = copy.deepcopy(model.backbone.config)
    set_dtype(config, dtype)
    config.architectures = [type(bare_backbone(model)).__name__]
    config.save_pretrained(folder)
    model.backbone.generation_config.save_pretrained(folder)
    for name in COMPANIONS:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
