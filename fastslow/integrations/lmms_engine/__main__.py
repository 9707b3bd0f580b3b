"""Start a run: ``python -m fastslow.integrations.lmms_engine config_yaml=FILE``.

With several processes, ``torchrun ... -m`` in place of ``python -m``.
"""

import sys
from copy import deepcopy
from typing import Any

import torch.distributed as dist
from lmms_engine.launch.cli import (  # type: ignore[import-not-found]
    create_train_task,
    save_config,
)
from lmms_engine.utils.logging_utils import (  # type: ignore[import-not-found]
    setup_distributed_logging,
)
from omegaconf import OmegaConf  # type: ignore[import-not-found]
from yaml import YAMLError

from fastslow.integrations.lmms_engine import read_config, take_over_datasets


def main(arguments: list[str]) -> None:
    """Check the settings of a run, and let lmms-engine train.

    Ends the process with a message if the settings cannot be used.

    Args:
        arguments: ``config_yaml=FILE``, and nothing else: lmms-engine would let the
            file override what stands beside it.
    """
    config = settings_of(arguments)
    take_over_datasets()
    setup_distributed_logging()
    given = deepcopy(config)
    # transformers took it out of what it reads; lmms-engine's trainer still asks.
    warmup_ratio = given["trainer_args"].pop("warmup_ratio", 0.0)
    task = create_train_task(given)
    task.config.trainer_args.warmup_ratio = warmup_ratio
    save_config(config)
    task.build()
    task.run()
    dist.destroy_process_group()


def settings_of(arguments: list[str]) -> dict[str, Any]:
    """Read the settings that the command line names, or end the process."""
    name, _, file = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if name != "config_yaml":
        sys.exit(
            f"error: arguments are {arguments}; there must be one, config_yaml=FILE, "
            "because the file overrides all others"
        )
    try:
        given = OmegaConf.to_container(OmegaConf.load(file))
        if not isinstance(given, dict):
            raise ValueError(f"the file is {given!r}; it must be a mapping of settings")
        return read_config(given)
    except (OSError, ValueError, YAMLError) as error:
        sys.exit(f"error: {file}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
