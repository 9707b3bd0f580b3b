"""The real lmms-engine trains on fast/slow frames: its parts, then whole runs."""

import ast
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastslow import Span, count_tokens, next_frame_loss
from fastslow.qwen2_vl import FastSlowQwen2VL, clip_grid, patchify_clip, plan_row
from fastslow.testing import strategies as fst

pytest.importorskip("lmms_engine", reason="lmms-engine is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lmms_engine.datasets import DatasetConfig
    from lmms_engine.datasets.collator import VisionCollator
    from lmms_engine.datasets.naive.vision_dataset import VisionSFTDataset
    from lmms_engine.datasets.packing import build_online_packer
    from lmms_engine.datasets.processor import ProcessorConfig
    from lmms_engine.mapping_func import DATAPROCESSOR_MAPPING
    from lmms_engine.models import MONKEY_PATCHER
    from lmms_engine.train import TRAINER_REGISTER, TrainRunner
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from fastslow.integrations.lmms_engine import (
        FastSlowProcessor,
        FastSlowTrainer,
        RowCollator,
        patch_model,
        read_config,
        spans_from_bytes,
        spans_to_bytes,
    )

ROOT = Path(__file__).parents[2]
Settings = dict[str, Any]
QUESTION = {"type": "text", "text": "Which colour is it?"}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "red red"}]}


def asked(*parts: str) -> list[dict[str, Any]]:
    """Write a conversation that shows parts, as lmms-engine hands it over."""
    content = [*({"type": part} for part in parts), QUESTION]
    return [{"role": "user", "content": content}, ANSWER]


@pytest.fixture(scope="module")
def make_processor(
    lmms_data: Path, run_settings: Callable[..., Settings]
) -> Callable[[str], Any]:
    """Build the processor of a checkpoint, as a run does."""

    def make(checkpoint: str) -> Any:
        dataset = read_config(run_settings(lmms_data))["dataset_config"]
        config = dataset["processor_config"]
        config["processor_name"] = str(lmms_data / checkpoint)
        made = DATAPROCESSOR_MAPPING[config["processor_type"]](
            ProcessorConfig(**config)
        )
        made.build()
        return made

    return make


@pytest.fixture(scope="module")
def processor(make_processor: Callable[[str], Any]) -> Any:
    return make_processor("ckpt")


@pytest.fixture(scope="module")
def clip() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (7, 3, 84, 112), generator=generator).byte()


@pytest.fixture(scope="module")
def samples(processor: Any, clip: Tensor) -> list[dict[str, Tensor]]:
    return make_samples(processor, clip)


def make_samples(processor: Any, clip: Tensor) -> list[dict[str, Tensor]]:
    """Give a sample of a clip, of a picture beside a clip, and of text alone."""
    picture = Image.new("RGB", (112, 56), "red")
    return [
        processor.process(None, asked("video"), [clip], fps=2.0),
        processor.process([picture], asked("image", "video"), [clip.float()]),
        processor.process(None, asked()),
    ]


def collator(processor: Any) -> RowCollator:
    return RowCollator(
        collate=VisionCollator(processor),
        family=processor.family,
        video_token_id=processor.video_token_id,
    )


def test_all_parts_are_registered() -> None:
    assert DATAPROCESSOR_MAPPING["fastslow"] is FastSlowProcessor
    assert TRAINER_REGISTER["fastslow_fsdp2_trainer"] is FastSlowTrainer
    for model_type in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        assert MONKEY_PATCHER[model_type]["fastslow"] is patch_model


@given(fst.packed_samples())
def test_spans_to_bytes__round_trip(samples: Sequence[Sequence[Span]]) -> None:
    lines = [spans_to_bytes(spans) for spans in samples]
    joined = torch.cat(lines) if lines else torch.empty(0, dtype=torch.uint8)
    assert spans_from_bytes(joined) == [tuple(spans) for spans in samples]


def test_a_sample_holds_its_pooled_tokens(
    processor: Any, clip: Tensor, samples: list[dict[str, Tensor]]
) -> None:
    geometry = processor.family.geometry
    assert clip_grid(7, 84, 112, geometry) == (4, (3, 4))
    slow, fast = 3 * 4, 2 * 2  # of 3 x 4 merged tokens, with strides 1 and 2
    ids = samples[0]["input_ids"]
    assert (ids == processor.video_token_id).sum() == 2 * slow + 2 * fast
    assert torch.equal(samples[0]["pixel_values_videos"], patchify_clip(clip, geometry))
    assert (samples[1]["input_ids"] == processor.video_token_id).sum() == (
        2 * slow + 2 * fast + 2 * 4  # the picture's tokens are not pooled
    )
    assert "pixel_values_videos" not in samples[2]


