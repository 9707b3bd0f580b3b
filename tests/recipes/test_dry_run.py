"""What is said before a run starts, against runs that have started."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fastslow import (
    Span,
    TextSpan,
    VideoSpan,
    build_schedule,
    count_tokens,
    schedule_from_strides,
)
from fastslow.qwen2_vl import Family, plan_row, step_flops
from recipes.command_line import parse_command_line
from recipes.config import Config
from recipes.edge.data.clips import make_clips
from recipes.edge.estimates.devices import find_device
from recipes.edge.estimates.fitting import first_that_fits, most_changes
from recipes.edge.estimates.forecast import Plan, Samples, at_hand, fits, forecast
from recipes.edge.estimates.memory import _Births, estimate_memory
from recipes.edge.estimates.summary import summarise
from recipes.edge.training.parallel import choose_trained
from recipes.edge.weights.loading import meta_model
from recipes.edge.weights.published import model_config
from recipes.edge.weights.tiny import train_tokenizer
from recipes.preview import preview
from recipes.qwen2vl_2b import QWEN2VL_2B
from recipes.qwen2vl_7b import QWEN2VL_7B
from recipes.qwen2vl_72b import QWEN2VL_72B
from recipes.qwen2vl_tiny import TINY
from recipes.settings.parallel import Parallel
from recipes.train import run_recipe

ROOT = Path(__file__).parents[2]
CLIP = VideoSpan(grid=(8, 8), schedule=build_schedule(8, slow_stride=2, fast_stride=4))
SAMPLE = (
    CLIP,
    TextSpan(token_ids=tuple(range(100))),
    TextSpan(token_ids=tuple(range(30)), trained=True),
)


def given(samples: Sequence[Sequence[Span]]) -> Samples:
    return at_hand(samples, Family())


def small_config() -> PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    return Qwen2VLConfig(
        text_config={
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 3000,
            "rope_parameters": rope,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 160,
            "hidden_size": 256,
            "num_heads": 4,
            "mlp_ratio": 4,
        },
        video_token_id=2000,
    )


def test_an_estimate_leaves_attention_as_it_was() -> None:
    before = dict(ALL_ATTENTION_FUNCTIONS)
    plan = plan_row([SAMPLE], video_token_id=2000)
    estimate_memory(meta_model(small_config()), Parallel(), plan, world_size=2)
    assert dict(ALL_ATTENTION_FUNCTIONS) == before


def test_what_has_values_keeps_them_however_often_it_is_computed() -> None:
    with _Births():
        found = [torch.ones(2) + 1 for _ in range(3)]
    assert [each.tolist() for each in found] == [[2, 2]] * 3


def test_the_plan_of_a_row_takes_memory_too() -> None:
    plan = plan_row([SAMPLE], video_token_id=2000)
    rows = plan.next_frame.rows
    longer = replace(plan, next_frame=replace(plan.next_frame, rows=rows.repeat(9)))
    found = list[int]()
    for each in (plan, longer):
        model = meta_model(small_config())
        model.drop_next_frame()  # so nothing is made of these rows
        memory = estimate_memory(model, Parallel(), each, world_size=1)
        found.append(memory.activations)
    assert found[1] - found[0] == 8 * rows.nbytes


def test_offloaded_state_is_on_the_host() -> None:
    plan = plan_row([SAMPLE], video_token_id=2000)
    found = [
        estimate_memory(meta_model(small_config()), settings, plan, world_size=2)
        for settings in (Parallel(), Parallel(cpu_offload=True))
    ]
    state = found[0].parameters + found[0].gradients + found[0].optimizer
    assert found[1].host == state
    assert found[0].total - found[1].total == state


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", 2_208_985_600),
        ("Qwen/Qwen2-VL-7B-Instruct", 8_291_375_616),
        ("Qwen/Qwen2-VL-72B-Instruct", 73_405_560_320),
    ],
)
def test_published_models_have_their_parameters(name: str, parameters: int) -> None:
    backbone = meta_model(model_config(name)).backbone
    assert sum(weight.numel() for weight in backbone.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "preset"), [("2b", QWEN2VL_2B), ("7b", QWEN2VL_7B), ("72b", QWEN2VL_72B)]
)
def test_every_preset_fits_what_it_says(name: str, preset: Config) -> None:
    table = (ROOT / "docs" / "real_sizes.md").read_text()
    said = re.search(rf"^\| `recipes/qwen2vl_{name}.py`.* (\d+) GPUs? of", table, re.M)
    assert said is not None
    assert preset.num_gpus == int(said[1])
    text, is_possible = preview(preset)
    assert is_possible, text
    share = re.search(r"rows: tower (\d+)%,", text)
    assert share is not None
    assert re.search(rf"\b{share[1]}% of the[^%]* {name.upper()}\s+preset", table)


def test_without_the_next_frame_loss_a_run_takes_less() -> None:
    whole, less = (
        forecast(
            small_plan(512, loss_weight=each, parallel=Parallel(tower="trained")),
            given([SAMPLE]),
        )
        for each in (0.15, 0.0)
    )
    head = 256 * 256 + 256 + 256 * 160 + 160
    assert whole.parameters[1] - less.parameters[1] == head
    assert whole.flops.tower > less.flops.tower
    assert whole.flops.heads > less.flops.heads
    assert whole.flops.language_model == less.flops.language_model
    assert whole.memory.total > less.memory.total
    assert whole.memory.optimizer - less.memory.optimizer == 8 * head


def test_pairs_are_those_of_the_attention_that_is_asked_for() -> None:
    both_ways, causal = (
        forecast(small_plan(512, attention=kind), given([SAMPLE])).flops.language_model
        for kind in ("frame_causal", "causal")
    )
    assert causal < both_ways


def small_plan(tokens_per_row: int, **settings: Any) -> Plan:
    known = {
        "num_gpus": 1,
        "packing_window": 8,
        "loss_weight": 0.0,
        "parallel": Parallel(),
        **settings,
    }
    config = replace(TINY, tokens_per_row=tokens_per_row, **known)
    return Plan(config=config, shape=small_config(), device=find_device("h100-80gb"))


def memory_of(tokens_per_row: int, num_gpus: int = 1, **settings: Any) -> int:
    parallel = Parallel(**settings)
    plan = small_plan(tokens_per_row, num_gpus=num_gpus, parallel=parallel)
    return forecast(plan, given([SAMPLE] * 8)).memory.total


def on_a_gpu_of(plan: Plan, memory: int) -> Plan:
    small = replace(plan.device, memory_bytes=int(memory / 0.92))
    return replace(plan, device=small)


def with_flags(plan: Plan, flags: str) -> Plan:
    return replace(plan, config=parse_command_line(plan.config, flags.split()))


def flags_with(plan: Plan, memory: int) -> str | None:
    """Give the flags that are named, after they were given and did what was said."""
    plan, samples = on_a_gpu_of(plan, memory), given([SAMPLE] * 8)
    change = first_that_fits(plan, samples)
    if change is None:
        return None
    flags, said = change
    after = with_flags(plan, flags)
    assert fits(after, said)
    assert forecast(after, samples).memory == said
    return flags


RECOMPUTE = "--parallel.activation-checkpointing"
TWICE = "--gradient-accumulation-steps 2"


def test_what_to_change_is_the_first_that_fits() -> None:
    plan = small_plan(2048)
    whole = forecast(plan, given([SAMPLE] * 8))
    assert fits(plan, whole.memory)
    selective, full = (
        memory_of(2048, activation_checkpointing=kind) for kind in ("selective", "full")
    )
    assert whole.memory.total > selective > full
    assert flags_with(plan, selective + 2) == f"{RECOMPUTE} selective"
    assert flags_with(plan, full + 2) == f"{RECOMPUTE} full"
    assert flags_with(plan, full - 2) == f"--tokens-per-row 1024 {TWICE}"
    assert flags_with(plan, 1000) is None


def test_what_to_change_has_nothing_that_is_not_needed() -> None:
    plan = small_plan(512)
    offload = "--parallel.cpu-offload"
    none, selective, full = (
        memory_of(512, activation_checkpointing=kind, cpu_offload=True)
        for kind in ("none", "selective", "full")
    )
    shortest = memory_of(256, activation_checkpointing="full", cpu_offload=True)
    assert none > selective > full > shortest
    assert memory_of(256, activation_checkpointing="full") > none
    assert flags_with(plan, none + 2) == offload
    assert flags_with(plan, selective + 2) == f"{RECOMPUTE} selective {offload}"
    assert flags_with(plan, full + 2) == f"{RECOMPUTE} full {offload}"
    every = f"{RECOMPUTE} full --tokens-per-row 256 {TWICE} {offload}"
    assert flags_with(plan, shortest + 2) == every


def test_rows_are_halved_as_often_as_is_needed_and_a_step_keeps_its_tokens() -> None:
    full = Parallel(activation_checkpointing="full")
    steps = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    plan = small_plan(4096, parallel=full, **steps)
    for tokens, rows in ((2048, 6), (1024, 12), (512, 24), (256, 48)):
        flags = f"--tokens-per-row {tokens} --gradient-accumulation-steps {rows}"
        memory = memory_of(tokens, activation_checkpointing="full")
        assert flags_with(plan, memory + 2) == flags


def test_no_row_is_named_that_a_sample_does_not_fit() -> None:
    assert 128 < count_tokens(SAMPLE) <= 256
    full = Parallel(activation_checkpointing="full", cpu_offload=True)
    plan = small_plan(700, parallel=full)
    shortest = memory_of(256, activation_checkpointing="full", cpu_offload=True)
    assert flags_with(plan, shortest + 2) == (
        "--tokens-per-row 256 --gradient-accumulation-steps 3"
    )
    assert flags_with(plan, shortest // 2) is None


def test_fewer_copies_go_before_shorter_rows_and_the_hosts_memory() -> None:
    copies = {
        number: memory_of(
            512, num_gpus=12, activation_checkpointing="full", replicate=number
        )
        for number in (6, 4, 3, 2, 1)
    }
    assert sorted(copies.values(), reverse=True) == list(copies.values())
    full = Parallel(activation_checkpointing="full", replicate=6)
    plan = small_plan(512, num_gpus=12, parallel=full)
    for number in (4, 3, 2, 1):
        flags = f"--parallel.replicate {number}"
        assert flags_with(plan, copies[number] + 2) == flags
    two, three = (
        memory_of(256, num_gpus=12, activation_checkpointing="full", replicate=number)
        for number in (2, 3)
    )
    assert two < copies[1] - 2 < three
    flags = f"--parallel.replicate 2 --tokens-per-row 256 {TWICE}"
    assert flags_with(plan, copies[1] - 2) == flags


@pytest.mark.parametrize(
    ("plan", "mild"),
    [
        (
            small_plan(256, num_gpus=2, parallel=Parallel(replicate=2)),
            f"{RECOMPUTE} full --parallel.replicate 1",
        ),
        (
            small_plan(1024, parallel=Parallel(activation_checkpointing="full")),
            "--tokens-per-row 256 --gradient-accumulation-steps 4",
        ),
        (small_plan(256, parallel=Parallel(activation_checkpointing="full")), ""),
    ],
)
def test_the_last_words_name_all_that_was_tried(plan: Plan, mild: str) -> None:
    plan, samples = on_a_gpu_of(plan, 1000), given([SAMPLE] * 8)
    gpus = [f"--num-gpus {more * plan.config.num_gpus}" for more in (2, 4, 8, 16)]
    last = ["--parallel.cpu-offload", "--parallel.lora-rank 16", *gpus]
    said = most_changes(plan, samples)
    assert said == " and ".join(filter(None, [mild, f"one of {', '.join(last)}"]))
    assert first_that_fits(plan, samples) is None
    for flags in ("", *last):
        after = with_flags(plan, f"{mild} {flags}")
        assert not fits(after, forecast(after, samples).memory)


SPARSE = (
    VideoSpan(grid=(32, 32), schedule=schedule_from_strides([32] * 4)),
    TextSpan(token_ids=tuple(range(9)), trained=True),
)
"""Few tokens, so that it is packed last, and many patches."""


def test_the_worst_row_is_looked_for_in_a_whole_pass() -> None:
    samples = [SAMPLE] * 5 + [SPARSE] + [SAMPLE] * 6
    plan = small_plan(600, packing_window=len(samples))
    found = forecast(plan, given(samples))
    assert {number for row in found.bins for number in row} == set(range(len(samples)))
    assert [4, 64, 64] in found.worst.grid_thw.tolist()
    model = meta_model(small_config())
    model.drop_next_frame()
    choose_trained(model, plan.config.parallel)
    alone = [
        step_flops(model, plan_row([each], video_token_id=2000)) for each in samples
    ]
    total = sum(alone[number].total for row in found.bins for number in row)
    assert found.flops.total == pytest.approx(total / len(found.bins), rel=1e-9)


@pytest.mark.parametrize(
    "shape",
    [
        Qwen2_5_VLConfig(vision_config={"out_hidden_size": 8192}),
        Qwen3VLConfig(vision_config={"out_hidden_size": 4096}),
    ],
)
def test_the_other_families_are_foretold(
    shape: PreTrainedConfig, tmp_path: Path
) -> None:
    shape.save_pretrained(tmp_path)
    model = meta_model(shape)
    text, is_possible = preview(replace(QWEN2VL_72B, model_name_or_path=str(tmp_path)))
    assert f"{sum(w.numel() for w in model.parameters()):,} parameters" in text
    assert is_possible == text.endswith("it fits")


def test_rows_are_as_long_as_a_gpu_is_given() -> None:
    """In a run they are padded to multiples of 128."""
    short, padded = (
        forecast(small_plan(tokens), given([SAMPLE] * 8)) for tokens in (960, 1024)
    )
    assert len(short.worst.layout.labels) == 1024
    assert short.memory == padded.memory
    assert short.fill > padded.fill


def test_copies_that_do_not_divide_are_refused() -> None:
    plan = small_plan(2048, num_gpus=3, parallel=Parallel(replicate=2))
    with pytest.raises(ValueError) as error:
        forecast(plan, given([SAMPLE]))
    assert str(error.value) == (
        "replicate is 2 but there are 3 ranks; it must divide them"
    )


def test_a_dry_run_says_what_the_host_would_hold() -> None:
    config = replace(QWEN2VL_7B, num_gpus=1, device="l40s-48gb")
    text, is_possible = preview(config)
    assert not is_possible
    parts = ("  parameters", "  gradients", "  optimizer")
    lines = [line for line in text.splitlines() if line.startswith(parts)]
    state = sum(float(line.split()[-1]) for line in lines)
    said = re.search(
        r"--parallel.cpu-offload would, with (\S+) GiB, and (\S+) GiB of the host's "
        "for each GPU$",
        text,
    )
    assert said is not None, text
    assert float(said[2]) == pytest.approx(state, abs=0.02)
    text, is_possible = preview(parse_command_line(config, flags_of(text)))
    assert is_possible
    assert re.search(rf"^  total +{said[1]} of ", text, re.M)


def flags_of(text: str) -> list[str]:
    found = re.search("it does not fit; (.*) would, with", text)
    assert found is not None, text
    return found[1].split()


def test_a_dry_run_says_what_was_tried_in_vain(tmp_path: Path) -> None:
    shape = small_config()
    shape.text_config.vocab_size = 2**24  # gathered whole, so that no change helps
    shape.text_config.hidden_size = shape.vision_config.hidden_size = 2048
    shape.text_config.num_attention_heads = 32
    shape.save_pretrained(tmp_path)
    parallel = Parallel(activation_checkpointing="full", tower="trained")
    config = replace(TINY, model_name_or_path=str(tmp_path), parallel=parallel)
    text, is_possible = preview(replace(config, num_gpus=3, tokens_per_row=1000))
    assert not is_possible
    assert text.splitlines()[-1].split(maxsplit=1)[1] == (
        "it does not fit, not even with --tokens-per-row 256 "
        "--gradient-accumulation-steps 4 and one of --parallel.cpu-offload, "
        "--num-gpus 6, --num-gpus 12, --num-gpus 24, --num-gpus 48"
    )


def test_a_dry_run_knows_the_time_of_bfloat16_alone() -> None:
    plan = small_plan(512)
    found = forecast(plan, given([SAMPLE]))
    assert " s a step at an MFU of 40%, " in summarise(plan, found, given([SAMPLE]))
    plan = small_plan(512, parallel=Parallel(compute="float32"))
    assert " a step at an MFU" not in summarise(plan, found, given([SAMPLE]))


def test_a_dry_run_names_the_settings_of_a_clip_that_no_row_holds() -> None:
    with pytest.raises(ValueError) as caught:
        preview(replace(QWEN2VL_2B, max_frames_num=768, max_pixels=602_112))
    assert str(caught.value) == (
        "a sample with a clip of 768 frames of 775 x 775 pixels has 47190 tokens but "
        "tokens_per_row is 16384; raise it, or lower max_frames_num or max_pixels"
    )


def test_a_dry_run_of_data(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", num_clips=6, held_out=0, seed=0, size=(56, 84))
    data = tmp_path / "clips" / "train.jsonl"
    text, is_possible = preview(replace(TINY, data_path=str(data), num_gpus=2))
    assert is_possible
    first = text.splitlines()[0].split(maxsplit=1)
    said = "6 samples, 0 unusable; text counted by a tokenizer learnt from it"
    assert first == ["data", said]
    (clip,) = [line for line in text.splitlines() if line.startswith("clip")]
    assert "S." in clip


def test_a_dry_run_refuses_data_that_the_run_would_refuse(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", num_clips=6, held_out=0, seed=0, size=(56, 84))
    data = tmp_path / "clips" / "train.jsonl"
    data.write_text(data.read_text() + '{"id": "bad"}\n')
    with pytest.raises(ValueError) as error:
        preview(replace(TINY, data_path=str(data), max_bad_share=0.1))
    assert str(error.value) == (
        "1 of 7 samples cannot be used, more than the share of 0.1 that max_bad_share "
        "allows; the first is bad: the row has no conversation; it needs conversations "
        "or messages"
    )
    _, is_possible = preview(replace(TINY, data_path=str(data), max_bad_share=0.2))
    assert is_possible


def test_a_dry_run_of_text(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", num_clips=2, held_out=0, seed=0, size=(56, 84))
    data = tmp_path / "clips" / "train.jsonl"
    clips = data.read_text()
    said = {"human": "How are you?", "gpt": "Well, thank you."}
    talk = [{"from": who, "value": words} for who, words in said.items()]
    text = json.dumps({"id": "text", "conversations": talk})
    shown = []
    for rows in (f"{text}\n{clips}", text):
        data.write_text(rows)
        report, is_possible = preview(replace(TINY, data_path=str(data), num_gpus=2))
        assert is_possible
        shown += [line for line in report.splitlines() if line.startswith("clip")]
    assert "S." in shown[0]
    assert shown[1].split(maxsplit=1) == ["clip", "none, text alone"]


def test_a_dry_run_says_whether_the_run_fits(preloaded: Any, tmp_path: Path) -> None:
    words = ("recipes/qwen2vl_2b.py", "--dry-run", "--num-gpus", "1", "--device")
    (large, errors, code), (small, _, other_code) = (
        preloaded.ask(*words, device, folder=tmp_path)
        for device in ("h100-80gb", "a100-40gb")
    )
    assert (code, other_code) == (0, 1), errors
    assert "2,213,313,792 parameters" in large
    assert large.endswith("it fits\n")
    assert "it does not fit; --parallel.activation-checkpointing full" in small


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-steps", "2", "--profile-step", "3"], "profile_step is 3 but max_st"),
        (["--eval-data-path", "a.json"], "eval_data_path is a.json but there is no"),
        (["--model-name-or-path", "base/model-61"], "weights are base/model-61, which"),
    ],
)
def test_a_dry_run_refuses_settings_that_the_run_would_refuse(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--dry-run", *flags])
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        run_recipe(TINY)


@pytest.mark.parametrize("flags", [["--dry-run"], ["--output-dir", "{}"]])
def test_a_gpu_that_is_not_known_is_refused_in_one_line(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a run too, which would not look at it."""
    words = [word.format(tmp_path / "run") for word in flags]
    monkeypatch.setattr(sys, "argv", ["recipe", *words, "--device", "cpu"])
    with pytest.raises(SystemExit) as ends:
        run_recipe(TINY)
    assert str(ends.value) == (
        "error: device is 'cpu'; the GPU that a dry run is for must be one of "
        "h100-80gb, h100-pcie-80gb, h200-141gb, a100-80gb, a100-40gb, l40s-48gb, "
        "b200-180gb"
    )


