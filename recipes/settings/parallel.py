"""Precision, memory and parallelism of a run: what a model is prepared by."""

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch

from recipes.settings.values import check_bounds

ActivationCheckpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How a model is computed, kept in memory and spread over ranks.

    Trained parameters, gradients and the optimizer's state are float32, and gradients
    are averaged over ranks in float32, whatever computes. Parameters that do not train
    are stored in the dtype that computes.
    """

    compute: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of forward and backward pass."""
    activation_checkpointing: ActivationCheckpointing = "none"
    """What the backward pass recomputes. Under ``selective`` all but attention and
    matrix products, so nothing that is expensive; under ``full`` whole blocks of tower
    and language model, so that only their inputs are kept."""
    torch_compile: bool = False
    """Whether blocks of tower and language model are compiled, each by itself."""
    cpu_offload: bool = False
    """Whether parameters, gradients and the optimizer's state live in host memory."""
    replicate: int = 1
    """Copies of the sharded model. Each is spread over ``world size / replicate``
    consecutive ranks; choose the number of nodes to keep the gathering of parameters
    inside them."""
    tower: Literal["frozen", "trained"] = "frozen"
    """Whether the vision blocks train; without adapters the merger behind them always
    does. If they train, a frozen copy gives the targets of the next-frame loss, at the
    price of one more forward pass of the tower."""
    lora_rank: int = 0
    """Rank of the adapters in the language model; with adapters only they and the
    next-frame head train. 0 trains the weights themselves."""
    lora_alpha: int = 16
    """Adapters are scaled by ``lora_alpha / lora_rank``."""
    lora_dropout: float = 0.0
    """Share of an adapter's inputs that is dropped in training."""

    def __post_init__(self) -> None:
        """Check what can be checked before there is a model."""
        check_bounds(self, BOUNDS)
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_dropout is {self.lora_dropout}; it must lie between 0 and 1, "
                "without 1"
            )
        if self.lora_rank and self.tower == "trained":
            raise ValueError(
                f"lora_rank is {self.lora_rank} but tower is trained; with adapters "
                "the tower is frozen"
            )

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of forward and backward pass, as torch knows it."""
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[self.compute]


BOUNDS = {"replicate": (1, inf), "lora_rank": (0, inf), "lora_alpha": (1, inf)}
"""Least and greatest value of each number."""
