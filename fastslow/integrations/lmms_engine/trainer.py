"""The trainer: lmms-engine's FSDP2 loop around steps that are counted right."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lmms_engine.models.utils as model_utils  # type: ignore[import-not-found]
import lmms_engine.parallel.process_group_manager as pgm  # type: ignore[import-not-found]
import torch
import torch.distributed as dist
from lmms_engine.train import (  # type: ignore[import-not-found]
    TRAINER_REGISTER,
    FSDP2SFTTrainer,
)
from lmms_engine.utils import TrainUtilities  # type: ignore[import-not-found]
from lmms_engine.utils.fsdp2_utils import (  # type: ignore[import-not-found]
    apply_fsdp2,
    fsdp2_load_full_state_dict,
)
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from fastslow._plans import to_device
from fastslow.diagnostics import copy_skill
from fastslow.integrations.lmms_engine.config import PATCH, TRAINER
from fastslow.integrations.lmms_engine.loading import WatchedLoader
from fastslow.integrations.lmms_engine.patch import Patch
from fastslow.integrations.lmms_engine.rows import RowCollator
from fastslow.losses import next_frame_loss
from fastslow.qwen2_vl import FastSlowQwen2VL, step_flops

TERMS = ("language_loss", "autoregressive_loss", "copy_loss")
"""What is summed over the rows of a step; the first alone without next-frame loss."""


@TRAINER_REGISTER.register(TRAINER)
class FastSlowTrainer(FSDP2SFTTrainer):  # type: ignore[misc]
    """What ``trainer_type: fastslow_fsdp2_trainer`` of lmms-engine stands for.

    Loop, data, schedule, checkpoints and logs are lmms-engine's. The step is not: the
    micro-batches of one optimizer step are run together, so that each loss is divided
    once, by its count over all of them on all ranks. Weights, their gradients and the
    optimizer's state are float32.
    """

    def __init__(self, model: Any, args: Any, **others: Any) -> None:
        """Take over a patched model.

        Raises:
            ValueError: If the model is not patched, has not got a part that is to be
                frozen or sharded, or is of another kind than the processor, none of
                which lmms-engine notices.
        """
        patch: Patch | None = getattr(model, PATCH, None)
        if patch is None:
            raise ValueError(
                f"the model, a {model.config.model_type}, has not got the patch "
                f"{PATCH!r}; lmms-engine's log says why it was skipped"
            )
        check_parts(model, args)
        super().__init__(model, args, **others)
        self.patch = patch
        processor = self.processing_class
        _check_kind(patch.model, processor)
        self.data_collator: Any = RowCollator(
            collate=others["data_collator"],
            family=processor.family,
            video_token_id=processor.video_token_id,
        )
        self.waiting: list[dict[str, Any]] = []
        self.lengths: list[int] = []
        self.flops = 0
        self.skipped_steps = 0
        model_utils.flops_counter = self  # its own knows no qwen2_vl of transformers 5

    def prepare_dataloader(self, dataset: Any, is_training: bool = True) -> Any:
        """Make lmms-engine's loader, and watch its passes.

        Args:
            dataset: What is loaded.
            is_training: Whether workers are seeded for training.

        Returns:
            The loader.
        """
        loader = super().prepare_dataloader(dataset, is_training)
        return WatchedLoader(loader=loader, is_over=self.should_stop)

    def prepare_model(self) -> None:
        """Shard the model: float32 weights, computed in ``bf16`` where that is asked.

        While the tower trains, a frozen copy of it gives the targets of the next-frame
        loss.

        Raises:
            ValueError: If a part of the tower is frozen and another trains.
        """
        whole, sharding = self.patch.model, self.args.fsdp_config or {}
        trained = {
            weight.requires_grad
            for name, weight in self.model.model.visual.named_parameters()
            if "merger" not in name
        }
        if len(trained) > 1:
            raise ValueError(
                "a part of the vision tower is frozen and another trains; freeze all "
                "of model.visual, all but its merger, or nothing"
            )
        if trained == {True}:
            whole.train_tower()
            self.model.target_tower = whole.target_tower
        self.model.float()
        if self.args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        weights = self.model.state_dict()
        apply_fsdp2(
            self.model,
            {
                "reshard_after_forward": sharding.get("reshard_after_forward", True),
                "mp_policy": MixedPrecisionPolicy(
                    param_dtype=torch.bfloat16 if self.args.bf16 else torch.float32,
                    reduce_dtype=getattr(torch, self.args.reduce_dtype),
                    cast_forward_inputs=False,  # it would round the weights of a plan
                ),
                "mesh": pgm.process_group_manager.fsdp_mesh,
            },
            sharding.get("transformer_layer_cls_to_wrap")
            or sorted(self.model._no_split_modules),
        )
        # torch 2.11 gathers no weights again for an output that is a dataclass.
        self.model.set_reshard_after_forward(False, recurse=False)
        fsdp2_load_full_state_dict(self.model, weights)
        self.fsdp2_model = self.model

    def prepare_scheduler(self, num_warmup_steps: int, num_training_steps: int) -> None:
        """Make the schedule of the learning rate, as lmms-engine does.

        Args:
            num_warmup_steps: Steps until the learning rate is reached.
            num_training_steps: All steps.

        Raises:
            ValueError: If a constant rate would never be reached.
        """
        if self.args.lr_scheduler_type == "constant" and num_warmup_steps < 1:
            raise ValueError(
                f"trainer_args.warmup_ratio is {self.args.warmup_ratio} of "
                f"{num_training_steps} steps, which is none; lr_scheduler_type "
                "'constant' would stay at a hundredth of learning_rate"
            )
        super().prepare_scheduler(num_warmup_steps, num_training_steps)

    def training_step(self, batch: dict[str, Any]) -> dict[str, float]:
        """Take an optimizer step with the last of its micro-batches.

        The last step of a pass over data of known length may have fewer of them, as
        lmms-engine's count of the steps has it.

        Args:
            batch: What ``RowCollator`` gives, on this rank's device.

        Returns:
            What is logged of the step; nothing before its last micro-batch.
        """
        self.waiting.append(batch)
        steps = self.args.gradient_accumulation_steps
        if self.train_dataloader.ends_pass:
            steps = len(self.waiting)
        self.accumulated_grad_steps = len(self.waiting) % steps
        self.flops = 0
        if self.accumulated_grad_steps:
            return {}
        rows, self.waiting = self.waiting, []
        return self._take_step(rows)

    def _take_step(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Run the rows of one optimizer step, and update the weights."""
        self.fsdp2_model.train()
        plans = [row["plan"] for row in rows]
        counts = self._sum_over_ranks(
            [
                sum(len(plan.labels.rows) for plan in plans),
                sum(plan.next_frame.num_frames for plan in plans),
            ]
        )
        labels, pairs = counts
        sums = torch.stack([self._backward(row, labels, pairs) for row in rows]).sum(0)
        norm = self._clip_gradients()
        if math.isfinite(norm):
            self.optimizer.step()
            self.ema.update(step=self.global_step + 1)
        else:
            self.skipped_steps += 1
        self.optimizer.zero_grad()
        self.scheduler.step()
        total = self._sum_over_ranks(sums.tolist())
        losses = _mean_losses(total, labels, pairs, self.patch.loss_weight)
        self.flops = sum(step_flops(self.patch.model, plan).total for plan in plans)
        found = losses | {"grad_norm": norm, "skipped_steps": self.skipped_steps}
        found["lr"] = self.scheduler.get_last_lr()[0]
        return {f"train/{name}": value for name, value in found.items()}

    def _backward(self, row: Mapping[str, Any], labels: float, pairs: float) -> Tensor:
        """Add a row's share to the gradients; give the sums of its losses."""
        weight, patches = self.patch.loss_weight, row["patches"]
        output = self.fsdp2_model(patches, to_device(row["plan"], patches.device))
        losses, loss = [output.language_loss], output.language_loss / max(labels, 1)
        if weight:
            ahead, _ = next_frame_loss(output.predictions, output.targets)
            copying, _ = next_frame_loss(output.copies, output.targets)
            losses += [ahead, copying]
            loss = loss + weight * ahead / max(pairs, 1)
        (loss * dist.get_world_size()).backward()  # FSDP divides by the number of ranks
        return torch.stack(losses).detach().double()

    def _clip_gradients(self) -> float:
        """Bound the norm of all gradients, by nothing if by 0; give what it was."""
        norm = torch.nn.utils.clip_grad_norm_(
            self.fsdp2_model.parameters(), self.args.max_grad_norm or math.inf
        )
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def _sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        """Add up numbers of all ranks."""
        device = self.fsdp2_model.device
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def estimate_flops(
        self, lengths: Sequence[int], delta_time: float
    ) -> tuple[float, float, float]:
        """Answer lmms-engine's question after each micro-batch.

        Args:
            lengths: Unused; the plans say more.
            delta_time: Seconds that the micro-batch took.

        Returns:
            TFLOPs a second, those that the device is sold with, and useful FLOPs.
        """
        speed = self.flops / delta_time / 1e12
        return speed, TrainUtilities.get_device_flops(), self.flops

    def calculate_training_metrics(self, **known: Any) -> tuple[dict[str, Any], int]:
        """Count tokens by the optimizer step, not by its last micro-batch."""
        self.lengths += known["seq_len"]
        if self.accumulated_grad_steps:
            return {}, known["total_tokens"]
        known["seq_len"], self.lengths = self.lengths, []
        metrics: tuple[dict[str, Any], int] = (
            FSDP2SFTTrainer.calculate_training_metrics(**known)
        )
        return metrics