def test_answers_alone_are_trained(
    processor: Any, samples: list[dict[str, Tensor]]
) -> None:
    for sample in samples:
        trained = sample["labels"] != -100
        text = processor.tokenizer.decode(sample["input_ids"][trained])
        assert text == "red red<|im_end|>"
        assert torch.equal(sample["labels"][trained], sample["input_ids"][trained])


def test_what_does_not_fit_is_refused(processor: Any, clip: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^a video has shape \(7, 84, 112, 3\); it"):
        processor.process(None, asked("video"), [clip.movedim(1, 3)])
    with pytest.raises(ValueError, match="a part of type 'audio'; it must be text,"):
        processor.process(None, asked("audio"))
    with pytest.raises(TypeError, match="audios"):
        processor.process(None, asked(), audios=[])


def test_places_in_a_text_are_those_of_the_clips(
    processor: Any, clip: Tensor, samples: list[dict[str, Tensor]]
) -> None:
    """LLaVA's rows name each clip twice: as a part, and where the text has it."""

    def ask(text: str, *parts: str) -> dict[str, Tensor]:
        given = [*({"type": part} for part in parts), {"type": "text", "text": text}]
        turns = [{"role": "user", "content": given}, ANSWER]
        picture = Image.new("RGB", (112, 56), "red")
        return processor.process([picture], turns, [clip], fps=2.0)

    before, after = ask("<video>Which?", "video"), ask("Which?", "video")
    assert torch.equal(before["input_ids"], after["input_ids"])
    within = ask("In <video>, which?", "video")["input_ids"]
    start = processor.tokenizer.decode(within).partition("<|vision_start|>")[0]
    assert start.endswith("In ")
    both = ask("<image><video>Which?", "image", "video")["input_ids"]
    assert torch.equal(both, ask("Which?", "image", "video")["input_ids"])
    with pytest.raises(ValueError) as caught:
        ask("Which <video> has <image>?", "video")
    assert str(caught.value) == (
        "a turn of the user has <video> in its text, which holds 2 places for the 1 "
        "parts that it shows; there must be one for each, in order, or none"
    )
    with pytest.raises(ValueError, match="of the user has <image> in its text, which"):
        ask("What does <image> do?", "video")


def test_a_setting_that_breaks_a_rule_stops_the_run_at_its_start(
    processor: Any,
) -> None:
    extra = dict(processor.config.extra_kwargs, slow_frame_ratio=1.5)
    config = ProcessorConfig(
        processor_name=processor.config.processor_name,
        processor_type="fastslow",
        extra_kwargs=extra,
    )
    with pytest.raises(ValueError, match=r"^slow_ratio is 1\.5; it must"):
        FastSlowProcessor(config).build()


def test_its_collator_joins_samples_and_ours_plans_their_row(
    processor: Any, samples: list[dict[str, Tensor]]
) -> None:
    joined = VisionCollator(processor)(samples)
    spans = spans_from_bytes(joined["spans"])
    assert [count_tokens(each) for each in spans] == [
        len(sample["input_ids"]) for sample in samples
    ]
    batch = collator(processor)(samples)
    plan = batch["plan"]
    ids = torch.cat([sample["input_ids"] for sample in samples])
    labels = torch.cat([sample["labels"] for sample in samples])
    assert torch.equal(plan.layout.input_ids, ids)
    assert torch.equal(plan.layout.labels, labels)
    assert plan.grid_thw.tolist() == [[4, 6, 8], [1, 4, 8], [4, 6, 8]]
    assert len(batch["patches"]) == plan.grid_thw.prod(1).sum()
    assert batch["attention_mask"].sum() == len(ids)


def test_text_alone_gets_a_blank_clip(
    processor: Any, samples: list[dict[str, Tensor]]
) -> None:
    batch = collator(processor)([[samples[2], samples[2]]])
    plan = batch["plan"]
    assert plan.grid_thw.tolist() == [[1, 2, 2]]
    assert batch["patches"].shape == (4, 1176)
    assert not batch["patches"].any()
    assert len(plan.labels.rows) == 2 * (samples[2]["labels"] != -100).sum()
    assert plan.next_frame.targets.cu_seqlens.tolist() == [0]


@pytest.mark.parametrize("strategy", ["first_fit", "best_fit", "balanced"])
@given(data=st.data())
def test_its_packers_pack_by_our_lengths(
    processor: Any,
    samples: list[dict[str, Tensor]],
    strategy: str,
    data: st.DataObject,
) -> None:
    lengths = [len(sample["input_ids"]) for sample in samples]
    chosen = data.draw(st.lists(st.sampled_from(range(len(samples))), min_size=1))
    packer = build_online_packer(strategy, 2 * max(lengths))
    packs = [
        pack
        for number in chosen
        for pack in packer.add(samples[number], lengths[number])
    ]
    packs += packer.flush()
    assert sum(map(len, packs)) == len(chosen)
    for pack in packs:
        plan = collator(processor)([pack])["plan"]
        segments = plan.layout.segment_ids
        blank = all("pixel_values_videos" not in sample for sample in pack)
        assert len(segments) - blank <= 2 * max(lengths)
        assert segments.max() + 1 == len(pack) + blank


def load(checkpoint: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(checkpoint).double()


def losses_of(model: Any, patches: Tensor, plan: Any) -> tuple[Tensor, Tensor]:
    output = model(patches, plan)
    ahead, _ = next_frame_loss(output.predictions, output.targets)
    return output.language_loss, ahead


@pytest.mark.parametrize("checkpoint", ["ckpt", "qwen2_5_vl", "qwen3_vl"])
def test_the_patched_forward_is_ours(
    make_processor: Callable[[str], Any],
    clip: Tensor,
    lmms_data: Path,
    checkpoint: str,
) -> None:
    processor = make_processor(checkpoint)
    samples = make_samples(processor, clip)
    batch = collator(processor)(samples)
    patched = load(lmms_data / checkpoint)
    ours = FastSlowQwen2VL(load(lmms_data / checkpoint)).eval()
    kwargs = {"patch_type": ["fastslow"], "loss_weight": 0.3}
    MONKEY_PATCHER.apply_monkey_patch_to_instance(patched, **kwargs)
    patched.next_frame_head.load_state_dict(ours.next_frame_head.state_dict())
    assert patched.fastslow.loss_weight == 0.3
    alone = [collator(processor)([sample]) for sample in samples]
    packed = losses_of(patched, batch["patches"].double(), batch["plan"])
    apart = [losses_of(ours, row["patches"].double(), row["plan"]) for row in alone]
    language, ahead = (sum(terms) for terms in zip(*apart, strict=True))
    torch.testing.assert_close(packed, (language, ahead))
    (packed[0] + 0.3 * packed[1]).backward()
    (language + 0.3 * ahead).backward()
    expected = {
        name.removeprefix("backbone."): weight.grad
        for name, weight in ours.named_parameters()
    }
    found = {name: weight.grad for name, weight in patched.named_parameters()}
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)


def test_several_videos_need_a_rate_each_where_times_are_read(
    make_processor: Callable[[str], Any], processor: Any, clip: Tensor
) -> None:
    two = asked("video", "video"), [clip, clip]
    assert processor.process(None, *two)["input_ids"].ndim == 1
    with pytest.raises(ValueError, match="the sample has 2 videos; lmms-engine gives"):
        make_processor("qwen3_vl").process(None, *two)


def test_a_weight_of_0_computes_no_prediction(lmms_data: Path) -> None:
    model = load(lmms_data / "ckpt")
    MONKEY_PATCHER.apply_monkey_patch_to_instance(model, "fastslow", loss_weight=0.0)
    assert not model.fastslow.model.predicts_next_frame
    with pytest.raises(ValueError, match=r"^loss_weight is -1; it must be 0 or more$"):
        patch_model(load(lmms_data / "ckpt"), loss_weight=-1)


def test_a_skipped_patch_stops_the_run(lmms_data: Path) -> None:
    """lmms-engine logs a patch that fails and goes on; the trainer does not."""
    runner = object.__new__(TrainRunner)
    runner.model = load(lmms_data / "ckpt")
    runner.config = type("Config", (), {})()
    runner.config.trainer_args = type("Arguments", (), {})()
    runner.config.trainer_args.use_rmpad = False
    runner.config.trainer_args.use_liger_kernel = False
    runner.model_config = type("ModelConfig", (), {})()
    runner.model_config.monkey_patch_kwargs = {
        "patch_type": ["fastslow"],
        "loss_weight": -1,
    }
    runner._apply_monkey_patch()
    with pytest.raises(ValueError) as caught:
        FastSlowTrainer(runner.model, None)
    assert str(caught.value) == (
        "the model, a qwen2_vl, has not got the patch 'fastslow'; lmms-engine's log "
        "says why it was skipped"
    )


def test_its_dataset_hands_over_what_the_processor_takes(
    lmms_data: Path, run_settings: Callable[..., Settings], processor: Any
) -> None:
    config = read_config(run_settings(lmms_data))["dataset_config"]
    dataset = VisionSFTDataset(DatasetConfig(**config))
    dataset.processor = processor
    rows = yaml.safe_load((lmms_data / "clips" / "train.json").read_text())
    sample = dataset.load_from_json(rows[1], str(lmms_data / "clips"))
    tokens = (sample["input_ids"] == processor.video_token_id).sum()
    assert clip_grid(8, 56, 84, processor.family.geometry) == (4, (2, 3))
    assert tokens == 2 * (2 * 3) + 2 * (1 * 2)


def train(folder: Path, settings: Settings, *, ranks: int) -> list[dict[str, Any]]:
    """Run the launcher on the CPU; give what it logs of each step."""
    folder.mkdir(exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(ranks)),
            *("tests/integrations/lmms_engine_on_cpu.py", f"config_yaml={file}"),
        ],
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    logged = re.findall(r"({'train/loss'.*?}), step=\d+", done.stdout)
    return [ast.literal_eval(each) for each in logged]


