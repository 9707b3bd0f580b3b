"""What only the model can tell is checked before a run trains."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lmms_engine", reason="lmms-engine is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lmms_engine.datasets.processor import ProcessorConfig
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from fastslow.integrations.lmms_engine import (
        FastSlowProcessor,
        FastSlowTrainer,
        patch_model,
        read_config,
    )
    from fastslow.integrations.lmms_engine.processor import PARTS, save_processor
    from fastslow.integrations.lmms_engine.trainer import _check_kind, check_parts

Settings = dict[str, Any]


def load(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize(
    ("frozen", "sharding", "message"),
    [
        (["model.visual", "lm_head"], {}, None),
        (None, {"transformer_layer_cls_to_wrap": "Qwen2VLDecoderLayer"}, None),
        (None, {"transformer_layer_cls_to_wrap": ["Qwen2VLVisionBlock"]}, None),
        (
            ["visual"],
            {},
            (
                "trainer_args.freeze_modules has 'visual', which the model has not "
                "got; the nearest one is 'model.visual'"
            ),
        ),
        (
            None,
            {"transformer_layer_cls_to_wrap": ["Qwen2VLDecodrLayer"]},
            (
                "trainer_args.fsdp_config.transformer_layer_cls_to_wrap has "
                "'Qwen2VLDecodrLayer', which the model has not got; the nearest one is "
                "'Qwen2VLDecoderLayer'"
            ),
        ),
    ],
)
def test_parts_that_the_model_has_not_got_are_refused(
    lmms_data: Path, frozen: Any, sharding: dict[str, Any], message: str | None
) -> None:
    model = load(lmms_data / "ckpt")
    args: Any = SimpleNamespace(freeze_modules=frozen, fsdp_config=sharding)
    if message is None:
        check_parts(model, args)
        return
    patch_model(model)
    with pytest.raises(ValueError) as caught:
        FastSlowTrainer(model, args)
    assert str(caught.value) == message


@pytest.mark.parametrize("ratio", [0.01, 0.0])
def test_a_constant_rate_has_to_be_reached(ratio: float) -> None:
    trainer = object.__new__(FastSlowTrainer)
    trainer.args = SimpleNamespace(lr_scheduler_type="constant", warmup_ratio=ratio)
    with pytest.raises(ValueError) as caught:
        trainer.prepare_scheduler(0, 4)
    assert str(caught.value) == (
        f"trainer_args.warmup_ratio is {ratio} of 4 steps, which is none; "
        "lr_scheduler_type 'constant' would stay at a hundredth of learning_rate"
    )


@pytest.fixture
def make_processor(
    lmms_data: Path, run_settings: Callable[..., Settings]
) -> Callable[..., Any]:
    """Build the processor of a checkpoint, some settings of the data changed."""

    def make(checkpoint: Path, **changes: Any) -> Any:
        settings = run_settings(lmms_data)
        settings["dataset_config"] |= changes
        config = read_config(settings)["dataset_config"]["processor_config"]
        config["processor_name"] = str(checkpoint)
        made = FastSlowProcessor(ProcessorConfig(**config))
        made.build()
        return made

    return make


def test_a_processor_of_another_kind_is_refused(
    lmms_data: Path, make_processor: Callable[..., Any]
) -> None:
    processor = make_processor(lmms_data / "qwen3_vl")
    for checkpoint in ("qwen3_vl", "ckpt"):
        model = load(lmms_data / checkpoint)
        patch_model(model)
        if checkpoint == "qwen3_vl":
            _check_kind(model.fastslow.model, processor)
            continue
        with pytest.raises(ValueError) as caught:
            _check_kind(model.fastslow.model, processor)
    assert str(caught.value) == (
        f"processor_name is '{lmms_data / 'qwen3_vl'}', which is of another kind than "
        "the model, a qwen2_vl"
    )


def test_bounds_that_no_frame_meets_stop_the_run_at_its_start(
    lmms_data: Path, make_processor: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError) as caught:
        make_processor(lmms_data / "ckpt", video_min_pixels=700_000)
    assert str(caught.value) == (
        "min_pixels is 700000 and max_pixels is 12544; they must be at least 1, in "
        "this order"
    )


@pytest.mark.parametrize("checkpoint", ["ckpt", "qwen2_5_vl", "qwen3_vl"])
def test_a_checkpoint_without_an_image_processor_is_saved_as_it_is(
    lmms_data: Path,
    tmp_path: Path,
    make_processor: Callable[..., Any],
    checkpoint: str,
) -> None:
    """The recipes' model-N holds weights and a tokenizer."""
    bare, saved = tmp_path / "bare", tmp_path / "saved"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(lmms_data / checkpoint / name, bare)
    shutil.copy(lmms_data / checkpoint / "chat_template.jinja", bare)
    processor = make_processor(bare)
    processor.save_pretrained(str(saved))
    again = AutoTokenizer.from_pretrained(saved)
    assert again.get_vocab() == processor.tokenizer.get_vocab()
    assert again.chat_template == processor.tokenizer.chat_template


@pytest.mark.parametrize("name", PARTS)
def test_an_image_processor_that_cannot_be_read_is_not_dropped(
    lmms_data: Path, tmp_path: Path, name: str
) -> None:
    broken, saved = tmp_path / "broken", tmp_path / "saved"
    skipped = shutil.ignore_patterns("*.safetensors", *PARTS)
    shutil.copytree(lmms_data / "ckpt", broken, ignore=skipped)
    (broken / name).write_text("{")
    with pytest.raises((OSError, ValueError)):
        save_processor(str(broken), str(saved))
    assert not saved.exists()
