"""Unusable samples are named once, and too many of them end the run."""

import json
from pathlib import Path

import pytest

from recipes.edge.data.conversations import BadSample
from recipes.edge.data.quarantine import Quarantine
from recipes.edge.ranks.distributed import process_group


def bad(sample_id: str) -> BadSample:
    return BadSample(sample_id=sample_id, source=f"{sample_id}.mp4", reason="it broke")


def test_samples_are_named_once(tmp_path: Path) -> None:
    with process_group() as world:
        quarantine = Quarantine(tmp_path, num_samples=4, max_share=0.5, world=world)
        quarantine.add([])
        quarantine.add([bad("a")])
        quarantine.share([bad("b"), bad("a")])
    assert len(quarantine) == 2
    assert [sample.sample_id for sample in quarantine] == ["a", "b"]
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"sample_id": "a", "source": "a.mp4", "reason": "it broke"},
        {"sample_id": "b", "source": "b.mp4", "reason": "it broke"},
    ]


def test_too_large_a_share_ends_the_run(tmp_path: Path) -> None:
    with process_group() as world:
        quarantine = Quarantine(tmp_path, num_samples=4, max_share=0.25, world=world)
        quarantine.share([bad("a")])
        quarantine.check()
        with pytest.raises(ValueError) as error:
            quarantine.share([bad("b")])
    file = tmp_path / "quarantine.jsonl"
    assert str(error.value) == (
        "2 of 4 samples cannot be used, more than the share of 0.25 that max_bad_share "
        f"allows; the first is a: it broke ({file} names them all, held-out ones too)"
    )
    assert len(file.read_text().splitlines()) == 2


def test_only_what_is_new_is_written(tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    file.write_text("of an earlier run\n")
    with process_group() as world:
        quarantine = Quarantine(tmp_path, num_samples=9, max_share=1, world=world)
        quarantine.add([])
        assert file.read_text() == ""
        quarantine.add([bad("a"), bad("a")])
        file.write_text(file.read_text().replace("it broke", "was told"))
        quarantine.add([bad("a")])
        quarantine.add([bad("b"), bad("a"), bad("c")])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["sample_id"], line["reason"]) for line in lines] == [
        ("a", "was told"),
        ("b", "it broke"),
        ("c", "it broke"),
    ]


@pytest.mark.parametrize("damage", ["torn", "short", "gone"])
def test_a_damaged_list_is_mended(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "quarantine.jsonl"
    with process_group() as world:
        quarantine = Quarantine(tmp_path, num_samples=9, max_share=1, world=world)
        quarantine.add([bad("a")])
        content = file.read_text()
        if damage == "gone":
            file.unlink()
        else:
            file.write_text(content + '{"sam' if damage == "torn" else content[:-3])
        quarantine.add([bad("b")])
    lines = file.read_text().splitlines()
    assert [json.loads(line)["sample_id"] for line in lines] == ["a", "b"]
