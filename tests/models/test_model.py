"""Laws of the whole forward pass, on transformers' own Qwen2-VL classes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from fastslow import (
    IGNORED_LABEL,
    Span,
    TextSpan,
    VideoSpan,
    lengths_from_cu_seqlens,
    merged_grid,
    next_frame_loss,
    repeat_strides,
    schedule_from_strides,
    unpack_ragged,
)
from fastslow.qwen2_vl import (
    FastSlowQwen2VL,
    RowPlan,
    VisionGeometry,
    clip_grid,
    normalize_patches,
    patchify_clip,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst

VIDEO_TOKEN_ID = 9
MERGE = 2
NEXT_FRAME_WEIGHT = 0.15

MakeBackbone = Callable[..., Qwen2VLForConditionalGeneration]
MakeModel = Callable[..., FastSlowQwen2VL]
Lay = Callable[..., RowPlan]
MakePatches = Callable[..., Tensor]
ReadEveryRow = Callable[[RowPlan], RowPlan]
Sample = Sequence[Span]


def text(*token_ids: int, trained: bool = False) -> TextSpan:
    return TextSpan(token_ids=token_ids, trained=trained)


def clip(grid: tuple[int, int], *strides: int) -> VideoSpan:
    return VideoSpan(grid=grid, schedule=schedule_from_strides(strides))


TALK = (
    text(1, 2, 3, 7),
    clip((3, 2), 1, 2, 1),
    text(6, 10, 11),
    text(12, 13, 14, trained=True),
    text(15),
)
PLAIN = (text(20, trained=True), text(21, 22), text(23, 24, trained=True))
TWO_CLIPS = (
    clip((2, 4), 2, 1),
    text(6, 25),
    clip((1, 3), 1, 1, 2, 2),
    text(26, 27, 28, trained=True),
    text(29),
)
STILL = (text(30, 7), clip((2, 3), 4), text(6), text(31, 32, trained=True))
UNTRAINED = (text(33, 34), clip((2, 2), 2, 1, 1), text(35))
MIXED = (TALK, PLAIN, TWO_CLIPS, STILL)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A text token or a frame: what shares one rank.

    Attributes:
        sample: Packed sample that it lies in.
        rows: Its tokens.
        patches: Its patches; empty for text.
        stride: Pooling stride of a frame, 0 for text.
        has_next: Whether another frame of its clip follows.
    """

    sample: int
    rows: range
    patches: range
    stride: int = 0
    has_next: bool = False


def moments(samples: Sequence[Sample]) -> Iterator[Moment]:
    """Walk through a row without padding."""
    row = patch = 0
    for number, sample in enumerate(samples):
        for span in sample:
            if isinstance(span, TextSpan):
                for _ in span.token_ids:
                    here = range(row, row + 1)
                    yield Moment(sample=number, rows=here, patches=range(0))
                    row += 1
            else:
                size = MERGE**2 * span.grid[0] * span.grid[1]
                counts = reference.tokens_per_frame(span.grid, astuple(span.schedule))
                for t, count in enumerate(counts):
                    yield Moment(
                        sample=number,
                        rows=range(row, row + count),
                        patches=range(patch, patch + size),
                        stride=span.schedule.strides[t],
                        has_next=t + 1 < len(counts),
                    )
                    row, patch = row + count, patch + size


def patch_grids(sample: Sample) -> Tensor:
    """Give ``grid_thw`` of the clips of a sample."""
    return torch.tensor(
        [
            (len(span.schedule.strides), span.grid[0] * MERGE, span.grid[1] * MERGE)
            for span in sample
            if isinstance(span, VideoSpan)
        ]
    )


def published_positions(sample: Sample, *, rule: str = "all_axes") -> Tensor:
    """Place the tokens of an unpooled sample as the Qwen2-VL paper describes it."""
    places: list[tuple[int, int, int]] = []
    start = 0
    for span in sample:
        if isinstance(span, TextSpan):
            for _ in span.token_ids:
                places.append((start, start, start))
                start += 1
        else:
            height, width = span.grid
            cells = list(
                product(range(len(span.schedule.strides)), range(height), range(width))
            )
            places.extend((start + t, start + y, start + x) for t, y, x in cells)
            axes = 0 if rule == "all_axes" else 1
            start += max(max(cell[axes:]) for cell in cells) + 1
    return torch.tensor(places).T


