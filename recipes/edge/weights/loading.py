"""Weights in: from a Hugging Face folder into shards; ``export`` is the way out.

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

Parameters are float32 unless asked otherwise. Weights are safetensors only: no pickle
is read, and no code of a checkpoint is run. All ranks need the same file system.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from fastslow.qwen2_vl import FastSlowQwen2VL, family_of
from fastslow.qwen2_vl.model import Backbone
from recipes.edge.weights.names import (
    HEAD_PREFIX,
    first_names,
    named_weights,
    names_in_model,
)
from recipes.edge.weights.pretrained import (
    made_of,
    read_config,
    refuse_missing_folder,
)
from recipes.edge.weights.shards import copy_whole

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

_NAMED_AT_MOST = 5
_STORED = ("BF16", "F16", "F32", "F64")


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
        ValueError: As ``refuse_missing_folder`` does.
        OSError: If the hub does not know the name, or cannot be asked.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    refuse_missing_folder(name_or_path)
    wanted = ["*.safetensors", "*.json", *COMPANIONS]
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=wanted))
    except OSError as error:
        words = f"weights are {name_or_path}, which is no folder here; {error}"
        raise OSError(words) from error


def build_meta_model(
    folder: Path, *, dtype: torch.dtype = torch.float32
) -> FastSlowQwen2VL:
    """Build the model that ``config.json`` describes, without memory.

    Every parameter is on the meta device: less than a second, even for 72B. Shard it,
    then ``materialize`` it. What the files hold is compared with it here, before it
    takes any memory.

    Args:
        folder: Folder of a checkpoint.
        dtype: Type of the parameters, whatever the files hold.

    Returns:
        The root module, its next-frame head included.

    Raises:
        ValueError: If there is no ``config.json``, or one of another kind of model or
            of none, or the tensors of the files differ from the model's.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; a checkpoint describes itself")
    config = read_config(folder)
    model = made_of(folder, lambda: meta_model(config, dtype=dtype))
    _match(folder, model)
    return model


def meta_model(
    config: PreTrainedConfig, *, dtype: torch.dtype = torch.float32
) -> FastSlowQwen2VL:
    """Build a model without memory.

    Args:
        config: What it looks like.
        dtype: Type of the parameters.

    Returns:
        The root module on the meta device, its next-frame head included.

    Raises:
        ValueError: If it is another kind of model.
    """
    family_of(config)
    config = copy.deepcopy(config)
    set_dtype(config, dtype)
    with torch.device("meta"):
        return FastSlowQwen2VL(AutoModelForImageTextToText.from_config(config))


def set_dtype(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    """Say in a configuration of what type the parameters are.

    transformers builds tower and language model each in the type that its own part
    names, and a hub's configuration names that of the files.

    Args:
        config: Changed in place.
        dtype: Type of the parameters.
    """
    parts: tuple[Any, ...] = (config, config.text_config, config.vision_config)
    for part in parts:
        part.dtype = dtype


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

    Each rank reads its shards alone, waits for no other, and converts them to the
    parameters' type. Both layouts of names are known, that of the hub
    (``model.layers``, ``visual``) and that of the modules
    (``model.language_model.layers``, ``model.visual``): the translation is
    transformers' own. What the root holds beside backbone and head is left alone.

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
    weights = named_weights(model)
    if any(weight.is_meta for weight in weights.values()):
        raise ValueError(
            "the model is on the meta device; materialize it before its weights are "
            "loaded"
        )
    sources = _match(folder, model)
    with warnings.catch_warnings():  # reading alone is meant
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(
            {saved: weights[name].detach() for saved, name in sources.items()},
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=True,
        )
    return any(name.startswith(HEAD_PREFIX) for name in sources)


def _match(folder: Path, model: FastSlowQwen2VL) -> dict[str, str]:
    """Find the weight of every tensor in a folder, and refuse any difference."""
    weights = named_weights(model)
    shapes = _saved_shapes(folder)
    has_head = any(name.startswith(HEAD_PREFIX) for name in shapes)
    first = first_names(weights)
    targets = {
        saved: first.get(name) for saved, name in names_in_model(shapes, model).items()
    }
    wanted = {
        name: weights[name]
        for name in first.values()
        if has_head or not name.startswith(HEAD_PREFIX)
    }
    _check_tensors(folder, shapes, targets, wanted)
    return {saved: name for saved, name in targets.items() if name is not None}


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read name and shape of every tensor in a folder, and nothing else."""
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, shape in _shapes_in(path):
            if name in files:
                raise ValueError(
                    f"{folder} holds {name} in {files[name]} and {path.name}; each "
                    "tensor is stored once"
                )
            files[name] = path.name
            shapes[name] = shape
    if not shapes:
        raise ValueError(
            f"{folder} has no safetensors file; weights are read from no other form"
        )
    return shapes


def _shapes_in(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Read name and shape of every tensor in a file, which must be floating point."""
    if not path.is_file():
        raise ValueError(f"{path} is no regular file; weights are read from no other")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                stored = file.get_slice(name)
                if stored.get_dtype() not in _STORED:
                    raise ValueError(
                        f"{path} holds {name} as {stored.get_dtype()}; a weight is one "
                        f"of {', '.join(_STORED)}"
                    )
                yield name, tuple(stored.get_shape())
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error


def _check_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    targets: Mapping[str, str | None],
    wanted: Mapping[str, Tensor],
) -> None:
    """Compare names and shapes in the files with those of the model."""
    saved: dict[str, str] = {}
    for key, target in targets.items():
        if target in saved:
            raise ValueError(
                f"{folder} holds {saved[target]} and {key}, which are one weight of "
                "the model; a tied weight is stored once"
            )
        if target is not None:
            saved[target] = key
    missing = [name for name in wanted if name not in saved]
    unknown = [key for key, target in targets.items() if target is None]
    wrong = [
        f"{saved[name]} as {shapes[saved[name]]} instead of {tuple(weight.shape)}"
        for name, weight in wanted.items()
        if name in saved and shapes[saved[name]] != weight.shape
    ]
    complaints = {"lacks": missing, "has unknown": unknown, "has": wrong}
    found = [f"{verb} {_listed(names)}" for verb, names in complaints.items() if names]
    if found:
        raise ValueError(
            f"{folder} {', '.join(found)}; a checkpoint has the tensors of its model"
        )


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
                copy_whole(layer.weight, fresh.weight)
                copy_whole(layer.bias, fresh.bias)


def _fill_buffers(
    name: str,
    module: nn.Module,
    backbone: Backbone,
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
    fill: Callable[[nn.Module], None] = backbone._init_weights
    fill(module)
    for key, buffer in blank.items():
        if buffer.isnan().any():
            raise ValueError(
                f"{name}.{key} is a buffer that transformers does not fill; every "
                "buffer outside the checkpoint must have a value"
            )
