"""Rare rows, frozen towers, copies and settings of the forward pass."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastslow import IGNORED_LABEL, VideoSpan, next_frame_loss, schedule_from_strides
from fastslow.qwen2_vl import FastSlowQwen2VL, RowPlan
from tests.models.samples import (
    MIXED,
    STILL,
    TALK,
    UNTRAINED,
    Lay,
    MakeBackbone,
    MakeModel,
    MakePatches,
    ReadEveryRow,
    assert_all_near,
    assert_near,
    step_sums,
)


def test_a_clip_of_one_frame_predicts_nothing(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    model, plan = make_model(), lay([STILL])
    output = model(make_patches(plan), plan)
    assert output.predictions.shape == output.copies.shape == (0, 16)
    following, frames = next_frame_loss(output.predictions, output.targets)
    assert following == 0
    assert frames == 0
    (output.language_loss + following).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        head = name.startswith("next_frame_head")
        assert parameter.grad.any() == (not head), name


def test_an_output_is_a_tree_of_its_tensors(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    """FSDP2 of torch before 2.13 finds nowhere else what a backward pass begins at."""
    model, plan = make_model(), lay(MIXED)
    output = model(make_patches(plan), plan, read_logits=torch.nn.Identity())
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    expected = [output.language_loss, output.logits, output.predictions, output.copies]
    assert [id(leaf) for leaf in leaves] == [id(tensor) for tensor in expected]


def test_a_row_without_trained_text_still_predicts_frames(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    model, plan = make_model(), lay([UNTRAINED])
    language, tokens, following, frames = step_sums(model, make_patches(plan), plan)
    assert (language, tokens, frames) == (0, 0, 2)
    (language + following).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_freeze_tower_trains_all_but_the_vision_blocks(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    free, frozen = make_model(), make_model()
    frozen.freeze_tower()
    tower = "backbone.model.visual."
    fixed = {
        name
        for name, _ in free.named_parameters()
        if name.startswith((tower + "patch_embed", tower + "blocks"))
    }
    assert len(fixed) == 25
    trained = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in free.named_parameters()} - fixed

    plan = lay(MIXED)
    patches = make_patches(plan)
    for model in (free, frozen):
        language, _, following, _ = step_sums(model, patches, plan)
        (language + following).backward()
    expected = dict(free.named_parameters())
    for name, parameter in frozen.named_parameters():
        if name in fixed:
            assert parameter.grad is None
        else:
            assert_near(parameter.grad, expected[name].grad)


def test_training_keeps_no_cache(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    model, plan = make_model(), lay([TALK])
    outputs = list[str]()
    model.backbone.model.language_model.register_forward_hook(
        lambda module, arguments, output: outputs.extend(output.keys())
    )
    model.freeze_tower()
    model.train()(make_patches(plan), plan)
    assert outputs == ["last_hidden_state"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_models_take_the_patches_of_the_preprocessor(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches, dtype: torch.dtype
) -> None:
    wide, plan = make_model(), lay(MIXED)
    patches = make_patches(plan).float()
    narrow = make_model().to(dtype)
    output, expected = (
        model(patches, plan, read_logits=torch.nn.Identity())
        for model in (narrow, wide)
    )
    assert output.logits.dtype == output.targets.values.dtype == dtype
    tolerance = 1e-3 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(
        output.logits.double(), expected.logits, rtol=tolerance, atol=tolerance
    )
    loss, _ = next_frame_loss(output.predictions, output.targets)
    assert loss.dtype == torch.float32
    assert output.language_loss.dtype == torch.float32
    (output.language_loss + loss).backward()
    assert all(p.grad.isfinite().all() for p in narrow.parameters())


def step_gradients(
    model: FastSlowQwen2VL, patches: Tensor, plan: RowPlan
) -> dict[str, Tensor | None]:
    """Train tower and language model on a row; give the gradients by name."""
    model.train().train_tower()
    language, _, following, _ = step_sums(model, patches, plan)
    (language + following).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing_changes_nothing(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    plan = lay(MIXED)
    patches = make_patches(plan)
    model = make_model()
    model.backbone.gradient_checkpointing_enable()
    found = step_gradients(model, patches, plan)
    assert_all_near(found, step_gradients(make_model(), patches, plan))


def test_what_a_step_saves_may_be_kept_elsewhere(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    """Trainers that offload activations set hooks around both passes."""
    plan = lay(MIXED)
    patches = make_patches(plan)
    with torch.autograd.graph.save_on_cpu():
        found = step_gradients(make_model(), patches, plan)
    assert_all_near(found, step_gradients(make_model(), patches, plan))


def test_scores_are_read_some_rows_at_a_time(
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, plan = make_model(), lay(MIXED)
    patches, labelled = make_patches(plan), len(plan.labels.rows)
    whole = model(patches, plan, read_logits=torch.nn.Identity()).logits
    assert whole.shape == (labelled, 40)
    monkeypatch.setattr("fastslow.qwen2_vl.model.ROWS_AT_ONCE", 2)
    seen = list[int]()

    def best(scores: Tensor) -> Tensor:
        seen.append(len(scores))
        return scores.argmax(-1)

    chosen = model(patches, plan, read_logits=best).logits
    assert torch.equal(chosen, whole.argmax(-1))
    assert sum(seen) == labelled > max(seen) == 2


def test_only_labelled_rows_meet_the_vocabulary(
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    read_every_row: ReadEveryRow,
) -> None:
    model, plan = make_model(), lay(MIXED, padding=14)
    patches = make_patches(plan)
    labels, segments = plan.layout.labels, plan.layout.segment_ids
    rows = [
        row
        for row in range(len(labels) - 1)
        if labels[row + 1] != IGNORED_LABEL and segments[row] == segments[row + 1]
    ]
    assert 0 < len(rows) < (labels != IGNORED_LABEL).sum()
    output = model(patches, plan, read_logits=torch.nn.Identity())
    every = model(patches, read_every_row(plan), read_logits=torch.nn.Identity()).logits
    assert_near(output.logits, every[rows])
    expected = F.cross_entropy(output.logits, plan.labels.targets, reduction="sum")
    assert_near(output.language_loss, expected)
    assert model(patches, plan).logits is None
    assert torch.equal(plan.labels.targets, labels[[row + 1 for row in rows]])


def saved_and_loaded(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy, saved_and_loaded],
)
def test_a_copy_computes_the_same_with_weights_of_its_own(
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    copied: Callable[[Any], Any],
) -> None:
    model, plan = make_model(), lay(MIXED)
    model.train_tower()
    other, patches = copied(model), make_patches(plan)
    expected = model(patches, plan)
    output = other(patches, plan)
    assert torch.equal(output.language_loss, expected.language_loss)
    assert torch.equal(output.predictions, expected.predictions)
    assert torch.equal(output.targets.values, expected.targets.values)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert torch.equal(model(patches, plan).predictions, expected.predictions)
    for embedding in (other.backbone.model.visual, other.target_tower):
        assert not embedding.patch_embed(patches).any()


def test_what_stands_in_the_patch_embedding_is_what_embeds(
    make_model: MakeModel,
    make_backbone: MakeBackbone,
    lay: Lay,
    make_patches: MakePatches,
) -> None:
    peft = pytest.importorskip("peft")
    plan = lay([[VideoSpan(grid=(2, 3), schedule=schedule_from_strides((1, 2)))]])
    patches = make_patches(plan)
    features = []
    for backbone in (make_model().backbone, make_backbone()):
        visual = backbone.model.visual
        settings = peft.LoraConfig(r=2, target_modules=["patch_embed.proj"])
        peft.inject_adapter_in_model(settings, visual)
        generator = torch.Generator().manual_seed(0)
        for name, weight in visual.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(weight, generator=generator)
        features.append(visual.patch_embed(patches))
    assert_near(*features)
