"""Useful FLOPs of a row equal what torch counts while it runs."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastslow import (
    TextSpan,
    VideoSpan,
    next_frame_loss,
    scale_fast_frames,
    schedule_from_strides,
    visible_pairs,
)
from fastslow.accounting import attention_flops
from fastslow.qwen2_vl import FastSlowQwen2VL, RowPlan, step_flops
from recipes.edge.lora import add_adapters

SAMPLE = (
    TextSpan(token_ids=(1, 2), trained=False),
    VideoSpan(grid=(3, 2), schedule=schedule_from_strides((1, 2, 1))),
    TextSpan(token_ids=(6, 12, 13), trained=True),
)
SCALED = (
    TextSpan(token_ids=(1,), trained=False),
    VideoSpan(
        grid=(4, 6), schedule=scale_fast_frames(schedule_from_strides((1, 2, 2)), 2)
    ),
    TextSpan(token_ids=(6, 12), trained=True),
)
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def everything(model: FastSlowQwen2VL) -> None:
    """Train every parameter, the tower's own features being the targets."""


def nothing(model: FastSlowQwen2VL) -> None:
    """Train nothing."""
    model.requires_grad_(False)


def adapters(model: FastSlowQwen2VL) -> None:
    """Train adapters and the next-frame head."""
    model.freeze_tower()
    add_adapters(model, rank=2, alpha=2, dropout=0.0)
    model.double()


TRAINED = [
    everything,
    nothing,
    adapters,
    FastSlowQwen2VL.freeze_tower,
    FastSlowQwen2VL.train_tower,
]


def counted(model: FastSlowQwen2VL, patches: Tensor, plan: RowPlan) -> dict[str, int]:
    """Let torch count a step by operation."""
    with FlopCounterMode(display=False) as counter:
        output = model(patches, plan)
        ahead, _ = next_frame_loss(output.predictions, output.targets)
        loss = output.language_loss + ahead
        if loss.requires_grad:
            loss.backward()
    counts = counter.get_flop_counts()["Global"]
    return {str(name): int(flops) for name, flops in counts.items()}


def products(counts: dict[str, int]) -> int:
    """Add up products with weights, which take no batch of matrices."""
    names = ("mm", "addmm", "convolution", "convolution_backward")
    return sum(counts.get(f"aten.{name}", 0) for name in names)


def frames_of(plan: RowPlan, window: int | None) -> tuple[int, int]:
    """Count pairs of patches in frames and in windows, patch by patch."""
    whole = windowed = 0
    for frames, height, width in plan.grid_thw.tolist():
        side = 2 * (window or max(height, width))
        sizes: dict[tuple[int, int], int] = {}
        for row in range(height):
            for column in range(width):
                place = (row // side, column // side)
                sizes[place] = sizes.get(place, 0) + 1
        whole += frames * (height * width) ** 2
        windowed += frames * sum(size**2 for size in sizes.values())
    return whole, windowed


def attention_of(model: FastSlowQwen2VL, plan: RowPlan) -> int:
    """Count attention layer by layer, from the configuration."""
    text = model.backbone.config.text_config
    tower = model.backbone.model.visual
    whole, windowed = frames_of(plan, model.family.window)
    pairs = [
        whole
        if number in getattr(tower, "fullatt_block_indexes", [number])
        else windowed
        for number in range(len(tower.blocks))
    ]
    width = tower.blocks[0].attn.qkv.in_features
    trains = tower.blocks[0].attn.qkv.weight.requires_grad
    flops = sum(
        attention_flops(each, num_heads=1, head_dim=width, backward=trains)
        for each in pairs
    )
    if model.target_tower is not None:
        flops += sum(attention_flops(n, num_heads=1, head_dim=width) for n in pairs)
    layers = model.backbone.model.language_model
    return flops + attention_flops(
        visible_pairs(plan.visible),
        num_heads=text.num_attention_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        num_layers=text.num_hidden_layers,
        backward=any(each.requires_grad for each in layers.parameters()),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choose", TRAINED, ids=lambda choose: choose.__name__)
@pytest.mark.parametrize("samples", [[SAMPLE], [SCALED, SAMPLE]], ids=["one", "two"])
def test_step_flops__matches_torch(
    family: str,
    choose: Callable[[FastSlowQwen2VL], None],
    samples: list[Any],
    make_family: Callable[..., Any],
    lay: Callable[..., RowPlan],
    make_patches: Callable[..., Tensor],
) -> None:
    model, plan = FastSlowQwen2VL(make_family(family)), lay(samples)
    choose(model)
    flops = step_flops(model, plan)
    counts = counted(model, make_patches(plan), plan)
    assert flops.total - attention_of(model, plan) == products(counts)
