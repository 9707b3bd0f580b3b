"""What a run is trained on and asked, or why it is refused."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader

from recipes.data import most_common_share, plan_data
from recipes.edge.conversations import Turn
from recipes.edge.distributed import process_group
from recipes.edge.index import Sample
from recipes.edge.meanwhile import say_how_many
from recipes.qwen2vl_tiny import TINY

ROW = {
    "conversations": [
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "So."},
    ]
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.mark.parametrize(
    ("train", "held_out", "said"),
    [
        ([ROW | {"id": 0.5}], [{}], "train.json .*: id is a number; it must be .*"),
        ([ROW | {"video": "a"}], [{}], "train.json .*: .*a cannot be opened: No .*"),
        ([ROW], [{}], "held_out.json .*: the row has no conversation; it needs .*"),
        ([{}, ROW], [], "held_out.json .*: it has no row"),
    ],
)
def test_data_without_a_usable_sample_are_refused_with_their_own_reason(
    tmp_path: Path,
    train: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    said: str,
) -> None:
    config = replace(
        TINY,
        data_path=write_rows(tmp_path / "train.json", train),
        eval_data_path=write_rows(tmp_path / "held_out.json", held_out),
        output_dir=tmp_path / "run",
    )
    with process_group() as world, pytest.raises(ValueError, match=said) as error:
        plan_data(config, world)
    assert str(error.value).count("; ") == said.count("; ")


def test_the_unusable_samples_of_both_are_named(tmp_path: Path) -> None:
    config = replace(
        TINY,
        data_path=write_rows(tmp_path / "train.json", [ROW, {}]),
        eval_data_path=write_rows(tmp_path / "held_out.json", [{}, ROW]),
        output_dir=tmp_path / "run",
    )
    with process_group() as world:
        data = plan_data(config, world)
    assert (len(data.train), len(data.held_out)) == (1, 1)
    assert data.train.settings.row_buckets == 0  # on a GPU, rows are padded
    assert [each.sample_id for each in data.bad] == ["train.json:2", "held_out.json:1"]


def test_what_takes_minutes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = count(step=0.125)  # an item takes that long
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr("recipes.edge.meanwhile.time", clock)
    assert list(say_how_many(range(900), "are read")) == list(range(900))
    assert capsys.readouterr() == ("", "480 are read\n")
    data = write_rows(tmp_path / "train.json", [ROW] * 2)
    config = replace(TINY, data_path=data, output_dir=tmp_path / "run")
    clock.monotonic = lambda: 480 * next(seconds)  # and now a minute
    with process_group() as world:
        plan_data(config, world)
    assert capsys.readouterr().err.splitlines() == [
        "1 samples are read",
        "2 samples are read",
        "1 of 2 samples are planned",
        "2 of 2 samples are planned",
    ]


def test_the_processes_of_all_ranks_of_a_machine_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "train.json", [ROW] * 5)
    started = list[int]()

    def load(*args: Any, num_workers: int, **settings: Any) -> Any:
        started.append(num_workers)
        return DataLoader(*args, num_workers=0, **settings)

    monkeypatch.setattr("recipes.edge.sample_set.DataLoader", load)
    monkeypatch.setattr("recipes.edge.sample_set.FEW", 4)
    config = replace(
        TINY, data_path=rows, output_dir=tmp_path / "run", dataloader_num_workers=3
    )
    with process_group() as world:
        plan_data(config, world)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
        for cpus in (64, 16, 1):
            monkeypatch.setattr("os.cpu_count", lambda cpus=cpus: cpus)
            plan_data(config, world)
    assert started[::2] == [3, 24, 16, 3]
    assert not any(started[1::2])  # there is too little held out for that


def test_texts_are_summed_up_wherever_they_lie_and_however_long(
    tmp_path: Path,
) -> None:
    long = [{"from": "human", "value": "Why? " * 50}, {"from": "gpt", "value": "No."}]

    def summary(run: str, *rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
        folder = tmp_path / run
        folder.mkdir()
        path = write_rows(folder / "rows.json", list(rows))
        config = replace(TINY, data_path=path, output_dir=folder, **changes)
        with process_group() as world:
            found: dict[str, Any] = plan_data(config, world).summary()["train"]
        return found

    rows = ROW | {"id": "a"}, {"id": "b", "conversations": long}
    whole = summary("whole", *rows)
    short = summary("short", *rows, tokens_per_row=50)
    assert (whole["samples"], short["samples"]) == (2, 1)
    assert whole["texts"] == short["texts"]
    assert whole["contents"] != short["contents"]  # it lies elsewhere
    others = [
        summary("order", *reversed(rows)),
        summary("name", rows[0], rows[1] | {"id": "c"}),
        summary(
            "unusable",
            rows[0],
            {"id": "b", "conversations": [{**long[0], "value": "Who? " * 50}, long[1]]},
            tokens_per_row=50,
        ),
    ]
    assert others[-1]["samples"] == 1
    assert len({each["texts"] for each in [whole, *others]}) == 4


def test_chance_is_of_the_questions_that_can_be_asked(tmp_path: Path) -> None:
    long = [{"from": "human", "value": "Why? " * 500}, {"from": "gpt", "value": "No."}]
    config = replace(
        TINY,
        data_path=write_rows(tmp_path / "train.json", [ROW]),
        eval_data_path=write_rows(
            tmp_path / "held_out.json", [ROW, {"conversations": long}]
        ),
        output_dir=tmp_path / "run",
    )
    with process_group() as world:
        data = plan_data(config, world)
    assert (len(data.held_out), len(data.bad), data.chance) == (1, 1, 1)


def test_runs_keep_apart_what_they_unzipped(tmp_path: Path) -> None:
    config = replace(
        TINY,
        data_path=write_rows(tmp_path / "train.json", [ROW]),
        archives_on_disk=3,
        output_dir=tmp_path / "run",
    )
    with process_group() as world:
        stores = [
            plan_data(replace(config, output_dir=tmp_path / run), world).train.store
            for run in ("a", "b", "a")
        ]
    first, second, again = (vars(store) for store in stores)
    assert first == again
    assert first != second
    assert first["most"] == 3


def samples(*answers: str) -> Iterator[Sample]:
    for answer in answers:
        asked = Turn(role="user", text="?")
        said = Turn(role="assistant", text=answer)
        yield Sample(sample_id="", source="", turns=(asked, said))


def test_the_most_common_answer() -> None:
    train = list(samples("a", "b", "b", "c"))
    assert most_common_share(train, samples("b", "a", "b", "c")) == 0.5
    assert most_common_share(train, []) == 0
    assert most_common_share([], samples("a")) == 0


def test_long_answers_are_not_kept() -> None:
    long = "w" * 2000
    asked = list(samples("a"))
    tracemalloc.start()
    train = (one for n in range(5000) for one in samples(f"{n} {long}"))
    assert most_common_share(train, asked) == 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # the answers have 10 MB


def test_answers_of_several_turns_are_told_apart() -> None:
    (one,), (two,) = samples("a, b"), samples("a")
    more = replace(two, turns=(*two.turns, *two.turns))
    assert most_common_share([more], [one, two, more]) == 1 / 3
