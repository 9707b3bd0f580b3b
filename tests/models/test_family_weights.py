"""Checkpoints of every family go in and out of the root module."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from recipes.edge.ranks.distributed import process_group
from recipes.edge.weights.export import export_pretrained
from recipes.edge.weights.loading import (
    build_meta_model,
    load_pretrained,
    materialize,
    meta_model,
)
from recipes.edge.weights.names import (
    HEAD_PREFIX,
    named_weights,
    names_in_files,
    names_in_model,
)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_checkpoint_comes_out_as_it_went_in(
    make_family: Callable[[str], Any], tmp_path: Path, model_type: str
) -> None:
    backbone = make_family(model_type).float()
    backbone.config.dtype = torch.float32
    backbone.save_pretrained(tmp_path / "in")
    with process_group() as world:
        model = build_meta_model(tmp_path / "in")
        assert model.family.geometry.merge_size == 2
        materialize(model, world.device)
        load_pretrained(tmp_path / "in", model)
        export_pretrained(tmp_path / "out", model, world, dtype=torch.float32)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert type(again) is type(backbone)
    expected, found = backbone.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    for name, buffer in backbone.named_buffers():
        assert torch.equal(model.backbone.get_buffer(name), buffer), name


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_names_of_both_layouts_are_those_of_the_modules(
    make_family: Callable[[str], Any], model_type: str
) -> None:
    """No rule for the hub's layout touches a name that is the module's already."""
    model = meta_model(make_family(model_type).config)
    names = list(named_weights(model))
    assert names_in_model(names, model) == {name: name for name in names}
    in_files = names_in_files(
        [name for name in names if not name.startswith(HEAD_PREFIX)], model
    )
    found = names_in_model(in_files.values(), model)
    assert {found[saved]: name for name, saved in in_files.items()} == {
        name: name for name in in_files
    }
