"""Where the rows of a dataset are found."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from recipes.edge.data.conversations import RowError
from recipes.edge.data.data_files import fetch, find_beside, list_subsets, read_rows

PUBLISHED = (
    ".gitattributes",
    "README.md",
    "0_30_s_academic_v0_1/0_30_s_academic_mc_v0_1_qa_processed.json",
    "0_30_s_academic_v0_1/0_30_s_academic_oe_v0_1_qa_processed.json",
    "0_30_s_academic_v0_1/0_30_s_academic_v0_1_cap_processed.json",
    "0_30_s_academic_v0_1/0_30_s_academic_v0_1_videos_1.tar.gz",
    "0_30_s_academic_v0_1/0_30_s_academic_v0_1_videos_2.tar.gz",
    "30_60_s_nextqa/30_60_s_nextqa_mc_qa_processed.json",
    "30_60_s_nextqa/30_60_s_nextqa_videos_1.tar.gz",
    "gpt4o_caption_prompt/single.py",
)
"""Names in the manner of LLaVA-Video-178K's."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in PUBLISHED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    return tmp_path


def names(files: Sequence[str]) -> list[str]:
    return [Path(file).name for file in files]


def test_a_folder_of_folders(folder: Path) -> None:
    subsets = list_subsets(str(folder))
    assert [each.name for each in subsets] == ["0_30_s_academic_v0_1", "30_60_s_nextqa"]
    assert names(subsets[0].files) == names(PUBLISHED[2:5])
    assert names(subsets[0].archives) == names(PUBLISHED[5:7])
    assert all(Path(file).is_file() for file in subsets[0].files)


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("*/caption", [4]),
        ("*/multi_choice", [2, 7]),
        ("0_30_s_*/open_ended", [3]),
        ("0_30_s_academic_v0_1", [2, 3, 4]),
        ("30_60*", [7]),
        ("*", [2, 3, 4, 7]),
    ],
)
def test_patterns_take_subsets_and_splits(
    folder: Path, pattern: str, files: list[int]
) -> None:
    subsets = list_subsets(str(folder), (pattern,))
    found = [name for each in subsets for name in names(each.files)]
    assert found == names([PUBLISHED[number] for number in files])
    assert all(each.archives for each in subsets)


def test_a_pattern_that_takes_nothing_is_an_error(folder: Path) -> None:
    said = (
        "data_subsets has 'nextqa', which takes no file; .* holds "
        "0_30_s_academic_v0_1, 30_60_s_nextqa$"
    )
    with pytest.raises(ValueError, match=said):
        list_subsets(str(folder), ("*", "nextqa"))
    one = folder / PUBLISHED[2]
    said = rf" takes no file; {one} holds multi_choice$"
    with pytest.raises(ValueError, match=said):
        list_subsets(str(one), ("nextqa",))


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("caption", ["a_cap.json"]),
        ("*/caption", ["a_cap.json"]),
        ("multi*", ["a_mc.json"]),
        ("rest", ["rest.jsonl"]),
        ("*", ["a_cap.json", "a_mc.json", "rest.jsonl"]),
    ],
)
def test_patterns_take_splits_where_the_dataset_is_one_folder(
    tmp_path: Path, pattern: str, files: list[str]
) -> None:
    for name in ("a_cap.json", "a_mc.json", "rest.jsonl"):
        (tmp_path / name).touch()
    (subset,) = list_subsets(str(tmp_path), (pattern,))
    assert names(subset.files) == files
    with pytest.raises(ValueError, match=r" holds caption, multi_choice, rest$"):
        list_subsets(str(tmp_path), (f"none/{pattern}",))


def test_the_hub_lists_as_a_folder_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def list_repo_files(_: HfApi, repository: str, *, repo_type: str) -> list[str]:
        asked.append((repository, repo_type))
        return list(PUBLISHED)

    monkeypatch.setattr(HfApi, "list_repo_files", list_repo_files)
    on_hub = list_subsets("lmms-lab/LLaVA-Video-178K", ("*/caption",))
    (local,) = list_subsets(str(folder), ("*/caption",))
    assert asked == [("lmms-lab/LLaVA-Video-178K", "dataset")]
    assert [names(each.files) for each in on_hub] == [names(local.files)]
    assert on_hub[0].files[0] == (
        f"hf://datasets/lmms-lab/LLaVA-Video-178K/{PUBLISHED[4]}"
    )


