"""lmms-engine trains on fast/slow frames: importing this registers what that takes.

``python -m fastslow.integrations.lmms_engine config_yaml=FILE`` starts a run;
``docs/lmms_engine.md`` says how its YAML changes.
"""

from fastslow.integrations.lmms_engine.config import (
    PATCH,
    PROCESSOR,
    TRAINER,
    read_config,
)
from fastslow.integrations.lmms_engine.datasets import (
    FastSlowVision,
    FastSlowVisionIterable,
    SampledClip,
    take_over_datasets,
)
from fastslow.integrations.lmms_engine.patch import Patch, patch_model
from fastslow.integrations.lmms_engine.processor import FastSlowProcessor
from fastslow.integrations.lmms_engine.rows import (
    RowCollator,
    spans_from_bytes,
    spans_to_bytes,
)
from fastslow.integrations.lmms_engine.trainer import FastSlowTrainer

__all__ = [
    "PATCH",
    "PROCESSOR",
    "TRAINER",
    "FastSlowProcessor",
    "FastSlowTrainer",
    "FastSlowVision",
    "FastSlowVisionIterable",
    "Patch",
    "RowCollator",
    "SampledClip",
    "patch_model",
    "read_config",
    "spans_from_bytes",
    "spans_to_bytes",
    "take_over_datasets",
]
