"""The model patch: the backbone's forward pass becomes that of a packed row."""

from dataclasses import dataclass

from lmms_engine.models import MONKEY_PATCHER  # type: ignore[import-not-found]

from fastslow.integrations.lmms_engine.config import PATCH
from fastslow.qwen2_vl import FastSlowQwen2VL
from fastslow.qwen2_vl.families import MODEL_TYPES
from fastslow.qwen2_vl.model import Backbone


@dataclass(frozen=True, kw_only=True)
class Patch:
    """What a patched backbone carries as its attribute ``fastslow``.

    Attributes:
        model: Computes the forward pass; its modules are the backbone's own.
        loss_weight: Weight of the next-frame loss.
    """

    model: FastSlowQwen2VL
    loss_weight: float


def patch_model(model: Backbone, loss_weight: float = 0.15) -> None:
    """Let a backbone run packed rows, and give it the next-frame head.

    The backbone stays the root module, which lmms-engine shards, saves and trains; its
    ``forward`` takes the patches and the plan of a row, see ``FastSlowQwen2VL``.

    Args:
        model: transformers' model; changed.
        loss_weight: Weight of the next-frame loss; 0 turns it off without cost.

    Raises:
        ValueError: If the weight is negative, or as ``FastSlowQwen2VL`` does.
            lmms-engine logs the error and goes on; the trainer then refuses the model.
    """
    if loss_weight < 0:
        raise ValueError(f"loss_weight is {loss_weight}; it must be 0 or more")
    whole = FastSlowQwen2VL(model)
    whole.training = False  # no mode reaches it; the trainer sees to the tower
    if not loss_weight:
        whole.drop_next_frame()
    model.next_frame_head = whole.next_frame_head
    model.fastslow = Patch(model=whole, loss_weight=loss_weight)  # type: ignore[assignment]
    model.forward = whole.forward


for _model_type in MODEL_TYPES:
    MONKEY_PATCHER.register(_model_type, PATCH)(patch_model)
