"""What published models look like, for those who have not downloaded them."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, Qwen2VLConfig

from recipes.edge.weights.pretrained import read_config, refuse_missing_folder
from recipes.edge.weights.tiny import VOCABULARY, tiny_config

SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-VL-2B-Instruct": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2-VL-7B-Instruct": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
    },
    "Qwen/Qwen2-VL-72B-Instruct": {
        "hidden_size": 8192,
        "intermediate_size": 29_568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152_064,
    },
}
"""Language models of the published checkpoints, as their config.json gives them. The
tower is the same in all; 2B alone ties its two embeddings."""


def model_config(name_or_path: str | None) -> PreTrainedConfig:
    """Find out what a model looks like, without its weights.

    Args:
        name_or_path: A checkpoint's folder, or its name on the hub, which is asked only
            for names that are not in ``SHAPES``. None is the tiny model.

    Returns:
        Its configuration.

    Raises:
        ValueError: If it is the path of a folder that is not there.
    """
    if name_or_path is None:
        return tiny_config(VOCABULARY)
    if name_or_path not in SHAPES or Path(name_or_path).is_dir():
        refuse_missing_folder(name_or_path)
        return read_config(name_or_path)
    shape = SHAPES[name_or_path]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    return Qwen2VLConfig(
        text_config=shape | {"rope_parameters": rope},
        vision_config={
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": shape["hidden_size"],
            "num_heads": 16,
            "mlp_ratio": 4,
        },
        tie_word_embeddings=shape.get("tie_word_embeddings", False),
        video_token_id=151_656,
    )
