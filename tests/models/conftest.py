"""Tiny Qwen2-VL models with random weights, and rows for them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from fastslow import LabelPlan, Span, VideoSpan, count_tokens
from fastslow.qwen2_vl import Family, FastSlowQwen2VL, RowPlan, plan_row
from fastslow.qwen2_vl.model import Backbone
from tests.small_models import small_config

VIDEO_TOKEN_ID = 9
PIXELS = 3 * 2 * 2 * 2


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Qwen2VLForConditionalGeneration]:
    """Build a Qwen2-VL in float64 whose every parameter is random."""

    def make(*, layers: int = 2, seed: int = 0) -> Qwen2VLForConditionalGeneration:
        config = small_config(
            {"num_hidden_layers": layers},
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


def _timed(span: Span, family: Family) -> Span:
    """Let a clip that tells no time count frames, as its family would say it."""
    if not isinstance(span, VideoSpan):
        return span
    times = tuple(range(span.schedule.num_frames))
    if family.tokens_per_second is not None:
        return replace(span, times=span.times or times)
    if family.tells_time and not span.between:
        nothing = ((),) * (len(span.schedule.frames) - 1)
        return replace(span, times=(0,) * len(times), between=nothing)
    return span


@pytest.fixture(scope="session")
def lay() -> Callable[..., RowPlan]:
    """Plan a row for these models."""

    def make(
        samples: Sequence[Sequence[Span]], *, padding: int = 0, **settings: Any
    ) -> RowPlan:
        length = sum(map(count_tokens, samples)) + padding
        family = settings.get("family", Family())
        samples = [[_timed(span, family) for span in sample] for sample in samples]
        return plan_row(
            samples, video_token_id=VIDEO_TOKEN_ID, length=length, **settings
        )

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


TINY_TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
    },
    "bos_token_id": None,
    "eos_token_id": None,
}
TINY_TOWER: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 24,
    "patch_size": 2,
}
TINY_IDS = {
    "video_token_id": VIDEO_TOKEN_ID,
    "image_token_id": 8,
    "vision_start_token_id": 7,
    "vision_end_token_id": 6,
}


def _tiny_qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    """Build a Qwen2.5-VL whose tower attends in windows of 2 x 2 merged tokens."""
    tower = {"window_size": 8, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=TINY_TEXT, vision_config=TINY_TOWER | tower, **TINY_IDS
        )
    )


def _tiny_qwen3_vl() -> Qwen3VLForConditionalGeneration:
    """Build a Qwen3-VL whose tower feeds two layers of the language model."""
    rope = TINY_TEXT["rope_parameters"] | {"mrope_interleaved": True}
    text = TINY_TEXT | {"head_dim": 8, "rope_parameters": rope}
    del text["bos_token_id"], text["eos_token_id"]
    tower = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=TINY_TOWER | tower, **TINY_IDS)
    )


@pytest.fixture(scope="session")
def make_family(
    make_backbone: Callable[..., Qwen2VLForConditionalGeneration],
) -> Callable[..., Backbone]:
    """Build a random backbone of a family, in float64, by its model type."""

    def make(model_type: str, *, seed: int = 0) -> Backbone:
        if model_type == "qwen2_vl":
            return make_backbone(seed=seed)
        build = {"qwen2_5_vl": _tiny_qwen2_5_vl, "qwen3_vl": _tiny_qwen3_vl}
        backbone = build[model_type]().double().eval()
        _randomise(backbone, seed)
        return backbone

    return make
