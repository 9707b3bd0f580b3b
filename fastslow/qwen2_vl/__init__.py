"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL on fast/slow frames: what imports transformers."""

from fastslow.qwen2_vl.attention import ATTENTION_NAME
from fastslow.qwen2_vl.chat import encode_conversation
from fastslow.qwen2_vl.families import (
    Family,
    family_of,
    frame_times,
    window_order,
)
from fastslow.qwen2_vl.model import FastSlowOutput, FastSlowQwen2VL
from fastslow.qwen2_vl.plan import RowPlan, plan_row
from fastslow.qwen2_vl.preprocess import (
    VisionGeometry,
    clip_grid,
    patchify_clip,
    smart_resize,
)

__all__ = [
    "ATTENTION_NAME",
    "Family",
    "FastSlowOutput",
    "FastSlowQwen2VL",
    "RowPlan",
    "VisionGeometry",
    "clip_grid",
    "encode_conversation",
    "family_of",
    "frame_times",
    "patchify_clip",
    "plan_row",
    "smart_resize",
    "window_order",
]