def test_a_hub_that_is_out_of_reach_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between its tries
    said = "^the hub cannot be asked for the files of lmms-lab/clips: .* refused; a "
    with pytest.raises(ConnectionError, match=said):
        list_subsets("lmms-lab/clips")


def test_a_file_on_the_hub_comes_into_the_folder_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(
        repository: str, path: str, *, repo_type: str, local_dir: Path | None
    ) -> str:
        assert (repository, repo_type) == ("a/b", "dataset")
        return str((local_dir or Path("cache")) / path)

    monkeypatch.setattr("recipes.edge.data.data_files.hf_hub_download", download)
    file = "hf://datasets/a/b/c/rows.json"
    assert fetch(file) == Path("cache/c/rows.json")
    assert fetch(file, tmp_path) == tmp_path / "c" / "rows.json"


def test_files_beside_a_file(folder: Path) -> None:
    file = folder / PUBLISHED[3]
    (subset,) = list_subsets(str(file))
    assert subset.files == (str(file),)
    assert names(subset.archives) == names(PUBLISHED[5:7])
    assert fetch(subset.files[0]) == file


@pytest.mark.parametrize("name", ["my/train.jsonl", "train.jsonl"])
def test_a_file_that_is_missing_is_not_asked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recipes.edge.data.data_files._on_hub", None)
    with pytest.raises(FileNotFoundError, match=f"^{name} does not exist; data are"):
        list_subsets(name)


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"none does not exist; data are a file"
    ):
        list_subsets(str(tmp_path / "none"))


def test_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no data files; it or"):
        list_subsets(str(tmp_path))


def test_unsupported_suffix(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,video\n")
    with pytest.raises(
        ValueError,
        match=r"rows\.csv is no data file; its name must end in one of \.json",
    ):
        list_subsets(str(tmp_path / "rows.csv"))


def test_links_lead_to_files_inside(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.mp4").touch()
    (folder / "b.mp4").symlink_to("deep/a.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "up").symlink_to(tmp_path)
    (tmp_path / "c.mp4").touch()
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    for name in ("deep/a.mp4", "b.mp4", str(folder / "b.mp4"), "none.mp4", "loop.mp4"):
        assert find_beside(folder, name) == folder / name
    assert find_beside(linked, "b.mp4") == linked / "b.mp4"
    for name in ("up/c.mp4", str(tmp_path / "c.mp4"), "/etc/passwd", "/dev/zero"):
        with pytest.raises(RowError, match=r" is outside of .*data; clips lie in the"):
            find_beside(folder, name)


@pytest.mark.parametrize("subset", [".", "0_30_s", "deep/er"])
def test_files_in_the_cache_of_the_hub_are_links(tmp_path: Path, subset: str) -> None:
    repository = tmp_path / "datasets--a--b"
    folder = repository / "snapshots" / "123" / subset
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "456").touch()
    (tmp_path / "outside").touch()
    (folder / "a.mp4").symlink_to(repository / "blobs" / "456")
    (folder / "b.mp4").symlink_to(tmp_path / "outside")
    assert find_beside(folder, "a.mp4") == folder / "a.mp4"
    with pytest.raises(RowError, match=r"is outside of .*datasets--a--b; clips lie"):
        find_beside(folder, "b.mp4")


def test_a_folder_called_snapshots_is_no_cache(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "snapshots" / "may" / "cats"
    folder.mkdir(parents=True)
    (tmp_path / "mine" / "secret.mp4").touch()
    (folder / "a.mp4").symlink_to(tmp_path / "mine" / "secret.mp4")
    with pytest.raises(RowError, match=r"is outside of .*cats; clips lie"):
        find_beside(folder, "a.mp4")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_files_without_end_are_not_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(ValueError, match=r"rows\.jsonl? has .* bytes"):
        list(read_rows(path))
