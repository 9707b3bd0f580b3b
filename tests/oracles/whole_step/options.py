"""What the reference has to know of a setting, by the names that the library uses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Window:
    """How far back a token sees, and what it sees beyond that."""

    frames: int
    keep_text: str
    keep_slow: bool


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a recipe, then arguments that only the library has."""

    strategy: tuple[str, Mapping[str, Any]]
    slow_frame_ratio: float
    mm_spatial_pool_stride: int
    mm_spatial_pool_mode: str
    fast_scale: int
    max_frames_num: int
    video_fps: float
    add_time_instruction: bool
    min_pixels: int
    max_pixels: int
    attention: str
    loss_weight: float
    next_frame_distance: str

    window: Window | None = None
    after_video_rule: str = "all_axes"
    pairing: str = "source_grid"
    reduction: str = "frame"
    normalize_targets: bool = False
    change_weights: bool = False