def unpooled(sample: Sample) -> list[Span]:
    """Set every stride to 1."""
    return [
        replace(span, schedule=repeat_strides(span.schedule.num_frames, (1,)))
        if isinstance(span, VideoSpan)
        else span
        for span in sample
    ]


def transformers_logits(
    backbone: Qwen2VLForConditionalGeneration,
    sample: Sample,
    patches: Tensor,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Run transformers' own forward on an unpooled sample."""
    ids = torch.tensor(token_ids(sample))
    vision = {
        "pixel_values_videos": patches,
        "video_grid_thw": patch_grids(sample),
        "mm_token_type_ids": 2 * (ids == VIDEO_TOKEN_ID).int()[None],
    }
    output = backbone(
        input_ids=ids[None],
        position_ids=position_ids,
        use_cache=False,
        **(vision if len(patches) else {}),
    )
    return output.logits[0]


def token_ids(sample: Sample) -> list[int]:
    """List the ids of an unpooled sample."""
    ids: list[int] = []
    for span in sample:
        if isinstance(span, TextSpan):
            ids.extend(span.token_ids)
        else:
            cells = len(span.schedule.strides) * span.grid[0] * span.grid[1]
            ids.extend([VIDEO_TOKEN_ID] * cells)
    return ids


def split_patches(samples: Sequence[Sample], patches: Tensor) -> list[Tensor]:
    """Cut the patches of a row into those of its samples."""
    counts = [0] * len(samples)
    for moment in moments(samples):
        counts[moment.sample] += len(moment.patches)
    return list(patches.split(counts))


def step_sums(
    model: FastSlowQwen2VL, patches: Tensor, plan: RowPlan
) -> tuple[Tensor, int, Tensor, int]:
    """Give sum and count of the language loss, then of the next-frame loss."""
    output = model(patches, plan)
    following = next_frame_loss(output.predictions, output.targets)
    return output.language_loss, len(plan.labels.targets), *following


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Give the gradient of every parameter by name, zero where there is none."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(
        loss, parameters, retain_graph=True, materialize_grads=True
    )
    return dict(zip(names, found, strict=True))


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def assert_all_near(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: n + m
        )


# Parity with transformers


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
    logits = make_model()(patches, read_every_row(plan), return_logits=True).logits
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
    logits = make_model()(patches, read_every_row(plan), return_logits=True).logits
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
    logits = make_model()(patches, read_every_row(plan), return_logits=True).logits
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
        frame_count, *patch_grid = clip_grid(count, height, width, geometry)
        grid = merged_grid((patch_grid[0], patch_grid[1]))
        sample += [clip(grid, *(1,) * frame_count), text(6, 10)]
    patches = torch.cat(parts)
    plan = lay([sample], attention="causal", after_video_rule="spatial_axes")
    logits = make_model()(patches, read_every_row(plan), return_logits=True).logits
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
    assert_near(make_model()(patches, plan, return_logits=True).logits, expected)


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


# Packed equals alone


def labels_by_hand(sample: Sample) -> tuple[list[int], list[int]]:
    """Give the rows of a text sample that predict a trained token, and those tokens."""
    pairs = [
        (number, span.trained)
        for span in sample
        if isinstance(span, TextSpan)
        for number in span.token_ids
    ]
    rows = [row for row in range(len(pairs) - 1) if pairs[row + 1][1]]
    return rows, [pairs[row + 1][0] for row in rows]


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)])
def test_packed_equals_alone(
    make_backbone: MakeBackbone,
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    read_every_row: ReadEveryRow,
    padding: int,
    order: Sequence[int],
) -> None:
    model, backbone = make_model(), make_backbone()
    samples = [MIXED[place] for place in order]
    plan = lay(samples, padding=padding)
    assert (plan.layout.segment_ids < 0).sum() == padding
    patches = make_patches(plan)
    packed_sums = step_sums(model, patches, plan)
    packed_logits = model(patches, read_every_row(plan), return_logits=True).logits
    packed_language = gradients(model.backbone, packed_sums[0])
    packed_next = gradients(model, packed_sums[2])

    logits, sums = [], [torch.zeros(()).double(), 0, torch.zeros(()).double(), 0]
    language = {name: torch.zeros_like(g) for name, g in packed_language.items()}
    following = {name: torch.zeros_like(g) for name, g in packed_next.items()}
    for sample, part in zip(samples, split_patches(samples, patches), strict=True):
        if sample is PLAIN:
            scores = transformers_logits(backbone, sample, part)
            rows, goals = labels_by_hand(sample)
            loss = F.cross_entropy(scores[rows], torch.tensor(goals), reduction="sum")
            alone = (loss, len(goals), 0, 0)
            own_language = gradients(backbone, loss)
        else:
            own = lay([sample])
            scores = model(part, read_every_row(own), return_logits=True).logits
            alone = step_sums(model, part, own)
            own_language = gradients(model.backbone, alone[0])
            for name, grad in gradients(model, alone[2]).items():
                following[name] += grad
        logits.append(scores)
        sums = [total + value for total, value in zip(sums, alone, strict=True)]
        for name, grad in own_language.items():
            language[name] += grad

    assert_near(packed_logits[: sum(map(len, logits))], torch.cat(logits))
    assert_near(packed_sums[0], sums[0])
    assert_near(packed_sums[2], sums[2])
    assert packed_sums[1::2] == tuple(sums[1::2]) == (10, 6)
    assert_all_near(packed_language, language)
    assert_all_near(packed_next, following)