@pytest.mark.filterwarnings("ignore:Unable to enable fault handler:UserWarning")
def test_a_dry_run_speaks_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many ranks are started."""
    monkeypatch.setattr(sys, "argv", ["recipe", "--dry-run"])
    monkeypatch.setenv("RANK", "1")
    run_recipe(TINY)
    assert capsys.readouterr() == ("", "")


def test_a_dry_run_names_a_broken_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_clips(tmp_path / "clips", num_clips=1, held_out=0, seed=0)
    archive = tmp_path / "clips" / "clips.tar"
    archive.write_text("no tar")
    (tmp_path / "clips" / "videos" / "00000.mp4").unlink()  # else it is not opened
    monkeypatch.setattr("recipes.preview.CACHE", tmp_path / "cache")
    monkeypatch.setattr(sys, "argv", ["recipe", "--dry-run"])
    with pytest.raises(SystemExit, match=f"^error: {archive} is no readable tar"):
        run_recipe(replace(TINY, data_path=str(archive.with_name("train.jsonl"))))


def test_a_dry_run_lays_out_the_samples_that_it_looks_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recipes.edge.estimates.forecast.MOST_ROWS", 5)
    asked, whole = list[int](), given([SAMPLE] * 1000)

    def lay_out(number: int) -> Sequence[Span]:
        asked.append(number)
        return SAMPLE

    plan, samples = small_plan(600), replace(whole, lay_out=lay_out)
    found = forecast(plan, samples)
    assert found.bins == forecast(plan, whole).bins
    assert found.memory == forecast(plan, whole).memory
    said = summarise(plan, found, samples)
    assert first_that_fits(on_a_gpu_of(plan, found.memory.total - 1), samples)
    drawn = {number for each in found.bins for number in each}
    assert len(found.bins) == 5
    assert set(asked) <= drawn | {0}  # the clip that is shown is the first
    rows = 1000 * count_tokens(SAMPLE) / (found.fill * 600)
    assert f"rows           about {rows:,.0f} rows of 600 tokens, " in said
    assert said.splitlines()[2].endswith(" full, by 5 of them")


def test_a_tokenizer_is_learnt_from_samples_spread_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clips(tmp_path / "clips", num_clips=9, held_out=0, seed=0, size=(56, 84))
    data, learnt = tmp_path / "clips" / "train.jsonl", list[str]()
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["conversations"][-1]["value"] = f"answer {number}"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def learn(texts: Iterable[str], **settings: int) -> PreTrainedTokenizerFast:
        learnt.extend(texts)
        return train_tokenizer(learnt, **settings)

    monkeypatch.setattr("recipes.preview.train_tokenizer", learn)
    monkeypatch.setattr("recipes.preview.LEARNT_FROM", 4)
    preview(replace(TINY, data_path=str(data), num_gpus=2))
    assert learnt[1::2] == ["answer 0", "answer 3", "answer 6"]