def check_parts(model: nn.Module, args: Any) -> None:
    """Refuse names of parts that the model has not got: lmms-engine passes over them.

    Args:
        model: The model.
        args: ``freeze_modules`` names modules, ``fsdp_config`` classes of modules.

    Raises:
        ValueError: If there is none of a name.
    """
    kinds = {type(module).__name__ for module in model.modules()}
    wrapped = (args.fsdp_config or {}).get("transformer_layer_cls_to_wrap") or []
    for where, names, known in (
        ("freeze_modules", args.freeze_modules or (), dict(model.named_modules())),
        (
            "fsdp_config.transformer_layer_cls_to_wrap",
            [wrapped] if isinstance(wrapped, str) else wrapped,
            kinds,
        ),
    ):
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0)
                raise ValueError(
                    f"trainer_args.{where} has {name!r}, which the model has not got; "
                    f"the nearest one is {near[0]!r}"
                )


def _check_kind(model: FastSlowQwen2VL, processor: Any) -> None:
    """Refuse a processor that plans for another kind of model."""
    sizes = model.family.geometry
    geometry = replace(
        processor.family.geometry,
        min_pixels=sizes.min_pixels,
        max_pixels=sizes.max_pixels,
    )
    token = model.backbone.config.video_token_id
    planned = replace(processor.family, geometry=geometry), processor.video_token_id
    if planned != (model.family, token):
        raise ValueError(
            f"processor_name is {processor.config.processor_name!r}, which is of "
            f"another kind than the model, a {model.backbone.config.model_type}"
        )


def _mean_losses(
    total: Sequence[float], labels: float, pairs: float, weight: float
) -> dict[str, float]:
    """Divide each loss by its count.

    A mean over nothing is no number; it adds nothing to the loss that is minimised.
    """
    loss, language = total[0] / max(labels, 1), total[0] / (labels or math.nan)
    if not weight:
        return {"loss": loss, TERMS[0]: language}
    loss += weight * total[1] / max(pairs, 1)
    ahead, copying = (each / (pairs or math.nan) for each in total[1:])
    names = dict(zip(TERMS, (language, ahead, copying), strict=True))
    return {"loss": loss, **names, "skill": copy_skill(ahead, copying)}
