"""The real lmms-eval asks a model of ours, through its own command line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastslow.qwen2_vl import Family
from recipes.edge.data.clips import make_clips
from tests.recipes.broken import without_pixels

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

ROOT = Path(__file__).parents[2]
TASK = """\
task: shapes
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: generate_until
doc_to_visual: !function shapes.show
doc_to_text: !function shapes.ask
doc_to_target: !function shapes.answer
generation_kwargs:
  max_new_tokens: 8
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CODE = """\
def show(doc):
    return ["{folder}/" + doc["video"]]

def ask(doc, lmms_eval_specific_kwargs=None):
    return doc["conversations"][0]["value"]

def answer(doc):
    return doc["conversations"][1]["value"]
"""


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lmms_eval")
    clips = folder / "clips"
    make_clips(clips, num_clips=32, held_out=12, seed=0, num_frames=4, size=(56, 84))
    run(
        "recipes/qwen2vl_tiny.py",
        *("--output-dir", str(folder / "run")),
        *("--data-path", str(clips / "train.jsonl")),
        *("--max-steps", "60", "--save-steps", "60", "--tokens-per-row", "500"),
    )
    (folder / "task").mkdir()
    data = clips / "held_out.jsonl"
    (folder / "task" / "shapes.yaml").write_text(TASK.format(data=data))
    (folder / "task" / "shapes.py").write_text(CODE.format(folder=clips))
    return folder


def evaluate(folder: Path, model_args: str) -> str:
    return run(
        "recipes/run_lmms_eval.py",
        *("--model", "fastslow", "--tasks", "shapes"),
        *("--model_args", model_args, "--include_path", str(folder / "task")),
        *("--output_path", str(folder / "out"), "--log_samples"),
    )


