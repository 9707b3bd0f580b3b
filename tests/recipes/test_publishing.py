"""A file is the old one or the new one, whole, and nothing lies beside it."""

from pathlib import Path

import pytest

from recipes.edge.files.publishing import write_whole, written_aside


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("old")
    with written_aside(file) as aside:
        aside.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    write_whole(file, "old")
    with pytest.raises(KeyboardInterrupt), written_aside(file) as aside:
        aside.write_text("half of th")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_put_in_its_place_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "words.txt"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(folder, "new")
    assert list(tmp_path.iterdir()) == [folder]
