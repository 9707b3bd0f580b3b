"""What is predicted of the next frame, where, and against what."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastslow import (
    TextSpan,
    VideoSpan,
    lengths_from_cu_seqlens,
    next_frame_loss,
    unpack_ragged,
)
from tests.models.samples import (
    MERGE,
    PLAIN,
    STILL,
    TALK,
    TWO_CLIPS,
    UNTRAINED,
    Lay,
    MakeBackbone,
    MakeModel,
    MakePatches,
    Sample,
    assert_all_near,
    assert_near,
    clip,
    gradients,
    moments,
    patch_grids,
    split_patches,
    text,
)


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
