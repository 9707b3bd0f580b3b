"""Checkpoints of an FSDP2 model, on two real gloo ranks and on one.

The file is its own worker: ``torchrun`` runs it with a case and a folder. The oracle
of a resumed run is the same run without any checkpoint, compared bit for bit.
"""

import dataclasses
import errno
import hashlib
import json
import os
import pickle
import random
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from recipes.edge.checkpoints.checkpoint import (
    load_checkpoint,
    take_snapshot,
    write_snapshot,
)
from recipes.edge.checkpoints.folders import (
    good_checkpoint,
    list_checkpoints,
    remove_leftovers,
    remove_old_checkpoints,
)
from recipes.edge.checkpoints.saver import CheckpointSaver
from recipes.edge.files.manifests import share_of
from recipes.edge.ranks.distributed import MainRankError, World, process_group
from recipes.edge.ranks.random_states import seed_generators

STATE = {"position": 7, "buffer": [[3, 0.1], []], "settings": {"name": "tiny"}}


class Block(nn.Module):
    """One layer, with random draws inside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.2)

    def forward(self, hidden: Tensor) -> Tensor:
        update: Tensor = self.dropout(torch.tanh(self.linear(hidden)))
        return hidden + update


class Model(nn.Module):
    """Frozen tower, tied embedding and head, an uneven and an unused parameter."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.tower = nn.Linear(width, 8).requires_grad_(False)
        self.embed = nn.Embedding(7, 8)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight
        self.score = nn.Linear(8, 1)
        self.unused = nn.Linear(8, 3)
        self.register_buffer("scale", torch.rand(()))
        self.scale: Tensor

    def forward(self, clip: Tensor, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens) + self.tower(clip) * self.scale
        for layer in self.layers:
            hidden = layer(hidden)
        loss = nn.functional.cross_entropy(self.head(hidden[:-1]), tokens[1:])
        score: Tensor = self.score(hidden)
        return loss + score.square().mean()


Built = tuple[Model, torch.optim.AdamW]


def build(world: World, *, seed: int, width: int = 4) -> Built:
    """Make a sharded model and its fresh optimizer, and seed the rank's draws."""
    torch.manual_seed(seed)
    model = Model(width)
    for layer in model.layers:
        fully_shard(layer, mesh=world.mesh)
    fully_shard(model, mesh=world.mesh)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    random.seed(seed + world.rank)
    np.random.seed(seed + world.rank)
    torch.manual_seed(seed + world.rank)
    return model, torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1)


