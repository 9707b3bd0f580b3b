"""Every command of the pages is one that the recipes understand."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro

from recipes.ablate import Ablation
from recipes.command_line import parse_command_line
from recipes.config import Config
from recipes.evaluate import Options as Evaluation
from recipes.inspect_data import Options as Inspection

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = {
    "ablate": Ablation,
    "evaluate": Evaluation,
    "inspect_data": Inspection,
}


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """Give the page, the recipe and the words after it, of every command with one."""
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.S | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for i, word in enumerate(words):
                    if found := re.fullmatch(r"recipes/(\w+)\.py", word):
                        yield page.name, found[1], words[i + 1 :]


COMMANDS = [found for found in commands() if found[1] != "run_lmms_eval"]


@pytest.mark.parametrize(
    ("page", "recipe", "words"), COMMANDS, ids=[" ".join(c[:2]) for c in COMMANDS]
)
def test_a_command_is_understood(
    page: str, recipe: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    if recipe in OTHERS:
        tyro.cli(OTHERS[recipe], args=words)
    else:
        values = vars(importlib.import_module(f"recipes.{recipe}")).values()
        (preset,) = (value for value in values if isinstance(value, Config))
        parse_command_line(preset, words)


def test_there_are_commands() -> None:
    assert {recipe for _, recipe, _ in COMMANDS} >= {"qwen2vl_tiny", *OTHERS}


def test_an_unknown_flag_is_found() -> None:
    with pytest.raises(SystemExit):
        parse_command_line(Config(output_dir=Path("runs")), ["--slow-ratio", "1"])
