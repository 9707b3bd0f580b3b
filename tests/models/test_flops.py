"""Useful FLOPs of a row equal what torch counts while it runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.flop_counter import FlopCounterMode

from fastslow import (
    TextSpan,
    VideoSpan,
    count_tokens,
    next_frame_loss,
    sample_cost,
    scale_fast_frames,
    schedule_from_strides,
    visible_pairs,
)
from fastslow.accounting import attention_flops
from fastslow.qwen2_vl import FastSlowQwen2VL, RowPlan, step_cost, step_flops
from recipes.edge.ranks.distributed import process_group
from recipes.edge.weights.lora import add_adapters

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


def embeddings(model: FastSlowQwen2VL) -> None:
    """Train the first thing that text meets, and nothing after it."""
    model.requires_grad_(False)
    model.backbone.model.language_model.embed_tokens.requires_grad_(True)


def merger(model: FastSlowQwen2VL) -> None:
    """Train what merges the tower's tokens, and nothing else."""
    model.requires_grad_(False)
    model.backbone.model.visual.merger.requires_grad_(True)


def last_block(model: FastSlowQwen2VL) -> None:
    """Train the end of the tower, behind what deeper mergers read."""
    model.requires_grad_(False)
    model.backbone.model.visual.blocks[-1].requires_grad_(True)


def deeper_mergers(model: FastSlowQwen2VL) -> None:
    """Train what layers behind the first take, where there is such a thing."""
    model.requires_grad_(False)
    visual = model.backbone.model.visual
    for each in getattr(visual, "deepstack_merger_list", ()):
        each.requires_grad_(True)


def adapters(model: FastSlowQwen2VL) -> None:
    """Train adapters and the next-frame head."""
    model.freeze_tower()
    add_adapters(model, rank=2, alpha=2, dropout=0.0)
    model.double()


def answers(model: FastSlowQwen2VL) -> None:
    """Train without the next-frame loss, but the whole tower."""
    model.drop_next_frame()
    model.train_tower()


