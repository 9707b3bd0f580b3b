"""Tiny Qwen2-VL models with random weights, and rows for them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from fastslow import LabelPlan, Span
from fastslow.qwen2_vl import FastSlowQwen2VL, RowPlan, plan_row

VIDEO_TOKEN_ID = 9
PIXELS = 3 * 2 * 2 * 2


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Qwen2VLForConditionalGeneration]:
    """Build a Qwen2-VL in float64 whose every parameter is random."""

    def make(*, layers: int = 2, seed: int = 0) -> Qwen2VLForConditionalGeneration:
        config = Qwen2VLConfig(
            text_config={
                "vocab_size": 40,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": layers,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
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
            },
            video_token_id=VIDEO_TOKEN_ID,
            image_token_id=8,
            vision_start_token_id=7,
            vision_end_token_id=6,
        )
        backbone = Qwen2VLForConditionalGeneration(config).double().eval()
        _randomise(backbone, seed)
        return backbone

    return make


@pytest.fixture(scope="session")
def make_model(
    make_backbone: Callable[..., Qwen2VLForConditionalGeneration],
) -> Callable[..., FastSlowQwen2VL]:
    """Wrap such a backbone; its weights are those of the same seed."""

    def make(*, layers: int = 2, seed: int = 0) -> FastSlowQwen2VL:
        model = FastSlowQwen2VL(make_backbone(layers=layers, seed=seed)).eval()
        _randomise(model.next_frame_head, seed + 1)
        return model

    return make


def _randomise(module: torch.nn.Module, seed: int) -> None:
    """Set weights and biases to small noise, the scales of norms to noise around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(0.2 * noise + int(scale))


@pytest.fixture(scope="session")
def lay() -> Callable[..., RowPlan]:
    """Plan a row for these models."""

    def make(samples: Sequence[Sequence[Span]], **settings: Any) -> RowPlan:
        return plan_row(samples, video_token_id=VIDEO_TOKEN_ID, **settings)

    return make


@pytest.fixture(scope="session")
def make_patches() -> Callable[..., Tensor]:
    """Draw random patches for the clips of a plan."""

    def make(plan: RowPlan, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        count = int(plan.grid_thw.prod(1).sum())
        return torch.randn(count, PIXELS, generator=generator, dtype=torch.float64)

    return make


@pytest.fixture(scope="session")
def read_every_row() -> Callable[[RowPlan], RowPlan]:
    """Let a plan ask for the logits of every token, not of the labelled ones alone."""

    def change(plan: RowPlan) -> RowPlan:
        ids = plan.layout.input_ids
        labels = LabelPlan(rows=torch.arange(len(ids)), targets=ids)
        return replace(plan, labels=labels)

    return change
