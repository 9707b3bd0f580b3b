"""A grid of runs: which there are, that each is done once, and what they add up to."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from recipes.ablate import (
    Ablation,
    Runner,
    is_finished,
    last_words,
    main,
    refuse_other_data,
    refuse_other_run,
    split_gpus,
    write_report,
)
from recipes.ablation import (
    Result,
    differences,
    markdown_table,
    plan_ablation,
    result_of,
    summarise,
)
from recipes.config import Config, load_config
from recipes.edge.data.clips import make_clips
from recipes.edge.reports.ablation_figure import draw_ablation
from recipes.qwen2vl_tiny import TINY
from recipes.settings.mappings import read_settings

ROOT = Path(__file__).parents[2]
OUT = Path("out")
RESULT = Result(
    loss=2.0,
    language_loss=1.5,
    autoregressive_loss=0.5,
    skill=0.25,
    held_out_language_loss=1.25,
    accuracy=0.5,
    questions=8,
    chance=0.25,
    tokens_per_clip=40.0,
    tokens_per_second=1000.0,
    frames_per_second=200.0,
)


def grid(*axes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"base": "tiny", "grid": list(axes), "seeds": [0, 3], **changes}


RATIOS = {"name": "ratio", "slow_frame_ratio": [0, 0.5]}
STRIDES = {"name": "stride", "mm_spatial_pool_stride": [4, 8]}
HALVES: tuple[dict[str, Any], str] = (
    {"name": "repeat_strides", "pattern": [1, 2]},
    "repeat_strides(pattern=(1, 2))",
)
LOSSES = {"name": "loss", "variants": [{"loss_weight": 0.15}, {"loss_weight": 0}]}


def test_equal_settings_are_one_run() -> None:
    variants = plan_ablation(grid(RATIOS, LOSSES), OUT)
    assert [(each.axis, each.label, each.is_base) for each in variants] == [
        ("ratio", "slow_frame_ratio 0", False),
        ("ratio", "slow_frame_ratio 0.5", True),
        ("loss", "loss_weight 0.15", True),
        ("loss", "loss_weight 0", False),
    ]
    assert variants[1].configs == variants[2].configs
    assert [each.seed for each in variants[0].configs] == [0, 3]
    folders = {each.output_dir for v in variants for each in v.configs}
    assert folders == {
        OUT / f"{name},seed={seed}"
        for name in ("base", "slow_frame_ratio=0.0", "loss_weight=0.0")
        for seed in (0, 3)
    }
    (config,) = {replace(c, seed=0, output_dir=OUT) for c in variants[1].configs}
    assert config == replace(TINY, output_dir=OUT)


def test_every_setting_can_be_an_axis() -> None:
    strategy = {"name": "repeat_strides", "pattern": [2, 4, 4]}
    axes = [
        {"name": "a", "frame_sampling_strategy": ["uniform", strategy]},
        {"name": "b", "parallel": [{"tower": "trained"}, {"lora_rank": 2}]},
        {"name": "c", "variants": [{"bf16": True, "max_steps": 5}]},
        {"name": "d", "autoregressive_config": [{"loss_weight": 0.2}]},
    ]
    base = {"preset": "2b", "loss_weight": 0.3, "data_path": "x.json"}
    variants = plan_ablation(grid(*axes, base=base), OUT)
    assert len(variants) == 6
    folders = [each.configs[0].output_dir for each in variants]
    assert folders[4].name == "max_steps=5,seed=0"
    assert len(set(folders)) == 6
    assert {each.configs[0].loss_weight for each in variants} == {0.3, 0.2}
    assert all("/" not in f.name and len(f.name) < 140 for f in folders)
    assert variants[3].configs[0].parallel.lora_rank == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "tiny"}, "grid is missing; an ablation has base, grid, seeds"),
        (grid(RATIOS, sedes=[1]), "sedes is no setting; the nearest one is seeds"),
        (grid(RATIOS, seeds=[]), "seeds is []; it must be a list, not empty"),
        (grid(RATIOS, seeds=[1, 1]), "seeds is [1, 1]; each stands once"),
        (grid(RATIOS, seeds=["a"]), "seeds is 'a'; it must be a whole number"),
        (grid(), "grid is []; it must be a list, not empty"),
        (
            grid(RATIOS, base="tyni"),
            "preset is 'tyni'; the nearest known one is 'tiny'",
        ),
        (
            grid(RATIOS, base={"preset": ["tiny"]}),
            "preset is ('tiny',); it must be text",
        ),
        (
            grid(RATIOS, base={"seed": 3}),
            "base names seed; the ablation sets it for every run",
        ),
        (
            grid({"name": "a", "seed": [1, 2]}),
            "grid[0] names seed; the ablation sets it for every run",
        ),
        (
            grid({"name": "a", "variants": [{"output_dir": "b"}]}),
            "grid[0] names output_dir; the ablation sets it for every run",
        ),
        (grid({"slow_frame_ratio": [1]}), "grid[0].name is None; it must be text"),
        (
            grid({"name": "a"}),
            (
                "grid[0] has nothing beside its name; it takes one setting with a list "
                "of values, or variants"
            ),
        ),
        (
            grid({"name": "a", "loss_weight": 0.1}),
            "grid[0].loss_weight is 0.1; it must be a list, not empty",
        ),
        *(
            (
                grid(axis, base={"frame_sampling_strategy": strategy}),
                (
                    f"grid[0] names {name} but frame_sampling_strategy is {text!r}, "
                    "which does not read it; an axis is over what its runs read"
                ),
            )
            for axis, strategy, text, name in (
                (RATIOS, *HALVES, "slow_frame_ratio"),
                (STRIDES, *HALVES, "mm_spatial_pool_stride"),
                (
                    {"name": "a", "autoregressive_config": [{"slow_frame_ratio": 1}]},
                    *HALVES,
                    "slow_frame_ratio",
                ),
                (
                    {
                        "name": "a",
                        "variants": [
                            {
                                "frame_sampling_strategy": HALVES[0],
                                "mm_spatial_pool_stride": 8,
                            }
                        ],
                    },
                    "uniform",
                    HALVES[1],
                    "mm_spatial_pool_stride",
                ),
            )
        ),
        (
            grid({"name": "a", "loss_wieght": [0.1]}),
            "loss_wieght is no setting; the nearest one is loss_weight",
        ),
    ],
)
def test_a_grid_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        plan_ablation(settings, OUT)
    assert str(caught.value) == message


def test_an_axis_over_what_a_constructor_reads() -> None:
    base = {
        "frame_sampling_strategy": {
            "name": "build_schedule",
            "slow_ratio": 0.3,
            "slow_stride": 1,
        }
    }
    assert len(plan_ablation(grid(STRIDES, base=base), OUT)) == 2  # of fast frames
    with pytest.raises(ValueError, match=r"grid\[0\] names slow_frame_ratio but "):
        plan_ablation(grid(RATIOS, base=base), OUT)


def test_the_grid_of_the_docs() -> None:
    variants = plan_ablation(read_settings(ROOT / "recipes/configs/ablation.yaml"), OUT)
    folders = {each.output_dir for v in variants for each in v.configs}
    assert (len(variants), len(folders)) == (16, 36)
    assert sum(each.is_base for each in variants) == 5


def test_a_run_is_summed_up_by_its_end(tmp_path: Path) -> None:
    steps = [
        {"step": n, "loss": n, "skill": None, "tokens_per_second": 2**n}
        for n in range(1, 21)
    ]
    asked = [
        {"step": 20, "event": "evaluation", "questions": 4} | numbers
        for numbers in (
            {"accuracy": 0, "chance": 0.2, "language_loss": 3.0},
            {"accuracy": 0.75, "chance": 0.1, "language_loss": 2.5},
        )
    ]
    lines = [json.dumps(each) for each in [*steps, *asked]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = result_of(tmp_path)
    assert (found.accuracy, found.chance) == (0.75, 0.1)
    assert (found.questions, found.held_out_language_loss) == (4, 2.5)
    assert (found.language_loss, found.loss) == (None, 19.5)
    assert found.tokens_per_second == (2**10 + 2**11) / 2
    assert (found.skill, found.autoregressive_loss) == (None, None)


def test_half_a_line_of_metrics_is_named(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    half = '{"step": 2, "lo'
    file.write_text(f'{{"step": 1, "loss": 1.0}}\n{half}')
    with pytest.raises(ValueError) as caught:
        result_of(tmp_path)
    assert str(caught.value) == (
        f"line 2 of {file} is {half!r}; it must be a JSON object with a step"
    )


@pytest.mark.parametrize("step", [18, 19])
def test_a_run_that_diverges_at_its_end_has_no_loss(tmp_path: Path, step: int) -> None:
    rows: list[dict[str, Any]] = [
        {"step": n, "loss": 1.0, "skill": 0.5, "tokens_per_second": 4}
        for n in range(1, 21)
    ]
    rows[step - 1] |= {"loss": None}
    lines = [json.dumps(each) for each in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = result_of(tmp_path)
    is_last = step > 18  # a tenth of the steps counts
    assert (found.loss, found.skill) == ((None, None) if is_last else (1.0, 0.5))
    assert found.tokens_per_second == 4


def test_the_table_has_means_and_spread(tmp_path: Path) -> None:
    variants = plan_ablation(grid(RATIOS), OUT)
    (first, second), (third, missing) = (each.configs for each in variants)
    results = {
        first.output_dir: RESULT,
        second.output_dir: replace(RESULT, accuracy=0.75, loss=3.0, skill=None),
        third.output_dir: replace(RESULT, accuracy=None, autoregressive_loss=None),
    }
    rows = summarise(variants, results)
    assert rows[0]["accuracy"] == {
        "mean": 0.625,
        "deviation": pytest.approx(0.1767767),
        "values": [0.5, 0.75],
    }
    assert (rows[0]["seeds"], rows[0]["missing"]) == ([0, 3], 0)
    assert (rows[1]["seeds"], rows[1]["missing"]) == ([0], 1)
    assert missing.output_dir.name not in rows[1]["runs"]
    assert markdown_table(rows).splitlines()[2:] == [
        (
            "| **ratio** | slow_frame_ratio 0 | 2 | 0.625 (0.500 to 0.750) | 0.250 | 8 "
            "| 1.2500 | 2.500 | 1.5000 | 0.5000 | - | 40.0 | 1000 | 200 |"
        ),
        (
            "|  | slow_frame_ratio 0.5 (base) | 1, 1 missing | - | 0.250 | 8 "
            "| 1.2500 | 2.000 | 1.5000 | - | 0.250 | 40.0 | 1000 | 200 |"
        ),
    ]
    assert rows[0]["questions"]["values"] == [8, 8]
    draw_ablation(rows, tmp_path / "a.svg")
    draw_ablation(rows, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_what_differs_between_runs_is_said() -> None:
    starts: dict[str, dict[str, Any]] = {
        name: {"git.commit": "abc", "versions.torch": "2.13", "ranks": 1}
        for name in "abcd"
    }
    results = dict.fromkeys(starts, RESULT)
    assert differences(results, starts) == differences({}, {}) == []
    fewer = {"b": replace(RESULT, questions=6), "d": replace(RESULT, questions=None)}
    starts["a"] |= {"versions.torch": "2.14"}
    starts["c"] |= {"versions.torch": "2.14", "versions.av": None}
    starts["d"] = {"git": None, "versions.torch": "2.14"}
    assert differences({**results, **fewer}, starts) == [
        (
            "The runs were not asked as many held-out questions, and accuracies over "
            "other questions do not compare: 6 in `b`; none in `d`; 8 in all others."
        ),
        "`git.commit` of their last starts differs: none in `d`; abc in all others.",
        (
            "`versions.torch` of their last starts differs: 2.13 in `b`; 2.14 in all "
            "others."
        ),
    ]


def finish(
    config: Config, texts: str, *, held_out: str = "same", commit: str = "abc"
) -> None:
    """Leave what a finished run leaves."""
    folder = config.output_dir
    (folder / f"model-{config.max_steps}").mkdir(parents=True)
    data = {"train": {"texts": texts}, "held_out": {"texts": held_out}}
    before = {"train": {"texts": "of a start before"}, "held_out": {"texts": "too"}}
    start = {"ranks": 1, "git": {"commit": commit}}
    starts = [start | {"data": before}, start | {"data": data}]
    (folder / "run.json").write_text(json.dumps({"starts": starts}))
    rows = [
        {"step": 1, "loss": 1.0},
        {"step": 1, "event": "evaluation", "accuracy": 0.5, "questions": config.seed},
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)


def test_runs_on_other_data_are_refused(tmp_path: Path) -> None:
    first = replace(TINY, output_dir=tmp_path / "first")
    finish(first, "a")
    for number, other in enumerate(
        (
            replace(first, seed=1),  # has clips of its own
            replace(first, data_path="b"),
            replace(first, data_path="b", eval_data_path="c"),
            replace(first, data_path="b", data_subsets=("d",)),
        )
    ):
        config = replace(other, output_dir=tmp_path / str(number))
        finish(config, f"of {number}")
        refuse_other_data([first, config])
    unfinished = replace(first, output_dir=tmp_path / "unfinished")
    refuse_other_data([first, unfinished])
    same = replace(first, loss_weight=0.5, output_dir=tmp_path / "same")
    finish(same, "a")
    refuse_other_data([first, same])
    held_out = replace(first, output_dir=tmp_path / "held_out")
    finish(held_out, "a", held_out="other")
    train = replace(first, output_dir=tmp_path / "train")
    finish(train, "b")
    with_seed = replace(first, data_path="b", seed=3, output_dir=tmp_path / "seed")
    finish(with_seed, "b")
    known = replace(first, data_path="b", output_dir=tmp_path / "1")
    for one, other in ((first, held_out), (same, train), (known, with_seed)):
        with pytest.raises(ValueError) as caught:
            refuse_other_data([one, other])
        assert str(caught.value) == (
            f"{other.output_dir} and {one.output_dir} have samples of other names or "
            "texts; an ablation compares runs on the same data, so one of the two has "
            "to go"
        )


@pytest.mark.parametrize("finished", [1, 2])
def test_an_ablation_on_other_data_ends_in_words(
    finished: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is started, and before the table of what was."""
    settings, runs = tmp_path / "grid.json", tmp_path / "runs"
    settings.write_text(json.dumps(grid(RATIOS, seeds=[3])))
    variants = plan_ablation(read_settings(settings), runs)
    configs = [each for variant in variants for each in variant.configs]
    for config, texts in zip(configs[:finished], "ab", strict=False):
        finish(config, texts)
    started = list[Path]()

    def run(_: Runner, config: Config) -> int:
        started.append(config.output_dir)
        finish(config, "b")
        (config.output_dir / "console.log").touch()
        return 0

    monkeypatch.setattr(Runner, "run", run)
    with pytest.raises(ValueError, match="have samples of other names or texts"):
        main(Ablation(settings=settings, output_dir=runs, ranks=1))
    assert started == [each.output_dir for each in configs[finished:]]
    assert not (runs / "ablation.md").exists()


