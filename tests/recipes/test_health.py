"""The rules that warn: what they see, what they leave alone, and a run gone wrong."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.config import FREE_TO_CHANGE, Config
from recipes.edge.data.clips import make_clips
from recipes.edge.ranks.distributed import process_group
from recipes.edge.reports.health import (
    RAMP_STEPS,
    REPEAT,
    RULES,
    SPIKE,
    SPIKE_STEPS,
    Health,
    Numbers,
    examine,
)
from recipes.edge.reports.metrics import RunLog
from recipes.qwen2vl_tiny import TINY
from recipes.settings.mappings import setting_names
from recipes.train import main

GOOD: dict[str, float] = {
    "loss": 2.0,
    "gradient_norm": 1.0,
    "skill": 0.3,
    "spread": 0.8,
    "data_wait": 0.05,
    "longest_data_wait": 0.1,
    "waiting_rank": 3,
}


def warnings(rows: Iterable[Numbers], num_ranks: int = 4) -> list[tuple[int, str, str]]:
    """Give the step, the rule and the words of each warning."""
    health, found = Health(num_ranks=num_ranks), []
    for step, row in enumerate(rows, start=1):
        health, said = examine(health, row)
        found += [(step, each.rule, each.message) for each in said]
    return found


def said(rows: Iterable[Numbers], num_ranks: int = 4) -> list[tuple[int, str]]:
    return [(step, rule) for step, rule, _ in warnings(rows, num_ranks)]


KNOWN = SPIKE_STEPS + RAMP_STEPS


@given(
    st.lists(st.floats(1.0, SPIKE), min_size=1, max_size=200),
    st.floats(1e-3, 1e3),
    st.integers(1, 4),
)
def test_nothing_is_said_of_usual_numbers(
    losses: list[float], scale: float, num_ranks: int
) -> None:
    rows = [GOOD | {"loss": scale * loss} for loss in losses]
    assert said(rows, num_ranks) == []


@given(st.integers(1, 100))
def test_a_falling_loss_is_no_spike(steps: int) -> None:
    assert said(GOOD | {"loss": 9 / step} for step in range(1, steps + 1)) == []


@pytest.mark.parametrize(
    ("rule", "bad", "first"),
    [
        ("gradients_not_finite", {"gradient_norm": math.inf}, 1),
        ("gradients_not_finite", {"gradient_norm": None}, 1),
        ("no_skill", {"skill": 0.0}, 200),
        ("no_skill", {"skill": -3.0}, 200),
        ("collapsed_predictions", {"spread": 0.01}, 50),
        ("waiting_rank", {"data_wait": 0.15, "longest_data_wait": 0.5}, 20),
    ],
)
def test_what_lasts_is_said_and_said_again(
    rule: str, bad: Mapping[str, Any], first: int
) -> None:
    rows = [GOOD | bad] * (first + REPEAT)
    assert said(rows[:-1]) == [(first, rule)]
    assert said(rows) == [(first, rule), (first + REPEAT, rule)]
    broken_off = [*rows[: first - 1], GOOD, *rows[: first - 1]]
    assert said(broken_off) == []


def test_a_spike_is_said_once() -> None:
    rows = [GOOD] * KNOWN
    above = GOOD | {"loss": 2 * SPIKE + 0.1}
    assert said([*rows, above, above, GOOD]) == [(KNOWN + 1, "loss_spike")]
    assert said([*rows, GOOD | {"loss": 2 * SPIKE}]) == []
    assert said([*rows[1:], above]) == []  # too few were seen before
    higher = GOOD | {"loss": 3.0}  # neither among the first nor among the last ones
    assert said([*rows[:30], higher, *rows[31:], above]) == []
    ramp = [GOOD | {"loss": 2 * 1.4**step} for step in range(1, RAMP_STEPS + 1)]
    assert said([*rows, *ramp]) == [(KNOWN + 3, "loss_spike")]


def test_a_loss_that_stays_above_the_first_ones_is_said() -> None:
    ramp = [GOOD | {"loss": 2 * 1.1**step} for step in range(40)]
    assert 1.1**9 < SPIKE < 1.1**10  # so from step 15 on, which is 10 after the fifth
    assert said(ramp) == [(24, "loss_above_start")]
    falls = [GOOD | {"loss": 2.0 if step % 10 else 6.0} for step in range(100)]
    assert said(falls[1:]) == []
    too_early = [GOOD | {"loss": 6.0}] * 4 + [GOOD | {"loss": 7.0}] * 40
    assert said(too_early) == []


@given(st.lists(st.sampled_from((None, math.nan, math.inf)), max_size=9))
def test_losses_that_are_not_finite_do_no_harm(odd: list[float | None]) -> None:
    rows: list[Numbers] = [GOOD | {"loss": loss} for loss in odd]
    high = GOOD | {"loss": 2 * SPIKE + 0.1}
    assert said([*[GOOD] * KNOWN, *rows, high]) == [
        (KNOWN + len(odd) + 1, "loss_spike")
    ]


def test_losses_of_0_are_compared_with_nothing() -> None:
    nothing = GOOD | {"loss": 0.0}  # without labels, and without next-frame loss
    assert said([*[nothing] * KNOWN, *[GOOD] * 100]) == []


@pytest.mark.parametrize(
    ("waits", "num_ranks"),
    [
        ({"data_wait": 0.15, "longest_data_wait": 0.5}, 1),  # nobody to compare with
        ({"data_wait": 0.4, "longest_data_wait": 0.5}, 4),  # all wait
        ({"data_wait": 0.05, "longest_data_wait": 0.15}, 4),  # it does not matter
    ],
)
def test_a_rank_that_waits_like_others_is_left_alone(
    waits: Mapping[str, float], num_ranks: int
) -> None:
    assert said([GOOD | waits] * 100, num_ranks) == []


def test_ranks_that_wait_in_turn_are_left_alone() -> None:
    waits = {"data_wait": 0.15, "longest_data_wait": 0.5}
    rows = [GOOD | waits | {"waiting_rank": step // 19 % 4} for step in range(100)]
    assert said(rows) == []


def test_every_rule_says_what_it_saw_and_what_to_do() -> None:
    bad = {
        "loss_spike": {"loss": 20.0},
        "loss_above_start": {"loss": 20.0},
        "gradients_not_finite": {"gradient_norm": None, "skipped_steps": 3},
        "no_skill": {"skill": -0.25},
        "collapsed_predictions": {"spread": 0.012},
        "waiting_rank": {"data_wait": 0.15, "longest_data_wait": 0.42},
    }
    rows = [
        *[GOOD] * KNOWN,
        *[GOOD | {k: v for b in bad.values() for k, v in b.items()}] * 200,
    ]
    found = {rule: message for _, rule, message in warnings(rows)}
    assert found.keys() == bad.keys() == RULES.keys()
    for rule, words in {
        "loss_spike": "the loss is 20, 10.0 times the largest of 50 steps before; ",
        "loss_above_start": "20, 10.0 times the largest of the run's first 5; ",
        "gradients_not_finite": "the step was not taken; 3 so far; ",
        "no_skill": "in 200 steps in a row the next-frame head was no better than",
        "collapsed_predictions": "its predictions spread 0.012 times as far as",
        "waiting_rank": "rank 3 waits for its rows in 42% of the step, the others in",
    }.items():
        assert words in found[rule]
        assert found[rule].endswith(RULES[rule].advice)


def test_advice_is_what_a_run_that_goes_on_may_follow() -> None:
    """Or what a new run may."""
    for rule in RULES.values():
        for part in rule.advice.split(", "):
            named = {name for name in setting_names(Config) if name in part}
            assert named <= FREE_TO_CHANGE or "begin a new run" in part


@given(st.integers(1, 260))
def test_a_resumed_run_says_what_an_undisturbed_one_says(stop: int) -> None:
    rows = [GOOD | {"skill": -1.0}] * 260
    health = Health(num_ranks=4)
    for row in rows[:stop]:
        health, _ = examine(health, json.loads(json.dumps(row)))
    again = []
    for step, row in enumerate(rows[stop:], start=stop + 1):
        health, found = examine(health, row)
        again += [(step, each.rule) for each in found]
    assert again == [each for each in said(rows) if each[0] > stop]


def events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row.get("event") == "warning"]


def test_a_warning_is_a_line_of_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with process_group() as world:
        for first, last in ((1, 120), (101, 201)):  # 20 steps are done again
            with RunLog(
                output_dir=tmp_path, total_steps=201, first_step=first, world=world
            ) as log:
                for step in range(first, last + 1):
                    log.step(step, {"skill": -1.0})
    (event,) = events(tmp_path)
    assert (event["step"], event["rule"]) == (200, "no_skill")
    words = f"WARNING at step 200, no_skill: {event['message']}"
    assert (tmp_path / "train.log").read_text().count(words) == 1
    assert capsys.readouterr().out == f"{words}\n"


def test_a_rank_that_waits_is_looked_for_anew_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another one, on another machine, among others."""
    monkeypatch.delenv("RANK", raising=False)
    waits = {"data_wait": 0.15, "longest_data_wait": 0.5, "waiting_rank": 1}
    with process_group() as alone:
        for first, last, size in ((1, 19, 4), (20, 39, 2)):
            world = replace(alone, size=size)
            with RunLog(
                output_dir=tmp_path, total_steps=39, first_step=first, world=world
            ) as log:
                for step in range(first, last + 1):
                    log.step(step, waits if size == 4 else waits | {"data_wait": 0.3})
    (event,) = events(tmp_path)
    assert (event["step"], event["rule"]) == (39, "waiting_rank")


def test_a_learning_rate_that_blows_up_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real run whose learning rate leaves what the model bears, then all bounds."""
    data = tmp_path / "clips"
    make_clips(data, num_clips=8, held_out=0, seed=0, num_frames=4, size=(56, 84))

    def rate(step: int, **schedule: Any) -> float:
        return 3e-3 if step < 58 else 1.0 if step < 63 else 1e30

    monkeypatch.setattr("recipes.train.warmup_cosine", rate)
    config = replace(
        TINY,
        output_dir=tmp_path / "run",
        data_path=str(data / "train.jsonl"),
        tokens_per_row=100,
        packing_window=4,
        save_steps=1000,
        max_steps=66,
    )
    main(config)
    found = events(tmp_path / "run")
    (spike,) = [each for each in found if each["rule"] == "loss_spike"]
    assert 58 < spike["step"] < 63
    (gradients,) = [each for each in found if each["rule"] == "gradients_not_finite"]
    assert gradients["step"] >= 64
    log = (tmp_path / "run" / "train.log").read_text()
    assert all(f"{each['rule']}: {each['message']}" in log for each in found)
