"""A packed row computes what its samples compute alone, and nothing leaks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslow import Span, TextSpan, VideoSpan
from fastslow.testing import strategies as fst
from tests.models.samples import (
    MIXED,
    NEXT_FRAME_WEIGHT,
    PLAIN,
    STILL,
    TALK,
    TWO_CLIPS,
    UNTRAINED,
    Lay,
    MakeBackbone,
    MakeModel,
    MakePatches,
    ReadEveryRow,
    Sample,
    assert_all_near,
    assert_near,
    gradients,
    moments,
    split_patches,
    step_sums,
    transformers_logits,
)


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
    packed_logits = model(
        patches, read_every_row(plan), read_logits=torch.nn.Identity()
    ).logits
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
            scores = model(
                part, read_every_row(own), read_logits=torch.nn.Identity()
            ).logits
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
    output = make_model(layers=layers)(patches, plan, read_logits=torch.nn.Identity())
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
        logits = model(patches, plan, read_logits=torch.nn.Identity()).logits
        for now, moment in enumerate(everything):
            known = [m for m in everything[: now + 1] if m.sample == moment.sample]
            changed = others.clone()
            ids = (plan.layout.input_ids + 1) % 40
            for m in known:
                changed[list(m.patches)] = patches[list(m.patches)]
                ids[list(m.rows)] = plan.layout.input_ids[list(m.rows)]
            layout = replace(plan.layout, input_ids=ids)
            new_logits = model(
                changed, replace(plan, layout=layout), read_logits=torch.nn.Identity()
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
        model(changed, plan, read_logits=torch.nn.Identity()).logits
        != model(patches, plan, read_logits=torch.nn.Identity()).logits
    ).any(1)
    expected = torch.zeros_like(moved)
    for m in everything[frame:]:
        expected[list(m.rows)] = m.sample == 0
    assert torch.equal(moved, expected)
