"""A dataset whose archives are fetched while they are needed, and then let go."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path

import pytest
from torch import Tensor

from fastslow import StreamState, stream_order
from recipes.edge.data.archives import ArchiveStore
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.data_files import list_subsets
from recipes.edge.data.index import join_samples, write_index
from recipes.edge.data.loader import PackedRows, stream_rows
from recipes.edge.data.sample_set import PlannedSamples, plan_samples
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import decode_frames
from tests.recipes.test_archives import pack
from tests.recipes.test_index import clip_bytes, row, write_rows
from tests.recipes.test_loader import SETTINGS, TOKENIZER, dealing

ROOT = Path(__file__).parents[2]
PARTS, CLIPS = 5, 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out a subset of five archives of four clips each."""
    folder = tmp_path_factory.mktemp("data")
    clip = clip_bytes(folder, 4)
    names = [[f"{part}/{n}.mp4" for n in range(CLIPS)] for part in range(PARTS)]
    subset = folder / "dataset" / "0_30_s_test"
    write_rows(subset / "oe.json", [row(name) for part in names for name in part])
    for part, inside in enumerate(names):
        pack(subset / f"videos_{part}.tar.gz", dict.fromkeys(inside, clip))
    return folder / "dataset"


def planned(dataset: Path, folder: Path, *, most: int | None) -> PlannedSamples:
    store, bad = ArchiveStore(folder / "cache", most=most), list[BadSample]()
    samples = join_samples(list_subsets(str(dataset)), store, bad.append)
    index = write_index(folder / "index.arrow", samples)
    found, unplanned = plan_samples(index, SETTINGS, TOKENIZER, store)
    assert (bad, unplanned) == ([], [])
    return found


def drawn(
    samples: PlannedSamples, count: int, state: StreamState, *, rank: int = 0
) -> list[tuple[str, ...]]:
    rows = stream_rows(
        PackedRows(samples),
        state,
        dealing(rank=rank, world_size=2, window=2, seed=0),
        num_workers=0,
    )
    taken = list(islice(rows, count))
    assert all(not row.bad for row in taken)
    return [row.sample_ids for row in taken]


def test_samples_come_archive_by_archive(dataset: Path, tmp_path: Path) -> None:
    samples = planned(dataset, tmp_path, most=3)
    samples = replace(samples, settings=replace(SETTINGS, capacity=samples.lengths[0]))
    cache = samples.store.cache_dir
    names = list[str]()
    ranks = [
        drawn(samples, 2 * CLIPS * PARTS // 4, StreamState(), rank=r) for r in (0, 1)
    ]
    for rows in zip(*ranks, strict=True):
        names += [name for ids in rows for name in ids]
        assert len(list(cache.glob("*.tar"))) <= 3
    assert Counter(names) == Counter(f"{p}/{n}.mp4" for p in range(5) for n in range(4))
    parts = [part for part, _ in groupby(name.split("/")[0] for name in names)]
    assert len(parts) <= 2 * PARTS  # two wait at each border
    assert names != sorted(names)


def test_all_samples_mix_where_archives_stay(dataset: Path, tmp_path: Path) -> None:
    samples = planned(dataset, tmp_path, most=None)
    assert samples.groups is None
    names = [name for ids in drawn(samples, 5, StreamState()) for name in ids]
    assert len({name.split("/")[0] for name in names}) > 2
    assert len(list(samples.store.cache_dir.glob("*.tar"))) == PARTS


def test_the_next_archive_is_fetched_ahead(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, opened = planned(dataset, tmp_path, most=3), set[str]()
    samples = replace(samples, settings=replace(SETTINGS, capacity=samples.lengths[0]))
    for plain in samples.store.cache_dir.glob("*.tar"):
        plain.unlink()
    open_archive = ArchiveStore.open

    def noted(store: ArchiveStore, archive: str) -> Path:
        opened.add(archive)
        return open_archive(store, archive)

    monkeypatch.setattr(ArchiveStore, "open", noted)
    (first, *_) = drawn(samples, 1, StreamState())
    assert first
    until = time.monotonic() + 30
    while len(list(samples.store.cache_dir.glob("*.tar"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    groups = samples.groups
    assert groups is not None
    order = stream_order(len(groups), seed=0, epoch=0, groups=groups)
    here, following, *_ = dict.fromkeys(groups[number] for number in order)
    assert opened == {samples.archives[here], samples.archives[following]}


@pytest.mark.parametrize("comes_again", [False, True])
def test_an_archive_that_is_let_go_while_it_is_read_is_read_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_again: bool
) -> None:
    samples, tries = planned(dataset, tmp_path, most=3), list[MediaFile]()

    def decode(file: MediaFile, indices: Sequence[int]) -> Tensor:
        tries.append(file)
        if len(tries) > 1:
            return decode_frames(file, indices)
        file.path.unlink()  # another process makes room
        try:
            return decode_frames(file, indices)
        finally:
            if comes_again:  # and a third one wants the archive
                samples.store.open(file.archive)

    monkeypatch.setattr("recipes.edge.data.loader.decode_frames", decode)
    row = PackedRows(samples)[(0,), StreamState()]
    assert (row.bad, len(row.sample_ids), len(tries)) == ((), 1, 2)


def test_an_archive_that_is_let_go_before_it_is_opened_is_read_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, opened = planned(dataset, tmp_path, most=3), list[Path]()
    open_archive = ArchiveStore.open

    def let_go(store: ArchiveStore, archive: str) -> Path:
        opened.append(open_archive(store, archive))
        if len(opened) == 1:
            opened[0].unlink()
        return opened[-1]

    monkeypatch.setattr(ArchiveStore, "open", let_go)
    row = PackedRows(samples)[(0,), StreamState()]
    assert (row.bad, len(row.sample_ids), len(opened)) == ((), 1, 2)


def test_a_recipe_trains_on_archives(dataset: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "recipes/qwen2vl_tiny.py"]
    command += ["--data-path", str(dataset), "--data-subsets", "*/open_ended"]
    command += ["--archives-on-disk", "3", "--dataloader-num-workers", "1"]
    command += ["--max-steps", "3", "--save-steps", "3", "--tokens-per-row", "300"]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "run")],
        check=False,
        cwd=ROOT,
        env={"HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1", "PATH": "/bin"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "20 samples to train on, 0 held out, 0 unusable" in done.stdout
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["bad_samples"] for line in lines] == [0, 0, 0]
    assert 1 <= len(list((tmp_path / "hf" / "fastslow").glob("*.tar"))) <= 3
