"""The configuration of a Qwen2-VL that a CPU runs in no time."""

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2VLConfig


def small_config(
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    **others: Any,
) -> Qwen2VLConfig:
    """Configure two layers and two blocks; settings given replace these."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text_config = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision_config = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 2,
    }
    return Qwen2VLConfig(
        text_config=text_config | dict(text or {}),
        vision_config=vision_config | dict(vision or {}),
        **others,
    )
