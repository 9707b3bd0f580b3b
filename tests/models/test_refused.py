"""What no model can take is refused in a sentence, where it comes in."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from fastslow import TextSpan, VideoSpan, schedule_from_strides
from fastslow.qwen2_vl import Family, FastSlowQwen2VL, RowPlan, VisionGeometry

MakeModel = Callable[..., FastSlowQwen2VL]
Lay = Callable[..., RowPlan]
MakePatches = Callable[[RowPlan], Tensor]

CLIP = VideoSpan(grid=(2, 3), schedule=schedule_from_strides((1, 2)))
TEXT = TextSpan(token_ids=(20, 21), trained=True)


def test_an_output_layer_with_adapters_is_refused(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    peft = pytest.importorskip("peft")
    model, plan = make_model(), lay([[CLIP, TEXT]])
    adapters = peft.LoraConfig(r=2, target_modules=["lm_head"])
    peft.inject_adapter_in_model(adapters, model.backbone)
    with pytest.raises(ValueError, match=r"^lm_head holds base_layer\.weight, lora_A"):
        model(make_patches(plan), plan)


def test_adapters_that_stand_in_a_tower_before_it_is_wrapped_are_refused(
    make_backbone: Callable[..., Any],
) -> None:
    peft = pytest.importorskip("peft")
    backbone = make_backbone()
    adapters = peft.LoraConfig(r=2, target_modules=["patch_embed.proj"])
    peft.inject_adapter_in_model(adapters, backbone)
    said = (
        "^patch_embed.proj is a .*peft.*; it must be torch's own convolution: adapters"
    )
    with pytest.raises(ValueError, match=said):
        FastSlowQwen2VL(backbone)


def test_a_row_without_a_clip_is_refused_by_name(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    plan = lay([[TEXT]])
    patches = make_patches(plan)
    with pytest.raises(ValueError) as error:
        make_model()(patches, plan)
    assert str(error.value) == (
        "the row holds no clip; the vision tower is called once for every row, and "
        "blank_clip is one for rows of text"
    )


def test_patches_of_other_clips_are_refused(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    plan = lay([[CLIP]])
    patches = make_patches(plan)
    for wrong, found in (
        (patches[:-4], "torch.float64 of shape (44, 24)"),
        (patches[:, :20], "torch.float64 of shape (48, 20)"),
    ):
        with pytest.raises(ValueError) as error:
            make_model()(wrong, plan)
        assert str(error.value) == (
            f"patches is {found}; the plan is for (48, 24), bytes as patchify_clip "
            "gives them or floats as normalize_patches does"
        )


@pytest.mark.parametrize(
    "family",
    [
        Family(window=2),
        Family(table_side=4),
        Family(geometry=VisionGeometry(merge_size=1)),
    ],
)
def test_a_plan_for_another_family_is_refused(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches, family: Family
) -> None:
    plan = lay([[CLIP]], family=family)
    with pytest.raises(ValueError) as error:
        make_model()(make_patches(plan), plan)
    assert str(error.value) == (
        "the plan is for another family of models; plan_row takes family=model.family"
    )
