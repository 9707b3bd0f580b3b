"""Adapters of low rank in the language model, through ``peft``."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from fastslow.qwen2_vl import FastSlowQwen2VL

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
    model: FastSlowQwen2VL, *, rank: int, alpha: float, dropout: float
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


def reset_adapters(model: FastSlowQwen2VL) -> None:
    """Give adapters their initial values; for a model built on the meta device."""
    for _, layer in _adapters(model):
        for name in layer.lora_A:
            layer.reset_lora_parameters(name, init_lora_weights=True)


@torch.no_grad()
def merge_adapters(model: FastSlowQwen2VL) -> None:
    """Add adapters to the weights beside them, and remove them.

    ``model.backbone`` then has the parameters of transformers' own class and their
    names. Sharded models stay sharded; all ranks call this together. The model is for
    evaluation or export afterwards: the optimizer knows parameters that are gone.

    Args:
        model: With adapters or without.
    """
    for name, layer in _adapters(model):
        layer.merge(safe_merge=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


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


def _adapters(model: nn.Module) -> list[tuple[str, LoraLayer]]:
    """Give every projection that has an adapter, by name."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    ]
