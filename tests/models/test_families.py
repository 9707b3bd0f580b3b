"""What holds for every family of backbones, on transformers' own classes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from fastslow import (
    IGNORED_LABEL,
    Grid,
    Span,
    TextSpan,
    VideoSpan,
    next_frame_loss,
    schedule_from_strides,
)
from fastslow.qwen2_vl import (
    Family,
    FastSlowQwen2VL,
    RowPlan,
    VisionGeometry,
    family_of,
    frame_times,
)
from fastslow.qwen2_vl.model import Backbone
from fastslow.testing import strategies as fst
from tests.models.samples import assert_near, unpooled

VIDEO_TOKEN_ID = 9
TOKENS_PER_SECOND = 2

timed = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="transformers 5.17 cuts the time between frames to whole seconds",
)

MakeFamily = Callable[..., Backbone]
Lay = Callable[..., RowPlan]
MakePatches = Callable[..., Tensor]
Sample = Sequence[Span]


def text(*token_ids: int, trained: bool = False) -> TextSpan:
    return TextSpan(token_ids=token_ids, trained=trained)


def clip(grid: Grid, strides: Sequence[int], seconds: float = 1.0) -> VideoSpan:
    times = frame_times(
        len(strides), seconds_per_frame=seconds, tokens_per_second=TOKENS_PER_SECOND
    )
    schedule = schedule_from_strides(strides)
    return VideoSpan(grid=grid, schedule=schedule, times=times)


TALK = (
    text(1, 2, 3, 7),
    clip((3, 5), (1, 2, 1), 0.75),
    text(6, 10, 11),
    text(12, 13, 14, trained=True),
    text(15),
)
TWO_CLIPS = (
    clip((2, 4), (2, 1), 1.5),
    text(6, 25),
    clip((3, 3), (1, 1, 2, 2), 0.4),
    text(26, 27, 28, trained=True),
    text(29),
)
SECONDS = {TALK: [0.75], TWO_CLIPS: [1.5, 0.4]}


def inputs_of(plan: RowPlan, patches: Tensor, seconds: list[float]) -> dict[str, Any]:
    """Give an unpooled row of one sample as transformers takes it."""
    ids = plan.layout.input_ids
    return {
        "input_ids": ids[None],
        "mm_token_type_ids": 2 * (ids == VIDEO_TOKEN_ID).int()[None],
        "pixel_values_videos": patches,
        "video_grid_thw": plan.grid_thw,
        "second_per_grid_ts": torch.tensor(seconds),
        "use_cache": False,
    }


def total_loss(model: FastSlowQwen2VL, patches: Tensor, plan: RowPlan) -> Tensor:
    """Add the mean losses of a row."""
    output = model(patches, plan)
    total, count = next_frame_loss(output.predictions, output.targets)
    return output.language_loss / len(plan.labels.targets) + total / count


# What differs


QWEN3_GEOMETRY = VisionGeometry(
    patch_size=16,
    min_pixels=128 * 32 * 32,
    max_pixels=768 * 32 * 32,
    mean=tuple(IMAGENET_STANDARD_MEAN),
    std=tuple(IMAGENET_STANDARD_STD),
)


@pytest.mark.parametrize(
    ("config", "family"),
    [
        (Qwen2VLConfig(), Family()),
        (Qwen2_5_VLConfig(), Family(window=4, tokens_per_second=4)),
        (
            Qwen3VLConfig(),
            Family(geometry=QWEN3_GEOMETRY, table_side=48, tells_time=True),
        ),
    ],
)
def test_family_of__known(config: PreTrainedConfig, family: Family) -> None:
    assert family_of(config) == family


def test_another_family_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        family_of(Qwen2VLConfig().text_config)
    assert str(error.value) == (
        "model_type is 'qwen2_vl_text'; it must be one of qwen2_vl, qwen2_5_vl, "
        "qwen3_vl"
    )


def test_the_geometry_is_that_of_the_configuration() -> None:
    vision = {
        "patch_size": 3,
        "spatial_merge_size": 4,
        "temporal_patch_size": 1,
        "window_size": 70,
        "tokens_per_second": 25,
    }
    geometry = VisionGeometry(
        patch_size=3,
        merge_size=4,
        temporal_patch_size=1,
        min_pixels=128 * 144,
        max_pixels=768 * 144,
    )
    expected = Family(geometry=geometry, window=5, tokens_per_second=25)
    assert family_of(Qwen2_5_VLConfig(vision_config=vision)) == expected


def test_sliding_windows_are_refused(make_family: MakeFamily) -> None:
    backbone = make_family("qwen2_5_vl")
    backbone.config.text_config.sliding_window = 64
    with pytest.raises(ValueError) as error:
        FastSlowQwen2VL(backbone)
    assert str(error.value) == (
        "sliding_window is 64; a layout's mask says what is visible"
    )


# Positions


@timed
@given(
    st.lists(
        st.tuples(fst.grids(max_side=5), st.integers(1, 9), st.floats(0.01, 9.0)),
        min_size=1,
        max_size=3,
    )
)
@example([((2, 3), 9, 2 / 3), ((1, 1), 4, 0.1)])
@example([((1, 1), 40, 2 / 1.3)])
@settings(deadline=None)
def test_frame_times__matches_transformers(
    make_family: MakeFamily, lay: Lay, clips: list[tuple[Grid, int, float]]
) -> None:
    sample: list[Span] = [text(1, 7)]
    for grid, frames, seconds in clips:
        sample += [clip(grid, (1,) * frames, seconds), text(6, 10)]
    plan = lay([sample], after_video_rule="spatial_axes")
    inputs = inputs_of(plan, torch.empty(0), [seconds for _, _, seconds in clips])
    expected, _ = make_family("qwen2_5_vl").model.get_rope_index(**inputs)
    assert torch.equal(plan.layout.position_ids[1:], expected[:, 0])


# The whole model


@timed
@pytest.mark.parametrize("sample", [TALK, TWO_CLIPS])
def test_stride_one_equals_transformers(
    make_family: MakeFamily, lay: Lay, make_patches: MakePatches, sample: Sample
) -> None:
    settings = {"attention": "causal", "after_video_rule": "spatial_axes"}
    model = FastSlowQwen2VL(make_family("qwen2_5_vl")).eval()
    plan = lay([unpooled(sample)], family=model.family, **settings)
    patches = make_patches(plan)
    inputs = inputs_of(plan, patches, SECONDS[tuple(sample)])
    scores = make_family("qwen2_5_vl")(**inputs).logits[0]
    output = model(patches, plan, read_logits=nn.Identity())
    assert_near(output.logits, scores[plan.labels.rows])
    loss = F.cross_entropy(
        scores[:-1], plan.layout.labels[1:], ignore_index=IGNORED_LABEL, reduction="sum"
    )
    assert_near(output.language_loss, loss)


def test_seconds_matter(
    make_family: MakeFamily, lay: Lay, make_patches: MakePatches
) -> None:
    model = FastSlowQwen2VL(make_family("qwen2_5_vl")).eval()
    slower = [
        replace(span, times=(0, 5, 9)) if isinstance(span, VideoSpan) else span
        for span in TALK
    ]
    plans = [lay([sample], family=model.family) for sample in (TALK, slower)]
    patches = make_patches(plans[0])
    losses = [model(patches, plan).language_loss for plan in plans]
    assert (losses[0] - losses[1]).abs() > 1e-6


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def told(sample: Sample, model_type: str) -> list[Span]:
    """Set the frames of a clip apart by text where the family does that."""
    spans = list[Span]()
    for span in sample:
        if isinstance(span, VideoSpan) and model_type == "qwen3_vl":
            frames = span.schedule.num_frames
            between = tuple((6, 20 + frame, 7) for frame in range(1, frames))
            spans.append(replace(span, times=(0,) * frames, between=between))
        else:
            spans.append(span)
    return spans


@pytest.mark.parametrize("model_type", FAMILIES)
def test_targets_and_copies_are_the_frames_that_they_should_be(
    make_family: MakeFamily, lay: Lay, make_patches: MakePatches, model_type: str
) -> None:
    """A tower that mixes nothing shows each patch where it stands in the video."""
    backbone = make_family(model_type)
    tower = backbone.model.visual
    tower.blocks = torch.nn.ModuleList()
    if model_type == "qwen3_vl":
        torch.nn.init.zeros_(tower.pos_embed.weight)
    model = FastSlowQwen2VL(backbone).eval()
    samples = [told(TALK, model_type), told(TWO_CLIPS, model_type)]
    plan = lay(samples, family=model.family)
    patches = make_patches(plan)
    output = model(patches, plan)
    seen = tower.patch_embed(patches).unflatten(0, (-1, 4)).mean(1)
    targets, copies, first = [], [], 0
    for span in plan.layout.clips:
        height, width = span.grid
        count = span.schedule.num_frames * height * width
        frames = seen[first : first + count].unflatten(0, (-1, height, width))
        first += count
        for t, stride in enumerate(span.schedule.strides[:-1]):
            for part, moment in ((copies, t), (targets, t + 1)):
                pooled = F.avg_pool2d(
                    frames[moment].permute(2, 0, 1),
                    stride,
                    ceil_mode=True,
                    count_include_pad=False,
                )
                part.append(pooled.flatten(1).T)
    assert_near(output.targets.values, torch.cat(targets))
    assert_near(output.copies, torch.cat(copies))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_next_frame_changes_the_targets_alone(
    make_family: MakeFamily, lay: Lay, make_patches: MakePatches, model_type: str
) -> None:
    model = FastSlowQwen2VL(make_family(model_type)).eval()
    sample = told([text(1, 7), clip((3, 5), (1, 1, 1))], model_type)
    plan = lay([sample], family=model.family)
    patches = make_patches(plan)
    changed = patches.clone()
    changed[60:120] += 1  # the second of three frames
    outputs = [model(given, plan) for given in (patches, changed)]
    for part, moved in (("predictions", (1,)), ("copies", (1,))):
        gap = getattr(outputs[0], part) - getattr(outputs[1], part)
        frames = gap.abs().amax(1).unflatten(0, (2, 15)).amax(1)
        assert [f for f in range(2) if frames[f] > 1e-9] == list(moved)
    gap = (outputs[0].targets.values - outputs[1].targets.values).abs().amax(1)
    assert gap[:15].min() > 1e-9 and gap[15:].max() == 0


@pytest.mark.parametrize("model_type", FAMILIES)
def test_packed_equals_alone(
    make_family: MakeFamily, lay: Lay, make_patches: MakePatches, model_type: str
) -> None:
    model = FastSlowQwen2VL(make_family(model_type)).eval()
    samples = [told(sample, model_type) for sample in (TALK, TWO_CLIPS)]
    plan = lay(samples, padding=9, family=model.family)
    alone = [lay([sample], family=model.family) for sample in samples]
    patches = make_patches(plan)
    packed = model(patches, plan, read_logits=nn.Identity())
    counts = [int(p.grid_thw.prod(1).sum()) for p in alone]
    parts = [
        model(own, p, read_logits=nn.Identity())
        for own, p in zip(patches.split(counts), alone, strict=True)
    ]
    assert_near(packed.language_loss, sum(p.language_loss for p in parts))
    for name in ("logits", "predictions", "copies"):
        expected = torch.cat([getattr(p, name) for p in parts])
        assert_near(getattr(packed, name), expected)
    assert_near(packed.targets.values, torch.cat([p.targets.values for p in parts]))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_gradients_reach_every_parameter(
    make_family: MakeFamily, lay: Lay, make_patches: MakePatches, model_type: str
) -> None:
    model = FastSlowQwen2VL(make_family(model_type)).eval()
    model.freeze_tower()
    samples = [told(TALK, model_type), told(TWO_CLIPS, model_type)]
    plan = lay(samples, family=model.family)
    total_loss(model, make_patches(plan), plan).backward()
    for name, parameter in model.named_parameters():
        in_tower = ".visual." in name and "merger" not in name
        assert parameter.requires_grad is not in_tower, name
        if in_tower:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_few_steps_reduce_the_loss(
    make_family: MakeFamily, lay: Lay, make_patches: MakePatches, model_type: str
) -> None:
    model = FastSlowQwen2VL(make_family(model_type)).eval()
    model.freeze_tower()
    samples = [told(TALK, model_type), told(TWO_CLIPS, model_type)]
    plan = lay(samples, family=model.family)
    patches = make_patches(plan)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(6):
        loss = total_loss(model, patches, plan)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_saved_weights_give_the_same_losses(
    make_family: MakeFamily,
    lay: Lay,
    make_patches: MakePatches,
    tmp_path: Path,
    model_type: str,
) -> None:
    backbone = make_family(model_type)
    backbone.save_pretrained(tmp_path)
    loaded = type(backbone).from_pretrained(tmp_path, dtype=torch.float64)
    models = [FastSlowQwen2VL(each).eval() for each in (backbone, loaded)]
    plan = lay([told(TALK, model_type)], family=models[0].family)
    patches = make_patches(plan)
    saved, found = (model(patches, plan) for model in models)
    assert_near(found.language_loss, saved.language_loss)
    assert_near(found.targets.values, saved.targets.values)


def test_frames_too_far_on_are_refused() -> None:
    with pytest.raises(ValueError) as error:
        frame_times(3, seconds_per_frame=1e38, tokens_per_second=2)
    assert str(error.value) == (
        "seconds_per_frame is 1e+38; 3 frames must have finite positions"
    )