def test_the_report_says_below_the_table_what_differs(tmp_path: Path) -> None:
    variants = plan_ablation(grid(RATIOS, seeds=[3, 4]), tmp_path)
    configs = [each for variant in variants for each in variant.configs]
    for config in configs:
        finish(config, "a", commit="def" if config == configs[1] else "abc")
    write_report(tmp_path, variants, configs)
    table, *said = (tmp_path / "ablation.md").read_text().split("\n\n")
    assert len(table.splitlines()) == 4
    others = "`slow_frame_ratio=0.0,seed=4`"
    assert said == [
        (
            "The runs were not asked as many held-out questions, and accuracies over "
            f"other questions do not compare: 4 in {others}, `base,seed=4`; 3 in all "
            "others."
        ),
        (
            f"`git.commit` of their last starts differs: def in {others}; abc in all "
            "others.\n"
        ),
    ]


@pytest.mark.parametrize("name", ["ranks", "data.train.texts", "data.held_out.texts"])
def test_a_start_that_says_too_little_is_refused(tmp_path: Path, name: str) -> None:
    config = replace(TINY, output_dir=tmp_path)
    whole = {
        "ranks": 1,
        "data": {"train": {"texts": "a"}, "held_out": {"texts": "b"}},
    }
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"starts": [whole]}))
    refuse_other_run(config, 1)
    *path, last = name.split(".")
    inner: Any = whole
    for key in path:
        inner = inner[key]
    del inner[last]
    record.write_text(json.dumps({"starts": [whole]}))
    with pytest.raises(ValueError) as caught:
        refuse_other_run(config, 1)
    assert str(caught.value) == (
        f"{record} has a start without {name}; a run records it, so this is no run of "
        "this version"
    )