@pytest.fixture(scope="module")
def two_ranks(
    lmms_data: Path, run_settings: Callable[..., Settings]
) -> tuple[Path, list[dict[str, Any]]]:
    folder = lmms_data / "two"
    settings = run_settings(
        lmms_data, output_dir=str(folder / "out"), gradient_accumulation_steps=2
    )
    return folder, train(folder, settings, ranks=2)


def test_losses_are_divided_by_their_counts_over_all_ranks(
    two_ranks: tuple[Path, list[dict[str, Any]]], processor: Any, lmms_data: Path
) -> None:
    _, (first, _) = two_ranks
    config = DatasetConfig(
        dataset_type="vision",
        dataset_format="json",
        processor_config={"processor_name": "", "processor_type": "fastslow"},
        video_backend="decord",
        video_sampling_strategy="frame_num",
        frame_num=8,
    )
    dataset = VisionSFTDataset(config)
    dataset.processor = processor
    rows = yaml.safe_load((lmms_data / "clips" / "train.json").read_text())
    backbone = AutoModelForImageTextToText.from_pretrained(lmms_data / "ckpt")
    model = FastSlowQwen2VL(backbone).eval()
    total, labels, means = 0.0, 0, list[float]()
    for row in rows:
        sample = dataset.load_from_json(row, str(lmms_data / "clips"))
        plan = plan_row(
            spans_from_bytes(sample["spans"]), video_token_id=processor.video_token_id
        )
        loss = model(sample["pixel_values_videos"], plan).language_loss.item()
        total, labels = total + loss, labels + len(plan.labels.rows)
        means.append(loss / len(plan.labels.rows))
    assert first["train/language_loss"] == pytest.approx(total / labels, rel=1e-5)
    assert total / labels != pytest.approx(sum(means) / len(means), rel=1e-3)


