"""The forward pass equals that of transformers, or one that is written in loops."""

from dataclasses import astuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from fastslow import Span, TextSpan, VideoSpan
from fastslow.qwen2_vl import (
    VisionGeometry,
    clip_grid,
    normalize_patches,
    patchify_clip,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst
from tests.models.samples import (
    MIXED,
    STILL,
    TALK,
    TWO_CLIPS,
    UNTRAINED,
    VIDEO_TOKEN_ID,
    Lay,
    MakeBackbone,
    MakeModel,
    MakePatches,
    ReadEveryRow,
    Sample,
    assert_near,
    clip,
    patch_grids,
    published_positions,
    split_patches,
    text,
    token_ids,
    transformers_logits,
    unpooled,
)

UNPOOLED = [unpooled(sample) for sample in (TALK, TWO_CLIPS, STILL, UNTRAINED)]


@pytest.mark.parametrize("sample", UNPOOLED)
def test_stride_one_equals_transformers(
    make_backbone: MakeBackbone,
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    read_every_row: ReadEveryRow,
    sample: Sample,
) -> None:
    plan = lay([sample], attention="causal", after_video_rule="spatial_axes")
    patches = make_patches(plan)
    logits = make_model()(
        patches, read_every_row(plan), read_logits=nn.Identity()
    ).logits
    assert_near(logits, transformers_logits(make_backbone(), sample, patches))


@pytest.mark.parametrize("sample", UNPOOLED)
def test_stride_one_equals_transformers_at_the_published_positions(
    make_backbone: MakeBackbone,
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    read_every_row: ReadEveryRow,
    sample: Sample,
) -> None:
    plan = lay([sample], attention="causal")
    patches = make_patches(plan)
    logits = make_model()(
        patches, read_every_row(plan), read_logits=nn.Identity()
    ).logits
    places = published_positions(sample)[:, None]
    assert_near(logits, transformers_logits(make_backbone(), sample, patches, places))


def test_a_row_of_stride_one_equals_transformers_sample_by_sample(
    make_backbone: MakeBackbone,
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    read_every_row: ReadEveryRow,
) -> None:
    samples = [unpooled(sample) for sample in MIXED]
    plan = lay(samples, attention="causal", after_video_rule="spatial_axes")
    patches = make_patches(plan)
    logits = make_model()(
        patches, read_every_row(plan), read_logits=nn.Identity()
    ).logits
    backbone = make_backbone()
    alone = [
        transformers_logits(backbone, sample, part)
        for sample, part in zip(samples, split_patches(samples, patches), strict=True)
    ]
    assert_near(logits, torch.cat(alone))


def test_raw_frames_go_through_as_in_transformers(
    make_backbone: MakeBackbone,
    make_model: MakeModel,
    lay: Lay,
    read_every_row: ReadEveryRow,
) -> None:
    geometry = VisionGeometry(patch_size=2, min_pixels=8 * 8, max_pixels=16 * 16)
    generator = torch.Generator().manual_seed(0)
    sample: list[Span] = [text(1, 7)]
    parts = []
    for count, height, width in ((5, 9, 17), (2, 30, 20)):
        shape = (count, 3, height, width)
        frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        parts.append(patchify_clip(frames, geometry))
        frame_count, grid = clip_grid(count, height, width, geometry)
        sample += [clip(grid, *(1,) * frame_count), text(6, 10)]
    patches = torch.cat(parts)
    plan = lay([sample], attention="causal", after_video_rule="spatial_axes")
    logits = make_model()(
        patches, read_every_row(plan), read_logits=nn.Identity()
    ).logits
    pixels = normalize_patches(patches, geometry).double()
    assert_near(logits, transformers_logits(make_backbone(), sample, pixels))


def forward_by_hand(
    backbone: Qwen2VLForConditionalGeneration,
    sample: Sample,
    patches: Tensor,
    position_ids: Tensor,
) -> Tensor:
    """Pool, splice and mask one sample in loops; give its logits."""
    merged = backbone.model.visual(patches, grid_thw=patch_grids(sample)).pooler_output
    embed = backbone.model.language_model.embed_tokens
    parts, ranks = [], list[int]()
    first = rank = 0
    for span in sample:
        if isinstance(span, TextSpan):
            for number in span.token_ids:
                parts.append(embed(torch.tensor([number])))
                ranks.append(rank)
                rank += 1
            continue
        cells = span.grid[0] * span.grid[1]
        for stride in span.schedule.strides:
            frame = merged[first : first + cells].T.unflatten(1, span.grid)[None]
            pooled = F.avg_pool2d(
                frame, stride, ceil_mode=True, count_include_pad=False
            )
            parts.append(pooled[0].flatten(1).T)
            ranks.extend([rank] * len(parts[-1]))
            rank += 1
            first += cells
    mask = torch.tensor(reference.visible_pairs(ranks, [0] * len(ranks)))
    hidden = backbone.model.language_model(
        inputs_embeds=torch.cat(parts)[None],
        position_ids=position_ids[:, None],
        attention_mask={"full_attention": mask[None, None]},
        use_cache=False,
    ).last_hidden_state[0]
    return backbone.lm_head(hidden)


@pytest.mark.parametrize("sample", [TALK, TWO_CLIPS, STILL, UNTRAINED])
def test_pooled_frames_equal_a_forward_written_in_loops(
    make_backbone: MakeBackbone,
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    read_every_row: ReadEveryRow,
    sample: Sample,
) -> None:
    plan = read_every_row(lay([sample]))
    patches = make_patches(plan)
    spans = [
        (span.grid, astuple(span.schedule))
        if isinstance(span, VideoSpan)
        else (span.token_ids, span.trained)
        for span in sample
    ]
    described = reference.layout([spans], video_token_id=VIDEO_TOKEN_ID)
    places = torch.tensor(described["position_ids"])[1:]
    expected = forward_by_hand(make_backbone(), sample, patches, places)
    assert_near(make_model()(patches, plan, read_logits=nn.Identity()).logits, expected)


@st.composite
def mixtures(draw: st.DrawFn) -> list[Span]:
    """Draw text and clips in turn; clips have stride 1 and text between them."""
    words = fst.text_spans(min_tokens=1).map(
        lambda span: text(*(10 + number for number in span.token_ids))
    )
    videos = fst.video_spans(max_side=5, max_frames=6, plain=True)
    clips = draw(st.lists(videos, min_size=1, max_size=3))
    spans = [draw(words)] if draw(st.booleans()) else []
    for video in clips:
        spans += [video, draw(words)]
    return unpooled(spans if draw(st.booleans()) else spans[:-1])


@given(sample=mixtures())
@settings(max_examples=50, deadline=None)
def test_positions_equal_those_of_transformers(
    make_backbone: MakeBackbone, lay: Lay, sample: Sample
) -> None:
    layout = lay([sample], after_video_rule="spatial_axes").layout
    ids = torch.tensor(token_ids(sample))
    expected, _ = make_backbone(layers=1).model.get_rope_index(
        ids[None],
        2 * (ids == VIDEO_TOKEN_ID).int()[None],
        video_grid_thw=patch_grids(sample),
    )
    assert torch.equal(layout.input_ids, ids)
    assert torch.equal(layout.position_ids[0], torch.arange(len(ids)))
    assert torch.equal(layout.position_ids[1:], expected[:, 0])
    assert torch.equal(published_positions(sample, rule="spatial"), expected[:, 0])


@given(sample=mixtures())
@settings(max_examples=50, deadline=None)
def test_positions_equal_the_published_ones(lay: Lay, sample: Sample) -> None:
    layout = lay([sample]).layout
    assert torch.equal(layout.position_ids[1:], published_positions(sample))
