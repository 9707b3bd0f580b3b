"""Configurations of models that a CPU runs in no time."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, Qwen2VLConfig


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


def family_config(model_type: str, vocabulary_size: int) -> Any:
    """Configure a Qwen2.5-VL or a Qwen3-VL of two layers, and two of its tower."""
    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": model_type == "qwen3_vl",
        },
    }
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 48,
    }
    own = {
        "qwen2_5_vl": {"window_size": 56, "fullatt_block_indexes": [1]},
        "qwen3_vl": {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    }
    vision = tower | own[model_type]
    return AutoConfig.for_model(model_type, text_config=text, vision_config=vision)