def test_the_log_names_every_loss(
    two_ranks: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, logged = two_ranks
    assert len(logged) == 2
    for step in logged:
        ahead, copying = step["train/autoregressive_loss"], step["train/copy_loss"]
        assert step["train/loss"] == pytest.approx(
            step["train/language_loss"] + 0.15 * ahead
        )
        assert step["train/skill"] == pytest.approx(1 - ahead / copying)
        assert math.isfinite(step["train/grad_norm"])
        assert step["train/skipped_steps"] == 0
        assert step["perf/global_seq_len_avg"] * 2 == pytest.approx(
            float(logged[0]["train/total_tokens"])
        )


def test_a_norm_of_0_clips_nothing(
    lmms_data: Path, run_settings: Callable[..., Settings]
) -> None:
    free, bounded = (
        train(
            folder,
            run_settings(lmms_data, output_dir=str(folder / "out"), max_grad_norm=most),
            ranks=1,
        )
        for folder, most in ((lmms_data / "free", 0.0), (lmms_data / "bounded", 1e9))
    )
    for one, other in zip(free, bounded, strict=True):
        assert one["train/loss"] == other["train/loss"]


def test_accumulation_ranks_and_checkpointing_change_no_step(
    two_ranks: tuple[Path, list[dict[str, Any]]],
    lmms_data: Path,
    run_settings: Callable[..., Settings],
) -> None:
    folder = lmms_data / "one"
    settings = run_settings(
        lmms_data,
        output_dir=str(folder / "out"),
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
    )
    for ours, theirs in zip(
        train(folder, settings, ranks=1), two_ranks[1], strict=True
    ):
        for name in ("language_loss", "autoregressive_loss", "copy_loss", "grad_norm"):
            assert ours[f"train/{name}"] == pytest.approx(
                theirs[f"train/{name}"], rel=1e-4
            )


def test_packs_of_a_stream_train_in_bfloat16_and_go_on_from_a_checkpoint(
    lmms_data: Path, run_settings: Callable[..., Settings]
) -> None:
    settings = run_settings(
        lmms_data,
        output_dir=str(lmms_data / "packed" / "out"),
        per_device_train_batch_size=1,
        bf16=True,
        freeze_modules=["model.visual"],
    )
    settings["dataset_config"] |= {
        "dataset_type": "vision_iterable",
        "packing": True,
        "packing_strategy": "best_fit",
        "packing_length": 256,
    }
    del settings["dataset_config"]["filter_overlong_workers"]
    first = train(lmms_data / "packed", settings, ranks=1)
    settings["trainer_args"]["max_steps"] = 3
    rest = train(lmms_data / "packed", settings, ranks=1)
    assert (len(first), len(rest)) == (2, 1)
    for step in first + rest:
        assert math.isfinite(step["train/loss"])
        assert math.isfinite(step["train/grad_norm"])
    assert first[0]["perf/global_seq_len_avg"] > 128  # more than one sample


def test_the_optimizer_keeps_float32(
    two_ranks: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, _ = two_ranks
    checkpoint = folder / "out" / "checkpoint-2"
    for name in ("pytorch_model_fsdp_0/model", "optimizer/optimizer"):
        file = checkpoint / f"{name}_world_size_2_rank_0.pt"
        found = list(_tensors(torch.load(file, weights_only=False)))
        assert found
        assert {tensor.dtype for tensor in found} == {torch.float32}


def _tensors(content: Any) -> Any:
    """Yield all tensors within mappings and lists."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list):
        inner = content.values() if isinstance(content, dict) else content
        for each in inner:
            yield from _tensors(each)


def test_merged_weights_are_those_of_transformers(
    two_ranks: tuple[Path, list[dict[str, Any]]], lmms_data: Path
) -> None:
    from fastslow.integrations.lmms_engine.merge import main

    merged = lmms_data / "merged"
    main([str(two_ranks[0] / "out"), str(merged)])
    model, found = AutoModelForImageTextToText.from_pretrained(
        merged, output_loading_info=True
    )
    assert not any(found.values())
    assert model.dtype == torch.float32
    shards = [
        torch.load(file, weights_only=False)["model.language_model.norm.weight"]
        for file in sorted((two_ranks[0] / "out").rglob("model_world_size_2_rank_*"))
    ]
    trained = torch.cat([shard._local_tensor for shard in shards])
    assert torch.equal(model.model.language_model.norm.weight, trained)
    assert not torch.equal(trained, trained.bfloat16().float())
    before = AutoModelForImageTextToText.from_pretrained(lmms_data / "ckpt")
    moved = [
        not torch.equal(ours, theirs.to(ours.dtype))
        for ours, theirs in zip(model.parameters(), before.parameters(), strict=True)
    ]
    assert any(moved)
    assert type(AutoProcessor.from_pretrained(merged)).__name__ == "Qwen2VLProcessor"


def test_shards_are_given_up_as_they_are_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastslow.integrations.lmms_engine.merge import FastSlowMerger

    names = ["a", "target_tower.a", "b", "next_frame_head.a"]
    shards = [{name: torch.ones(1) for name in names} for _ in range(2)]
    merger, left = FastSlowMerger(), list[list[str]]()

    def join(parts: list[Tensor]) -> Tensor:
        left.extend(list(shard) for shard in shards)
        return parts[0]

    monkeypatch.setattr(merger, "_join", join)
    assert list(merger.consolidate(shards)) == ["a", "b"]
    assert left == [["b"], ["b"], [], []]


def test_the_launcher_takes_a_file_alone() -> None:
    from fastslow.integrations.lmms_engine.__main__ import main

    for arguments in ([], ["config_yaml=a.yaml", "trainer_args.max_steps=3"]):
        with pytest.raises(SystemExit, match="there must be one, config_yaml=FILE"):
            main(arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("", "there are no settings; lmms-engine needs some"),
        ("3", "Invalid loaded object type: int"),
        ("a: b: c", "mapping values are not allowed here"),
        ("- a", "the file is ['a']; it must be a mapping of settings"),
        ("loss_wieght: 1", "loss_wieght is no setting; the nearest one is loss_weight"),
    ],
)
def test_the_launcher_says_what_is_wrong_with_a_file(
    tmp_path: Path, content: str | None, message: str
) -> None:
    from fastslow.integrations.lmms_engine.__main__ import main

    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as caught:
        main([f"config_yaml={file}"])
    assert str(caught.value).startswith(f"error: {file}: ")
    assert message in str(caught.value)