def train(built: Built, steps: int) -> None:
    """Do steps whose data come from all three global generators."""
    model, optimizer = built
    model.train()
    for _ in range(steps):
        start = random.randrange(7)
        tokens = (torch.from_numpy(np.random.permutation(7)) + start) % 7
        model(torch.randn(7, 4), tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def local(value: Tensor) -> Tensor:
    """Give this rank's shard of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def fingerprint(built: Built) -> dict[str, str]:
    """Name every bit of a rank: shards, optimizer state, the next draws."""
    model, optimizer = built
    tensors = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = value
    tensors["rate"] = torch.tensor([group["lr"] for group in optimizer.param_groups])
    tensors["draws"] = torch.cat([torch.rand(3), torch.from_numpy(np.random.rand(3))])
    tensors["gauss"] = torch.tensor(
        [np.random.normal(), random.gauss(0, 1), random.random()], dtype=torch.float64
    )
    return {
        name: hashlib.sha256(local(value.detach()).numpy().tobytes()).hexdigest()
        for name, value in tensors.items()
    }


def full_tensors(built: Built) -> dict[str, Tensor]:
    """Gather weights and first moments to all ranks."""
    model, optimizer = built
    found = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            found[f"{name}.exp_avg"] = optimizer.state[parameter]["exp_avg"]
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach()
        for name, value in found.items()
    }


def error_of(call: Callable[[], object]) -> str:
    """Run a call that must raise; give the error in words."""
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def save_checkpoint(folder: Path, step: int, world: World, **run: Any) -> Path:
    return write_snapshot(folder, take_snapshot(step, world=world, **run), world)


def write(folder: Path, world: World) -> dict[str, Any]:
    """Worker: the undisturbed run, and the same run with checkpoints on the way."""
    built = build(world, seed=1)
    train(built, 6)
    undisturbed = fingerprint(built)

    built = model, optimizer = build(world, seed=1)
    (folder / "run").mkdir(exist_ok=True)

    def save(step: int, **change: Any) -> Path:
        return save_checkpoint(
            change.pop("output_dir", folder / "run"),
            step,
            world,
            model=model,
            optimizer=optimizer,
            state={**STATE, **change},
        )

    save(0)
    train(built, 3)
    with torch.no_grad():
        model.eval()(torch.zeros(7, 4), torch.arange(7))
    saved = save(3)
    full = full_tensors(built)
    (folder / "file").touch()
    by_rank = error_of(lambda: save(4, position=world.rank))
    no_folder = error_of(lambda: save(5, output_dir=folder / "file"))
    again = error_of(lambda: save(3))
    train(built, 3)
    if world.is_main:
        torch.save(full, folder / "full.pt")
    return {
        "undisturbed": undisturbed,
        "saved": fingerprint(built),
        "path": str(saved),
        "by_rank": by_rank,
        "no_folder": no_folder,
        "again": again,
    }


def resume(folder: Path, world: World) -> dict[str, Any]:
    """Worker: a new process that goes on from each checkpoint."""
    seen: dict[str, Any] = {}
    for step in (3, 0):
        model, optimizer = build(world, seed=50 + step)
        optimizer.param_groups[0]["lr"] = 9.0
        seen[f"state {step}"] = load_checkpoint(
            folder / "run" / f"checkpoint-{step}",
            model=model,
            optimizer=optimizer,
            world=world,
        )
        seen[f"tied {step}"] = model.head.weight is model.embed.weight
        moments = [optimizer.state[p] for p in model.unused.parameters()]
        seen[f"unused {step}"] = [
            float(local(value).abs().sum()) for m in moments for value in m.values()
        ]
        train((model, optimizer), 6 - step)
        seen[f"resumed {step}"] = fingerprint((model, optimizer))
    return seen


Ranks = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that both runs of two ranks use."""
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def ranks(preloaded: Any, folder: Path) -> Ranks:
    """What each rank saw in ``write`` and, in new processes, in ``resume``."""
    seen: Ranks = {}
    for case in ("write", "resume"):
        log = folder / f"{case}.log"
        preloaded.run_ranks(2, __file__, case, str(folder), log=log)
        seen[case] = [
            json.loads((folder / f"{case}-{rank}.json").read_text())
            for rank in range(2)
        ]
    return seen


def test_ranks_differ_so_that_the_oracle_can_fail(ranks: Ranks) -> None:
    first, second = (seen["undisturbed"] for seen in ranks["write"])
    assert first["draws"] != second["draws"]
    assert first["layers.0.linear.weight"] != second["layers.0.linear.weight"]


def test_saving_changes_nothing(ranks: Ranks) -> None:
    for seen in ranks["write"]:
        assert seen["undisturbed"].items() <= seen["saved"].items()


@pytest.mark.parametrize("step", [0, 3])
def test_resume_is_bit_identical(ranks: Ranks, step: int) -> None:
    for wrote, resumed in zip(ranks["write"], ranks["resume"], strict=True):
        assert resumed[f"resumed {step}"] == wrote["saved"]
        assert resumed[f"tied {step}"]
        assert not any(resumed[f"unused {step}"])
        assert resumed[f"state {step}"] == {**STATE, "step": step}


def test_state_must_be_the_same_on_all_ranks(ranks: Ranks, folder: Path) -> None:
    for seen in ranks["write"]:
        assert seen["by_rank"] == (
            "ValueError: state of rank 1 differs from rank 0's; "
            "one state is written for all ranks"
        )
    assert not (folder / "run" / "checkpoint-4").exists()


def test_all_ranks_hear_that_the_folder_cannot_be_made(ranks: Ranks) -> None:
    first, second = (seen["no_folder"] for seen in ranks["write"])
    assert first == second
    assert first.startswith(
        "MainRankError: the main rank failed with NotADirectoryError"
    )


def test_a_step_is_saved_once(ranks: Ranks) -> None:
    for seen in ranks["write"]:
        assert seen["again"].startswith("MainRankError: the main rank failed with File")
        assert "checkpoint-3 exists; it is written once; every rank" in seen["again"]


def test_state_json_is_readable_without_this_library(
    ranks: Ranks, folder: Path
) -> None:
    saved = Path(ranks["write"][0]["path"])
    assert saved == folder / "run" / "checkpoint-3"
    content = json.loads((saved / "state.json").read_text())
    assert content["format_version"] == 2
    assert (content["step"], content["world_size"]) == (3, 2)
    assert content["state"] == STATE
    assert [sorted(entry) for entry in content["random_states"]] == [
        ["cuda", "numpy", "python", "torch"]
    ] * 2
    assert sorted(path.name for path in (folder / "run").iterdir()) == [
        "checkpoint-0",
        "checkpoint-3",
    ]


def test_two_ranks_load_on_one(ranks: Ranks, folder: Path, world: World) -> None:
    built = model, optimizer = build(world, seed=9)
    saved = Path(ranks["write"][0]["path"])
    load_checkpoint(saved, model=model, optimizer=optimizer, world=world)
    expected = torch.load(folder / "full.pt")
    loaded = full_tensors(built)
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(loaded[name].cpu(), value), name


def test_a_rank_without_random_states_keeps_its_own(
    ranks: Ranks, folder: Path, tmp_path: Path, world: World
) -> None:
    assert ranks
    saved = shutil.copytree(folder / "run" / "checkpoint-3", tmp_path / "checkpoint-3")
    content = json.loads((saved / "state.json").read_text())
    content["random_states"] = []
    (saved / "state.json").write_text(json.dumps(content))
    model, optimizer = build(world, seed=9)
    before = (random.getstate(), torch.get_rng_state().tolist())
    load_checkpoint(saved, model=model, optimizer=optimizer, world=world)
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("seed", [3, -1, 2**32 + 3, 2**63 - 1])
def test_any_seed_draws_the_same_twice(seed: int) -> None:
    draws = []
    for _ in range(2):
        seed_generators(seed)
        draws.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert draws[0] == draws[1]


def save_one(folder: Path, step: int, world: World, **state: Any) -> Path:
    """Save a small model of one rank."""
    folder.mkdir(exist_ok=True)
    model, optimizer = build(world, seed=2)
    return save_checkpoint(
        folder, step, world, model=model, optimizer=optimizer, state=state
    )


def test_checkpoints_are_listed_by_their_steps(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []
    assert list_checkpoints(tmp_path) == []
    others = (".checkpoint-30.partial", "checkpoint-x", "checkpoint-4.damaged")
    for name in (*others, "checkpoint-041", "checkpoint-10", "checkpoint-9"):
        (tmp_path / name).mkdir()
    names = [folder.name for folder in list_checkpoints(tmp_path)]
    assert names == ["checkpoint-9", "checkpoint-10"]


def test_leftovers_are_removed(tmp_path: Path, world: World) -> None:
    for name in (".checkpoint-1.partial", ".checkpoint-5.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__7_0.distcp").write_text("half a file")
    saved = save_one(tmp_path, 1, world)
    assert not (tmp_path / ".checkpoint-1.partial").exists()
    assert not (saved / "__7_0.distcp").exists()
    for name in (".checkpoint-3.partial", ".model-1.partial", ".clips-k2x_ab/clips"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".train.arrow.partial").touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == [saved]


def test_a_checkpoint_that_cannot_be_removed_ends_no_run(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps a file that somebody has open in its folder, under another name."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    saved = [save_one(tmp_path, step, world) for step in (1, 2)]
    removed = tmp_path / ".checkpoint-1.removed"
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        remove_old_checkpoints(tmp_path, keep=1)
        remove_leftovers(tmp_path)
        assert {*tmp_path.iterdir()} == {removed, saved[1]}
        (removed / "file").touch()
        shutil.copytree(saved[1], saved[0])
        patch.setattr(os, "unlink", refuse)
        remove_old_checkpoints(tmp_path, keep=1)  # the first one is in its way
        assert {*tmp_path.iterdir()} == {removed, *saved}
        (tmp_path / ".checkpoint-3.partial").mkdir()
        with pytest.raises(OSError, match="Directory not empty"):
            remove_leftovers(tmp_path)
    remove_old_checkpoints(tmp_path, keep=1)
    remove_leftovers(tmp_path)
    remove_old_checkpoints(tmp_path, keep=1)
    assert [*tmp_path.iterdir()] == [saved[1]]


def test_a_checkpoint_that_cannot_be_written_is_not_seen(
    tmp_path: Path, world: World
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"rank 0 cannot write to .* File too"):
            save_one(tmp_path, 1, world)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert good_checkpoint(tmp_path, world) == (None, [])
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_has_vanished_is_not_made_anew(
    tmp_path: Path, world: World
) -> None:
    save_one(tmp_path / "run", 1, world)
    (tmp_path / "run").rename(tmp_path / "gone")
    model, optimizer = build(world, seed=2)
    with pytest.raises(RuntimeError, match="FileNotFoundError"):
        save_checkpoint(
            tmp_path / "run", 2, world, model=model, optimizer=optimizer, state={}
        )
    assert not (tmp_path / "run").exists()


def test_saving_beside_the_training_keeps_the_step(
    tmp_path: Path, world: World
) -> None:
    said = list[str]()
    built = model, optimizer = build(world, seed=2)
    with CheckpointSaver(
        tmp_path, keep=2, is_async=True, say=said.append, world=world
    ) as saver:
        for step in (1, 2, 3):
            train(built, 1)
            saver.save(step, model=model, optimizer=optimizer, state={})
        train(built, 1)
        saver.wait()
    folders = [tmp_path / f"checkpoint-{step}" for step in (1, 2, 3)]
    assert said == [f"saved {folder}" for folder in folders]
    assert list_checkpoints(tmp_path) == folders[1:]
    for step in (2, 3):
        straight = build(world, seed=2)
        train(straight, step)
        expected = full_tensors(straight)
        resumed = model, optimizer = build(world, seed=3)
        load_checkpoint(
            folders[step - 1], model=model, optimizer=optimizer, world=world
        )
        found = full_tensors(resumed)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_what_is_saved_beside_the_training_is_said_meanwhile(
    tmp_path: Path, world: World
) -> None:
    said, end = list[str](), time.monotonic() + 60
    model, optimizer = build(world, seed=2)
    with CheckpointSaver(
        tmp_path, keep=1, is_async=True, say=said.append, world=world
    ) as saver:
        saver.save(1, model=model, optimizer=optimizer, state={})
        while not said and time.monotonic() < end:
            saver.poll()
            time.sleep(0.01)
    assert said == [f"saved {tmp_path / 'checkpoint-1'}"]


def test_what_goes_wrong_beside_the_training_is_raised(
    tmp_path: Path, world: World
) -> None:
    model, optimizer = build(world, seed=2)
    run = tmp_path / "run"
    run.mkdir()
    with CheckpointSaver(run, keep=1, is_async=True, say=print, world=world) as saver:
        run.rmdir()
        saver.save(1, model=model, optimizer=optimizer, state={})
        with pytest.raises(RuntimeError, match="FileNotFoundError"):
            saver.save(2, model=model, optimizer=optimizer, state={})


def test_a_run_that_fails_waits_for_its_checkpoint(
    tmp_path: Path, world: World
) -> None:
    model, optimizer = build(world, seed=2)
    with (
        pytest.raises(KeyError),
        CheckpointSaver(tmp_path, keep=1, is_async=True, say=print, world=world) as it,
    ):
        it.save(1, model=model, optimizer=optimizer, state={})
        raise KeyError
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]


def test_every_file_has_its_digest(tmp_path: Path, world: World) -> None:
    saved = save_one(tmp_path, 1, world)
    listed = json.loads((saved / "manifest.json").read_text())["files"]
    files = {file.name: file for file in saved.iterdir()}
    del files["manifest.json"]
    assert listed == {
        name: {
            "bytes": len(file.read_bytes()),
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for name, file in files.items()
    }
    assert {"state.json", ".metadata"} < set(listed)


@pytest.mark.parametrize("size", [1, 2, 3, 12])
def test_a_rank_reads_what_it_wrote(world: World, size: int) -> None:
    others = [".metadata", "state.json", "__x_0.distcp", f"__{'9' * 5000}_0.distcp"]
    files = sorted(f"__{rank}_{part}.distcp" for rank in range(11) for part in (0, 1))
    ranks = [dataclasses.replace(world, rank=rank, size=size) for rank in range(size)]
    shares = [share_of([*others, *files], each) for each in ranks]
    dealt = [name for share in shares for name in share]
    assert sorted(dealt) == sorted([*others, *files])
    for rank, share in enumerate(shares):
        own = {name for name in files if name.startswith(f"__{rank}_")}
        assert own <= set(share)
    assert set(others) <= set(shares[0])
    counts = [len(share) for share in shares[: min(size, 11)]]
    assert max(counts[1:], default=0) - min(counts) <= 2


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def halve(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("__0_0.distcp", cut, r"__0_0.distcp has \d+ bytes, not \d+"),
        ("__0_0.distcp", flip, "__0_0.distcp has other bytes than were written"),
        (
            "__0_0.distcp",
            Path.unlink,
            "__0_0.distcp cannot be read: No such file or directory",
        ),
        (".metadata", flip, ".metadata has other bytes than were written"),
        ("state.json", flip, "state.json has other bytes than were written"),
        ("manifest.json", halve, "it has no readable manifest.json"),
        ("manifest.json", Path.unlink, "it has no readable manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, world: World, name: str, harm: Callable[[Path], None], said: str
) -> None:
    good, newest = (save_one(tmp_path, step, world) for step in (1, 2))
    assert good_checkpoint(tmp_path, world) == (newest, [])
    harm(newest / name)
    found, passed_over = good_checkpoint(tmp_path, world)
    assert found == good
    (words,) = passed_over
    assert re.fullmatch(f"{newest} is passed over: {said}", words)
    aside = tmp_path / "checkpoint-2.damaged"
    assert sorted(tmp_path.iterdir()) == [good, aside]
    assert good_checkpoint(tmp_path, world) == (good, [])
    aside.rename(newest)
    shutil.rmtree(good)
    with pytest.raises(MainRankError) as caught:
        good_checkpoint(tmp_path, world)
    assert caught.value.refusal is not None
    assert re.fullmatch(
        rf"no checkpoint in {tmp_path} is whole \(checkpoint-2: {said}\); "
        "remove them to begin anew",
        caught.value.refusal,
    )
    assert newest.exists()


def test_the_newest_are_kept(tmp_path: Path, world: World) -> None:
    for step in (9, 10, 11, 100):
        save_one(tmp_path, step, world)
    remove_old_checkpoints(tmp_path, keep=3)
    names = {folder.name for folder in tmp_path.iterdir()}
    assert names == {"checkpoint-10", "checkpoint-11", "checkpoint-100"}
    remove_old_checkpoints(tmp_path, keep=5)
    assert {folder.name for folder in tmp_path.iterdir()} == names


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({"loss": float("nan")}, ValueError, "not JSON compliant"),
        ({"clips": {1, 2}}, TypeError, "set is not JSON serializable"),
    ],
)
def test_state_must_be_json(
    tmp_path: Path, world: World, state: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        save_one(tmp_path, 1, world, **state)
    assert list(tmp_path.iterdir()) == []


def test_step_must_not_be_negative(tmp_path: Path, world: World) -> None:
    with pytest.raises(ValueError, match="step is -1; it must be at least 0"):
        save_one(tmp_path, -1, world)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 1}, "has format_version 1; it must be 2"),
        ({"format_version": None}, "has format_version None; it must be 2"),
        ({"state": None}, "has a state.json without state; it must hold step, "),
        ({"random_states": None}, "has a state.json without random_states; "),
    ],
)
def test_load_names_what_is_wrong_in_state_json(
    tmp_path: Path, world: World, change: dict[str, Any], words: str
) -> None:
    saved = save_one(tmp_path, 1, world)
    content = json.loads((saved / "state.json").read_text()) | change
    kept = {key: value for key, value in content.items() if value is not None}
    (saved / "state.json").write_text(json.dumps(kept))
    model, optimizer = build(world, seed=2)
    with pytest.raises(ValueError, match=f"checkpoint-1 {words}"):
        load_checkpoint(saved, model=model, optimizer=optimizer, world=world)


