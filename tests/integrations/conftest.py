"""A tiny checkpoint, and clips with questions, as lmms-engine reads them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from fastslow.qwen2_vl import VIDEO_TOKEN
from recipes.edge.data.clips import make_clips
from recipes.edge.weights.tiny import tiny_config, train_tokenizer
from tests.small_models import family_config

QUESTION = "Which colour is it?"


@pytest.fixture(scope="session")
def lmms_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make ``clips/train.json``, whose answers differ in length, and checkpoints.

    ``ckpt`` is a whole one of a Qwen2-VL; those named by the type of their model are
    weights and tokenizer.
    """
    from transformers import (  # they need torchvision, which lmms-engine brings
        AutoModelForImageTextToText,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    folder = tmp_path_factory.mktemp("lmms_engine")
    clips = folder / "clips"
    make_clips(clips, num_clips=8, held_out=0, seed=0, num_frames=8, size=(56, 84))
    lines = (clips / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    answers = [" ".join(["red"] * (1 + 3 * number)) for number in range(len(rows))]
    written = [
        {"id": number, "messages": _messages(row["video"], answer)}
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]
    (clips / "train.json").write_text(json.dumps(written))
    tokenizer = train_tokenizer([QUESTION, *answers], vocabulary_size=400)
    torch.manual_seed(0)
    backbone = Qwen2VLForConditionalGeneration(tiny_config(len(tokenizer)))
    backbone.save_pretrained(folder / "ckpt")
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder / "ckpt")
    for model_type in ("qwen2_5_vl", "qwen3_vl"):
        config = family_config(model_type, len(tokenizer))
        config.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        model = AutoModelForImageTextToText.from_config(config)
        model.save_pretrained(folder / model_type)
        tokenizer.save_pretrained(folder / model_type)
    return folder


def _messages(video: str, answer: str) -> list[dict[str, Any]]:
    """Write a question about a video as lmms-engine's rows hold it."""
    asked = [
        {"type": "video_url", "video_url": {"url": video}},
        {"type": "text", "text": QUESTION},
    ]
    said = [{"type": "text", "text": answer}]
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": said},
    ]


@pytest.fixture(scope="session")
def run_settings() -> Callable[..., dict[str, Any]]:
    """Give the settings of a run on these data, as a YAML file holds them."""
    return _run_settings


def _run_settings(folder: Path, **arguments: Any) -> dict[str, Any]:
    checkpoint = str(folder / "ckpt")
    return {
        "trainer_type": "fastslow_fsdp2_trainer",
        "autoregressive_config": {
            "mm_spatial_pool_stride": 2,
            "frame_sampling_strategy": "interleave",
            "slow_frame_ratio": 0.5,
            "loss_weight": 0.15,
            "max_frames_num": 8,
        },
        "data_path": str(folder / "clips" / "train.json"),
        "dataset_config": {
            "dataset_type": "vision",
            "shuffle": False,
            "filter_overlong_workers": 1,
            "video_backend": "decord",
            "video_max_pixels": 12544,
            "processor_config": {
                "processor_type": "fastslow",
                "processor_name": checkpoint,
            },
        },
        "model_config": {
            "load_from_pretrained_path": checkpoint,
            "monkey_patch_kwargs": {"patch_type": ["fastslow"]},
        },
        "trainer_args": {
            "output_dir": str(folder / "out"),
            "use_cpu": True,
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "save_steps": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "report_to": [],
            "dataloader_pin_memory": False,
            **arguments,
        },
    }
