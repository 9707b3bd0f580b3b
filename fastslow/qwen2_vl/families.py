"""What differs between Qwen2-VL, Qwen2.5-VL and Qwen3-VL, said in one place."""

from dataclasses import dataclass, field, replace
from math import isqrt

from transformers import PreTrainedConfig

from fastslow.qwen2_vl.preprocess import VisionGeometry


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a backbone cuts and orders its patches, and how it tells the time.

    Attributes:
        geometry: How pixels become patches.
        window: Side of the windows that the tower attends in, in merged tokens; its
            hidden states come window by window. None: they come in raster order.
        table_side: Side of the square table of positions that the tower learnt, which
            is resampled to each frame; None: it computes them.
        tokens_per_second: Positions in time of one second of video; None counts frames.
        tells_time: Whether text before each frame says when it was taken.
    """

    geometry: VisionGeometry = field(default_factory=VisionGeometry)
    window: int | None = None
    table_side: int | None = None
    tokens_per_second: int | None = None
    tells_time: bool = False


def family_of(config: PreTrainedConfig) -> Family:
    """Read from a backbone's configuration what differs between families.

    A resized frame has 128 to 768 merged tokens, whatever the size of a patch.

    Args:
        config: Configuration of the whole backbone.

    Returns:
        The family.

    Raises:
        ValueError: If the model's type is none of those supported.

    Laws:
        known: the three types are told apart

    Example:
        >>> from transformers import Qwen2VLConfig
        >>> family_of(Qwen2VLConfig()) == Family()
        True
    """
    if config.model_type not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise ValueError(
            f"model_type is {config.model_type!r}; it must be one of {known}"
        )
    return _FAMILIES[config.model_type](config.vision_config)


def _geometry(vision: PreTrainedConfig) -> VisionGeometry:
    """Read the sizes of patches and tokens."""
    token = (vision.patch_size * vision.spatial_merge_size) ** 2
    return VisionGeometry(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        min_pixels=128 * token,
        max_pixels=768 * token,
    )


def _qwen2_vl(vision: PreTrainedConfig) -> Family:
    """Count frames."""
    return Family(geometry=_geometry(vision))


def _qwen2_5_vl(vision: PreTrainedConfig) -> Family:
    """Attend in windows, and place frames by seconds."""
    geometry = _geometry(vision)
    return Family(
        geometry=geometry,
        window=vision.window_size // geometry.merge_size // geometry.patch_size,
        tokens_per_second=vision.tokens_per_second,
    )


def _qwen3_vl(vision: PreTrainedConfig) -> Family:
    """Tell times as text, scale colours to -1 to 1, and learn positions."""
    half = (0.5, 0.5, 0.5)
    return Family(
        geometry=replace(_geometry(vision), mean=half, std=half),
        table_side=isqrt(vision.num_position_embeddings),
        tells_time=True,
    )


_FAMILIES = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
"""What reads the configuration of each type of model."""

MODEL_TYPES = tuple(_FAMILIES)
"""Types of models that are supported, as transformers names them."""