def test_a_finished_run_has_a_record(tmp_path: Path) -> None:
    (tmp_path / f"model-{TINY.max_steps}").mkdir()
    with pytest.raises(ValueError) as caught:
        refuse_other_data([replace(TINY, output_dir=tmp_path)])
    assert str(caught.value) == (
        f"{tmp_path / 'run.json'} has no start; a finished run has at least one"
    )


def test_the_last_words_of_a_run_are_its_error(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    before, summary = "error: of a start before\n", "RuntimeError: no\n =====\n\n"
    log.write_text(before)
    begin = len(before)
    assert last_words(log, begin) == "it said nothing"
    log.write_text(f"{before}a\n{summary}")
    assert last_words(log, begin) == "RuntimeError: no"
    log.write_text(f"{before}error: why\n{summary}")
    assert last_words(log, begin) == "error: why"


def write_grid(folder: Path, base: dict[str, Any], *weights: float) -> None:
    """JSON is YAML."""
    axis = {"name": "loss", "loss_weight": weights}
    settings = {"base": base, "grid": [axis], "seeds": [0]}
    (folder / "ablation.yaml").write_text(json.dumps(settings))


def start(preloaded: Any, folder: Path, log: str, *flags: str) -> int:
    words = ["recipes/ablate.py", str(folder / "ablation.yaml"), *flags]
    words += ["--output-dir", str(folder / "out")]
    process: int = preloaded.start(*words, log=folder / log)
    return process


def test_an_ablation_goes_on_where_it_was_interrupted(
    preloaded: Any, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    make_clips(clips, num_clips=8, held_out=4, seed=0, num_frames=4, size=(56, 84))
    base = {
        "data_path": str(clips / "train.jsonl"),
        "eval_data_path": str(clips / "held_out.jsonl"),
        "tokens_per_row": 300,
        "max_steps": 3,
        "save_steps": 1,
    }
    write_grid(tmp_path, base, 0.15, 0)
    out = tmp_path / "out"
    first = start(preloaded, tmp_path, "first.log")
    # The runs are done one after the other; the second is ended once it has begun.
    second_run = out / "loss_weight=0.0,seed=0"
    deadline = time.monotonic() + 120
    while not (second_run / "checkpoint-1").exists():
        assert time.monotonic() < deadline and preloaded.exit_code(first) is None
        time.sleep(0.02)
    os.kill(first, signal.SIGTERM)
    assert preloaded.wait(first) != 0
    one, two = (
        load_config(f / "settings.yaml", TINY)
        for f in (out / "base,seed=0", second_run)
    )
    assert is_finished(one)
    is_left = not is_finished(two)
    kept = {f: f.stat().st_mtime_ns for f in one.output_dir.rglob("*") if f.is_file()}

    again = start(preloaded, tmp_path, "again.log", "--jobs", "2")
    code, words = preloaded.wait(again), (tmp_path / "again.log").read_text()
    assert code == 0, words
    assert f"2 runs, {2 - is_left} of them finished" in words
    assert kept == {
        f: f.stat().st_mtime_ns for f in one.output_dir.rglob("*") if f.is_file()
    }
    lines = (second_run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 3]
    log = (second_run / "train.log").read_text()
    assert "goes on after step" in log or not is_left
    rows = json.loads((out / "ablation.json").read_text())
    assert [row["seeds"] for row in rows] == [[0], [0]]
    assert rows[0]["autoregressive_loss"]["mean"] > 0
    assert rows[1]["autoregressive_loss"]["values"] == []
    assert rows[0]["tokens_per_clip"]["mean"] > 1
    assert (out / "ablation.md").read_text() in words
    assert (out / "ablation.svg").is_file()

    for name, other, begun in (
        ("max_steps", 4, 3),
        ("learning_rate", 1.0, 2e-3),
        ("warmup_steps", 1, 20),
        ("max_grad_norm", 2.0, 1.0),
        ("model_name_or_path", "other", None),
    ):
        changes: dict[str, Any] = {name: other}
        with pytest.raises(ValueError) as caught:
            refuse_other_run(replace(one, **changes), 1)
        assert str(caught.value) == (
            f"{one.output_dir}: {name} is {other!r} but the run began with {begun}; it "
            "goes on with the settings that it began with, or in another output_dir"
        )
    with pytest.raises(ValueError) as caught:
        refuse_other_run(one, 2)
    assert str(caught.value) == (
        f"{one.output_dir}: ran on 1 ranks but ranks is 2; a step has rows of each "
        "rank, so they must agree"
    )
    refuse_other_run(replace(one, dataloader_num_workers=4), 1)
    refuse_other_run(replace(one, output_dir=out / "new", max_steps=4), 2)


def test_an_interrupt_ends_it_in_the_background_too(tmp_path: Path) -> None:
    """A shell starts what it puts into the background with interrupts ignored."""
    write_grid(tmp_path, {"max_steps": 3}, 0.15, 0)
    words = ["recipes/ablate.py", str(tmp_path / "ablation.yaml")]
    words += ["--output-dir", str(tmp_path / "out")]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        asked = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert asked.stdout is not None
    assert asked.stdout.readline() == "2 runs, 0 of them finished\n"
    asked.send_signal(signal.SIGINT)
    said, _ = asked.communicate(timeout=240)
    assert asked.returncode == 130
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "loss_weight=0.0,seed=0").exists()


def test_a_run_that_fails_is_missing(preloaded: Any, tmp_path: Path) -> None:
    write_grid(tmp_path, {"data_path": str(tmp_path / "none.json")}, 0.15)
    assert preloaded.wait(start(preloaded, tmp_path, "log")) == 1
    console = tmp_path / "out" / "base,seed=0" / "console.log"
    (line,) = [
        line
        for line in (tmp_path / "log").read_text().splitlines()
        if line.startswith("base,seed=0: ")
    ]
    said = (
        f"base,seed=0: ended with 1: error: {tmp_path / 'none.json'} does not exist; "
    )
    assert line.startswith(said)
    assert line.endswith(f" (see {console})")
    assert "none.json does not exist" in console.read_text()
    rows = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [(row["seeds"], row["missing"]) for row in rows] == [([], 1)]


def show_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)


