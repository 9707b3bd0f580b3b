"""Settings that a run does not read, because another one rules them out."""

from recipes.config import Config
from recipes.settings.mappings import settings_as_json
from recipes.settings.strategies import SETTINGS, settings_read
from recipes.settings.values import by_dotted_name


def unread_settings(config: Config) -> dict[str, str]:
    """Find the settings that may have any value and change nothing.

    Args:
        config: The settings of a run.

    Returns:
        Why each is not read, by dotted name.

    Example:
        >>> from pathlib import Path
        >>> config = Config(output_dir=Path("runs"), data_path="train.jsonl")
        >>> unread_settings(config)["parallel.lora_alpha"]
        'parallel.lora_rank is 0'
    """
    strategy = config.frame_sampling_strategy
    groups = {
        f"frame_sampling_strategy is {strategy!r}, which does not read it": (
            set(SETTINGS.values()) - settings_read(strategy)
        )
    }
    if not config.loss_weight:
        groups["loss_weight is 0"] = {"next_frame_distance"}
    if not config.parallel.lora_rank:
        names = {"parallel.lora_alpha", "parallel.lora_dropout"}
        groups["parallel.lora_rank is 0"] = names
    if config.data_path is None:
        groups["there is no data_path"] = {"data_subsets", "archives_on_disk"}
    elif config.eval_data_path is None:
        groups["there is no eval_data_path"] = {"eval_steps"}
    return {name: reason for reason, names in groups.items() for name in names}


def without_effect(config: Config) -> list[str]:
    """Say which settings have values of their own that change nothing.

    Args:
        config: The settings of a run.

    Returns:
        A sentence for each setting that is not read and has not its default value, in
        the order in which settings are listed.
    """
    unread = unread_settings(config)
    default = Config(output_dir=config.output_dir)
    before = dict(by_dotted_name(settings_as_json(default)))
    return [
        f"{name} is {value!r} but {unread[name]}; it has no effect"
        for name, value in by_dotted_name(settings_as_json(config))
        if name in unread and value != before[name]
    ]
