"""The recipe as a user meets it: own data, files of a run, and what it says."""

import json
import math
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.config import load_config
from recipes.data import plan_data
from recipes.edge.checkpoints.checkpoint import read_state
from recipes.edge.data.clips import make_clips
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.loader import Row
from recipes.edge.estimates.devices import this_device
from recipes.edge.ranks.distributed import process_group
from recipes.edge.weights.tiny import tiny_config
from recipes.progress import moved_with_data
from recipes.qwen2vl_tiny import TINY
from recipes.settings.parallel import Parallel
from recipes.train import build_model, main, row_stream
from tests.recipes.broken import without_pixels
from tests.recipes.runs import metrics, read_jsonl, train, write_jsonl

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "clips"
    make_clips(folder, num_clips=8, held_out=4, seed=0, num_frames=4, size=(56, 84))
    return folder


def rows_of(clips: Path) -> list[dict[str, Any]]:
    return read_jsonl(clips / "train.jsonl")


def quarantined(output_dir: Path) -> dict[str, str]:
    rows = read_jsonl(output_dir / "quarantine.jsonl")
    return {row["sample_id"]: row["reason"] for row in rows}


def test_subsets_are_chosen_of_what_is_trained_on_alone(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    row = {"id": "text", "conversations": said}
    for folder in ("train", "held_out"):
        for subset in ("long", "short"):
            (tmp_path / folder / subset).mkdir(parents=True)
            write_jsonl(tmp_path / folder / subset / "rows.jsonl", [row])
    config = replace(
        TINY,
        data_path=str(tmp_path / "train"),
        data_subsets=("short",),
        eval_data_path=str(tmp_path / "held_out"),
        output_dir=tmp_path / "run",
    )
    with process_group() as world:
        data = plan_data(config, world)
    assert (len(data.train), len(data.held_out), data.bad) == (1, 2, [])


def test_the_files_of_a_run(clips: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, clips / "train.jsonl", eval_data_path=str(clips / "held_out.jsonl"))
    log = (run / "train.log").read_text().splitlines()
    for step in (1, 2):
        (line,) = [line for line in log if f" step {step}/2 " in line]
        for name in ("autoregressive_loss", "language_loss", "tokens_per_second"):
            assert f" {name} " in line
    assert any("held-out accuracy" in line and "chance" in line for line in log)
    begin = "the run begins with step 1 and ends with step 2; each is a line of "
    assert any(line.endswith(f"{begin}{run / 'train.log'}") for line in log)

    first, second, evaluation = metrics(run)
    assert [first["step"], second["step"]] == [1, 2]
    assert first["loss"] == pytest.approx(
        first["language_loss"] + 0.15 * first["autoregressive_loss"]
    )
    assert first["skill"] == pytest.approx(
        1 - first["autoregressive_loss"] / first["copy_loss"]
    )
    assert 0 < first["fill"] <= 1
    samples = len((clips / "train.jsonl").read_text().splitlines())
    drawn = read_state(run / "checkpoint-2")["state"]["stream"]
    assert 0 < first["epoch"] < second["epoch"]
    assert second["epoch"] == drawn["epoch"] + drawn["position"] / samples
    sizes = {
        name: tensor.numel()
        for file in (run / "model-2").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    whole = sum(sizes.values())
    tower = sum(
        n for name, n in sizes.items() if "visual." in name and "merger" not in name
    )
    trained = f"{whole:,} parameters, {whole - tower:,} of them trained, on 1 ranks "
    assert any(trained in line for line in log), log[:3]
    cuda = torch.cuda.is_available()
    device = this_device(torch.device("cuda" if cuda else "cpu"))
    assert ("mfu" in first) == (device is not None)
    assert sum("mfu is FLOPs / (seconds x 1 ranks x" in line for line in log) == (
        device is not None
    )
    assert evaluation["event"] == "evaluation"
    assert 0 <= evaluation["accuracy"] <= 1
    questions = (clips / "held_out.jsonl").read_text().splitlines()
    assert evaluation["questions"] == len(questions) > 0

    curves = EventAccumulator(str(run / "logs")).Reload()
    written = curves.Scalars("train/autoregressive_loss")
    assert [event.step for event in written] == [1, 2]
    assert written[0].value == pytest.approx(first["autoregressive_loss"])
    assert (run / "checkpoint-2" / "state.json").is_file()
    assert quarantined(run) == {}


def test_a_run_that_learns_nothing_exports_the_weights_that_it_began_with(
    clips: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(first, clips / "train.jsonl")
    train(
        second,
        clips / "train.jsonl",
        model_name_or_path=str(first / "model-2"),
        learning_rate=0.0,
        max_steps=1,
        profile_step=1,
    )
    before, after = (
        {
            name: tensor
            for file in folder.glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }
        for folder in (first / "model-2", second / "model-1")
    )
    assert before.keys() == after.keys()
    assert any(name.startswith("next_frame_head.") for name in before)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert json.loads((second / "trace-0.json").read_text())["traceEvents"]


def test_work_is_counted_when_a_gpu_has_all_of_it(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host counts while the GPU computes; until then nothing needs the count."""
    called = list[str]()

    def noted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            return function(*arguments, **options)

        return call

    for name, place in (
        ("backward", "torch.Tensor.backward"),
        ("count", "recipes.measures.step_flops"),
        ("clip", "recipes.train.clip_gradients"),
    ):
        monkeypatch.setattr(place, noted(name, pkgutil.resolve_name(place)))
    train(tmp_path, clips / "train.jsonl", max_steps=1, gradient_accumulation_steps=2)
    assert called == ["backward", "backward", "count", "count", "clip"]


def test_a_finished_run_is_left_alone(clips: Path, tmp_path: Path) -> None:
    train(tmp_path, clips / "train.jsonl")
    before = metrics(tmp_path)
    train(tmp_path, clips / "train.jsonl")
    assert metrics(tmp_path) == before
    train(tmp_path, clips / "train.jsonl", max_steps=3)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3]
    assert metrics(tmp_path)[:2] == before


def test_the_settings_of_a_run_make_the_same_run(clips: Path, tmp_path: Path) -> None:
    train(tmp_path / "a", clips / "train.jsonl", seed=5)
    config = load_config(tmp_path / "a" / "settings.yaml", TINY)
    assert (config.seed, config.output_dir) == (5, tmp_path / "a")
    main(replace(config, output_dir=tmp_path / "b"))
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in "ab"]
    assert losses[0] == losses[1]
    train(tmp_path / "a", clips / "train.jsonl", seed=5, max_steps=3)
    assert load_config(tmp_path / "a" / "settings.yaml", TINY).max_steps == 3


def test_the_settings_of_another_run_are_kept(clips: Path, tmp_path: Path) -> None:
    train(tmp_path, clips / "train.jsonl", max_steps=1)
    shutil.rmtree(tmp_path / "checkpoint-1")
    before = (tmp_path / "settings.yaml").read_bytes()
    with pytest.raises(SystemExit, match="seed is 3 but the run began with 0; it goes"):
        train(tmp_path, clips / "train.jsonl", max_steps=1, seed=3)
    assert (tmp_path / "settings.yaml").read_bytes() == before


def test_a_loss_weight_of_0_leaves_one_loss(clips: Path, tmp_path: Path) -> None:
    changes = {"loss_weight": 0, "next_frame_distance": "l1"}
    train(tmp_path / "off", clips / "train.jsonl", **changes)
    train(tmp_path / "on", clips / "train.jsonl")
    said = "next_frame_distance is 'l1' but loss_weight is 0; it has no effect\n"
    assert said in (tmp_path / "off" / "train.log").read_text()
    assert "no effect" not in (tmp_path / "on" / "train.log").read_text()
    off, on = (metrics(tmp_path / name) for name in ("off", "on"))
    gone = {"autoregressive_loss", "weighted_autoregressive_loss"}
    gone |= {"copy_loss", "skill", "spread"}
    assert on[0].keys() - off[0].keys() == gone
    assert off[0]["loss"] == off[0]["language_loss"] == on[0]["language_loss"]
    assert (tmp_path / "off" / "model-2" / "next_frame_head.safetensors").is_file()
    train(tmp_path / "off", clips / "train.jsonl", **changes, max_steps=3)
    assert [row["step"] for row in metrics(tmp_path / "off")] == [1, 2, 3]


def test_settings_reach_the_loss_and_the_pooling(clips: Path, tmp_path: Path) -> None:
    def first_step(name: str, **changes: str) -> dict[str, Any]:
        train(tmp_path / name, clips / "train.jsonl", **changes)
        return metrics(tmp_path / name)[0]

    base = first_step("base")
    other = first_step("other", next_frame_distance="l1")
    pooled = first_step("pooled", mm_spatial_pool_mode="max")
    assert other["language_loss"] == base["language_loss"]
    assert other["autoregressive_loss"] != base["autoregressive_loss"]
    assert other["copy_loss"] != base["copy_loss"]
    assert pooled["language_loss"] != base["language_loss"]


def test_rows_without_a_clip_count_none(clips: Path, tmp_path: Path) -> None:
    """Their blank clips, of one token each, are not the data's."""
    asked = [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hello."}]
    text = [{"id": f"text {n}", "conversations": asked} for n in range(3)]
    data = write_jsonl(tmp_path / "text.jsonl", text)
    train(tmp_path / "text", data, max_steps=1)
    (said,) = metrics(tmp_path / "text")
    assert said["tokens_per_clip"] is None
    assert said["autoregressive_loss"] is said["copy_loss"] is None
    assert said["loss"] == said["language_loss"]
    assert said["frames_per_second"] == 0
    assert " tokens_per_clip nan " in (tmp_path / "text" / "train.log").read_text()

    shown = rows_of(clips)[0]
    many = {"max_steps": 1, "tokens_per_row": 100, "per_device_train_batch_size": 8}
    for name, rows in {"one": [shown], "mixed": [shown, *text]}.items():
        train(tmp_path / name, write_jsonl(clips / f"{name}.jsonl", rows), **many)
    one, mixed = (metrics(tmp_path / name)[0] for name in ("one", "mixed"))
    assert mixed["tokens_per_clip"] == one["tokens_per_clip"] > 1


def test_rows_of_a_step_are_a_product(clips: Path, tmp_path: Path) -> None:
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    losses = []
    for sizes in ((1, 4), (2, 2), (4, 1)):
        run = tmp_path / str(sizes[0])
        train(run, clips / "train.jsonl", **dict(zip(names, sizes, strict=True)))
        losses.append([row["loss"] for row in metrics(run)])
    assert losses[0] == losses[1] == losses[2]
    train(tmp_path / "fewer", clips / "train.jsonl")
    assert [row["loss"] for row in metrics(tmp_path / "fewer")] != losses[0]


def test_hidden_states_are_spoken_of_once(clips: Path, tmp_path: Path) -> None:
    for asked in (True, False):
        run = tmp_path / str(asked)
        for steps in (1, 2):
            train(
                run,
                clips / "train.jsonl",
                output_hidden_states=asked,
                max_steps=steps,
                save_steps=1,
            )
        said = (run / "train.log").read_text().count("output_hidden_states has no ")
        assert said == asked


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "folder"])
def test_every_form_of_data_trains_alike(
    clips: Path, tmp_path: Path, kind: str
) -> None:
    rows = rows_of(clips)
    data = tmp_path / "data"
    shutil.copytree(clips / "videos", data / "videos")
    path = data / f"train.{'json' if kind == 'folder' else kind}"
    if kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif kind == "jsonl":
        write_jsonl(path, rows)
    else:
        path.write_text(json.dumps(rows))
    train(tmp_path / "run", data if kind == "folder" else path, max_steps=1)
    train(tmp_path / "same", clips / "train.jsonl", max_steps=1)
    losses = [metrics(tmp_path / name)[0]["loss"] for name in ("run", "same")]
    assert losses[0] == losses[1]


def test_bad_samples_are_left_out_and_named(clips: Path, tmp_path: Path) -> None:
    rows = rows_of(clips)
    shutil.copytree(clips / "videos", tmp_path / "videos")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(without_pixels(clips / "videos" / "00000.mp4"))
    rows[1]["video"] = str(broken)
    rows[2]["video"] = str(tmp_path / "missing.mp4")
    del rows[3]["video"]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    train(tmp_path / "run", data, max_bad_share=0.5, max_steps=3, save_steps=3)
    reasons = quarantined(tmp_path / "run")
    assert reasons.keys() == {"00001", "00002", "00003"}
    assert str(broken) in reasons["00001"]
    assert "No such file" in reasons["00002"]
    assert reasons["00003"].startswith("the row has 1 placeholders but names 0 videos")
    assert sum(row["bad_samples"] for row in metrics(tmp_path / "run")) >= 1
    log = (tmp_path / "run" / "train.log").read_text()
    said = f" 00001 is left out: {reasons['00001']}; quarantine.jsonl names all"
    assert log.count(said) == 1
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "state.json").read_text())
    assert len(state["state"]["quarantine"]) == 3

    with pytest.raises(SystemExit, match=r"2 of 8 .* share of 0.2 that max_bad_share"):
        train(tmp_path / "strict", data, max_bad_share=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "seed is 3 but the run began with 0; it goes on with"),
        ({"loss_weight": 0.2}, "loss_weight is 0.2 but the run began with 0.15; "),
    ],
)
def test_a_run_goes_on_with_its_settings(
    clips: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    train(tmp_path, clips / "train.jsonl", max_steps=1)
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        train(tmp_path, clips / "train.jsonl", **changes)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_start_that_is_refused_leaves_the_records_of_the_run(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """A clip that is gone since is planned no more, so they could not be made anew."""
    shutil.copytree(clips / "videos", tmp_path / "videos")
    rows = rows_of(clips)
    rows[2]["video"] = "missing.mp4"
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    other = write_jsonl(tmp_path / "other.jsonl", rows_of(clips)[:5])
    run = tmp_path / "run"
    train(run, data, max_bad_share=0.5)
    (tmp_path / "videos" / "00001.mp4").unlink()

    def records() -> dict[str, bytes]:
        return {
            file.name: file.read_bytes()
            for file in run.iterdir()
            if file.name.startswith(("train.", "held_out.", "quarantine", "."))
            and file.name not in {"train.log", ".lock"}
        }

    before = records()
    assert {"train.arrow", "train.planned.json", "quarantine.jsonl"} < before.keys()
    if is_killed:
        monkeypatch.setattr("recipes.edge.checkpoints.records._put_back", print)
    with pytest.raises(SystemExit, match=r"^error: the samples differ"):
        train(run, other, eval_data_path=str(other), max_bad_share=0.9)
    if is_killed:
        monkeypatch.undo()
        assert (run / "train.arrow").read_bytes() != before["train.arrow"]
    else:
        assert records() == before
    train(run, data, max_bad_share=0.5, max_steps=4)
    assert not (run / ".records").exists()
    assert len(metrics(run)) == 4
    assert {"00001", "00002"} >= quarantined(run).keys() >= {"00002"}


def test_a_run_may_go_on_more_gently_and_says_so(clips: Path, tmp_path: Path) -> None:
    train(tmp_path, clips / "train.jsonl")
    gently = {"learning_rate": 1e-5, "max_grad_norm": 0.5, "warmup_steps": 2}
    bounds = {"max_skipped_steps": 20, "max_bad_share": 0.5}
    changes = {**gently, **bounds, "max_steps": 4}
    for steps in (3, 4):
        changes["max_steps"] = steps
        train(tmp_path, clips / "train.jsonl", **changes)
    lines = (tmp_path / "train.log").read_text().splitlines()
    first, second = [line for line in lines if " on " in line and "(was " in line]
    assert first.endswith(
        "from step 3 on learning_rate is 1e-05 (was 0.002), warmup_steps is 2 (was 1), "
        "max_grad_norm is 0.5 (was 1.0), max_skipped_steps is 20 (was 10), max_steps "
        "is 3 (was 2), max_bad_share is 0.5 (was 0.05)"
    )
    assert second.endswith("from step 4 on max_steps is 4 (was 3)")
    rates = [row["learning_rate"] for row in metrics(tmp_path)]
    assert rates[1] > 1e-4 > rates[2]


def test_a_run_goes_on_with_its_model(clips: Path, tmp_path: Path) -> None:
    train(tmp_path / "first", clips / "train.jsonl")
    begun = tmp_path / "first" / "model-2"
    config = json.loads((begun / "config.json").read_text())

    def go(steps: int) -> None:
        train(
            *(tmp_path / "run", clips / "train.jsonl"),
            model_name_or_path=str(begun),
            max_steps=steps,
        )

    go(1)
    written = config | {"transformers_version": "6.0.0"}
    (begun / "config.json").write_text(json.dumps(written))
    go(2)
    config["text_config"]["rms_norm_eps"] = 0.5
    (begun / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=f"^error: {begun} has another configuration"):
        go(3)


def test_a_finished_run_says_so(clips: Path, tmp_path: Path) -> None:
    train(tmp_path, clips / "train.jsonl")
    train(tmp_path, clips / "train.jsonl")
    log = (tmp_path / "train.log").read_text()
    assert log.count("the run has taken all of its 2 steps") == 1
    assert log.count("model-2 was there before and is left as it is") == 1


@pytest.mark.parametrize("settings", [{"tower": "trained"}, {"lora_rank": 2}])
def test_a_run_that_goes_on_needs_no_other_weights(
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    """They may be gone from where they were, and are not read from where they are."""
    train(tmp_path / "first", clips / "train.jsonl")
    begun = tmp_path / "first" / "model-2"
    (begun / "next_frame_head.safetensors").unlink()
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"

    def go(run: Path, weights: Path) -> list[str]:
        train(
            *(run, clips / "train.jsonl"),
            model_name_or_path=str(weights),
            max_steps=4,
            parallel=Parallel(compute="float32", **settings),
        )
        return (run / "train.log").read_text().splitlines()

    headless = f"{begun} has no next-frame head; a new one is trained"
    assert sum(line.endswith(headless) for line in go(whole, begun)) == 1
    shutil.copytree(whole, resumed)
    for name in ("checkpoint-4", "model-4"):
        shutil.rmtree(resumed / name)
    moved = begun.rename(tmp_path / "moved")
    monkeypatch.setattr("recipes.progress.load_pretrained", None)
    log = go(resumed, moved)
    changes = [line for line in log if "from step 3 on " in line]
    assert [f"model_name_or_path is {moved} (was {begun})" in c for c in changes] == [
        True
    ]
    assert sum("has no next-frame head" in line for line in log) == 1
    for file in ("model.safetensors", "next_frame_head.safetensors"):
        expected, found = (
            load_file(run / "model-4" / file) for run in (whole, resumed)
        )
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    losses = [[row["loss"] for row in metrics(run)] for run in (whole, resumed)]
    assert losses[0] == losses[1]


def test_a_run_goes_on_with_a_model_of_its_shape(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, clips / "train.jsonl", max_steps=1)
    monkeypatch.setattr("recipes.train.tiny_config", lambda size: tiny_config(size + 8))
    with pytest.raises(SystemExit) as error:
        train(tmp_path, clips / "train.jsonl")
    said = str(error.value)
    assert said.startswith(f"error: {tmp_path / 'checkpoint-1'} holds ")
    assert " of shape (" in said and "\n" not in said


def test_a_run_does_not_go_back(clips: Path, tmp_path: Path) -> None:
    train(tmp_path, clips / "train.jsonl", save_steps=1)
    with pytest.raises(SystemExit) as error:
        train(tmp_path, clips / "train.jsonl", max_steps=1)
    assert error.value.code == (
        f"error: max_steps is 1 but the run has come to {tmp_path / 'checkpoint-2'}; "
        "it does not go back"
    )


def test_a_run_goes_on_with_its_data(clips: Path, tmp_path: Path) -> None:
    rows = rows_of(clips)
    shutil.copytree(clips / "videos", tmp_path / "videos")
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    train(tmp_path / "run", data, max_steps=1)
    other = [*rows[:-1], rows[-1] | {"id": "other"}]
    for changed in (rows[:-1], rows[::-1], other):
        write_jsonl(data, changed)
        message = r"the samples differ from those that .*-1"
        with pytest.raises(SystemExit, match=f"{message}.* wherever they lie$"):
            train(tmp_path / "run", data)
    write_jsonl(data, rows)
    (tmp_path / rows[0]["video"]).unlink()
    gone = r"lie \(1 cannot be used now; .* is 00000: .* cannot be opened: No such file"
    with pytest.raises(SystemExit, match=gone):
        train(tmp_path / "run", data, max_bad_share=0.2)


def test_clips_that_change_while_a_run_lasts_end_no_run(
    clips: Path, tmp_path: Path
) -> None:
    """Not even one that is started again in between."""
    shutil.copytree(clips, tmp_path / "clips")
    data, run = tmp_path / "clips" / "train.jsonl", tmp_path / "run"
    train(run, data, max_steps=1, save_steps=1, max_bad_share=0.2)
    gone, other = rows_of(clips)[:2]
    (data.parent / gone["video"]).unlink()
    with (data.parent / other["video"]).open("ab") as file:
        file.write(b"another")
    train(run, data, max_steps=8, save_steps=8, max_bad_share=0.5)
    reasons = quarantined(run)
    assert reasons.keys() == {gone["id"], other["id"]}
    assert reasons[gone["id"]].endswith("cannot be opened: No such file or directory")
    assert reasons[other["id"]].endswith(" when its header was read")
    assert f"{gone['id']} is left out: " in (run / "train.log").read_text()


def test_data_may_move_while_a_run_lasts(clips: Path, tmp_path: Path) -> None:
    rows = rows_of(clips)
    files = dict[str, Path]()
    for name in ("data", "questions"):
        (tmp_path / name).mkdir()
        shutil.copytree(clips / "videos", tmp_path / name / "videos")
        (tmp_path / name / rows[0]["video"]).write_bytes(b"no video")
        files[name] = write_jsonl(tmp_path / name / "rows.jsonl", rows)
    broken = tmp_path / "data" / rows[1]["video"]
    broken.write_bytes(without_pixels(broken))
    run, seen = tmp_path / "run", []
    for steps, name, place in (
        (3, "data", "data"),
        (4, "data", "elsewhere"),
        (5, "questions", "there"),
    ):
        (tmp_path / name).rename(tmp_path / place)
        files[name] = tmp_path / place / "rows.jsonl"
        question = str(files["questions"])
        train(
            *(run, files["data"]),
            eval_data_path=question,
            max_steps=steps,
            max_bad_share=0.2,
        )
        lines = (run / "quarantine.jsonl").read_text().splitlines()
        found = sorted(json.loads(line)["source"] for line in lines)
        seen.append([source.removeprefix(f"{tmp_path}/") for source in found])
    assert seen == [
        ["data/rows.jsonl:1", "data/rows.jsonl:2", "questions/rows.jsonl:1"],
        ["elsewhere/rows.jsonl:1", "elsewhere/rows.jsonl:2", "questions/rows.jsonl:1"],
        ["elsewhere/rows.jsonl:1", "elsewhere/rows.jsonl:2", "there/rows.jsonl:1"],
    ]
    steps_taken = [row["step"] for row in metrics(run) if "event" not in row]
    assert steps_taken == [1, 2, 3, 4, 5]
    assert f"data_path: {files['data']}" in (run / "settings.yaml").read_text()


def test_a_source_moves_with_its_own_data_alone(tmp_path: Path) -> None:
    config = replace(TINY, output_dir=tmp_path, data_path="b/rows", eval_data_path="c")
    before = {"data_path": "a/rows", "eval_data_path": "a/rows/held.jsonl"}
    for source, found in (
        ("a/rows/part.jsonl:3", "b/rows/part.jsonl:3"),
        ("a/rows/held.jsonl:3", "c:3"),
        ("a/rows2/part.jsonl:3", "a/rows2/part.jsonl:3"),
    ):
        bad = BadSample(sample_id="1", source=source, reason="a/rows is bad")
        assert moved_with_data(bad, before, config) == replace(bad, source=found)


def test_the_log_shows_a_clip_that_is_not_in_the_first_sample(
    clips: Path, tmp_path: Path
) -> None:
    shutil.copytree(clips / "videos", tmp_path / "videos")
    said = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    text = {"id": "text", "conversations": said}
    data = write_jsonl(tmp_path / "data.jsonl", [text, *rows_of(clips)])
    train(tmp_path / "run", data, max_steps=1)
    assert "first clip S" in (tmp_path / "run" / "train.log").read_text()


def test_data_that_is_not_there(tmp_path: Path) -> None:
    message = f"{tmp_path / 'none.json'} does not exist; data are a file"
    with pytest.raises(SystemExit, match=message):
        train(tmp_path / "run", tmp_path / "none.json")


def test_what_may_fill_the_disk_goes_before_anything_is_written(tmp_path: Path) -> None:
    leftover = tmp_path / "run" / ".checkpoint-2.partial"
    leftover.mkdir(parents=True)
    with pytest.raises(SystemExit, match="nowhere"):
        train(tmp_path / "run", tmp_path / "nowhere.json")
    assert not leftover.exists()


def test_questions_of_your_own_go_with_data_of_your_own(tmp_path: Path) -> None:
    message = "^error: eval_data_path is a.json but there is no data_path; clips that"
    with pytest.raises(SystemExit, match=message):
        main(replace(TINY, output_dir=tmp_path / "run", eval_data_path="a.json"))
    assert not (tmp_path / "run" / "clips").exists()


def test_a_step_to_profile_is_one_of_the_run(tmp_path: Path) -> None:
    message = "^error: profile_step is 3 but max_steps is 2; it must be one of the"
    with pytest.raises(SystemExit, match=message):
        main(replace(TINY, output_dir=tmp_path, max_steps=2, profile_step=3))


@pytest.mark.parametrize("recipe", ["qwen2vl_tiny.py", "evaluate.py"])
def test_what_a_run_is_refused_for_is_one_sentence(tmp_path: Path, recipe: str) -> None:
    none = tmp_path / "none.json"
    arguments = ["--data-path", none, "--output-dir", tmp_path / "run"]
    sentence = f"error: {none} does not exist; data are a file"
    if recipe == "evaluate.py":
        (tmp_path / "model").mkdir()
        arguments = [tmp_path / "model", none, "--output", tmp_path / "found.json"]
        sentence = f"error: {tmp_path / 'settings.yaml'} does not exist; --config says"
    done = subprocess.run(
        [sys.executable, ROOT / "recipes" / recipe, *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1


def test_data_without_a_usable_sample(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"id": "a"}, {"id": "b"}])
    message = "has no sample that can be used: the row has no conversation; it needs"
    with pytest.raises(SystemExit, match=message):
        train(tmp_path / "run", data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1"),
        ({"archives_on_disk": 2}, "archives_on_disk is 2; it must be 0 or at least 3"),
        ({"packing_window": 0}, "packing_window is 0; it must be at least 1"),
        ({"max_bad_share": 2}, "max_bad_share is 2; it must lie between 0 and 1"),
        ({"slow_frame_ratio": -0.1}, "slow_frame_ratio is -0.1; it must lie between"),
        ({"max_grad_norm": math.inf}, "max_grad_norm is inf; it must be finite"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0; it mu"),
        ({"frame_sampling_strategy": "slow"}, "the nearest known one is 'last_slow'"),
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be at least 0"),
        ({"mm_spatial_pool_stride": 3}, "mm_spatial_pool_stride is 3; it must be even"),
        (
            {"max_pixels": 10},
            "min_pixels is 3136 and max_pixels is 10; they must stand in this order",
        ),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_an_unknown_setting_is_named(preloaded: Any, tmp_path: Path) -> None:
    words = ("recipes/qwen2vl_tiny.py", "--loss-wieght", "0.1")
    _, errors, code = preloaded.ask(*words, folder=tmp_path)
    assert code != 0
    assert "--loss-wieght" in errors
    assert "--loss-weight" in errors


def test_training_leaves_no_seed_behind(clips: Path, tmp_path: Path) -> None:
    """Two runs in one process are the same run twice."""
    torch.manual_seed(1)
    train(tmp_path / "a", clips / "train.jsonl")
    train(tmp_path / "b", clips / "train.jsonl")
    losses = [[row["loss"] for row in metrics(tmp_path / n)] for n in ("a", "b")]
    assert losses[0] == losses[1]


def test_the_seed_draws_every_weight(clips: Path, tmp_path: Path) -> None:
    drawn = []
    with process_group() as world:
        for seed in (0, 1):
            config = replace(
                TINY,
                seed=seed,
                output_dir=tmp_path / str(seed),
                data_path=str(clips / "train.jsonl"),
                parallel=Parallel(compute="float32", lora_rank=2),
            )
            model = build_model(config, plan_data(config, world), world)
            weights = model.state_dict().items()
            drawn.append({n: w.full_tensor() for n, w in weights if w.ndim > 1})
    for name in drawn[0]:
        is_zero = ".lora_B." in name
        assert torch.equal(drawn[0][name], drawn[1][name]) == is_zero, name


def test_workers_end_with_the_training_whoever_keeps_their_rows(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, left = list[Iterator[Row]](), list[Any]()

    def keep(*args: Any) -> Any:
        kept.append(rows := row_stream(*args))
        return rows

    monkeypatch.setattr("recipes.train.row_stream", keep)
    finish = "recipes.train.finish"
    monkeypatch.setattr(finish, lambda *_: left.append(active_children()))
    train(tmp_path, clips / "train.jsonl", dataloader_num_workers=1)
    assert len(kept) == 1
    assert left == [[]]


def test_a_rank_that_fails_does_not_wait_for_its_workers(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would wait with it; a worker ends with its rank at the latest."""

    def fail(*_: object) -> None:
        raise KeyError("step")

    monkeypatch.setattr("recipes.train.train_step", fail)
    with pytest.raises(KeyError) as kept:  # it keeps the frames, as a traceback does
        train(tmp_path, clips / "train.jsonl", dataloader_num_workers=1)
    (worker,) = active_children()
    assert worker.is_alive()
    del kept  # and with it the loader, which ends its worker


def test_a_run_that_is_asked_to_stop_ends_with_143(
    preloaded: Any, clips: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "output.log"
    flags = {"data-path": clips / "train.jsonl", "output-dir": run, "max-steps": 10_000}
    words = [f"--{name}={value}" for name, value in flags.items()]
    process = preloaded.start("recipes/qwen2vl_tiny.py", *words, log=log)
    end = time.monotonic() + 120
    while not ((run / "metrics.jsonl").exists() and metrics(run)):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    os.kill(process, signal.SIGTERM)
    assert preloaded.wait(process) == 143, log.read_text()