def cuts(samples: Sequence[Sample]) -> Iterator[list[Sequence[Sample]]]:
    """Cut samples into rows in every way that keeps their order."""
    for ends in product((False, True), repeat=len(samples) - 1):
        rows: list[list[Sample]] = [[samples[0]]]
        for sample, new_row in zip(samples[1:], ends, strict=True):
            if new_row:
                rows.append([sample])
            else:
                rows[-1].append(sample)
        yield rows


def test_split_free(make_model: MakeModel, lay: Lay, make_patches: MakePatches) -> None:
    """The gradient of a step does not depend on its cut into rows."""
    model = make_model()
    samples = (TALK, STILL, UNTRAINED, TWO_CLIPS)
    parts = split_patches(samples, make_patches(lay(samples)))
    patches_of = {id(s): part for s, part in zip(samples, parts, strict=True)}
    results = []
    for rows in cuts(samples):
        sums = []
        for row in rows:
            patches = torch.cat([patches_of[id(sample)] for sample in row])
            sums.append(step_sums(model, patches, lay(row)))
        language, tokens, following, frames = map(sum, zip(*sums, strict=True))
        loss = language / tokens + NEXT_FRAME_WEIGHT * following / frames
        results.append((loss, gradients(model, loss)))
    assert len(results) == 8
    for loss, grads in results[1:]:
        assert_near(loss, results[0][0])
        assert_all_near(grads, results[0][1])


# Nothing from the future, nothing from another sample


rows_with_clips = fst.packed_samples(
    sample=fst.samples(
        max_spans=3,
        texts=fst.text_spans(max_tokens=2),
        videos=fst.video_spans(max_side=3, max_frames=3, max_stride=3, plain=True),
    ),
    max_samples=2,
).filter(lambda row: any(isinstance(span, VideoSpan) for s in row for span in s))


@pytest.mark.parametrize("layers", [1, 2, 3])
@given(samples=rows_with_clips, padding=st.sampled_from([0, 3]), seed=fst.seeds())
@settings(max_examples=20, deadline=None)
def test_leak_free(
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    read_every_row: ReadEveryRow,
    layers: int,
    samples: list[list[Span]],
    padding: int,
    seed: int,
) -> None:
    """A random cotangent misses a non-zero row of a Jacobian with probability zero."""
    plan = read_every_row(lay(samples, padding=padding))
    patches = make_patches(plan, seed).requires_grad_()
    output = make_model(layers=layers)(patches, plan, return_logits=True)
    outputs = (output.logits, output.predictions)
    generator = torch.Generator().manual_seed(seed)
    noise = [
        torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for value in outputs
    ]
    everything = list(moments(samples))
    predicting = [row for m in everything if m.has_next for row in m.rows]
    assert plan.next_frame.rows.tolist() == predicting
    for now, moment in enumerate(everything):
        own_logits = torch.zeros(len(output.logits), 1, dtype=torch.float64)
        own_logits[list(moment.rows)] = 1
        own = [own_logits, own_logits[predicting]]
        cotangents = [n * mine for n, mine in zip(noise, own, strict=True)]
        (grad,) = torch.autograd.grad(outputs, patches, cotangents, retain_graph=True)
        for then, other in enumerate(everything):
            if other.patches:
                visible = other.sample == moment.sample and then <= now
                touched = grad[list(other.patches)].count_nonzero() > 0
                assert touched == visible, (moment, other)


