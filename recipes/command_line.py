"""The command line of a recipe: a preset, changed by a file, changed by flags."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from recipes.config import ALIASES, Config, load_config, with_settings
from recipes.edge.ranks.distributed import mistakes_in_words, speaks
from recipes.settings.mappings import setting_names


@dataclass(frozen=True, kw_only=True)
class CommandLine(Config):
    """Settings as flags, and what stands for settings."""

    config: Path | None = None
    """YAML file of settings that replace those of the recipe; flags replace both."""
    bf16: bool | None = None
    """Another name for ``--parallel.compute``: bfloat16 if true, else float32."""
    fp16: bool | None = None
    """Refused if true: losses are not scaled, and bfloat16 needs no scaling."""
    gradient_checkpointing: bool | None = None
    """Another name for ``--parallel.activation-checkpointing``: none if false; if true
    it stays as it is, or becomes full where it is none."""


def parse_command_line(
    preset: Config, arguments: Sequence[str] | None = None
) -> Config:
    """Let a settings file and flags change a preset.

    Ends the process with a message if they cannot, or if help is asked for. Of several
    ranks the main one speaks.

    Args:
        preset: The settings of the recipe.
        arguments: Of the command line; those of this process by default.

    Returns:
        The settings of the run.
    """
    words = given_words(arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    file = first.parse_known_args(words)[0].config
    with mistakes_in_words():
        filled = preset if file is None else load_config(file, preset)
        flags = tyro.cli(
            CommandLine,
            args=words,
            default=CommandLine(**vars(filled), config=file),
            description="Settings of the run. A file replaces those of the recipe, "
            "and flags replace both.",
            console_outputs=speaks(),
        )
        return _config_of(flags, words)


def given_words(arguments: Sequence[str] | None = None) -> list[str]:
    """Give the words of the command line, with ``~`` where a shell leaves it.

    Args:
        arguments: The words; those of this process by default.

    Returns:
        The same words; of ``--name=~/path`` the user's folder is found.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    parts = [re.fullmatch(r"(--[^=]+=)(~.*)", word, re.DOTALL) for word in words]
    return [
        part[1] + os.path.expanduser(part[2]) if part else word  # noqa: PTH111
        for part, word in zip(parts, words, strict=True)
    ]


def _config_of(flags: CommandLine, words: Sequence[str]) -> Config:
    """Give the settings that flags say, other names resolved."""
    values = {name: getattr(flags, name) for name in setting_names(Config)}
    given = {
        name: value for name in ALIASES if (value := getattr(flags, name)) is not None
    }
    written = {word.split("=")[0].replace("_", "-") for word in words}
    parallel = {
        name: value
        for name, value in vars(flags.parallel).items()
        if f"--parallel.{name}".replace("_", "-") in written
    }
    return with_settings(Config(**values), given | {"parallel": parallel})
