"""What the laws of plans of pooling and of pooling itself are checked on."""

from dataclasses import astuple
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastslow import FrameSchedule, Grid, PoolPlan
from fastslow.grids import Mode
from fastslow.testing import reference
from fastslow.testing import strategies as fst

Clip = tuple[Tensor, list[int]]
Clips = list[tuple[Grid, FrameSchedule]]

MODES: tuple[Mode, ...] = ("average", "max", "area", "bilinear")
LINEAR: tuple[Mode, ...] = ("average", "area", "bilinear")

modes = st.sampled_from(MODES)
linear_modes = st.sampled_from(LINEAR)


def plain(clips: Clips) -> list[tuple[Grid, reference.Schedule]]:
    return [(grid, astuple(schedule)) for grid, schedule in clips]


def bags(entries: Tensor, starts: Tensor) -> list[list[Any]]:
    bounds = [*starts.tolist(), len(entries)]
    return [entries[first:last].tolist() for first, last in pairwise(bounds)]


def cells_of(plan: PoolPlan, seed: int) -> Tensor:
    shape = (len(plan.cell_starts), 2)
    return fst.random_values(shape, seed=seed, dtype=torch.float64)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