@given(samples=rows_with_clips, seed=fst.seeds())
@settings(max_examples=20, deadline=None)
def test_the_past_does_not_feel_the_future(
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    read_every_row: ReadEveryRow,
    samples: list[list[Span]],
    seed: int,
) -> None:
    """Change all that comes later or lies elsewhere: not one bit of the past moves."""
    model = make_model()
    plan = read_every_row(lay(samples))
    patches, others = make_patches(plan, seed), make_patches(plan, seed + 1)
    everything = list(moments(samples))
    with torch.no_grad():
        logits = model(patches, plan, return_logits=True).logits
        for now, moment in enumerate(everything):
            known = [m for m in everything[: now + 1] if m.sample == moment.sample]
            changed = others.clone()
            ids = (plan.layout.input_ids + 1) % 40
            for m in known:
                changed[list(m.patches)] = patches[list(m.patches)]
                ids[list(m.rows)] = plan.layout.input_ids[list(m.rows)]
            layout = replace(plan.layout, input_ids=ids)
            new_logits = model(
                changed, replace(plan, layout=layout), return_logits=True
            ).logits
            same = (new_logits == logits).all(1)
            rows = [row for m in known for row in m.rows]
            assert same[rows].all()
            assert not same.all() or len(rows) == len(logits)


def test_every_later_token_feels_a_change(
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    read_every_row: ReadEveryRow,
) -> None:
    plan = read_every_row(lay([TALK, TWO_CLIPS]))
    patches = make_patches(plan)
    everything = list(moments([TALK, TWO_CLIPS]))
    frame = next(n for n, m in enumerate(everything) if m.patches)
    changed = patches.clone()
    changed[everything[frame].patches[0]] += 1
    model = make_model()
    moved = (
        model(changed, plan, return_logits=True).logits
        != model(patches, plan, return_logits=True).logits
    ).any(1)
    expected = torch.zeros_like(moved)
    for m in everything[frame:]:
        expected[list(m.rows)] = m.sample == 0
    assert torch.equal(moved, expected)


# The next frame


def frames_in_space(
    tower: nn.Module, patches: Tensor, sample: Sample
) -> list[list[Tensor]]:
    """Give what the tower saw in each frame of each clip, as (features, rows, columns).

    The tower lists the patches of a merged token one after the other.
    """
    seen = tower(patches, grid_thw=patch_grids(sample)).last_hidden_state
    clips = []
    first = 0
    for span in sample:
        if isinstance(span, TextSpan):
            continue
        height, width = (side * MERGE for side in span.grid)
        frames = []
        for _ in span.schedule.strides:
            frame = seen.new_zeros(seen.shape[1], height, width)
            for y, x in product(range(height), range(width)):
                block = y // MERGE * (width // MERGE) + x // MERGE
                inside = y % MERGE * MERGE + x % MERGE
                frame[:, y, x] = seen[first + block * MERGE**2 + inside]
            frames.append(frame)
            first += height * width
        clips.append(frames)
    return clips


def shrink(frame: Tensor, stride: int) -> Tensor:
    """Average a frame of patches over windows of ``stride`` merged tokens."""
    pooled = F.avg_pool2d(
        frame[None], stride * MERGE, ceil_mode=True, count_include_pad=False
    )
    return pooled[0].flatten(1).T


def targets_by_hand(
    tower: nn.Module, patches: Tensor, sample: Sample
) -> tuple[list[Tensor], list[Tensor]]:
    """Give the targets and the copies of a sample, frame by frame."""
    targets, copies = [], []
    videos = [span for span in sample if isinstance(span, VideoSpan)]
    clips = frames_in_space(tower, patches, sample)
    for span, frames in zip(videos, clips, strict=True):
        for t in range(len(frames) - 1):
            targets.append(shrink(frames[t + 1], span.schedule.strides[t]))
            copies.append(shrink(frames[t], span.schedule.strides[t]))
    return targets, copies


BIG = (
    text(1, 7),
    clip((5, 3), 2, 1, 3, 4),
    text(6),
    clip((2, 6), 4, 2, 1),
    clip((1, 1), 1),
)


@pytest.mark.parametrize("sample", [TALK, TWO_CLIPS, UNTRAINED, BIG])
def test_targets_and_copies_equal_pooled_patches(
    make_backbone: MakeBackbone,
    make_model: MakeModel,
    lay: Lay,
    make_patches: MakePatches,
    sample: Sample,
) -> None:
    plan = lay([sample])
    patches = make_patches(plan)
    output = make_model()(patches, plan)
    tower = make_backbone().model.visual
    targets, copies = targets_by_hand(tower, patches, sample)
    found = unpack_ragged(output.targets)
    assert len(found) == len(targets)
    for actual, expected in zip(found, targets, strict=True):
        assert_near(actual, expected)
    assert_near(output.copies, torch.cat(copies))
    assert not output.targets.values.requires_grad
    assert not output.copies.requires_grad


