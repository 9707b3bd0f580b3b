"""What a run does not read is named, with the setting that rules it out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes.config import Config, with_settings
from recipes.data import plan_data
from recipes.edge.data.clips import make_clips
from recipes.edge.ranks.distributed import process_group
from recipes.preview import preview
from recipes.qwen2vl_2b import QWEN2VL_2B
from recipes.qwen2vl_7b import QWEN2VL_7B
from recipes.qwen2vl_72b import QWEN2VL_72B
from recipes.qwen2vl_tiny import TINY
from recipes.unread import unread_settings, without_effect

THIRDS = "repeat_strides(pattern=(2, 4, 4))"
NO_RANK = "parallel.lora_rank is 0; it has no effect"
RULED_OUT = f"frame_sampling_strategy is {THIRDS!r}, which does not read it"


def config(**changes: Any) -> Config:
    """Change the settings of a run on data of one's own."""
    return with_settings(Config(output_dir=Path("runs"), data_path="a.jsonl"), changes)


@pytest.mark.parametrize("preset", [TINY, QWEN2VL_2B, QWEN2VL_7B, QWEN2VL_72B])
def test_no_preset_sets_anything_in_vain(preset: Config) -> None:
    assert without_effect(preset) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slow_frame_ratio": 0.25}, []),
        ({"frame_sampling_strategy": THIRDS}, []),
        (
            {
                "frame_sampling_strategy": THIRDS,
                "mm_spatial_pool_stride": 8,
                "slow_frame_ratio": 0.25,
            },
            [
                f"slow_frame_ratio is 0.25 but {RULED_OUT}; it has no effect",
                f"mm_spatial_pool_stride is 8 but {RULED_OUT}; it has no effect",
            ],
        ),
        (
            {"loss_weight": 0, "next_frame_distance": "l1"},
            ["next_frame_distance is 'l1' but loss_weight is 0; it has no effect"],
        ),
        ({"loss_weight": 0.01, "next_frame_distance": "l1"}, []),
        (
            {"parallel": {"lora_alpha": 32, "lora_dropout": 0.1}},
            [
                f"parallel.lora_alpha is 32 but {NO_RANK}",
                f"parallel.lora_dropout is 0.1 but {NO_RANK}",
            ],
        ),
        ({"parallel": {"lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.1}}, []),
        ({"data_subsets": ["a"], "archives_on_disk": 4}, []),
        (
            {"eval_steps": 5},
            ["eval_steps is 5 but there is no eval_data_path; it has no effect"],
        ),
        ({"eval_steps": 5, "eval_data_path": "b.jsonl"}, []),
    ],
)
def test_what_is_changed_in_vain(changes: dict[str, Any], said: list[str]) -> None:
    assert without_effect(config(**changes)) == said


def test_clips_that_a_recipe_makes_have_no_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_few(folder: Path, **_: object) -> None:
        make_clips(folder, num_clips=2, held_out=1, seed=0, num_frames=2)

    monkeypatch.setattr("recipes.data.make_clips", make_few)
    given = config(data_subsets=["a"], archives_on_disk=4)
    made = replace(given, data_path=None, output_dir=tmp_path)
    with process_group() as world:
        assert len(plan_data(made, world).train) == 2
    assert without_effect(made) == [
        "data_subsets is ['a'] but there is no data_path; it has no effect",
        "archives_on_disk is 4 but there is no data_path; it has no effect",
    ]


def test_only_what_differs_is_spoken_of_and_all_is_known() -> None:
    unread = unread_settings(config(loss_weight=0))
    assert unread == {
        "eval_steps": "there is no eval_data_path",
        "next_frame_distance": "loss_weight is 0",
        "parallel.lora_alpha": "parallel.lora_rank is 0",
        "parallel.lora_dropout": "parallel.lora_rank is 0",
    }


def test_a_dry_run_says_so() -> None:
    changes = {"loss_weight": 0, "next_frame_distance": "l1"}
    text, _ = preview(with_settings(TINY, changes))
    assert text.splitlines()[0] == (
        "settings       next_frame_distance is 'l1' but loss_weight is 0; it has no "
        "effect"
    )
