"""Held-out questions, asked now and then and at the end of a run."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recipes.data import plan_data
from recipes.edge.checkpoints.checkpoint import read_state
from recipes.edge.data.clips import make_clips
from recipes.edge.media.containers import VideoError
from recipes.edge.ranks.distributed import process_group
from recipes.edge.reports.metrics import CLOCKED
from recipes.qwen2vl_tiny import TINY
from recipes.settings.parallel import Parallel
from tests.recipes.runs import metrics, read_jsonl, train, write_jsonl

LOSSES = ("loss", "language_loss", "autoregressive_loss", "copy_loss", "skill")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "clips"
    make_clips(folder, num_clips=8, held_out=4, seed=0, num_frames=4, size=(56, 84))
    return folder


@pytest.mark.parametrize("loss_weight", [0.15, 0.0])
def test_losses_are_those_of_a_step_on_the_same_samples(
    clips: Path, tmp_path: Path, loss_weight: float
) -> None:
    rows = read_jsonl(clips / "train.jsonl")
    question, answer = rows[0]["conversations"]
    again = question | {"value": "Are you sure?"}
    rows[0]["conversations"] += [again, answer]  # twice the labels for one clip
    data = write_jsonl(clips / "uneven.jsonl", rows)
    config = replace(TINY, output_dir=tmp_path / "plan", data_path=str(data))
    with process_group() as world:
        lengths = plan_data(config, world).train.lengths
    train(
        tmp_path / "run",
        data,
        eval_data_path=str(data),
        loss_weight=loss_weight,
        learning_rate=0.0,
        max_steps=1,
        tokens_per_row=sum(lengths),
    )
    step, asked = metrics(tmp_path / "run")
    assert step["epoch"] == 1  # the step took each sample once
    names = LOSSES if loss_weight else LOSSES[:2]
    assert {name: asked[name] for name in names} == pytest.approx(
        {name: step[name] for name in names}, rel=1e-5
    )
    assert ("skill" in asked) == (loss_weight > 0)


def test_questions_are_asked_every_so_many_steps_and_at_the_end(
    clips: Path, tmp_path: Path
) -> None:
    questions = clips / "held_out.jsonl"
    settings = {"eval_data_path": str(questions), "eval_steps": 2}
    for last in (3, 5):  # the second goes on
        train(tmp_path, clips / "train.jsonl", **settings, max_steps=last)
    asked = [row for row in metrics(tmp_path) if row.get("event") == "evaluation"]
    assert [row["step"] for row in asked] == [2, 3, 4, 5]
    assert {row["questions"] for row in asked} == {len(read_jsonl(questions))}
    log = (tmp_path / "train.log").read_text()
    for row in asked:
        words = f"after step {row['step']}: held-out loss {row['loss']:.4f}, "
        assert log.count(words) == 1


def test_a_run_is_saved_before_it_is_asked_and_asked_when_it_goes_on(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "eval_data_path": str(clips / "held_out.jsonl"),
        "eval_steps": 2,
        "max_steps": 3,
    }

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk of the questions is gone")

    with monkeypatch.context() as patch:
        patch.setattr("recipes.train.ask_questions", fail)
        with pytest.raises(OSError, match="the disk of the questions is gone"):
            train(tmp_path, clips / "train.jsonl", **settings)
    assert (tmp_path / "checkpoint-2").is_dir()
    train(tmp_path, clips / "train.jsonl", **settings)
    steps = [(row["step"], row.get("event")) for row in metrics(tmp_path)]
    assert steps == [
        (1, None),
        (2, None),
        (2, "evaluation"),
        (3, None),
        (3, "evaluation"),
    ]


def test_clips_that_break_are_wrong_and_no_loss_of_0(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_none(*_: object) -> None:
        raise VideoError("it is broken")

    settings = {"eval_data_path": str(clips / "held_out.jsonl"), "max_bad_share": 1.0}
    with monkeypatch.context() as patch:
        patch.setattr("recipes.edge.data.loader.decode_frames", read_none)
        train(tmp_path, clips / "train.jsonl", **settings)
    *_, asked = metrics(tmp_path)
    assert (asked["accuracy"], asked["questions"], asked["loss"]) == (0, 4, None)
    log = (tmp_path / "train.log").read_text()
    assert "held-out loss nan" in log
    assert "is left out: it is broken" in log


def test_asking_changes_nothing_else(clips: Path, tmp_path: Path) -> None:
    settings = {
        "eval_data_path": str(clips / "held_out.jsonl"),
        "max_steps": 3,
        "parallel": Parallel(lora_rank=2, lora_dropout=0.5),
        "dataloader_num_workers": 1,
    }
    found = []
    for eval_steps in (0, 1):
        run = tmp_path / str(eval_steps)
        train(run, clips / "train.jsonl", **settings, eval_steps=eval_steps)
        steps = [row for row in metrics(run) if "event" not in row]
        numbers = [{k: row[k] for k in row.keys() - CLOCKED} for row in steps]
        weights = load_file(run / "model-3" / "model.safetensors")
        generators = read_state(run / "checkpoint-3")["random_states"]
        found.append((numbers, generators, {k: w.tolist() for k, w in weights.items()}))
    assert found[0] == found[1]


def test_a_run_without_questions_has_none_to_ask(clips: Path, tmp_path: Path) -> None:
    train(tmp_path, clips / "train.jsonl", eval_steps=1)
    assert all("event" not in row for row in metrics(tmp_path))