def test_predictions_are_read_at_the_frame_before(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    samples = (TALK, PLAIN, BIG, STILL)
    model, plan = make_model(), lay(samples, padding=14)
    states: list[Tensor] = []
    handle = model.backbone.model.language_model.register_forward_hook(
        lambda module, arguments, output: states.append(output.last_hidden_state)
    )
    output = model(make_patches(plan), plan)
    handle.remove()
    (hidden,) = states
    sources = [m for m in moments(samples) if m.has_next]
    rows = [row for m in sources for row in m.rows]
    assert_near(output.predictions, model.next_frame_head(hidden[0][rows]))
    counts = lengths_from_cu_seqlens(output.targets.cu_seqlens).tolist()
    assert counts == [len(m.rows) for m in sources]


def test_the_loss_does_not_pull_its_target(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    model, plan = make_model(), lay([BIG, TALK])
    patches = make_patches(plan)
    with torch.no_grad():
        fixed = model(patches, plan).targets
    output = model(patches, plan)
    loss, _ = next_frame_loss(output.predictions, output.targets)
    found = gradients(model, loss)
    output = model(patches, plan)
    loss, _ = next_frame_loss(output.predictions, fixed)
    expected = gradients(model, loss)
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())
    tower = "backbone.model.visual."
    assert all(grad.any() for name, grad in found.items() if name.startswith(tower))

    output = model(patches, plan)
    parts = split_patches([BIG, TALK], patches)
    pulled = torch.cat(
        [
            frame
            for sample, part in zip((BIG, TALK), parts, strict=True)
            for frame in targets_by_hand(model.backbone.model.visual, part, sample)[0]
        ]
    )
    assert_near(pulled, output.targets.values)
    attached = replace(output.targets, values=pulled)
    loss, _ = next_frame_loss(output.predictions, attached)
    assert_all_near(gradients(model, loss), found)
    weights = lengths_from_cu_seqlens(fixed.cu_seqlens).double().reciprocal()
    weights = weights.repeat_interleave(lengths_from_cu_seqlens(fixed.cu_seqlens))
    distances = 1 - F.cosine_similarity(output.predictions, pulled, dim=-1)
    leaky = (distances * weights).sum()
    assert_near(leaky, loss)
    name = tower + "patch_embed.proj.weight"
    assert (gradients(model, leaky)[name] - found[name]).abs().max() > 1e-3


def test_a_copier_has_the_loss_of_its_copies(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    """A still clip is copied without loss, a moving one is not."""
    model = make_model()
    sample = (clip((3, 4), 2, 1, 3),)
    plan = lay([sample])
    patches = make_patches(plan)
    moving = model(patches, plan)
    still = model(patches[:48].repeat(3, 1), plan)
    assert next_frame_loss(moving.copies, moving.targets)[0] > 0.01
    loss, count = next_frame_loss(still.copies, still.targets)
    assert_near(loss, torch.zeros_like(loss))
    assert count == 2


# Single frames, missing clips, frozen towers


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


# Settings of the forward pass


def test_training_keeps_no_cache(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    model, plan = make_model(), lay([TALK])
    outputs = list[str]()
    model.backbone.model.language_model.register_forward_hook(
        lambda module, arguments, output: outputs.extend(output.keys())
    )
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
        model(patches, plan, return_logits=True) for model in (narrow, wide)
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


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing_changes_nothing(
    make_model: MakeModel, lay: Lay, make_patches: MakePatches
) -> None:
    plan = lay(MIXED)
    patches = make_patches(plan)
    found = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.backbone.gradient_checkpointing_enable()
        language, _, following, _ = step_sums(model, patches, plan)
        (language + following).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert_all_near(*found)


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
    output = model(patches, plan, return_logits=True)
    every = model(patches, read_every_row(plan), return_logits=True).logits
    assert_near(output.logits, every[rows])
    expected = F.cross_entropy(output.logits, plan.labels.targets, reduction="sum")
    assert_near(output.language_loss, expected)
    assert model(patches, plan).logits is None
    assert torch.equal(plan.labels.targets, labels[[row + 1 for row in rows]])


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