TRAINED = [
    answers,
    everything,
    nothing,
    embeddings,
    merger,
    deeper_mergers,
    last_block,
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


def any_trains(part: nn.Module) -> bool:
    return any(each.requires_grad for each in part.parameters())


def tower_attention(model: FastSlowQwen2VL, plan: RowPlan) -> int:
    """Count the tower's attention layer by layer, from its blocks."""
    tower = model.backbone.model.visual
    whole, windowed = frames_of(plan, model.family.window)
    pairs = [
        whole
        if number in getattr(tower, "fullatt_block_indexes", [number])
        else windowed
        for number in range(len(tower.blocks))
    ]
    width = tower.blocks[0].attn.qkv.in_features
    embeds = [part for name, part in tower.named_children() if "embed" in name]
    flops, trains = 0, any(map(any_trains, embeds))
    for block, each in zip(tower.blocks, pairs, strict=True):
        trains = trains or any_trains(block.norm1) or any_trains(block.attn.qkv)
        flops += attention_flops(each, num_heads=1, head_dim=width, backward=trains)
        trains = trains or any_trains(block)
    if model.target_tower is not None:
        flops += sum(attention_flops(n, num_heads=1, head_dim=width) for n in pairs)
    return flops


def attention_of(model: FastSlowQwen2VL, plan: RowPlan, queries: list[Tensor]) -> int:
    """Count attention layer by layer, from the configuration and what layers made."""
    text = model.backbone.config.text_config
    assert len(queries) == text.num_hidden_layers
    return tower_attention(model, plan) + sum(
        attention_flops(
            visible_pairs(plan.visible),
            num_heads=text.num_attention_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            backward=query.requires_grad,
        )
        for query in queries
    )


def queries_of(model: FastSlowQwen2VL) -> list[Tensor]:
    """List the queries of each layer as they are made."""
    queries = list[Tensor]()
    for layer in model.backbone.model.language_model.layers:
        layer.self_attn.q_proj.register_forward_hook(
            lambda *call: queries.append(call[2])
        )
    return queries


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
    model = FastSlowQwen2VL(make_family(family)).eval()
    plan = lay(samples, family=model.family)
    choose(model)
    flops, queries = step_flops(model, plan), queries_of(model)
    counts = counted(model, make_patches(plan), plan)
    assert flops.total - attention_of(model, plan, queries) == products(counts)


@pytest.mark.parametrize("family", FAMILIES)
def test_step_flops__matches_pairs(
    family: str,
    make_family: Callable[..., Any],
    lay: Callable[..., RowPlan],
    make_patches: Callable[..., Tensor],
) -> None:
    model, plan = FastSlowQwen2VL(make_family(family)).eval(), lay([SCALED, SAMPLE])
    model.requires_grad_(False)
    visual, patches = model.backbone.model.visual, make_patches(plan)
    visual.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        visual(patches, grid_thw=plan.grid_thw)
    assert step_flops(model, plan).tower == counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choose", TRAINED, ids=lambda choose: choose.__name__)
def test_step_cost__matches_step_flops(
    family: str,
    choose: Callable[[FastSlowQwen2VL], None],
    make_family: Callable[..., Any],
    lay: Callable[..., RowPlan],
) -> None:
    model, plan = (
        FastSlowQwen2VL(make_family(family)).eval(),
        lay([SCALED, SAMPLE], padding=3),
    )
    choose(model)
    flops = step_flops(model, plan)
    cost = sample_cost(
        step_cost(model),
        tokens=sum(count_tokens(sample) for sample in (SCALED, SAMPLE)),
        pairs=visible_pairs(plan.visible),
        patches=int(plan.grid_thw.prod(1).sum()),
    )
    assert cost == flops.total - flops.heads - tower_attention(model, plan)


def test_step_flops__padding_is_free(
    make_model: Callable[..., FastSlowQwen2VL], lay: Callable[..., RowPlan]
) -> None:
    model, samples = make_model(), [SAMPLE, SCALED]
    assert step_flops(model, lay(samples, padding=5)) == step_flops(model, lay(samples))


@pytest.mark.parametrize("family", FAMILIES)
def test_step_flops__additive(
    family: str, make_family: Callable[..., Any], lay: Callable[..., RowPlan]
) -> None:
    model = FastSlowQwen2VL(make_family(family)).eval()
    model.train_tower()
    packed, *parts = (
        step_flops(model, lay(row)) for row in ([SAMPLE, SCALED], [SAMPLE], [SCALED])
    )
    for name in ("tower", "language_model", "heads", "total"):
        assert getattr(packed, name) == sum(getattr(part, name) for part in parts)


def test_a_model_on_the_meta_device_counts_alike(
    make_backbone: Callable[..., Any], lay: Callable[..., RowPlan]
) -> None:
    plan, backbone = lay([SAMPLE]), make_backbone()
    with torch.device("meta"):
        empty = FastSlowQwen2VL(type(backbone)(backbone.config))
    whole = FastSlowQwen2VL(backbone)
    for model in (whole, empty):
        adapters(model)
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
    assert step_flops(empty, plan) == step_flops(whole, plan)


@pytest.mark.parametrize("choose", TRAINED, ids=lambda choose: choose.__name__)
def test_a_sharded_model_counts_alike(
    choose: Callable[[FastSlowQwen2VL], None],
    make_model: Callable[..., FastSlowQwen2VL],
    lay: Callable[..., RowPlan],
) -> None:
    model, plan = make_model(), lay([SAMPLE])
    choose(model)
    whole = step_flops(model, plan)
    with process_group() as alone:
        for module in (*model.backbone.model.language_model.layers, model):
            fully_shard(module, mesh=alone.mesh)
        assert step_flops(model, plan) == whole


def test_what_does_not_train_has_no_backward_pass(
    make_model: Callable[..., FastSlowQwen2VL], lay: Callable[..., RowPlan]
) -> None:
    model, plan = make_model(), lay([SAMPLE])
    model.requires_grad_(False)
    forward = step_flops(model, plan)
    model.next_frame_head.requires_grad_(True)
    flops = step_flops(model, plan)
    assert (flops.tower, flops.language_model) == (
        forward.tower,
        forward.language_model,
    )
    first, last = model.next_frame_head[0], model.next_frame_head[2]
    trained = first.weight.numel() + 2 * last.weight.numel()
    rows = len(plan.next_frame.rows)
    assert flops.heads - forward.heads == 2 * rows * trained
    assert flops.total == flops.tower + flops.language_model + flops.heads