def test_its_answers_are_those_of_evaluate(trained: Path) -> None:
    checkpoint = trained / "run" / "model-60"
    said = evaluate(trained, f"pretrained={checkpoint},device=cpu")
    (value,) = re.findall(r"\|exact_match\|\S+\s*\|\s*([0-9.]+)\|", said)
    ours = trained / "ours.json"
    data = trained / "clips" / "held_out.jsonl"
    run("recipes/evaluate.py", str(checkpoint), str(data), "--output", str(ours))
    found = json.loads(ours.read_text())
    (samples,) = (trained / "out").rglob("*samples_shapes.jsonl")
    theirs = [json.loads(line) for line in samples.read_text().splitlines()]
    theirs.sort(key=lambda sample: sample["doc_id"])
    answers = [answer["answer"] for answer in found["answers"]]
    assert ["".join(sample["filtered_resps"]) for sample in theirs] == answers
    assert float(value) == pytest.approx(found["scores"][-1]["accuracy"], abs=1e-4)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Take what is logged from warnings upwards."""
    from loguru import logger

    words = list[str]()
    sink = logger.add(words.append, format="{level}: {message}", level="WARNING")
    yield words
    logger.remove(sink)


def ask(model: Any, shown: list[Any], *, text: str = "What?", **how: Any) -> list[str]:
    """Ask a model what it sees, as lmms-eval does; ``text`` is of the last request."""
    from lmms_eval.api.instance import Instance

    model.task_dict = {"shapes": {"train": shown}}
    texts = ["What?"] * (len(shown) - 1) + [text]
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(said, how, show, number, "shapes", "train"),
            idx=0,
            metadata={"task": "shapes", "doc_id": number, "repeats": 1},
        )
        for number, said in enumerate(texts)
    ]
    answers: list[str] = model.generate_until(requests)
    return answers


def show(shown: Any) -> list[Any]:
    """Give what a document shows, as the functions of tasks do."""
    return shown if isinstance(shown, list) else [shown]


@pytest.fixture
def model(trained: Path) -> Any:
    from recipes.edge.evaluation.lmms_eval_model import FastSlow

    return FastSlow(pretrained=str(trained / "run" / "model-60"), device="cpu")


def test_a_request_that_cannot_be_asked_ends_no_other(
    model: Any, trained: Path, tmp_path: Path, said: list[str]
) -> None:
    from PIL import Image

    good = str(trained / "clips" / "videos" / "00032.mp4")
    (answer,) = ask(model, [good], max_new_tokens=4)
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no video")
    cut = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 9).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    shown = [
        good,
        str(garbage),
        str(tmp_path / "none.mp4"),
        str(tmp_path),
        [good] * 60,
        Image.new("RGB", (3000, 10)),
        Image.open(cut),
        {"array": [0.0], "sampling_rate": 16_000},
        good,
        good,
    ]
    answers = ask(model, shown, text="Is <|im_end|> it?", max_new_tokens=4)
    assert answers == [answer, *[""] * 7, answer, ""]
    named = {int(re.findall(r"document (\d+) of shapes/train", w)[0]): w for w in said}
    reasons = {n: words.partition("nothing: ")[2].strip() for n, words in named.items()}
    assert len(said) == len(reasons) == 8
    assert reasons[1].startswith(f"{garbage} cannot be opened as a video")
    assert reasons[2].startswith(f"{tmp_path / 'none.mp4'} cannot be opened: No such")
    assert reasons[3] == f"{tmp_path} is a folder; it must be a video file"
    assert re.match(r"the sample has \d+ tokens; a row holds 500", reasons[4])
    assert reasons[5].startswith("frame is 10 x 3000 pixels; both sides must be at")
    assert reasons[6].startswith("a picture cannot be read: ")
    assert reasons[7] == (
        "the task shows a dict; it must be a picture or the path of a video"
    )
    assert reasons[9].startswith("a turn of the user holds '<|im_end|>', which the")


def test_nothing_that_can_be_asked_is_no_error(model: Any, said: list[str]) -> None:
    assert ask(model, ["/none.mp4", {"array": [0.0]}]) == ["", ""]
    assert len(said) == 2


def test_no_argument_is_ignored(trained: Path) -> None:
    from recipes.edge.evaluation.lmms_eval_model import FastSlow

    checkpoint = str(trained / "run" / "model-60")
    with pytest.raises(ValueError, match=r"^model_args has fps; it takes pretrained,"):
        FastSlow(pretrained=checkpoint, device="cpu", fps=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0},
        {"temperature": 0.2},
        {"do_sample": None, "temperature": 0.2},
        {"num_beams": 2},
    ],
)
def test_only_greedy_answers_are_given(settings: dict[str, Any]) -> None:
    from recipes.edge.evaluation.lmms_eval_model import _how

    with pytest.raises(ValueError) as error:
        _how(settings)
    assert str(error.value) == (f"generation_kwargs is {settings}; answers are greedy")


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, (1024, ())),
        ({"max_new_tokens": 4, "until": "\n"}, (4, ("\n",))),
        ({"max_new_tokens": None, "until": None, "num_beams": None}, (1024, ())),
        ({"do_sample": False, "temperature": 0.2, "top_p": 0.9}, (1024, ())),
        ({"temperature": 0, "num_beams": 1}, (1024, ())),
        ({"temperature": None}, (1024, ())),
        ({"until": ["\n\n"]}, (1024, ())),
        ({"until": ["", "\n\n", "\n"]}, (1024, ("\n",))),
        ({"until": "\n\n"}, (1024, ())),
        ({"until": ""}, (1024, ())),
    ],
)
def test_how_a_task_wants_its_answers(
    settings: dict[str, Any], how: tuple[int, tuple[str, ...]]
) -> None:
    from recipes.edge.evaluation.lmms_eval_model import _how

    assert _how(settings) == how


def test_what_is_not_obeyed_and_what_is_broken_is_logged(
    model: Any, trained: Path, tmp_path: Path, said: list[str]
) -> None:
    good = trained / "clips" / "videos" / "00032.mp4"
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(without_pixels(good))
    how = {"max_new_tokens": 4, "repetition_penalty": 1.2, "seed": None, "mark": "x"}
    first, second = ask(model, [str(good), str(broken)], **how)
    assert (first != "", second) == (True, "")
    warning, error = said
    assert warning == (
        "WARNING: generation_kwargs has mark, repetition_penalty, which has no effect; "
        "known are do_sample, max_new_tokens, num_beams, temperature, top_k, top_p, "
        "until\n"
    )
    assert error.startswith(
        f"ERROR: document 1 of shapes/train is answered with nothing: {broken}"
    )
    said.clear()
    assert ask(model, [str(good)], **how, top_p=None, other=1) == [first]
    assert [words.partition(", which")[0] for words in said] == [
        "WARNING: generation_kwargs has other"
    ]


def test_every_process_takes_a_gpu_of_its_own(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes.edge.evaluation import lmms_eval_model

    taken = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    loaded = SimpleNamespace(family=Family())
    monkeypatch.setattr(lmms_eval_model, "load_model", lambda *_: loaded)
    checkpoint = str(trained / "run" / "model-60")
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        model = lmms_eval_model.FastSlow(pretrained=checkpoint)
        assert model.device == taken[-1] == torch.device("cuda", rank)
    assert len(taken) == 2
