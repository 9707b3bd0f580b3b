"""Weights in and out: a Hugging Face folder into shards, and shards into a folder.

No rank ever holds the whole model. It is built without memory, sharded by the caller
in any way, and only then given memory and weights::

    name = "Qwen/Qwen2-VL-7B-Instruct"
    folder = broadcast_from_main(lambda: find_weights(name), world)
    model = build_meta_model(folder)
    for layer in model.backbone.model.language_model.layers:
        fully_shard(layer, mesh=world.mesh)
    fully_shard(model, mesh=world.mesh)
    materialize(model, world.device, seed=0)
    load_pretrained(folder, model)
    ...
    export_pretrained(output_dir / "export", model, world, source=folder)

Parameters are float32 whatever the files hold; an export is bfloat16 unless asked
otherwise, and ``Qwen2VLForConditionalGeneration.from_pretrained`` loads it. The
next-frame head, which transformers does not know, travels in a file of its own,
``next_frame_head.safetensors``. Weights are safetensors only: no pickle is read or
written, and no code of a checkpoint is run. All ranks need the same file system.
"""

import copy
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from fastslow.qwen2_vl import FastSlowQwen2VL
from recipes.edge.distributed import World, broadcast_from_main

HEAD_FILE = "next_frame_head.safetensors"
"""The file beside transformers' own that holds the next-frame head."""

COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
"""Files of tokenizer, processor and generation, which an export copies."""

_BACKBONE, _HEAD = "backbone.", "next_frame_head."
_INDEX = "model.safetensors.index.json"
_NAMED_AT_MOST = 5


def find_weights(name_or_path: str | Path) -> Path:
    """Find the folder of a checkpoint; download it if it is named on the hub.

    Of a hub checkpoint only safetensors, JSON and tokenizer files are fetched, into
    the hub's cache, where they are found again without a network. Call it on the main
    rank, through ``broadcast_from_main``.

    Args:
        name_or_path: A folder, or a name on the hub, ``organisation/name``.

    Returns:
        The folder itself, or the hub's cache folder.

    Raises:
        ValueError: If it is a path (absolute, or beginning with a dot) but no folder.
        huggingface_hub.errors.HfHubHTTPError: If the hub does not know the name.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(name_or_path).startswith("."):
        raise ValueError(
            f"weights are {name_or_path}, which is no folder; they are a folder or a "
            "name on the hub"
        )
    wanted = ["*.safetensors", "*.json", *COMPANIONS]
    return Path(snapshot_download(str(name_or_path), allow_patterns=wanted))


def build_meta_model(folder: Path) -> FastSlowQwen2VL:
    """Build the model that ``config.json`` describes, without memory.

    Every parameter is float32 and on the meta device, so this costs a second for
    72B. Shard it, then ``materialize`` it.

    Args:
        folder: Folder of a checkpoint.

    Returns:
        The root module, its next-frame head included.

    Raises:
        ValueError: If there is no ``config.json``, or one of another kind of model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; a checkpoint describes itself")
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, Qwen2VLConfig):
        raise ValueError(
            f"{folder} holds a model of type {config.model_type}; it must be qwen2_vl"
        )
    with torch.device("meta"):
        return FastSlowQwen2VL(Qwen2VLForConditionalGeneration(config))


def materialize(
    model: FastSlowQwen2VL,
    device: torch.device,
    *,
    seed: int = 0,
    offload: bool = False,
) -> None:
    """Give a model that was built and sharded on the meta device its memory.

    Buffers that no checkpoint holds, the frequencies of rotary embeddings, get the
    values that an ordinary build gives them. The next-frame head is drawn as an
    unsharded one is, the same for any number of ranks. Every other parameter is NaN
    until ``load_pretrained`` has read it. Tied weights stay one parameter.

    Args:
        model: Root module, sharded with ``fully_shard`` or not.
        device: Where this rank computes.
        seed: Seeds the next-frame head; global random states stay what they are.
        offload: Whether parameters stay on the CPU, as ``CPUOffloadPolicy`` asks.

    Raises:
        ValueError: If a buffer belongs to a module that transformers does not know.
    """
    model.to_empty(device=torch.device("cpu") if offload else device)
    model.backbone.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
        _fill_head(model.next_frame_head, seed)
    for name, module in model.named_modules():
        _fill_buffers(name, module, model.backbone, device)