@pytest.mark.parametrize(
    ("outer", "count", "found"),
    [
        (None, 0, [None, None]),
        (None, 5, ["0,1", "2,3"]),
        ("7,5,GPU-1,0", 4, ["7,5", "GPU-1,0"]),
    ],
)
def test_runs_at_a_time_have_gpus_of_their_own(
    monkeypatch: pytest.MonkeyPatch, outer: str | None, count: int, found: list[Any]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if outer is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outer)
    show_gpus(monkeypatch, count)
    slots = split_gpus(jobs=2, ranks=2)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots] == found


def test_runs_at_a_time_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    runners = [Runner(ranks=2, jobs=jobs) for jobs in (1, 2, 9)]
    assert [each.environment["OMP_NUM_THREADS"] for each in runners] == ["4", "2", "1"]


def test_too_few_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(monkeypatch, 3)
    with pytest.raises(ValueError) as caught:
        Runner(ranks=2, jobs=2)
    assert str(caught.value) == (
        "jobs is 2 and ranks is 2 but 3 GPUs are visible; every rank of every run at a "
        "time needs one of its own"
    )


def test_a_run_takes_the_gpus_of_one_that_has_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    show_gpus(monkeypatch, 2)
    runner, both = Runner(ranks=1, jobs=2), Barrier(2, timeout=60)
    seen = list[str]()

    class Started:
        """Stands for a process; two of them are there at a time."""

        def __init__(self, _: object, *, env: dict[str, str], **__: object) -> None:
            seen.append(env["CUDA_VISIBLE_DEVICES"])

        def wait(self) -> int:
            both.wait()
            return 0

    monkeypatch.setattr("subprocess.Popen", Started)
    configs = [replace(TINY, output_dir=tmp_path / str(n)) for n in range(4)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(runner.run, configs)) == [0] * 4
    assert sorted(seen) == ["0", "0", "1", "1"]
    assert sorted(seen[:2]) == ["0", "1"]


@pytest.mark.parametrize("name", ["jobs", "ranks"])
def test_nothing_runs_on_nothing(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        Ablation(settings=OUT, **{name: 0})
    assert str(caught.value) == f"{name} is 0; it must be at least 1"
