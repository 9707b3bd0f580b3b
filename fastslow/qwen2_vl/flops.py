"""The useful FLOPs of a training step, from shapes and a plan's integers alone.

They are what model FLOPs utilisation divides by the wall clock: work that the step
needs, not work that is done again to save memory.
"""

from dataclasses import dataclass
from itertools import chain, repeat
from math import prod
from typing import Any

from torch import nn

from fastslow.accounting import CostModel, attention_flops, visible_pairs
from fastslow.qwen2_vl.model import FastSlowQwen2VL
from fastslow.qwen2_vl.plan import RowPlan


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Useful FLOPs of the forward and the backward pass of one row.

    Attributes:
        tower: The vision tower with its mergers, and its frozen copy where there is
            one.
        language_model: Its layers, without embeddings and without the output layer.
        heads: The output layer and the next-frame head.
    """

    tower: int
    language_model: int
    heads: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.tower + self.language_model + self.heads


def step_flops(model: FastSlowQwen2VL, plan: RowPlan) -> StepFlops:
    """Count the useful FLOPs of the forward and the backward pass of one row.

    A weight takes 2 FLOPs for each row that it meets; in the backward pass 2 more for
    its gradient where it trains, and 2 more for that of its input where something
    before it trains. Attention is counted by its visible pairs, in the tower by those
    of each frame or window. Padding, embeddings, norms, and what activation
    checkpointing computes again are not counted.

    Args:
        model: On any device, meta among them; sharded or not, with adapters or
            without.
        plan: The row's plan, on the CPU.

    Returns:
        The FLOPs of each part.

    Laws:
        matches_torch: products with weights equal torch's own count, forward and
            backward, whatever trains
        matches_pairs: tower attention equals torch's own count of a forward pass
        padding_is_free: a padded row has the FLOPs of its samples: ``step_flops(row +
            padding) == step_flops(row)``
        additive: a pack has the FLOPs of its samples: ``step_flops(a ++ b) ==
            step_flops(a) + step_flops(b)``

    Example:
        >>> import torch
        >>> from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
        >>> config = Qwen2VLConfig(text_config={"num_hidden_layers": 1})
        >>> with torch.device("meta"):
        ...     model = FastSlowQwen2VL(Qwen2VLForConditionalGeneration(config))
        >>> from fastslow import TextSpan
        >>> from fastslow.qwen2_vl import plan_row
        >>> text = TextSpan(token_ids=(1, 2), trained=True)
        >>> step_flops(model, plan_row([[text]], video_token_id=9)).tower
        0
    """
    merge = model.backbone.model.visual.spatial_merge_size
    patches = int(plan.grid_thw.prod(1).sum())
    pairs = _frame_pairs(plan, merge, model.family.window)
    tower, features = _towers(model, patches, *pairs)
    tokens = int((plan.layout.segment_ids >= 0).sum())
    language_model, seen = _language_model(
        model, tokens, visible_pairs(plan.visible), features=features
    )
    output = _weights(model.backbone.lm_head, len(plan.labels.rows), before=seen)
    predicting = len(plan.next_frame.rows) if model.predicts_next_frame else 0
    ahead, _ = _block(model.next_frame_head, rows=predicting, before=seen)
    return StepFlops(tower=tower, language_model=language_model, heads=output + ahead)


def step_cost(model: FastSlowQwen2VL) -> CostModel:
    """Tell what each token, pair and patch adds to a step: ``step_flops`` in short.

    With it the cost of a row is known before the row is planned, and ``deal_rounds``
    can deal rows of like cost. What depends on more than three counts is left out: the
    tower's attention, which the sizes of frames decide, and the heads.

    Args:
        model: As ``step_flops`` takes it.

    Returns:
        FLOPs of the forward and the backward pass for each.

    Laws:
        matches_step_flops: equals ``step_flops`` without what is left out:
            ``sample_cost(step_cost(model), tokens=n, pairs=p, patches=q) ==
            flops.language_model + flops.tower - tower attention``

    Example:
        >>> import torch
        >>> from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
        >>> config = Qwen2VLConfig(text_config={"num_hidden_layers": 1})
        >>> with torch.device("meta"):
        ...     model = FastSlowQwen2VL(Qwen2VLForConditionalGeneration(config))
        >>> cost = step_cost(model)
        >>> cost.per_pair  # of 64 heads of 128 channels, in one layer
        114688
    """
    merged = model.backbone.model.visual.spatial_merge_size**2
    patches, features = _towers(model, merged, 0, 0)
    token, _ = _language_model(model, 1, 0, features=features)
    pair, _ = _language_model(model, 0, 1, features=features)
    return CostModel(per_token=token, per_pair=pair, per_patch=patches // merged)


_STAGES = (
    ("norm", "ln_q", "norm1", "input_layernorm"),
    ("q_proj", "k_proj", "v_proj", "qkv"),
    ("q_norm", "k_norm"),
    ("o_proj", "proj"),
    ("norm2", "post_attention_layernorm"),
    ("gate_proj", "up_proj", "fc1", "linear_fc1", "0"),
    ("down_proj", "fc2", "linear_fc2", "2"),
)
"""What a block of any kind computes, one stage after the other; the modules of a stage
read the same input."""


def _towers(
    model: FastSlowQwen2VL, patches: int, whole: int, windowed: int
) -> tuple[int, list[bool]]:
    """Count the FLOPs of the tower and its copy; tell what has a gradient, as there."""
    flops, features = _tower(model.backbone.model.visual, patches, whole, windowed)
    if model.target_tower is not None:
        flops += _tower(model.target_tower, patches, whole, windowed)[0]
    return flops, features


def _language_model(
    model: FastSlowQwen2VL, tokens: int, pairs: int, *, features: list[bool]
) -> tuple[int, bool]:
    """Count the FLOPs of the layers; tell whether what they give has a gradient.

    Args:
        model: The model.
        tokens: Rows that meet the weights.
        pairs: Pairs that each layer attends over.
        features: Whether those have a gradient that the first layer reads, and those
            that are added behind the first, the second, and so on.
    """
    language, total = model.backbone.model.language_model, 0
    first, *deeper = features
    seen = first or _trains(language.embed_tokens)
    added_behind = chain(deeper, repeat(False))
    for layer, added in zip(language.layers, added_behind, strict=False):
        flops, seen = _block(layer, rows=tokens, pairs=pairs, before=seen)
        seen = seen or added
        total += flops
    return total, seen or _trains(language.norm)


def _tower(
    tower: Any, patches: int, whole: int, windowed: int
) -> tuple[int, list[bool]]:
    """Count a tower's FLOPs; tell which mergers' features have a gradient.

    Args:
        tower: The tower.
        patches: Patches that it embeds.
        whole: Pairs of a layer that attends over whole frames.
        windowed: Pairs of one that attends within windows.
    """
    merge = tower.spatial_merge_size
    flops = _weights(tower.patch_embed, patches, before=False)
    seen = any(
        _trains(part) for name, part in tower.named_children() if "embed" in name
    )
    after = list[bool]()
    for number, block in enumerate(tower.blocks):
        full = number in getattr(tower, "fullatt_block_indexes", (number,))
        pairs = whole if full else windowed
        work, seen = _block(block, rows=patches, pairs=pairs, before=seen)
        flops += work
        after.append(seen)
    mergers = [tower.merger, *getattr(tower, "deepstack_merger_list", ())]
    behind = [-1, *getattr(tower, "deepstack_visual_indexes", ())]
    features = list[bool]()
    for merger, number in zip(mergers, behind, strict=True):
        rows = patches // merge**2
        work, trains = _block(merger, rows=rows, before=after[number])
        flops += work
        features.append(trains)
    return flops, features


def _frame_pairs(plan: RowPlan, merge: int, window: int | None) -> tuple[int, int]:
    """Count the pairs of a tower's layer over whole frames, and within windows."""
    whole = windowed = 0
    for frames, *sides in plan.grid_thw.tolist():
        whole += frames * prod(sides) ** 2
        if window is not None:
            side = window * merge
            windowed += frames * prod(
                each // side * side**2 + (each % side) ** 2 for each in sides
            )
    return whole, windowed


