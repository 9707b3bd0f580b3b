"""Laws of ``fastslow.pool_plans``."""

import inspect
from dataclasses import fields
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import (
    PoolPlan,
    cu_seqlens_from_lengths,
    lengths_from_cu_seqlens,
    plan_bags,
    plan_pooling,
    pool_tokens,
    repeat_strides,
    schedule_from_grids,
)
from fastslow._plans import integers
from fastslow.grids import Mode
from fastslow.testing import reference
from fastslow.testing import strategies as fst
from tests.laws.pools import (
    MODES,
    Clips,
    assert_near,
    bags,
    cells_of,
    linear_modes,
    modes,
    plain,
)


def assert_transposed(plan: PoolPlan) -> None:
    ones = torch.ones(len(plan.cells), dtype=torch.float64)
    weights = ones if plan.weights is None else plan.weights
    back = ones if plan.back_weights is None else plan.back_weights
    by_window = zip(
        bags(plan.cells, plan.window_starts),
        bags(weights, plan.window_starts),
        strict=True,
    )
    by_cell = zip(
        bags(plan.windows, plan.cell_starts), bags(back, plan.cell_starts), strict=True
    )
    forward = [
        (window, *entry)
        for window, (cells, shares) in enumerate(by_window)
        for entry in zip(cells, shares, strict=True)
    ]
    backward = [
        (window, cell, share)
        for cell, (windows, shares) in enumerate(by_cell)
        for window, share in zip(windows, shares, strict=True)
    ]
    assert sorted(forward) == sorted(backward)


bag_lists = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.floats(-2, 2)), min_size=1, max_size=4),
    max_size=5,
)


@given(fst.plain_clips(), st.sampled_from(("average", "max")))
def test_plan_pooling__partition(clips: Clips, mode: Mode) -> None:
    plan = plan_pooling(clips, mode=mode)
    num_cells = sum(prod(grid) * schedule.num_frames for grid, schedule in clips)
    assert sorted(plan.cells.tolist()) == list(range(num_cells))
    assert plan.window_sizes.sum() == num_cells
    assert all(len(readers) == 1 for readers in bags(plan.windows, plan.cell_starts))


@given(fst.scheduled_clips(), modes)
def test_plan_pooling__transpose(clips: Clips, mode: Mode) -> None:
    plan = plan_pooling(clips, mode=mode)
    sizes = [len(cells) for cells in bags(plan.cells, plan.window_starts)]
    assert plan.window_sizes.tolist() == sizes
    assert_transposed(plan)


@given(fst.scheduled_clips(), linear_modes)
def test_plan_pooling__weights(clips: Clips, mode: Mode) -> None:
    plan = plan_pooling(clips, mode=mode)
    assert plan.weights is not None
    windows = bags(plan.weights, plan.window_starts)
    assert [sum(shares) for shares in windows] == pytest.approx([1] * len(windows))
    assert (plan.weights > 0).all()
    if mode == "average":
        for shares, expected in zip(
            windows, reference.pooling_shares(plain(clips)), strict=True
        ):
            assert shares == pytest.approx(expected)
    assert plan_pooling(clips, mode="max").weights is None


@given(fst.scheduled_clips())
def test_plan_pooling__matches_reference(clips: Clips) -> None:
    plan = plan_pooling(clips)
    for name, expected in reference.pool_plan(plain(clips)).items():
        assert getattr(plan, name).tolist() == expected, name


@given(bag_lists, st.booleans(), fst.seeds())
def test_plan_bags__transpose(
    windows: list[list[tuple[int, float]]], takes_max: bool, seed: int
) -> None:
    entries = [entry for window in windows for entry in window]
    shares = torch.tensor([share for _, share in entries], dtype=torch.float64)
    plan = plan_bags(
        torch.tensor([cell for cell, _ in entries], dtype=torch.long),
        torch.tensor([len(window) for window in windows], dtype=torch.long),
        cu_seqlens_from_lengths(torch.tensor([len(windows)])),
        None if takes_max else shares,
        num_cells=6,
    )
    assert_transposed(plan)
    tokens = cells_of(plan, seed)
    pooled = pool_tokens(tokens, plan).values
    for row, window in zip(pooled, windows, strict=True):
        if takes_max:
            assert torch.equal(row, torch.stack([tokens[c] for c, _ in window]).amax(0))
        else:
            parts = torch.stack([tokens[c] * share for c, share in window])
            assert_near(row, parts.sum(0))


