"""Settings of a run: written beside its checkpoints, compared when it goes on."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any


def settings_as_json(config: Any) -> dict[str, Any]:
    """Give a dataclass of settings in the form that a checkpoint keeps.

    Args:
        config: A dataclass of numbers, words and paths.

    Returns:
        Its fields by name; paths become text, and tuples lists.
    """
    settings: dict[str, Any] = json.loads(
        json.dumps(dataclasses.asdict(config), default=str)
    )
    return settings


def check_same_settings(
    before: Mapping[str, Any], config: Any, *, free: Collection[str]
) -> None:
    """Refuse to go on with other settings than a run began with.

    Args:
        before: What ``settings_as_json`` gave when the run began.
        config: The settings now.
        free: Names that may differ.

    Raises:
        ValueError: If any other setting differs; the message names it.
    """
    for name, now in settings_as_json(config).items():
        if name not in free and before.get(name) != now:
            raise ValueError(
                f"{name} is {now!r} but the run began with {before.get(name)!r}; it "
                "goes on with the settings that it began with, or in another output_dir"
            )
