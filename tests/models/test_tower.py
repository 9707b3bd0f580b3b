"""The tower's plan and its one call of attention, against transformers' own."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from fastslow import VideoSpan, build_schedule, scale_fast_frames
from fastslow.qwen2_vl import (
    FastSlowQwen2VL,
    ResampledTowerPlan,
    RowPlan,
    TowerPlan,
    WindowedTowerPlan,
    plan_tower,
    tower,
)
from fastslow.qwen2_vl.tower import MOST_CHANNELS, attend_within_frames
from fastslow.testing import strategies as fst
from tests.plan_tensors import assert_equal

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]

all_runs = st.lists(st.tuples(st.integers(1, 3), fst.grids(max_side=9)), max_size=4)


@example([(2, (4, 4)), (1, (5, 7))], 2, 4)
@given(all_runs, st.integers(1, 3), st.integers(1, 5))
def test_plan_tower__matches_transformers(
    runs: list[tuple[int, tuple[int, int]]], merge_size: int, window: int
) -> None:
    plan = plan_tower(runs, merge_size=merge_size, window=window)
    assert isinstance(plan, WindowedTowerPlan)
    table = plan_tower(runs, merge_size=merge_size, table_side=window)
    assert isinstance(table, ResampledTowerPlan)
    frames = plan_tower(runs, merge_size=merge_size)
    assert type(frames) is TowerPlan
    for field in fields(TowerPlan):
        for other in (plan, table):
            assert_equal(getattr(frames, field.name), getattr(other, field.name))
    rows = [(t, h * merge_size, w * merge_size) for t, (h, w) in runs]
    if not rows:
        assert (len(plan.position_ids), plan.cu_seqlens.tolist()) == (0, [0])
        assert (len(plan.window_index), plan.cu_window_seqlens.tolist()) == (0, [0])
        assert table.interp_indices.shape == table.interp_weights.shape == (0, 4)
        return
    grid_thw = torch.tensor(rows)
    expected = get_vision_position_ids(grid_thw, merge_size)
    assert torch.equal(plan.position_ids, expected)
    bounds = get_vision_cu_seqlens(grid_thw)
    assert torch.equal(plan.cu_seqlens, bounds.int())
    assert plan.max_seqlen == bounds.diff().max()
    order, windows = get_vision_window_index(
        grid_thw,
        spatial_merge_size=merge_size,
        window_size=merge_size * window * 2,
        patch_size=2,
    )
    assert torch.equal(plan.window_index, order)
    assert torch.equal(plan.cu_window_seqlens, windows)
    assert plan.max_window_seqlen == windows.diff().max()
    taps = get_vision_interpolation_indices_and_weights(
        grid_thw, window, align_corners=True, spatial_merge_size=merge_size
    )
    assert_equal([table.interp_indices, table.interp_weights], list(taps))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_tower_is_that_of_transformers(
    make_family: Callable[..., Any], model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed grids, forward and backward, beside SDPA called frame by frame."""
    stock = make_family(model_type)
    stock.set_attn_implementation("sdpa")
    model = FastSlowQwen2VL(make_family(model_type))
    ours, family = model.backbone, model.family
    runs = [(2, (2, 3)), (1, (4, 2)), (3, (4, 2)), (1, (2, 3)), (1, (5, 3))]
    grid_thw = torch.tensor([(t, 2 * h, 2 * w) for t, (h, w) in runs])
    pixels = ours.config.vision_config.patch_size**2 * 6
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(
        int(grid_thw.prod(1).sum()), pixels, generator=generator, dtype=torch.float64
    )

    def both_ways(backbone: Any, **plan: Any) -> tuple[Tensor, ...]:
        visual = backbone.model.visual
        output = visual(patches, grid_thw=grid_thw, **plan)
        output.pooler_output.square().sum().backward()
        gradients = [p.grad for p in visual.parameters() if p.grad is not None]
        return output.last_hidden_state, output.pooler_output, *gradients

    expected = both_ways(stock)
    monkeypatch.delattr(torch.nn.Conv3d, "_conv_forward")  # a product is enough
    plan = plan_tower(runs, window=family.window, table_side=family.table_side)
    found = both_ways(ours, **vars(plan))
    assert len(found) == len(expected) > 4
    for theirs, mine in zip(expected, found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_frames_of_one_size_are_one_call(
    make_model: Callable[..., FastSlowQwen2VL],
    lay: Callable[..., RowPlan],
    make_patches: Callable[[RowPlan], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedule = build_schedule(6, slow_stride=1, fast_stride=2)
    whole = lay([[VideoSpan(grid=(4, 4), schedule=schedule)]])
    scaled = scale_fast_frames(schedule, 2)
    mixed = lay([[VideoSpan(grid=(4, 4), schedule=scaled)]])
    model, batches = make_model(), list[int]()
    attend = F.scaled_dot_product_attention

    def counted(query: Tensor, *args: Any, **settings: Any) -> Tensor:
        batches.append(len(query))
        return attend(query, *args, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    visual = model.backbone.model.visual
    for plan, expected in ((whole, [6]), (mixed, [1] * 6)):
        batches.clear()
        visual(make_patches(plan), grid_thw=plan.grid_thw, **vars(plan.tower))
        assert batches == expected * len(visual.blocks)


@pytest.mark.parametrize(
    ("channels", "trains", "chosen"),
    [
        (MOST_CHANNELS, False, "_attend_on_gpu"),
        (MOST_CHANNELS + 8, False, "varlen_attn"),
        (80, True, "varlen_attn"),
    ],
)
def test_wide_heads_and_those_that_train_are_left_to_torch(
    channels: int, trains: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    for name in ("_attend_on_gpu", "varlen_attn"):

        def record(query: Tensor, *_: Any, name: str = name, **__: Any) -> Tensor:
            calls.append(name)
            return query

        monkeypatch.setattr(tower, name, record)
    # Without a GPU, another device that is no CPU, where nothing is computed.
    given = torch.empty(3, 1, 2, 4, channels, dtype=torch.bfloat16, device="meta")
    bounds = {"cu_seq_lens_q": torch.tensor([0, 4]), "max_length_q": 4}
    attended, _ = attend_within_frames(
        torch.nn.Identity(), *given.requires_grad_(trains).unbind(), None, **bounds
    )
    assert attended.shape == (1, 4, 2, channels)
    assert calls == [chosen]


def test_dropout_is_refused(make_model: Callable[..., FastSlowQwen2VL]) -> None:
    visual = make_model().backbone.model.visual.train()
    for block in visual.blocks:
        block.attn.attention_dropout = 0.1
    grid_thw = torch.tensor([[1, 2, 2]])
    with pytest.raises(ValueError) as error:
        visual(torch.zeros(4, 24, dtype=torch.float64), grid_thw=grid_thw)
    assert str(error.value) == "dropout is 0.1; attention within frames takes none"
