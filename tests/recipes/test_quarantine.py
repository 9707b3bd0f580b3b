"""Unusable samples are named once, and too many of them end the run."""

import json
from pathlib import Path

import pytest

from recipes.edge.conversations import BadSample
from recipes.edge.distributed import process_group
from recipes.edge.quarantine import Quarantine


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
        quarantine.add([bad("a")])
        with pytest.raises(ValueError) as error:
            quarantine.add([bad("b")])
    file = tmp_path / "quarantine.jsonl"
    assert str(error.value) == (
        "2 of 4 samples cannot be used, more than the share of 0.25 that max_bad_share "
        f"allows; the first is a: it broke ({file} names them all)"
    )
    assert len(file.read_text().splitlines()) == 2
