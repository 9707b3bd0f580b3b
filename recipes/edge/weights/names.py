"""What a weight is called: in the root module, in transformers, in the files.

Checkpoints on the hub name a weight ``model.layers.0...`` or ``visual...`` where the
modules of transformers 5 say ``model.language_model.layers.0...`` and
``model.visual...``; a file may hold either. The translations are transformers' own.
"""

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from fastslow.qwen2_vl import FastSlowQwen2VL
from fastslow.qwen2_vl.model import Backbone
from recipes.edge.weights.lora import checkpoint_name

HEAD_PREFIX = "next_frame_head."
"""Begins the names of the next-frame head, in the module and in the files."""

_BACKBONE_PREFIX = "backbone."


def named_weights(model: FastSlowQwen2VL) -> dict[str, Tensor]:
    """Give backbone and head by name; the backbone's as in transformers' modules.

    Args:
        model: Root module, sharded or not; what else it holds, adapters and a frozen
            tower, is left out.

    Returns:
        The parameters themselves. A tied one appears under each of its names.
    """
    weights = {
        checkpoint_name(name): weight
        for name, weight in model.state_dict(keep_vars=True).items()
        if name.startswith((_BACKBONE_PREFIX, HEAD_PREFIX))
    }
    return {
        name.removeprefix(_BACKBONE_PREFIX): weight
        for name, weight in weights.items()
        if name is not None
    }


def first_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Find the name under which each weight appears first.

    Args:
        weights: Parameters by name.

    Returns:
        For each name the first one of the same parameter, most often itself.
    """
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tied), name) for name, tied in weights.items()}


def names_in_model(saved: Iterable[str], model: FastSlowQwen2VL) -> dict[str, str]:
    """Translate the names in a checkpoint's files.

    Args:
        saved: Names in the files, in either layout.
        model: Root module.

    Returns:
        For each name that of ``named_weights``, or one that the model does not have.
    """
    bare = bare_backbone(model)
    known = bare.state_dict()
    transforms = get_model_conversion_mapping(bare)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    names = {}
    for name in saved:
        names[name] = name
        if not name.startswith(HEAD_PREFIX):
            names[name], _ = rename_source_key(
                name, renamings, converters, bare.base_model_prefix, known
            )
    return names


def names_in_files(names: Iterable[str], model: FastSlowQwen2VL) -> dict[str, str]:
    """Translate names of the backbone to those that transformers saves.

    Args:
        names: Names of ``named_weights``, without the head's.
        model: Root module.

    Returns:
        For each name the one in the hub's layout.
    """
    blanks = {name: torch.empty(0, device="meta") for name in names}
    original = {id(blank): name for name, blank in blanks.items()}
    saved = revert_weight_conversion(bare_backbone(model), blanks)
    return {original[id(blank)]: name for name, blank in saved.items()}


def bare_backbone(model: FastSlowQwen2VL) -> Backbone:
    """Build the backbone again without memory, as transformers' tables know it.

    The tables go by the names of classes, which ``fully_shard`` changes.

    Args:
        model: Root module, sharded or not.

    Returns:
        An object of transformers' own class, on the meta device.
    """
    # Called, a class that fully_shard made builds the one that it was made from.
    build: Callable[..., Backbone] = type(model.backbone)
    with torch.device("meta"):
        return build(copy.deepcopy(model.backbone.config))