def _block(
    block: nn.Module, *, rows: int, before: bool, pairs: int = 0
) -> tuple[int, bool]:
    """Count a block's FLOPs, stage by stage; tell whether its output has a gradient.

    Args:
        block: A layer, a merger or a head.
        rows: Rows that meet its weights.
        before: Whether its input has a gradient.
        pairs: Pairs that it attends over.
    """
    parts = {name.rpartition(".")[2]: part for name, part in block.named_modules()}
    flops = 0
    for stage in _STAGES:
        present = [parts[name] for name in stage if name in parts]
        if pairs and "o_proj" in stage:
            (output,) = present
            flops += attention_flops(
                pairs, num_heads=1, head_dim=output.in_features, backward=before
            )
        flops += sum(_weights(part, rows, before=before) for part in present)
        before = before or any(map(_trains, present))
    return flops, before


def _weights(part: nn.Module, rows: int, *, before: bool) -> int:
    """Count the FLOPs of the weights of a projection, adapters among them.

    Args:
        part: Holds linear layers, or one convolution that meets each patch once.
        rows: Rows that meet it.
        before: Whether its input has a gradient.
    """
    flops = 0
    for name, layer in part.named_modules():
        if isinstance(layer, nn.Linear):
            size = layer.in_features * layer.out_features
        elif isinstance(layer, nn.Conv3d):
            size = layer.in_channels * layer.out_channels * prod(layer.kernel_size)
        else:
            continue
        has_input_gradient = before or name.startswith("lora_B")  # lora_A trains
        passes = 1 + layer.weight.requires_grad + has_input_gradient
        flops += 2 * rows * size * passes
    return flops


def _trains(part: nn.Module) -> bool:
    """Tell whether any parameter of a module trains."""
    return any(each.requires_grad for each in part.parameters())
