"""Rotary frequencies stay what they are where a model is cast."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from fastslow import TextSpan
from fastslow.qwen2_vl import FastSlowQwen2VL
from tests.models.samples import STILL, Lay, MakeBackbone, MakePatches
from tests.small_models import family_config, small_config

HALF = torch.bfloat16

CASTS: dict[str, Callable[[Any], Any]] = {
    "to": lambda model: model.to(HALF),
    "half": lambda model: model.half(),
    "the backbone": lambda model: model.backbone.bfloat16(),
    "a copy": lambda model: copy.deepcopy(model).bfloat16(),
    "a pickle": lambda model: pickle.loads(pickle.dumps(model)).bfloat16(),
    "through float64": lambda model: model.double().to(HALF),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_cast_leaves_them_alone(family: str, cast: str) -> None:
    config = small_config() if family == "qwen2_vl" else family_config(family, 40)
    model = FastSlowQwen2VL(AutoModelForImageTextToText.from_config(config))
    model.train_tower()  # whose copy has frequencies of its own
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    after = CASTS[cast](model)
    assert all(weight.dtype.itemsize == 2 for weight in after.parameters())
    frequencies = [n for n, _ in after.named_buffers() if n.endswith(".inv_freq")]
    assert len(frequencies) == 2 + (after is not model.backbone)
    for name, buffer in after.named_buffers():
        exact = before[name if after is not model.backbone else f"backbone.{name}"]
        assert buffer.dtype == torch.float32, name
        assert torch.equal(buffer, exact), name


def test_a_model_is_moved_with_them(make_backbone: MakeBackbone) -> None:
    model = FastSlowQwen2VL(make_backbone()).to("meta", HALF)
    assert all(buffer.is_meta for buffer in model.buffers())


def test_a_model_that_is_cast_is_the_one_that_is_loaded_in_that_dtype(
    make_backbone: MakeBackbone, lay: Lay, make_patches: MakePatches, tmp_path: Path
) -> None:
    backbone = make_backbone().float()
    backbone.save_pretrained(tmp_path)
    loaded = type(backbone).from_pretrained(tmp_path, dtype=HALF)
    rounded = copy.deepcopy(backbone).to(HALF)  # before it is wrapped
    frequencies = rounded.model.language_model.rotary_emb.inv_freq
    rounded.model.language_model.rotary_emb.inv_freq = frequencies.float()
    rounded.model.visual.rotary_pos_emb.float()
    talk = TextSpan(token_ids=tuple(range(7)) * 200)
    plan = lay([(*STILL, talk, TextSpan(token_ids=(3, 4), trained=True))])
    patches = make_patches(plan)
    found = []
    for each in (FastSlowQwen2VL(backbone).to(HALF).backbone, loaded, rounded):
        model = FastSlowQwen2VL(each).eval()
        model.drop_next_frame()
        with torch.no_grad():
            output = model(patches, plan, read_logits=torch.nn.Identity())
        found.append(output.logits)
    cast, as_loaded, other = found
    assert torch.equal(cast, as_loaded)
    assert not torch.equal(other, as_loaded)  # so it would show


def test_what_was_rounded_before_is_refused(make_backbone: MakeBackbone) -> None:
    with pytest.raises(ValueError, match=r"visual.rotary_pos_emb.inv_freq is torch.bf"):
        FastSlowQwen2VL(make_backbone().to(HALF))
