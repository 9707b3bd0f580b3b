"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL on fast/slow frames: what imports transformers."""

from fastslow.qwen2_vl.attention import ATTENTION_NAME, mask_for_device
from fastslow.qwen2_vl.chat import encode_conversation
from fastslow.qwen2_vl.families import Family, family_of
from fastslow.qwen2_vl.flops import StepFlops, step_cost, step_flops
from fastslow.qwen2_vl.generation import generate_answers
from fastslow.qwen2_vl.model import FastSlowOutput, FastSlowQwen2VL
from fastslow.qwen2_vl.plan import RowPlan, plan_row
from fastslow.qwen2_vl.preprocess import (
    VisionGeometry,
    blank_clip,
    clip_grid,
    normalize_patches,
    patchify_clip,
    smart_resize,
)
from fastslow.qwen2_vl.timing import (
    VIDEO_TOKEN,
    PlacedClip,
    frame_times,
    place_clip,
    place_image,
    timestamp_texts,
)
from fastslow.qwen2_vl.tower import TOWER_ATTENTION_NAME
from fastslow.qwen2_vl.tower_plans import (
    ResampledTowerPlan,
    TowerPlan,
    WindowedTowerPlan,
    plan_tower,
)

__all__ = [
    "ATTENTION_NAME",
    "TOWER_ATTENTION_NAME",
    "VIDEO_TOKEN",
    "Family",
    "FastSlowOutput",
    "FastSlowQwen2VL",
    "PlacedClip",
    "ResampledTowerPlan",
    "RowPlan",
    "StepFlops",
    "TowerPlan",
    "VisionGeometry",
    "WindowedTowerPlan",
    "blank_clip",
    "clip_grid",
    "encode_conversation",
    "family_of",
    "frame_times",
    "generate_answers",
    "mask_for_device",
    "normalize_patches",
    "patchify_clip",
    "place_clip",
    "place_image",
    "plan_row",
    "plan_tower",
    "smart_resize",
    "step_cost",
    "step_flops",
    "timestamp_texts",
]
