"""The backbone as one root module: tower, pooling, language model and heads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass
from transformers import (
    Cache,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from fastslow._shapes import check_type
from fastslow.cross_entropy import labelled_cross_entropy
from fastslow.pooling import pool_tokens
from fastslow.qwen2_vl.attention import (
    ATTENTION_NAME,
    last_hidden_states,
    mask_for_device,
)
from fastslow.qwen2_vl.deepstack import prepare_deepstack
from fastslow.qwen2_vl.families import Family, family_of
from fastslow.qwen2_vl.frequencies import keep_frequencies
from fastslow.qwen2_vl.plan import RowPlan
from fastslow.qwen2_vl.target_tower import (
    copy_tower,
    refuse_moving_targets,
    reset_copy,
)
from fastslow.qwen2_vl.tower import prepare_tower
from fastslow.qwen2_vl.tower_plans import ResampledTowerPlan, WindowedTowerPlan
from fastslow.ragged import Ragged

Backbone = (
    Qwen2VLForConditionalGeneration
    | Qwen2_5_VLForConditionalGeneration
    | Qwen3VLForConditionalGeneration
)
"""transformers' models that are supported."""

ROWS_AT_ONCE = 512
"""Rows whose scores of all words are held together."""


@dataclass(frozen=True, kw_only=True)
class FastSlowOutput:
    """The losses' terms, and nothing of the size of the whole row's vocabulary.

    Attributes:
        language_loss: Cross entropy summed over the rows of the plan's ``labels``.
        logits: What was read of the next token's scores at those rows, if asked for.
        predictions: Predicted features of the next frame, at the rows of the plan's
            ``next_frame``.
        targets: What the tower saw in the next frame, ragged by frame.
        copies: What it saw in the frame itself: the prediction of a copier.
    """

    language_loss: Float[Tensor, ""]
    logits: Shaped[Tensor, " labelled *read"] | None
    predictions: Float[Tensor, "tokens features"]
    targets: Ragged
    copies: Float[Tensor, "tokens features"]


register_dataclass(FastSlowOutput)  # where FSDP2 looks for tensors before torch 2.13