@pytest.mark.parametrize("mode", MODES)
def test_plans_are_int64_with_int32_bounds_and_float64_shares(mode: Mode) -> None:
    plan = plan_pooling([((2, 2), repeat_strides(1, (2,)))], mode=mode)
    for field in fields(PoolPlan):
        value = getattr(plan, field.name)
        if isinstance(value, Tensor):
            expected = {"cu_seqlens": torch.int32}.get(field.name, torch.int64)
            is_share = "weights" in field.name
            assert value.dtype == (torch.float64 if is_share else expected)
            assert value.device.type == "cpu"
    assert lengths_from_cu_seqlens(plan.cu_seqlens).tolist() == [1]


def test_an_unknown_mode_is_named() -> None:
    plan: Any = inspect.unwrap(plan_pooling)
    with pytest.raises(ValueError) as error:
        plan([], mode="median")
    assert str(error.value) == (
        "mode is 'median'; it must be one of average, max, area, bilinear"
    )


@pytest.mark.parametrize(
    ("cells", "sizes", "message"),
    [
        (
            [0, 1],
            [2, 0],
            (
                "window_sizes adds up to 2 for 2 cells, the least is 0; each window "
                "holds at least 1, together all"
            ),
        ),
        (
            [0, 1],
            [1],
            (
                "window_sizes adds up to 1 for 2 cells, the least is 1; each window "
                "holds at least 1, together all"
            ),
        ),
        ([0, 3], [2], "cells lies between 0 and 3; there are 3, counted from 0"),
        ([-1, 0], [2], "cells lies between -1 and 0; there are 3, counted from 0"),
    ],
)
def test_windows_that_cannot_be_are_named(
    cells: list[int], sizes: list[int], message: str
) -> None:
    bounds = cu_seqlens_from_lengths(torch.tensor([len(sizes)]))
    with pytest.raises(ValueError) as error:
        plan_bags(torch.tensor(cells), torch.tensor(sizes), bounds, None, num_cells=3)
    assert str(error.value) == message


@pytest.mark.parametrize("entries", [1, 3])
def test_each_cell_of_a_window_has_its_weight(entries: int) -> None:
    weights = torch.ones(entries, dtype=torch.float64)
    with pytest.raises(ValueError) as error:
        inspect.unwrap(plan_bags)(
            integers([0, 1]),
            integers([2]),
            integers([0, 1]).int(),
            weights,
            num_cells=2,
        )
    assert str(error.value) == (
        f"weights has {entries} entries but cells has 2; each has its share"
    )


@pytest.mark.parametrize("bounds", [(0, 5), (1, 2), (0, 1), ()])
def test_bounds_of_frames_hold_all_windows(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        plan_bags(
            integers([0, 1]),
            integers([1, 1]),
            integers(bounds).int(),
            None,
            num_cells=2,
        )
    assert str(error.value) == (
        f"cu_seqlens has the ends {bounds} but there are 2 windows; it must start at 0 "
        "and end at their number"
    )


def test_bilinear_makes_a_clip_larger_as_interpolate_does() -> None:
    plan = plan_pooling(
        [((2, 3), schedule_from_grids([(5, 2)]))],
        mode="bilinear",
    )
    tokens = cells_of(plan, 0)
    image = tokens.T.reshape(1, 2, 2, 3)
    expected = F.interpolate(image, (5, 2), mode="bilinear")
    assert_near(pool_tokens(tokens, plan).values, expected.flatten(2)[0].T)
