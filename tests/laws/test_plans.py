"""Laws of ``fastslow._plans``."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from torch import Tensor

from fastslow import (
    Ragged,
    TextSpan,
    TokenLayout,
    VideoSpan,
    build_layout,
    build_schedule,
    plan_labels,
    plan_next_frame,
    plan_pooling,
    schedule_from_strides,
    to_device,
)
from fastslow.testing import strategies as fst


def tensors(plan: object, name: str = "plan") -> Iterator[tuple[str, Tensor]]:
    """List the tensors of a plan by path."""
    if isinstance(plan, Tensor):
        yield name, plan
    elif dataclasses.is_dataclass(plan):
        for field in dataclasses.fields(plan):
            yield from tensors(getattr(plan, field.name), f"{name}.{field.name}")


def plans_of(layout: TokenLayout) -> list[object]:
    return [
        layout,
        plan_labels(layout),
        plan_next_frame(layout),
        plan_pooling([(c.grid, c.schedule) for c in layout.clips], mode="bilinear"),
        Ragged(values=torch.ones(3, 2), cu_seqlens=torch.tensor([0, 3]).int()),
    ]


@given(fst.layouts())
def test_to_device__lossless(layout: TokenLayout) -> None:
    for plan in plans_of(layout):
        before = dict(tensors(plan))
        assert before
        for device in ("cpu", "meta"):
            moved = to_device(plan, device)
            assert type(moved) is type(plan)
            after = dict(tensors(moved))
            assert after.keys() == before.keys()
            for name, tensor in after.items():
                assert tensor.device.type == device
                assert tensor.shape == before[name].shape
                assert tensor.dtype == before[name].dtype
                assert device == "meta" or torch.equal(tensor, before[name])
        assert all(tensor.device.type == "cpu" for _, tensor in tensors(plan))


def test_fields_without_tensors_are_kept() -> None:
    clip = VideoSpan(grid=(2, 2), schedule=schedule_from_strides((1, 2)))
    text = TextSpan(token_ids=(5,))
    layout = build_layout([[text, clip]], video_token_id=9)
    assert to_device(layout, "meta").clips == (clip,)
    schedule = build_schedule(4)
    assert to_device(schedule, "meta") == schedule
    assert to_device(TextSpan, "meta") is TextSpan


def test_plans_stay_frozen() -> None:
    moved = to_device(plan_pooling([((2, 2), build_schedule(1))]), torch.device("meta"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        moved.cells = torch.zeros(1)  # type: ignore[misc]
