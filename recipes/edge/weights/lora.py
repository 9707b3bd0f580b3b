"""Adapters of low rank in the language model, through ``peft``."""

from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch.distributed.tensor import DTensor

from fastslow.qwen2_vl import FastSlowQwen2VL
from recipes.edge.weights.shards import copy_whole, local_part, on_mesh

PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
"""Linear layers of a decoder layer; each gets an adapter."""


def add_adapters(
    model: FastSlowQwen2VL, *, rank: int, alpha: int, dropout: float
) -> None:
    """Put an adapter beside every projection of the language model.

    Only adapters and the next-frame head train afterwards. An adapter starts as zero,
    so the model computes what it computed before.

    Args:
        model: Neither compiled nor sharded yet; on the meta device adapters are too,
            and ``reset_adapters`` sets them later.
        rank: Rank of an adapter, at least 1.
        alpha: Its output is scaled by ``alpha / rank``.
        dropout: Share of its inputs that is dropped in training.
    """
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"model\.language_model\..*\.({'|'.join(PROJECTIONS)})",
    )
    on_meta = model.backbone.device.type == "meta"
    inject_adapter_in_model(settings, model.backbone, low_cpu_mem_usage=on_meta)
    if not on_meta:
        reset_adapters(model)


@torch.no_grad()
def reset_adapters(model: FastSlowQwen2VL, *, seed: int = 0) -> None:
    """Give adapters their initial values, as in the paper: noise, then zeros.

    They are drawn from a generator of their own, so that they are the same on any
    number of ranks, and on each of them.

    Args:
        model: With adapters, sharded or not; not on the meta device.
        seed: Seeds the noise.

    References:
        Hu et al. 2021, LoRA, section 4.1, with the uniform noise of ``nn.Linear``.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5
            noise = torch.empty(parameter.shape)
            noise.uniform_(-bound, bound, generator=generator)
            copy_whole(parameter, noise)
        elif ".lora_B." in name:
            parameter.zero_()


@torch.no_grad()
def merge_adapters(model: FastSlowQwen2VL) -> None:
    """Add adapters to the weights beside them, and remove them.

    ``model.backbone`` then has the parameters of transformers' own class and their
    names. Sharded models stay sharded; all ranks call this together. The model is for
    evaluation or export afterwards: the optimizer knows parameters that are gone.

    Args:
        model: With adapters or without.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            _merge(layer)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _merge(layer: LoraLayer) -> None:
    """Add the product of a layer's adapter to its weight.

    peft gives the same, but multiplies where the parts are kept. Offloaded ones have to
    meet elsewhere.
    """
    weight: Any = layer.get_base_layer().weight
    for name, scale in layer.scaling.items():
        sides: Any = layer.lora_B[name], layer.lora_A[name]
        wide, narrow = (on_mesh(side.weight) for side in sides)
        change = scale * (wide @ narrow)
        if isinstance(change, DTensor):
            change = change.redistribute(placements=weight.placements)
        local_part(weight).add_(local_part(change).to(weight.device))


def checkpoint_name(name: str) -> str | None:
    """Give the name that a parameter has in a model without adapters.

    Args:
        name: Name of a parameter, with adapters or without.

    Returns:
        The name; None for a parameter of an adapter.

    Example:
        >>> checkpoint_name("layers.0.self_attn.q_proj.base_layer.weight")
        'layers.0.self_attn.q_proj.weight'
        >>> checkpoint_name("layers.0.self_attn.q_proj.lora_A.default.weight")
    """
    parts = name.split(".")
    if "lora_A" in parts or "lora_B" in parts:
        return None
    return ".".join(part for part in parts if part != "base_layer")