@pytest.mark.parametrize("text", [None, "[1]", '{"step":'])
def test_load_needs_a_readable_state_json(
    tmp_path: Path, world: World, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "state.json").write_text(text)
    model, optimizer = build(world, seed=2)
    with pytest.raises(ValueError, match=r"has no readable state\.json"):
        load_checkpoint(tmp_path, model=model, optimizer=optimizer, world=world)


def test_load_names_a_tensor_of_another_shape(tmp_path: Path, world: World) -> None:
    saved = save_one(tmp_path, 1, world)
    model, optimizer = build(world, seed=2, width=5)
    with pytest.raises(
        ValueError,
        match=r"model\.tower\.weight of shape \(8, 4\) but the run's is \(8, 5\)",
    ):
        load_checkpoint(saved, model=model, optimizer=optimizer, world=world)


def test_load_names_a_tensor_that_one_side_lacks(tmp_path: Path, world: World) -> None:
    saved = save_one(tmp_path, 1, world)
    model, optimizer = build(world, seed=2)
    model.tower.bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"lacks optimizer\.tower\.bias"):
        load_checkpoint(saved, model=model, optimizer=optimizer, world=world)
    model, optimizer = build(world, seed=2)
    model.score.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"holds optimizer\.score\.bias"):
        load_checkpoint(saved, model=model, optimizer=optimizer, world=world)
    model, _ = build(world, seed=2)
    one_group = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"has 2 groups of parameters but the .* 1;"):
        load_checkpoint(saved, model=model, optimizer=one_group, world=world)