class FastSlowQwen2VL(nn.Module):
    """The whole training step's forward pass in one module.

    FSDP2 gathers parameters around the root's ``forward``, so tower, pooling, language
    model and heads are called inside it. The tower is called once, and so is the
    frozen copy that gives the targets while the tower trains. What the tower hands to
    deeper layers of the language model (DeepStack) is pooled like its output.

    Attributes:
        backbone: transformers' own model; its language model attends under the
            layout's mask.
        next_frame_head: From the language model's last hidden states, token by token,
            to the tower's features: two linear layers with a GELU between them, the
            first as wide as the language model.
        target_tower: The frozen copy, see ``train_tower``; None while the tower itself
            is the target.
        predicts_next_frame: Whether the head is computed, see ``drop_next_frame``.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Wrap ``backbone`` and add a freshly initialised next-frame head.

        ``peft.inject_adapter_in_model`` puts adapters into ``self.backbone`` later.

        Raises:
            ValueError: If its type is not supported, its language model attends in
                sliding windows, which a layout's mask would overrule, or a cast has
                rounded its rotary frequencies.
        """
        super().__init__()
        wanted = (
            "transformers' own Qwen2-VL, Qwen2.5-VL or Qwen3-VL, into which adapters "
            "are put once it is wrapped"
        )
        check_type("backbone", backbone, Backbone, wanted)
        self.family: Family = family_of(backbone.config)
        window = getattr(backbone.config.text_config, "sliding_window", None)
        if window is not None:
            raise ValueError(
                f"sliding_window is {window}; a layout's mask says what is visible"
            )
        backbone.set_attn_implementation({"text_config": ATTENTION_NAME})
        prepare_tower(backbone.model.visual, self.family.geometry)
        prepare_deepstack(backbone.model.language_model)
        keep_frequencies(backbone)
        hidden = backbone.model.language_model.config.hidden_size
        features = backbone.model.visual.patch_embed.embed_dim
        self.backbone = backbone
        like: dict[str, Any] = {"dtype": backbone.dtype, "device": backbone.device}
        self.next_frame_head: nn.Module = nn.Sequential(
            nn.Linear(hidden, hidden, **like),
            nn.GELU(),
            nn.Linear(hidden, features, **like),
        )
        self.target_tower: nn.Module | None = None
        self.predicts_next_frame: bool = True

    def drop_next_frame(self) -> None:
        """Train without the next-frame loss, at no cost.

        The head stays as it is, is not computed and has no gradient; nothing is taken
        as a target, and no copy of the tower is kept or made.
        """
        self.predicts_next_frame = False
        self.target_tower = None
        self.next_frame_head.requires_grad_(False)

    def freeze_tower(self) -> None:
        """Stop training the vision blocks; the mergers that follow them are trained.

        The features that the next-frame loss predicts then stay what they are.
        """
        self.target_tower = None
        self.backbone.model.visual.requires_grad_(False)
        for name, part in self.backbone.model.visual.named_children():
            part.requires_grad_("merger" in name)

    def train_tower(self) -> None:
        """Train the whole tower, and let a frozen copy of it give the targets.

        Features that move with the tower would be targets that the tower can make
        easy. The copy keeps the weights of this moment; it has no mergers, whose output
        no target needs. Call this before the model is compiled or sharded. Weights
        that are loaded afterwards reach the copy through ``reset_target_tower``.
        """
        tower = self.backbone.model.visual.requires_grad_(True)
        if self.predicts_next_frame:
            self.target_tower = copy_tower(tower)

    def reset_target_tower(self) -> None:
        """Give the frozen copy the weights that the tower has now, sharded or not.

        Raises:
            ValueError: If there is no copy, or adapters have been put into the tower,
                which the copy has no place for.
        """
        if self.target_tower is None:
            raise ValueError("target_tower is None; train_tower makes it")
        reset_copy(self.target_tower, self.backbone.model.visual)

    def forward(
        self,
        patches: UInt8[Tensor, "patches pixels"] | Float[Tensor, "patches pixels"],
        plan: RowPlan,
        *,
        read_logits: Callable[[Tensor], Tensor] | None = None,
    ) -> FastSlowOutput:
        """Run one packed row.

        Args:
            patches: The patches of the row's clips in order, as ``patchify_clip`` gives
                them, or as ``normalize_patches`` does: floats count as normalised, so
                bytes must stay bytes on their way.
            plan: The row's plan, on the same device.
            read_logits: Gives what is wanted of the scores of some labelled rows, such
                as their ``argmax(-1)``; ``nn.Identity()`` wants all. It is called for
                some rows at a time, so that the scores of all need not fit in memory.

        Returns:
            The losses' terms; targets and copies carry no gradient. Without the
            next-frame loss there are no predictions, targets or copies.

        Raises:
            ValueError: If the row holds no clip, or its clips have other patches. Under
                FSDP2 every rank has to call the tower equally often, so a row of text
                alone takes a clip without labels. If the plan is for another family of
                models, the output layer is more than a weight, or the tower trains and
                is its own target.
        """
        head = self.backbone.lm_head
        held = [name for name, _ in head.named_parameters()]
        if held != ["weight"]:
            raise ValueError(
                f"lm_head holds {', '.join(held)}; it must hold its weight alone, "
                "since the loss reads nothing else"
            )
        vision = self._see(patches, plan)
        hidden = self._read(vision, plan)
        language_loss, _ = labelled_cross_entropy(hidden, head.weight, plan.labels)
        logits = None
        if read_logits is not None:
            labelled = hidden.index_select(0, plan.labels.rows).split(ROWS_AT_ONCE)
            logits = torch.cat([read_logits(head(rows)) for rows in labelled])
        predictions, targets, copies = self._look_ahead(
            hidden, vision.last_hidden_state.detach(), patches, plan
        )
        return FastSlowOutput(
            language_loss=language_loss,
            logits=logits,
            predictions=predictions,
            targets=targets,
            copies=copies,
        )

    def read_prompts(
        self,
        patches: UInt8[Tensor, "patches pixels"] | Float[Tensor, "patches pixels"],
        plan: RowPlan,
        cache: Cache,
    ) -> Float[Tensor, "tokens hidden"]:
        """Read a packed row as in training, and keep keys and values.

        Args:
            patches: As ``forward`` takes them.
            plan: The row's plan, on the same device.
            cache: An empty cache; keys and values of all tokens are put there.

        Returns:
            The language model's last hidden states.

        Raises:
            ValueError: As ``forward`` does.
        """
        return self._read(self._see(patches, plan), plan, cache)

    def _see(self, patches: Tensor, plan: RowPlan) -> Any:
        """Let the tower see the row's clips, once."""
        check_type("plan", plan, RowPlan, "a RowPlan, as plan_row gives")
        if not plan.layout.clips:
            raise ValueError(
                "the row holds no clip; the vision tower is called once for every row, "
                "and blank_clip is one for rows of text"
            )
        geometry, expected = self.family.geometry, len(plan.tower.position_ids)
        merged = expected == len(plan.pool.cell_starts) * geometry.merge_size**2
        in_windows = isinstance(plan.tower, WindowedTowerPlan)
        by_table = isinstance(plan.tower, ResampledTowerPlan)
        if (
            not merged
            or in_windows != (self.family.window is not None)
            or by_table != (self.family.table_side is not None)
        ):
            raise ValueError(
                "the plan is for another family of models; plan_row takes "
                "family=model.family"
            )
        is_known = patches.dtype == torch.uint8 or patches.is_floating_point()
        if patches.shape != (expected, geometry.patch_pixels) or not is_known:
            raise ValueError(
                f"patches is {patches.dtype} of shape {tuple(patches.shape)}; the plan "
                f"is for ({expected}, {geometry.patch_pixels}), bytes as patchify_clip "
                "gives them or floats as normalize_patches does"
            )
        visual = self.backbone.model.visual
        return visual(patches, grid_thw=plan.grid_thw, **vars(plan.tower))

    def _look_ahead(
        self, hidden: Tensor, seen: Tensor, patches: Tensor, plan: RowPlan
    ) -> tuple[Tensor, Ragged, Tensor]:
        """Predict what the tower sees in the next frames.

        Args:
            hidden: The language model's last hidden states.
            seen: What the tower saw, without gradient.
            patches: The patches of the row's clips.
            plan: The row's plan.

        Returns:
            Predictions, targets and copies.
        """
        if not self.predicts_next_frame:
            nothing = seen[:0]
            cu_seqlens = plan.next_frame.targets.cu_seqlens[:1]
            return nothing, Ragged(values=nothing, cu_seqlens=cu_seqlens), nothing
        if self.target_tower is not None:
            with torch.no_grad():
                target = self.target_tower(
                    patches, grid_thw=plan.grid_thw, **vars(plan.tower)
                )
            seen = target.last_hidden_state
        elif self.training and torch.is_grad_enabled():
            refuse_moving_targets(self.backbone.model.visual)
        merged = seen.unflatten(0, (-1, self.family.geometry.merge_size**2)).mean(1)
        if isinstance(plan.tower, WindowedTowerPlan):
            order = plan.tower.window_index
            merged = torch.empty_like(merged).index_copy_(0, order, merged)
        predicted = self.next_frame_head(hidden.index_select(0, plan.next_frame.rows))
        return (
            pool_tokens(predicted, plan.next_frame.predictions).values,
            pool_tokens(merged, plan.next_frame.targets),
            pool_tokens(merged, plan.next_frame.copies).values,
        )

    def _read(self, vision: Any, plan: RowPlan, cache: Cache | None = None) -> Tensor:
        """Let the language model read the row; give its last hidden states.

        Args:
            vision: What the tower returned.
            plan: The row's plan.
            cache: Takes keys and values.
        """
        model = self.backbone.model.language_model
        text = model.embed_tokens(plan.layout.input_ids)
        first, *deeper = (
            pool_tokens(features, plan.pool).values.to(text)
            for features in (
                vision.pooler_output,
                *getattr(vision, "deepstack_features", ()),
            )
        )
        deepstack = {
            "visual_pos_masks": plan.video_rows,  # prepare_deepstack takes rows
            "deepstack_visual_embeds": deeper,
        }
        return last_hidden_states(
            model,
            text.index_copy(0, plan.video_rows, first)[None],
            plan.layout.position_ids[:, None],
            mask_for_device(plan.visible),
            cache,
            **(deepstack if deeper else {}),
        )[0]
