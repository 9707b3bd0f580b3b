"""Frames are told the times at which lmms-engine took them."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lmms_engine", reason="lmms-engine is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lmms_engine.datasets import DatasetConfig
    from lmms_engine.mapping_func import DATASET_MAPPING

    from fastslow.integrations.lmms_engine import (
        FastSlowVision,
        FastSlowVisionIterable,
        read_config,
        spans_from_bytes,
        take_over_datasets,
    )
    from fastslow.integrations.lmms_engine.datasets import spread_clip

from fastslow.qwen2_vl import VIDEO_TOKEN
from recipes.edge.data.clips import make_clips
from recipes.edge.data.conversations import Turn
from recipes.edge.data.headers import Clip
from recipes.edge.data.index import Sample
from recipes.edge.data.samples import ClipSettings, plan_sample
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import probe_video, sample_frame_indices

Settings = dict[str, Any]
QUESTION, ANSWER = "Which colour is it?", "red red"


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a clip of 36 frames, of which every fifth is one of eight."""
    folder = tmp_path_factory.mktemp("long")
    make_clips(folder, num_clips=1, held_out=0, seed=0, num_frames=36, size=(56, 84))
    row = json.loads((folder / "train.jsonl").read_text())
    return folder / str(row["video"])


@pytest.fixture
def make_dataset(
    lmms_data: Path, run_settings: Callable[..., Settings]
) -> Callable[..., Any]:
    """Build the dataset of a checkpoint, without its rows."""

    def make(kind: type, checkpoint: str, **changes: Any) -> Any:
        config = read_config(run_settings(lmms_data))["dataset_config"] | changes
        config["processor_config"]["processor_name"] = str(lmms_data / checkpoint)
        made = kind(DatasetConfig(**config))
        made.processor = made._build_processor()
        made.processor.build()
        return made

    return make


def row_of(*videos: Path) -> dict[str, Any]:
    """Write a conversation about videos, as lmms-engine's rows hold it."""
    shown = [{"type": "video_url", "video_url": {"url": str(each)}} for each in videos]
    asked = [*shown, {"type": "text", "text": QUESTION}]
    said = [{"type": "text", "text": ANSWER}]
    turns = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": said},
    ]
    return {"messages": turns}


def spans_of_recipes(dataset: Any, *videos: Path) -> Any:
    """Plan the same conversation as the recipes do."""
    processor, settings = dataset.processor, dataset.processor.settings
    known = ClipSettings(
        family=processor.family,
        max_frames=dataset.config.frame_num,
        strategy=settings.frame_sampling_strategy,
        slow_ratio=settings.slow_frame_ratio,
        patch_stride=settings.mm_spatial_pool_stride,
        fast_scale=1,
        attention="frame_causal",
        capacity=100_000,
        row_buckets=0,
    )
    clips = tuple(
        Clip(kind="video", source=str(each), info=probe_video(MediaFile(path=each)))
        for each in videos
    )
    turns = (
        Turn(role="user", text="<video>" * len(videos) + QUESTION),
        Turn(role="assistant", text=ANSWER),
    )
    sample = Sample(sample_id="0", source="0", turns=turns, clips=clips)
    return plan_sample(sample, known, processor.tokenizer).spans


@pytest.mark.parametrize("checkpoint", ["ckpt", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("kind", [FastSlowVision, FastSlowVisionIterable])
def test_frames_are_told_the_times_that_the_recipes_tell(
    make_dataset: Callable[..., Any], long_clip: Path, checkpoint: str, kind: type
) -> None:
    dataset = make_dataset(kind, checkpoint)
    assert sample_frame_indices(36, 8) == tuple(range(0, 36, 5))  # lmms-engine's too
    for videos in ([long_clip], [long_clip, long_clip]):
        sample = dataset.load_from_json(row_of(*videos))
        (spans,) = spans_from_bytes(sample["spans"])
        assert spans == spans_of_recipes(dataset, *videos)
    assert VIDEO_TOKEN in dataset.processor.tokenizer.decode(sample["input_ids"])


@pytest.mark.parametrize(("most", "frames"), [(36, 36), (37, 36), (99, 36), (35, 35)])
def test_no_frame_comes_twice(
    make_dataset: Callable[..., Any], long_clip: Path, most: int, frames: int
) -> None:
    dataset = make_dataset(FastSlowVision, "qwen3_vl", frame_num=most)
    clip, fps = dataset.load_videos(str(long_clip), fps=1)
    info = probe_video(MediaFile(path=long_clip))
    assert len(clip.frames) == len(set(clip.seconds)) == frames
    assert clip.seconds[-1] == pytest.approx(35 / info.fps)
    assert clip.fps == fps == pytest.approx(frames / 36 * info.fps)


def test_a_rate_samples_as_lmms_engine_does(
    make_dataset: Callable[..., Any], long_clip: Path
) -> None:
    changes = {"video_sampling_strategy": "fps", "fps": 2}
    dataset = make_dataset(FastSlowVision, "qwen3_vl", **changes)
    clip, fps = dataset.load_videos(str(long_clip), fps=2)
    frames, same = super(type(dataset).__mro__[1], dataset).load_video_decord(
        str(long_clip), 2
    )
    assert (torch.equal(clip.frames, frames), fps) == (True, same)


def test_unknown_times_are_spread_over_the_video() -> None:
    frames = torch.zeros(5, 3, 56, 56)
    assert spread_clip(frames, 0.5).seconds == (0.0, 2.5, 5.0, 7.5, 10.0)
    assert spread_clip(frames[:1], 0.5).seconds == (0.0,)


def test_a_run_builds_datasets_that_know_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vision", "vision_iterable"):
        monkeypatch.setitem(DATASET_MAPPING, name, DATASET_MAPPING[name])
    take_over_datasets()
    assert DATASET_MAPPING["vision"] is FastSlowVision
    assert DATASET_MAPPING["vision_iterable"] is FastSlowVisionIterable
