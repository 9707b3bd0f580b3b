"""The real lmms-eval asks a model of ours, through its own command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.edge.clips import make_clips

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


def test_nothing_that_is_asked_for_is_ignored(trained: Path) -> None:
    from recipes.edge.lmms_eval_model import FastSlow, _how

    checkpoint = str(trained / "run" / "model-60")
    with pytest.raises(ValueError, match=r"^model_args has fps; it takes pretrained,"):
        FastSlow(pretrained=checkpoint, device="cpu", fps=2)
    with pytest.raises(ValueError, match="answers are greedy"):
        _how({"do_sample": True})
    assert _how({"max_new_tokens": 4, "until": "\n"}) == (4, ("\n",))
    assert _how({}) == (1024, ())