def test_load_names_a_buffer_that_one_side_lacks(tmp_path: Path, world: World) -> None:
    saved = save_one(tmp_path, 1, world)
    model, optimizer = build(world, seed=2)
    model.register_buffer("offset", torch.zeros(()))
    with pytest.raises(ValueError, match=r"lacks model\.offset"):
        load_checkpoint(saved, model=model, optimizer=optimizer, world=world)
    model, optimizer = build(world, seed=2)
    del model.scale
    with pytest.raises(ValueError, match=r"holds model\.scale"):
        load_checkpoint(saved, model=model, optimizer=optimizer, world=world)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_no_pickle_is_executed(tmp_path: Path, world: World) -> None:
    saved = save_one(tmp_path, 1, world)
    model, optimizer = build(world, seed=2)
    description = saved / ".metadata"
    whole = description.read_bytes()
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Payload(made)))
    made.unlink()  # so it would have worked

    known = FileSystemReader(saved).read_metadata()
    known.planner_data = Payload(made)
    hostile = {
        "alone": Payload(made),
        "inside": known,
        "attribute": {"__reduce__": Payload(made)},
    }
    for content in hostile.values():
        description.write_bytes(pickle.dumps(content))
        with pytest.raises(
            ValueError, match=r"metadata is not read \(it names pathlib"
        ):
            load_checkpoint(saved, model=model, optimizer=optimizer, world=world)
    description.write_bytes(f"ctorch\nsave\n(NV{made}\ntR.".encode())
    with pytest.raises(ValueError, match=r"metadata is not read \(it names torch.save"):
        load_checkpoint(saved, model=model, optimizer=optimizer, world=world)
    assert not made.exists()
    description.write_bytes(whole)

    state = saved / "state.json"
    assert b"pickle" not in state.read_bytes()
    shards = saved / "__0_0.distcp"
    torch.save(Payload(made), shards)
    info = FileSystemReader(saved).read_metadata()
    info.storage_data = {
        index: dataclasses.replace(each, offset=0, length=shards.stat().st_size)
        for index, each in info.storage_data.items()
    }
    description.write_bytes(pickle.dumps(info))
    with pytest.raises(CheckpointException, match="weights_only"):
        load_checkpoint(saved, model=model, optimizer=optimizer, world=world)
    assert not made.exists()