def load_pretrained(folder: Path, model: FastSlowQwen2VL) -> bool:
    """Read a checkpoint of safetensors files into the parameters, in place.

    Each rank reads its shards alone and converts them to the parameters' type. Both
    layouts of names are known, that of the hub (``model.layers``, ``visual``) and
    that of the modules (``model.language_model.layers``, ``model.visual``): the
    translation is transformers' own. All ranks call this together, in a process
    group. What the root holds beside backbone and head is left alone.

    Args:
        folder: Folder of a checkpoint, as ``find_weights`` gives it.
        model: Root module with memory, sharded in any way or not at all.

    Returns:
        Whether the folder holds a next-frame head. If not, the model's stays as it
        is.

    Raises:
        ValueError: If the model is on the meta device, or the tensors of the files
            differ from the model's in name or shape.
    """
    weights = _weights(model)
    if any(weight.is_meta for weight in weights.values()):
        raise ValueError(
            "the model is on the meta device; materialize it before its weights are "
            "loaded"
        )
    shapes = _saved_shapes(folder)
    has_head = any(name.startswith(_HEAD) for name in shapes)
    named = _model_names(shapes, model)
    wanted = {
        name: weight
        for name, weight in _without_ties(weights).items()
        if has_head or not name.startswith(_HEAD)
    }
    first = {id(weight): name for name, weight in wanted.items()}
    targets = {}
    for saved, name in named.items():
        targets[saved] = first.get(id(weights.get(name)))
    _check_tensors(folder, shapes, targets, wanted)
    reader = HuggingFaceStorageReader(str(folder))
    tensors = {saved: wanted[name].detach() for saved, name in targets.items() if name}
    load(tensors, storage_reader=reader)
    return has_head


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
    rank holds those of one file at a time. Names are those of the hub, a tied weight
    is written once. Files go into ``.{name}.partial`` beside the folder, which is
    renamed when all is on disk; a leftover of an earlier attempt is removed first.

    Args:
        folder: The folder to make; its parent is made as well.
        model: Root module, sharded in any way or not at all.
        world: The ranks.
        dtype: Type of the numbers in the files, and of a model loaded from them.
        source: Folder of a checkpoint to copy tokenizer, processor and generation
            files from.
        max_file_bytes: Tensors go to another file beyond this; a larger one has a
            file of its own.

    Raises:
        RuntimeError: On every rank, if the folder exists or cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    broadcast_from_main(lambda: _make_partial(partial, folder), world)
    weights = _without_ties(_weights(model))
    head = {name: weights.pop(name) for name in [*weights] if name.startswith(_HEAD)}
    saved = _saved_names(model, weights)
    split = split_torch_state_dict_into_shards(
        {
            name: torch.empty(weight.shape, dtype=dtype, device="meta")
            for name, weight in saved.items()
        },
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_file_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        part = {name: saved[name] for name in names}
        _write_tensors(partial / file, part, dtype, world)
    _write_tensors(partial / HEAD_FILE, head, dtype, world)

    def finish() -> None:
        if split.is_sharded:
            index = {
                "metadata": split.metadata,
                "weight_map": dict(sorted(split.tensor_to_filename.items())),
            }
            (partial / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
        _write_settings(partial, model, dtype, source)
        _publish(partial, folder)

    broadcast_from_main(finish, world)


def _weights(model: FastSlowQwen2VL) -> dict[str, Tensor]:
    """Give backbone and head by name, the backbone's as transformers names them."""
    return {
        name.removeprefix(_BACKBONE): weight
        for name, weight in model.state_dict(keep_vars=True).items()
        if name.startswith((_BACKBONE, _HEAD))
    }


def _without_ties(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the first name of each parameter."""
    seen = set[int]()
    return {
        name: weight
        for name, weight in weights.items()
        if id(weight) not in seen and not seen.add(id(weight))
    }


def _bare(model: FastSlowQwen2VL) -> Qwen2VLForConditionalGeneration:
    """Build the backbone again without memory, as transformers' tables know it.

    The tables go by the names of classes, which ``fully_shard`` changes.
    """
    kind = next(
        kind
        for kind in type(model.backbone).__mro__
        if not issubclass(kind, FSDPModule)
    )
    with torch.device("meta"):
        return cast(
            Qwen2VLForConditionalGeneration, kind(copy.deepcopy(model.backbone.config))
        )


def _model_names(saved: Iterable[str], model: FastSlowQwen2VL) -> dict[str, str]:
    """Translate names in the files to names in the model, where it has them."""
    bare = _bare(model)
    known = bare.state_dict()
    transforms = get_model_conversion_mapping(bare)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    prefix = bare.base_model_prefix
    names = {}
    for name in saved:
        renamed = name
        if not name.startswith(_HEAD):
            renamed, _ = rename_source_key(name, renamings, converters, prefix, known)
            if renamed not in known and name in known:
                renamed = name
        names[name] = renamed
    return names


def _saved_names(
    model: FastSlowQwen2VL, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Give the backbone's parameters by the names that transformers would save."""
    bare = _bare(model)
    blanks = {name: torch.empty(0, device="meta") for name in weights}
    original = {id(blank): name for name, blank in blanks.items()}
    renamed = revert_weight_conversion(bare, blanks)
    return {name: weights[original[id(blank)]] for name, blank in renamed.items()}


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read name and shape of every tensor in a folder, and nothing else."""
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                if name in files:
                    raise ValueError(
                        f"{folder} holds {name} in {files[name]} and {path.name}; "
                        "each tensor is stored once"
                    )
                files[name] = path.name
                shapes[name] = tuple(file.get_slice(name).get_shape())
    if not shapes:
        raise ValueError(
            f"{folder} has no safetensors file; weights are read from no other form"
        )
    return shapes


def _check_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    targets: Mapping[str, str | None],
    wanted: Mapping[str, Tensor],
) -> None:
    """Compare names and shapes in the files with those of the model."""
    saved: dict[str, str] = {}
    for key, name in targets.items():
        if name in saved:
            raise ValueError(
                f"{folder} holds {saved[name]} and {key}, which are one weight of the "
                "model; a tied weight is stored once"
            )
        if name is not None:
            saved[name] = key
    wrong = [
        f"{key} of shape {shapes[key]} where the model's is {tuple(weight.shape)}"
        for name, weight in wanted.items()
        if (key := saved.get(name)) and shapes[key] != weight.shape
    ]
    unknown = [key for key, name in targets.items() if name is None]
    complaints = [
        f"{what} {_listed(names)}"
        for what, names in (
            ("it lacks", [name for name in wanted if name not in saved]),
            ("the model has no", unknown),
            ("it holds", wrong),
        )
        if names
    ]
    if complaints:
        raise ValueError(f"{folder} does not fit the model: {'; '.join(complaints)}")


def _listed(names: list[str]) -> str:
    """Write some names and the number of the others."""
    some = ", ".join(names[:_NAMED_AT_MOST])
    more = len(names) - _NAMED_AT_MOST
    return f"{some} and {more} more" if more > 0 else some


def _fill_head(head: nn.Module, seed: int) -> None:
    """Draw the head's layers whole, one after the other, and keep this rank's part."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                fresh = nn.Linear(layer.in_features, layer.out_features)
                _copy_whole(layer.weight, fresh.weight)
                _copy_whole(layer.bias, fresh.bias)


def _copy_whole(target: Tensor, whole: Tensor) -> None:
    """Copy a tensor that every rank holds whole into a parameter."""
    if isinstance(target, DTensor):
        mesh = target.device_mesh
        whole = distribute_tensor(
            whole.to(mesh.device_type), mesh, target.placements, src_data_rank=None
        ).to_local()
        target = target.to_local()
    target.copy_(whole)


def _fill_buffers(
    name: str,
    module: nn.Module,
    backbone: Qwen2VLForConditionalGeneration,
    device: torch.device,
) -> None:
    """Let transformers fill the buffers of one module that no checkpoint holds."""
    persistent = module.state_dict().keys()
    blank = {
        key: torch.full_like(buffer, math.nan, device=device)
        for key, buffer in module.named_buffers(recurse=False)
        if key not in persistent
    }
    if not blank:
        return
    for key, buffer in blank.items():
        module.register_buffer(key, buffer, persistent=False)
    backbone._init_weights(module)
    for key, buffer in blank.items():
        if buffer.isnan().any():
            raise ValueError(
                f"{name}.{key} is a buffer that transformers does not fill; every "
                "buffer outside the checkpoint must have a value"
            )


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
    # An offloaded part travels through the device that the ranks talk over.
    part = tensor.to(device=tensor.device_mesh.device_type, dtype=dtype)
    return cast(DTensor, part).full_tensor()


def _write_settings(
    folder: Path, model: FastSlowQwen2VL, dtype: torch.dtype, source: Path | None
) -> None:
    """Write the configuration, and copy what the source has beside its own."""
    config = copy.deepcopy(model.backbone.config)
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype
    config.architectures = [Qwen2VLForConditionalGeneration.__name__]
    config.save_pretrained(folder)
    model.backbone.generation_config.save_pretrained(folder)
    for name in COMPANIONS:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _make_partial(partial: Path, folder: Path) -> None:
    """Make the folder that is written into."""
    if folder.exists():
        raise ValueError(f"{folder} exists; an export makes a new folder")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)


def _publish(partial: Path, folder: Path) -> None:
    """Wait until every file is on disk, then rename the folder."""
    for path in (*partial.iterdir(), partial):
        _wait_for_disk(path)
    partial.rename(folder)
    _wait_for_disk(folder.parent)


def _wait_for_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
