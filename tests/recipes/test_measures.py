"""Numbers of a step that several ranks and a GPU would give, found without them."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.edge.estimates.devices import find_device
from recipes.edge.ranks.distributed import process_group
from recipes.measures import by_rank, of_all_ranks, throughput


def test_the_numbers_of_all_ranks_are_in_what_is_summed() -> None:
    with process_group() as world:
        ranks = [replace(world, rank=rank, size=3) for rank in range(3)]
    parts = [by_rank("waited", 0.5 + each.rank, each) for each in ranks]
    sums = {name: sum(part[name] for part in parts) for name in parts[0]}
    for each in ranks:
        assert of_all_ranks("waited", sums, each) == [0.5, 1.5, 2.5]


def test_a_step_is_measured_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    device = find_device("h100-80gb")
    monkeypatch.setattr("recipes.measures.this_device", lambda _: device)
    with process_group() as world:
        run: Any = SimpleNamespace(
            world=replace(world, size=2), config=SimpleNamespace(tokens_per_row=100)
        )
    counts = {
        "waited_0": 1.0,
        "waited_1": 2.0,
        "tokens": 320,
        "frames": 16,
        "clip_tokens": 60,
        "clips": 0,
        "rows": 4,
        "bad_samples": 1,
    }
    found = throughput(run, counts, 2 * device.bf16_flops, 4.0)
    assert math.isnan(found.pop("tokens_per_clip"))
    assert found == {
        "seconds": 4.0,
        "mfu": 0.25,
        "tokens_per_second": 40,
        "frames_per_second": 2,
        "fill": 0.8,
        "data_wait": 0.375,
        "longest_data_wait": 0.5,
        "waiting_rank": 1,
        "bad_samples": 1,
    }
