"""What a run is trained on and asked, or why it is refused."""

import json
import os
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from torch.utils.data import DataLoader

import fastslow
import recipes.data
from recipes.config import Config
from recipes.data import most_common_share, plan_data
from recipes.edge.data.conversations import Turn
from recipes.edge.data.data_files import list_subsets, state_of
from recipes.edge.data.index import Sample
from recipes.edge.data.meanwhile import say_how_many
from recipes.edge.data.sample_set import found_out
from recipes.edge.files.memos import Memo
from recipes.edge.files.provenance import code_digest
from recipes.edge.ranks.distributed import process_group
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
    monkeypatch.setattr("recipes.edge.data.meanwhile.time", clock)
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

    def load(
        *args: Any, num_workers: int, multiprocessing_context: object, **settings: Any
    ) -> Any:
        started.append(num_workers)
        return DataLoader(*args, num_workers=0, **settings)

    monkeypatch.setattr("recipes.edge.data.sample_set.DataLoader", load)
    monkeypatch.setattr("recipes.edge.data.sample_set.FEW", 4)
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


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Begun":
    """Plan the data of a run that has a checkpoint; one row of each kind is bad."""
    long = [{"from": "human", "value": "Why? " * 500}, {"from": "gpt", "value": "No."}]
    rows = [ROW, {}, {"id": "b", "conversations": long}, ROW | {"id": "c"}]
    config = replace(
        TINY,
        data_path=write_rows(tmp_path / "train.json", rows),
        output_dir=tmp_path / "run",
    )
    begun = Begun(config)
    begun.plan()
    (tmp_path / "run" / "checkpoint-1").mkdir()
    for name in begun.work:

        def count(*args: Any, done: Any, name: str = name, **rest: Any) -> Any:
            begun.work[name] += 1
            return done(*args, **rest)

        done = getattr(recipes.data, name)
        monkeypatch.setattr(recipes.data, name, partial(count, done=done))
    return begun


@dataclass
class Begun:
    """A run, and how often its data were read and planned since, of two parts."""

    config: Config
    work: Counter[str] = field(
        default_factory=lambda: Counter(read_samples=0, plan_samples=0)
    )

    def plan(self, **changes: Any) -> tuple[Any, ...]:
        """Plan its data; give what is known of them, but where they lie in memory."""
        with process_group() as world:
            data = plan_data(replace(self.config, **changes), world)
        parts = [
            (found_out(each), each.settings) for each in (data.train, data.held_out)
        ]
        return parts, data.summary(), data.bad, data.model

    def worked(self) -> tuple[int, int]:
        """Give and forget how many parts were read, and planned."""
        found = self.work["read_samples"], self.work["plan_samples"]
        self.work.clear()
        return found


def test_a_run_that_goes_on_knows_its_samples(begun: Begun) -> None:
    again = begun.plan()
    assert begun.worked() == (0, 0)
    (begun.config.output_dir / "checkpoint-1").rmdir()
    anew = begun.plan()  # a run that begins looks for itself
    assert begun.worked() == (2, 2)
    assert again == anew
    assert [each.sample_id for each in again[2]] == ["train.json:2", "b"]


def touch_data(config: Config) -> None:
    os.utime(str(config.data_path), ns=(1, 1))


def grow_data(config: Config) -> None:
    path = Path(str(config.data_path))
    state = path.stat()
    path.write_text(path.read_text() + " ")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def lose(*names: str) -> Callable[[Config], object]:
    return lambda config: [(config.output_dir / name).unlink() for name in names]


def cut(name: str) -> Callable[[Config], object]:
    return lambda config: os.truncate(config.output_dir / name, 20)


def swap(config: Config) -> None:
    shutil.copy(config.output_dir / "held_out.arrow", config.output_dir / "train.arrow")


@pytest.mark.parametrize(
    ("change", "work"),
    [
        (touch_data, (1, 0)),
        (grow_data, (1, 0)),
        (lose("train.arrow"), (1, 0)),
        (cut("train.arrow"), (1, 0)),
        (swap, (1, 0)),
        (lose("train.read.json"), (1, 0)),
        (cut("train.read.json"), (1, 0)),
        (lose("train.planned.json"), (0, 1)),
        (cut("held_out.planned.json"), (0, 1)),
        (lose("train.read.json", "held_out.planned.json"), (1, 1)),
    ],
)
def test_what_is_not_as_it_was_is_found_out_anew(
    begun: Begun, change: Callable[[Config], object], work: tuple[int, int]
) -> None:
    before = begun.plan()
    change(begun.config)
    assert begun.plan() == before
    assert begun.worked() == work
    assert begun.plan() == before
    assert begun.worked() == (0, 0)


def test_other_rows_settings_and_code_are_found_out_anew(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = begun.plan()
    write_rows(Path(str(begun.config.data_path)), [ROW])
    fewer = begun.plan()
    assert begun.worked() == (1, 1)
    assert fewer[1]["train"]["samples"] == 1
    assert before[1]["train"]["samples"] == 2
    begun.plan(tokens_per_row=4_000)
    assert begun.worked() == (0, 2)
    begun.plan(tokens_per_row=4_000, archives_on_disk=3)
    assert begun.worked() == (0, 2)
    for name in ("code_digest", "code_versions"):
        monkeypatch.setattr(f"recipes.edge.files.memos.{name}", lambda: "another")
        begun.plan()
        assert begun.worked() == (2, 2)
    monkeypatch.setattr("recipes.data.digest_model", lambda _: "another")
    begun.plan()
    assert begun.worked() == (0, 2)


def test_files_of_a_dataset_are_told_apart_without_reading_them(
    tmp_path: Path,
) -> None:
    data, archive = tmp_path / "a.jsonl", tmp_path / "a.tar"
    seen = []
    for file in (data, archive):
        file.touch()
    for file in (data, archive, data, archive):
        file.write_bytes(file.read_bytes() + b"\n")
        seen.append(state_of(list_subsets(str(tmp_path))))
    assert [name for _, name, *_ in seen[0]] == [str(data), str(archive)]
    assert not any(one == other for one, other in combinations(seen, 2))


def test_other_decoders_read_anew(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av, "library_versions", {"libavcodec": (1, 2, 3)})
    begun.plan()
    assert begun.worked() == (2, 0)


def test_what_is_found_out_is_of_the_code_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo = Memo(tmp_path / "memo.json", "a")
    monkeypatch.setattr(
        "recipes.edge.files.memos.code_digest", lambda: "edited meanwhile"
    )
    memo.keep([1])
    assert memo.recall() == [1]
    assert Memo(tmp_path / "memo.json", "a").recall() is None


def test_code_is_summed_up_as_it_lies_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastslow, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "__init__.py").write_text("1")
    seen = {code_digest()}
    (tmp_path / "__init__.py").write_text("2")
    seen.add(code_digest())
    (tmp_path / "__init__.py").rename(tmp_path / "a.py")
    seen.add(code_digest())
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.py").write_text("")
    seen.add(code_digest())
    (tmp_path / "notes.txt").write_text("")
    assert len(seen | {code_digest()}) == 4


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