def test_only_tensors_of_the_folder_are_described(tmp_path: Path, world: World) -> None:
    saved = save_one(tmp_path, 1, world)
    model, optimizer = build(world, seed=2)
    description = saved / ".metadata"

    def message(found: Any) -> str:
        description.write_bytes(pickle.dumps(found))
        with pytest.raises(ValueError) as caught:
            load_checkpoint(saved, model=model, optimizer=optimizer, world=world)
        return str(caught.value)

    found = FileSystemReader(saved).read_metadata()
    name = "model.tower.weight"
    whole = dict(found.state_dict_metadata)
    found.state_dict_metadata[name] = BytesStorageMetadata()
    assert "it names torch.distributed.checkpoint.metadata.BytesStora" in message(found)
    found.state_dict_metadata[name] = "bytes"
    assert message(found) == (
        f"{description} describes what is no tensor; only tensors are read"
    )
    found.state_dict_metadata = whole
    index, info = next(iter(found.storage_data.items()))
    found.storage_data[index] = dataclasses.replace(
        info, relative_path=f"../{saved.name}/{info.relative_path}"
    )
    assert message(found) == (
        f"{description} names files elsewhere; only its own folder is read"
    )
    description.write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="may hold records of DCP alone"):
        load_checkpoint(saved, model=model, optimizer=optimizer, world=world)


def worker(case: str, folder: Path) -> None:
    """Run a case as one rank and write what it saw."""
    with process_group() as world:
        seen = {"write": write, "resume": resume}[case](folder, world)
        (folder / f"{case}-{world.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    worker(sys.argv[1], Path(sys.argv[2]))
