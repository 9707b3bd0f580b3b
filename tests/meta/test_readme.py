"""The README and the pictures say what the library does."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest

from recipes.edge.data.conversations import parse_row
from recipes.edge.data.data_files import read_rows

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ("index.md", "concepts.md", "recipes.md")
COMMANDS = {
    "run": 'pip install -e ".[recipes]" && torchrun --standalone --nproc-per-node 2 '
    "recipes/qwen2vl_tiny.py --output-dir runs/tiny",
    "test": 'pip install -e ".[dev]" && pytest -n auto',
}


def blocks(language: str) -> list[str]:
    """Give the contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_python_blocks_print_what_the_readme_shows() -> None:
    sources, shown = blocks("python"), blocks("text")
    assert sources
    for source, expected in zip(sources, shown, strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "README.md", "exec"), {})
        assert printed.getvalue() == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_marked(name: str) -> None:
    found = re.findall(
        rf"^<!-- command: {name} -->\n```bash\n(.*?)\n```$", README, re.MULTILINE
    )
    assert found == [COMMANDS[name]]


def test_the_rows_are_a_file_that_recipes_read(tmp_path: Path) -> None:
    (rows,) = blocks("json")
    file = tmp_path / "train.json"
    file.write_text(rows)
    (read,) = (parse_row(row, "") for _, row in read_rows(file))
    assert read.sample_id == "0001"
    assert [media.name for media in read.media] == ["videos/cat.mp4"]
    assert [turn.role for turn in read.turns] == ["user", "assistant"]


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_pictures_are_current() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "pictures.py"))["pictures"]()
    folder = ROOT / "docs" / "_static"
    kept = {path.name: path.read_text() for path in folder.glob("*.svg")}
    assert kept == drawn, "python docs/pictures.py draws them anew"


def test_every_picture_is_shown() -> None:
    pages = [README, *((ROOT / "docs" / name).read_text() for name in PAGES)]
    for picture in (ROOT / "docs" / "_static").glob("*.svg"):
        assert any(f"_static/{picture.name})" in page for page in pages), picture.name
