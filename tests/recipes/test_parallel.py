"""What is done to a model before it trains, on one rank."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from fastslow import (
    TextSpan,
    VideoSpan,
    next_frame_loss,
    schedule_from_strides,
)
from fastslow.qwen2_vl import FastSlowQwen2VL, RowPlan, plan_row
from recipes.edge.distributed import World, process_group
from recipes.edge.parallel import Parallel, parallelise

VIDEO_TOKEN_ID = 9


def make_model(layers: int = 2, seed: int = 0) -> FastSlowQwen2VL:
    """Build a tiny model with random weights in float32."""
    torch.manual_seed(seed)
    backbone = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={
                "vocab_size": 40,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": layers,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "initializer_range": 0.2,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "mrope_section": [1, 1, 2],
                },
                "bos_token_id": None,
                "eos_token_id": None,
            },
            vision_config={
                "depth": 2,
                "embed_dim": 16,
                "hidden_size": 32,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 2,
                "initializer_range": 0.2,
            },
            video_token_id=VIDEO_TOKEN_ID,
        )
    )
    return FastSlowQwen2VL(backbone).train()


def make_row() -> tuple[Tensor, RowPlan]:
    clip = VideoSpan(grid=(3, 2), schedule=schedule_from_strides((1, 2, 1)))
    talk = (
        TextSpan(token_ids=(1, 2, 3), trained=False),
        clip,
        TextSpan(token_ids=(6, 10, 11), trained=True),
    )
    plan = plan_row([talk, talk], video_token_id=VIDEO_TOKEN_ID)
    generator = torch.Generator().manual_seed(5)
    count = int(plan.grid_thw.prod(1).sum())
    return torch.randn(count, 24, generator=generator), plan


def loss_of(model: FastSlowQwen2VL, patches: Tensor, plan: RowPlan) -> Tensor:
    output = model(patches, plan)
    ahead, _ = next_frame_loss(output.predictions, output.targets)
    return output.language_loss + ahead


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """This process alone."""
    monkeypatch.delenv("RANK", raising=False)
    with process_group() as alone:
        yield alone


def test_try(world: World) -> None:
    for tower in ("frozen", "trained"):
        for compute in ("float32", "bfloat16"):
            for ac in ("none", "selective", "full"):
                for rank in (0, 4):
                    if rank and tower == "trained":
                        continue
                    model = make_model()
                    parallelise(
                        model,
                        Parallel(
                            compute=compute,
                            activation_checkpointing=ac,
                            tower=tower,
                            lora_rank=rank,
                        ),
                        world,
                    )
                    loss = loss_of(model, *make_row())
                    loss.backward()
                    g = sum(
                        p.grad.full_tensor().double().square().sum()
                        for p in model.parameters()
                        if p.grad is not None
                    )
                    print(
                        tower,
                        compute,
                        ac,
                        rank,
                        loss.item(),
                        g.item(),
                        {p.dtype for p in model.parameters() if p.requires_grad},
                        {p.grad.dtype for p in model.parameters() if p.requires_grad},
                    )
