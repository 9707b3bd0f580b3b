"""Samples that the tests of the forward pass share, and what is true of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from fastslow import (
    Span,
    TextSpan,
    VideoSpan,
    next_frame_loss,
    repeat_strides,
    schedule_from_strides,
)
from fastslow.qwen2_vl import FastSlowQwen2VL, RowPlan
from fastslow.testing import reference

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
